"""What real clients get of an answer: all that the upstream sent, in its order, and nothing else.

The docstring of a test says what it protects. The numbers of the rules are those of the package's docstring.
"""

from __future__ import annotations

import base64
import json
import random
import re
import secrets
from typing import Any

import pytest

from tests.clients.programs import KEY as CLIENT_KEY
from tests.clients.programs import Program
from tests.clients.steps import CONTENT_CHUNKS, about, asked, content_of, deltas, members, text_of
from tests.harness.chaos import ChaosProxy
from tests.harness.script import CREATED, encode_json
from tests.harness.server import ChatWait
from tests.harness.upstream import (
    Delta,
    Done,
    Event,
    Finish,
    Gate,
    Script,
    ScriptedUpstream,
    Step,
    Token,
    Usage,
    answer,
)
from tests.live.steps import KEY

COMPLETION_ID = re.compile(r"chatcmpl-cwc_[A-Za-z0-9_-]{22}")
USAGE = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
TEXT = "".join(CONTENT_CHUNKS)


def whole(message: dict[str, Any], *, finish: str = "stop", headers: dict[str, str] | None = None) -> Script:
    """Write the script of an answer that is not streamed."""
    completion = {
        "id": "chatcmpl-upstream",
        "object": "chat.completion",
        "created": CREATED,
        "model": "scripted",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "refusal": None, **message}, "finish_reason": finish},
        ],
        "usage": USAGE,
        "provider_field": {"kept": True},
    }
    return Script(headers={"content-type": "application/json", **(headers or {})}, body=encode_json(completion))


def chunk(*choices: dict[str, Any], **more: Any) -> Event:
    """Write a chunk with these choices."""
    head = {"id": "chatcmpl-upstream", "object": "chat.completion.chunk", "created": CREATED, "model": "scripted"}
    return Event({**head, "choices": list(choices), **more})


def choice(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish}


def test_answer_that_is_not_streamed_is_the_upstreams_with_an_id_of_the_service(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """`stream: false` is asked as JSON. The answer gets an id of the service. No client's key goes on."""
    body = about(upstream, whole({"content": TEXT}))
    saw = client.run("create", chatwait.base_url, request=body)

    assert "raised" not in saw, saw["raised"]
    completion = saw["completion"]
    assert COMPLETION_ID.fullmatch(completion["id"])
    assert (text_of(completion), completion["usage"]) == (TEXT, USAGE)
    assert completion["choices"][0]["finish_reason"] == "stop"
    assert (completion["object"], completion["created"]) == ("chat.completion", CREATED)
    assert completion["provider_field"] == {"kept": True}
    (record,) = asked(upstream, body)
    assert record.headers["authorization"] == f"Bearer {KEY}"
    assert CLIENT_KEY not in json.dumps(record.headers)
    assert record.headers["accept"] == "application/json"


def test_stream_has_each_chunk_of_the_upstream_as_one_chunk_with_one_id(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """One upstream chunk is one frame, never merged (rule 6); nothing but chunks has `data:` (rule 2)."""
    odd = choice(0, {}, None) | {"logprobs": {"content": [], "refusal": None}}
    steps: list[Step] = [
        Delta({"role": "assistant", "content": ""}),
        *map(Token, CONTENT_CHUNKS),
        chunk(odd, x_odd=[1, None]),
    ]
    body = about(upstream, Script(steps=[*steps, Finish(), Done()]))
    saw = client.run("stream", chatwait.base_url, request=body)

    assert "raised" not in saw, saw["raised"]
    chunks = saw["chunks"]
    assert len(chunks) == len(steps) + 1
    assert [delta.get("content") for delta in deltas(chunks)] == ["", *CONTENT_CHUNKS, None, None]
    (completion_id,) = {chunk["id"] for chunk in chunks}
    assert COMPLETION_ID.fullmatch(completion_id)
    assert {(chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks} == {
        ("chat.completion.chunk", CREATED, "scripted")
    }
    assert chunks[-2]["x_odd"] == [1, None]
    assert chunks[-2]["choices"][0]["logprobs"] == {"content": [], "refusal": None}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    (record,) = asked(upstream, body)
    assert CLIENT_KEY not in json.dumps(record.headers)


def test_choices_of_one_stream_keep_their_order_until_the_last_one_has_finished(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """A log is whole when all of its `n` choices have finished, not the first."""
    steps = [
        chunk(choice(0, {"role": "assistant", "content": "A"}), choice(1, {"role": "assistant", "content": "B"})),
        chunk(choice(0, {"content": "a"}, "stop")),
        chunk(choice(1, {"content": "b"})),
        chunk(choice(1, {"content": "b"})),
        chunk(choice(1, {}, "length")),
    ]
    body = about(upstream, Script(steps=[*steps, Done()]), n=2)
    saw = client.run("stream", chatwait.base_url, request=body, then="retrieve")

    assert "raised" not in saw, saw["raised"]
    chunks = saw["chunks"]
    assert (content_of(chunks, 0), content_of(chunks, 1)) == ("Aa", "Bbb")
    assert len(chunks) == len(steps)
    told = [(one["index"], one["message"]["content"], one["finish_reason"]) for one in saw["retrieved"]["choices"]]
    assert told == [(0, "Aa", "stop"), (1, "Bbb", "length")]
    assert asked(upstream, body)[0].json["n"] == 2


TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
    for name in ("weather", "time")
]


def tool_steps() -> list[Event]:
    """Two calls at once, with arguments in pieces that are no JSON for themselves."""

    def piece(index: int, arguments: str, **more: Any) -> Event:
        call = {"index": index, "function": {"arguments": arguments}, **more}
        return chunk(choice(0, {"tool_calls": [call]}))

    def begin(index: int, name: str) -> Event:
        call = {"index": index, "id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": ""}}
        return chunk(choice(0, {"tool_calls": [call]}))

    return [
        chunk(choice(0, {"role": "assistant", "content": None})),
        begin(0, "weather"),
        piece(0, '{"ci'),
        piece(0, 'ty":"Zü'),
        begin(1, "time"),
        piece(1, '{"city"'),
        piece(0, 'rich"}'),
        piece(1, ':"Bern"}'),
        chunk(choice(0, {}, "tool_calls")),
    ]


CALLS = [("call_weather", "weather", '{"city":"Zürich"}'), ("call_time", "time", '{"city":"Bern"}')]


def calls_of(completion: dict[str, Any]) -> list[tuple[str, str, str]]:
    """List the calls of a whole answer."""
    calls = completion["choices"][0]["message"]["tool_calls"]
    return [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]


def test_tool_calls_in_pieces_come_as_they_were_sent_and_the_stored_answer_has_them_joined(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """What adds more than text is a raw record, in its order; JSON joins as the SDK does."""
    steps = tool_steps()
    body = about(upstream, Script(steps=[*steps, Done()]), tools=TOOLS, tool_choice="auto")
    saw = client.run("stream", chatwait.base_url, request=body, then="retrieve")

    assert "raised" not in saw, saw["raised"]
    assert deltas(saw["chunks"]) == [step.data["choices"][0]["delta"] for step in steps]  # type: ignore[index]
    assert calls_of(saw["retrieved"]) == CALLS
    assert saw["retrieved"]["choices"][0]["finish_reason"] == "tool_calls"


def test_accumulator_of_the_sdk_joins_the_calls_of_a_stream(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Ids of calls stay what they are: only the top level's `id` is replaced."""
    body = about(upstream, Script(steps=[*tool_steps(), Done()]), tools=TOOLS)
    saw = client.run("accumulate", chatwait.base_url, request=body)

    assert "raised" not in saw, saw["raised"]
    assert calls_of(saw["completion"]) == CALLS
    assert COMPLETION_ID.fullmatch(saw["completion"]["id"])


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


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_can_be_read_on_the_chunks(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream, name: str
) -> None:
    """Fields that OpenAI does not know are passed on, and are no text of the answer."""
    steps: list[Step] = [Delta({"role": "assistant", name: "Let "}), Delta({name: "me see."}), Token("Yes."), Finish()]
    body = about(upstream, Script(steps=[*steps, Done()]))
    saw = client.run("stream", chatwait.base_url, request=body, then="retrieve")

    assert "raised" not in saw, saw["raised"]
    assert [delta.get(name) for delta in deltas(saw["chunks"])] == ["Let ", "me see.", None, None]
    if name == "reasoning_content":
        assert saw["reasoning"] == ["Let ", "me see.", None, None]
    message = saw["retrieved"]["choices"][0]["message"]
    assert (message["content"], message[name]) == ("Yes.", "Let me see.")


def test_usage_that_is_asked_for_is_the_last_chunk(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """What the client asks for it gets, as the upstream says it."""
    body = about(upstream, answer(CONTENT_CHUNKS, usage=USAGE), stream_options={"include_usage": True})
    saw = client.run("stream", chatwait.base_url, request=body, naive=False)

    assert "raised" not in saw, saw["raised"]
    *chunks, last = saw["chunks"]
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert all(chunk["choices"] for chunk in chunks)


def test_usage_that_is_not_asked_for_shows_no_chunk_without_choices(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Usage is asked for our books and kept from the client, whose `chunk.choices[0]` would fail."""
    body = about(upstream, answer(CONTENT_CHUNKS, usage=USAGE))
    saw = client.run("stream", chatwait.base_url, request=body, then="retrieve")

    assert "raised" not in saw, saw["raised"]
    assert content_of(saw["chunks"]) == TEXT
    assert all(chunk["choices"] for chunk in saw["chunks"])
    assert asked(upstream, body)[0].json["stream_options"]["include_usage"] is True
    assert saw["retrieved"]["usage"] == USAGE  # JSON of a streamed log always has it


def test_chunk_without_choices_that_is_no_usage_stays(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Azure's first chunk tells what its filter found."""
    found = [{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}]
    steps: list[Step] = [chunk(prompt_filter_results=found), Token("Hello"), Finish(), Usage(USAGE), Done()]
    body = about(upstream, Script(steps=steps))
    saw = client.run("stream", chatwait.base_url, request=body, naive=False)

    assert "raised" not in saw, saw["raised"]
    first, *rest = saw["chunks"]
    assert (first["choices"], first["prompt_filter_results"]) == ([], found)
    assert all(chunk["choices"] for chunk in rest)


def test_stored_answer_is_the_one_that_was_not_streamed(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """The upstream's JSON is one raw record, and is read again as it came."""
    body = about(upstream, whole({"content": TEXT}))
    first = client.run("create", chatwait.base_url, request=body)["completion"]
    again = client.run("retrieve", chatwait.base_url, id=first["id"])

    assert again.get("completion") == first
    assert len(asked(upstream, body)) == 1


def test_accumulator_of_the_sdk_and_the_stored_answer_agree(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """JSON of a streamed log joins the deltas as the SDK's accumulator does."""
    body = about(upstream, answer(CONTENT_CHUNKS, usage=USAGE))
    joined = client.run("accumulate", chatwait.base_url, request=body)["completion"]
    stored = client.run("retrieve", chatwait.base_url, id=joined["id"])["completion"]

    assert text_of(stored) == text_of(joined) == TEXT
    for name in ("id", "model", "created", "object"):
        assert stored[name] == joined[name], name
    assert stored["choices"][0]["finish_reason"] == joined["choices"][0]["finish_reason"] == "stop"


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


def test_deleted_answer_is_gone(client: Program, chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """DELETE answers as OpenAI does, and from then on the answer is unknown."""
    body = about(upstream, answer(CONTENT_CHUNKS))
    completion_id = client.run("stream", chatwait.base_url, request=body)["chunks"][0]["id"]
    saw = client.run("delete", chatwait.base_url, id=completion_id)
    assert saw.get("deleted") == {"id": completion_id, "object": "chat.completion.deleted", "deleted": True}, saw

    saw = client.run("retrieve", chatwait.base_url, id=completion_id)
    assert "NotFoundError" in saw["raised"]["names"], saw


def test_delete_of_a_running_answer_stops_it_and_never_passes_for_its_end(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """DELETE stops the model and cuts the readers."""
    body = about(upstream, Script(steps=[Token("One "), Token("two "), Gate("stays shut")]))
    saw = client.run("stream", chatwait.base_url, request=body, delete_after=2)

    assert saw.get("deleted", {}).get("deleted") is True, saw
    assert len(saw["chunks"]) == 2
    assert saw.get("raised"), "a deleted answer passed for a whole one"
    asked(upstream, body)[0].wait_closed()


def test_answer_of_another_key_is_unknown(client: Program, chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """A log is bound to its client's `Authorization`; a foreign one is like none."""
    body = about(upstream, answer(CONTENT_CHUNKS))
    completion_id = client.run("stream", chatwait.base_url, request=body)["chunks"][0]["id"]
    foreign = "sk-another-0123456789abcdefghijklmno"
    for scenario in ("retrieve", "delete"):
        saw = client.run(scenario, chatwait.base_url, id=completion_id, key=foreign)
        assert "NotFoundError" in saw["raised"]["names"], saw

    assert text_of(client.run("retrieve", chatwait.base_url, id=completion_id)["completion"]) == TEXT


def test_two_requests_with_one_idempotency_key_get_one_answer(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy
) -> None:
    """The key is bound to route, body and client; a second request attaches to the first one's log."""
    body = about(upstream, answer(CONTENT_CHUNKS))
    keyed = {**body, "extra_headers": {"Idempotency-Key": secrets.token_urlsafe(24)}}
    one, two = (client.run("stream", origin, request=keyed) for origin in (chatwait.base_url, proxy.base_url))

    assert "raised" not in two, two["raised"]
    assert one["chunks"] == two["chunks"]
    assert len(asked(upstream, body)) == 1

    saw = client.run("stream", chatwait.base_url, request={**keyed, "temperature": 1})
    assert saw["raised"]["status_code"] == 422


def test_route_that_is_not_served_says_what_is(client: Program, chatwait: ChatWait) -> None:
    """Other routes of OpenAI's are 404 in OpenAI's shape, and name what is served."""
    saw = client.run("embeddings", chatwait.base_url)
    assert "NotFoundError" in saw["raised"]["names"], saw
    assert "/v1/chat/completions" in saw["raised"]["message"]


def test_two_answers_over_one_client_have_two_ids(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """The same question again is a new answer: without a key nothing is shared."""
    body = about(upstream, answer(["one"]), answer(["two"]))
    one, two = (client.run("stream", chatwait.base_url, request=body)["chunks"] for _ in range(2))
    assert (content_of(one), content_of(two)) == ("one", "two")
    assert one[0]["id"] != two[0]["id"]
