"""What real clients ask for, what of it reaches the upstream, and what the heads of the answers say.

The docstring of a test says what it protects. The numbers of the rules are those of the package's docstring.
"""

from __future__ import annotations

import base64
import json
import random

import pytest

from tests.clients.programs import Program
from tests.clients.steps import (
    CONTENT_CHUNKS,
    TEXT,
    about,
    asked,
    content_of,
    members,
    whole,
)
from tests.harness.server import ChatWait
from tests.harness.upstream import (
    Script,
    ScriptedUpstream,
    answer,
)

SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "city",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"größe": {"type": "number", "minimum": 0.1, "maximum": 1e22}, "a": {"const": "\u2028\\/"}},
            "required": ["größe", "a"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("is_streamed", [False, True], ids=["json", "stream"])
def test_request_reaches_the_upstream_byte_for_byte(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream, *, is_streamed: bool
) -> None:
    """The same client asks the upstream directly, too. All but what we add for our books is the same."""
    script = answer(['{"größe":', '1,"a":"x"}']) if is_streamed else whole({"content": '{"größe":1,"a":"x"}'})
    more = {"temperature": 0.30000000000000004, "seed": 2**53, "metadata": {"a": "ß"}, "logit_bias": {"50256": -100}}
    extra = {"extra_body": {"top_k": 7, "chat_template_kwargs": {"enable_thinking": False}}}
    body = about(upstream, script, response_format=SCHEMA, **more, **extra)
    scenario = "stream" if is_streamed else "create"
    for origin in (upstream.origin, chatwait.base_url):
        saw = client.run(scenario, origin, request=body)
        assert "raised" not in saw, saw["raised"]
    direct, through = (members(record.body) for record in asked(upstream, body))

    if is_streamed:
        assert json.loads(through.pop("stream_options")) == {"include_usage": True}
    assert through == direct
    assert json.loads(direct["response_format"]) == SCHEMA
    assert {"top_k", "chat_template_kwargs", "seed", "metadata"} <= direct.keys()


def test_image_of_some_megabytes_reaches_the_upstream(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Content parts are opaque, and a body may have up to OPENAI_MAX_BODY_BYTES."""
    picture = base64.b64encode(random.Random(1).randbytes(3 << 20)).decode()
    parts = [
        {"type": "text", "text": "What is on this picture of the test of images?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}", "detail": "low"}},
    ]
    body = {"model": "scripted", "messages": [{"role": "user", "content": parts}]}
    upstream.then(answer(["A tree."]))
    saw = client.run("stream", chatwait.base_url, request=body)

    assert "raised" not in saw, saw["raised"]
    assert content_of(saw["chunks"]) == "A tree."
    (record,) = asked(upstream, body)
    assert len(record.body) > 4 << 20


@pytest.mark.parametrize("scenario", ["create_raw", "stream_raw"])
def test_headers_name_the_request_the_stream_and_the_limits(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream, scenario: str
) -> None:
    """`x-request-id` is what SDKs show; the upstream's limits are passed on; a `Location` is relative (rule 7)."""
    limits = {"x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-tokens": "6m0s"}
    streamed = answer(CONTENT_CHUNKS)
    script = whole({"content": TEXT}, headers=limits)
    if scenario == "stream_raw":
        script = Script(headers=limits, steps=streamed.steps)
    body = about(upstream, script)
    saw = client.run(scenario, chatwait.base_url, request=body)

    assert "raised" not in saw, saw["raised"]
    headers = saw["headers"]
    completion_id = (saw.get("completion") or saw["chunks"][0])["id"]
    stream_id = completion_id.removeprefix("chatcmpl-")
    assert headers["x-stream-id"] == stream_id
    assert headers["x-request-id"]
    assert headers["x-request-id"] not in {"req_1", stream_id}
    assert {name: headers.get(name) for name in limits} == limits
    query = "?stream=true" if scenario == "stream_raw" else ""
    assert headers["location"] == f"/v1/chat/completions/{completion_id}{query}"
    assert headers.get("connection", "").lower() != "close"


def test_request_id_of_the_sdk_is_that_of_the_log(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Who reports a fault names the id that their SDK shows them."""
    body = about(upstream, whole({"content": TEXT}))
    saw = client.run("create", chatwait.base_url, request=body)

    assert saw["request_id"]
    chatwait.wait_for_log(lambda record: saw["request_id"] in record.values())


def test_models_are_listed_and_one_with_a_slash_is_found(client: Program, chatwait: ChatWait) -> None:
    """Strict clients need `created` and `owned_by`; SDKs send the slash of a model's name as %2F."""
    listed = client.run("models", chatwait.base_url)["models"]
    assert {"scripted", "org/model"} <= {model["id"] for model in listed}
    for model in listed:
        assert model["object"] == "model"
        assert isinstance(model["created"], int)
        assert isinstance(model["owned_by"], str)

    saw = client.run("model", chatwait.base_url, model="org/model")
    assert saw.get("model") in listed, saw
    assert saw["model"]["id"] == "org/model"


def test_model_that_is_not_there_is_not_found(client: Program, chatwait: ChatWait) -> None:
    saw = client.run("model", chatwait.base_url, model="org/other")
    assert "NotFoundError" in saw["raised"]["names"], saw


def test_route_that_is_not_served_says_what_is(client: Program, chatwait: ChatWait) -> None:
    """Other routes of OpenAI's are 404 in OpenAI's shape, and name what is served."""
    saw = client.run("embeddings", chatwait.base_url)
    assert "NotFoundError" in saw["raised"]["names"], saw
    assert "/v1/chat/completions" in saw["raised"]["message"]
