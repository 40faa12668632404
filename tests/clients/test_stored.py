"""What real clients get of an answer that is over, or that another request began.

The docstring of a test says what it protects. The numbers of the rules are those of the package's docstring.
"""

from __future__ import annotations

import secrets

from tests.clients.programs import Program
from tests.clients.steps import (
    CONTENT_CHUNKS,
    TEXT,
    USAGE,
    about,
    asked,
    content_of,
    text_of,
    whole,
)
from tests.harness.chaos import ChaosProxy
from tests.harness.server import ChatWait
from tests.harness.upstream import (
    Gate,
    Script,
    ScriptedUpstream,
    Token,
    answer,
)


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


def test_two_answers_over_one_client_have_two_ids(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """The same question again is a new answer: without a key nothing is shared."""
    body = about(upstream, answer(["one"]), answer(["two"]))
    one, two = (client.run("stream", chatwait.base_url, request=body)["chunks"] for _ in range(2))
    assert (content_of(one), content_of(two)) == ("one", "two")
    assert one[0]["id"] != two[0]["id"]
