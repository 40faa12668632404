"""A connection that breaks, a worker that dies, a deploy: a real client raises, and can fetch the whole answer.

The docstring of a test says what it protects. The numbers of the rules are those of the package's docstring.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.clients.programs import Program
from tests.clients.steps import CONTENT_CHUNKS, TEXT, about, asked, content_of, text_of
from tests.harness.chaos import ChaosProxy, CleanCloseAfter, CutAfter
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Step, Token
from tests.live.steps import log_name, settings

SEEN = 3
"""How many chunks a client has when its connection breaks."""
STEPS: list[Step] = [
    *map(Token, CONTENT_CHUNKS[:SEEN]),
    Gate("cut"),
    *map(Token, CONTENT_CHUNKS[SEEN:]),
    Finish(),
    Done(),
]
LONG = [f"{number} é🙂 {'.' * 400} " for number in range(60)]


def assert_raised(saw: dict[str, Any], seen: list[str]) -> None:
    """Check that the client got these texts, and then no end but an error."""
    assert [text for text in saw["texts"] if text] == seen
    assert saw.get("raised"), "a part of an answer passed for the whole"


def test_cut_is_raised_and_the_stored_answer_is_whole(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy
) -> None:
    """With nothing installed, `retrieve(chunk.id)` after a cut returns the whole answer; it is paid once."""
    body = about(upstream, Script(steps=STEPS))
    options = {"pause_after": SEEN, "then": "retrieve", "pause_before_then": True}
    client.begin("stream", proxy.base_url, request=body, **options)
    client.wait_reached("chunk")
    proxy.cut_all()
    client.wait_reached("then")
    upstream.open("cut")
    client.go_on()
    saw = client.result()

    assert_raised(saw, CONTENT_CHUNKS[:SEEN])
    assert text_of(saw["retrieved"]) == TEXT
    assert saw["retrieved"]["choices"][0]["finish_reason"] == "stop"
    assert len(asked(upstream, body)) == 1


def test_answer_that_still_runs_is_waited_for_after_a_cut(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy
) -> None:
    """GET as JSON waits until the answer is complete."""
    body = about(upstream, Script(steps=STEPS))
    client.begin("stream", proxy.base_url, request=body, pause_after=SEEN, then="retrieve")
    client.wait_reached("chunk")
    passed = proxy.connections
    proxy.cut_all()
    proxy.wait_until(lambda: proxy.connections > passed, 20, "the client asks for the stored answer")
    upstream.open("cut")
    saw = client.result()

    assert_raised(saw, CONTENT_CHUNKS[:SEEN])
    assert text_of(saw["retrieved"]) == TEXT
    assert len(asked(upstream, body)) == 1


@pytest.mark.parametrize("policy", [CutAfter(9_000), CleanCloseAfter(9_000)], ids=["reset", "close"])
def test_close_in_the_middle_of_a_frame_never_passes_for_the_end(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy, policy: Any
) -> None:
    """The head has no `Connection: close`, behind which Node 20 takes any close for the end (rule 4)."""
    steps: list[Step] = [*map(Token, LONG), Finish(), Done()]
    body = about(upstream, Script(steps=steps))
    proxy.plan(policy)
    saw = client.run("stream", proxy.base_url, request=body, then="retrieve")

    assert 0 < len(saw["chunks"]) < len(LONG)
    assert_raised(saw, LONG[: len(saw["chunks"])])
    assert text_of(saw["retrieved"]) == "".join(LONG)


def test_client_that_closes_its_stream_can_fetch_the_whole_answer(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Leaving stops nothing at once: within STOP_GRACE_SECONDS `retrieve(chunk.id)` finds the answer going on."""
    body = about(upstream, Script(steps=STEPS))
    client.begin("stream", chatwait.base_url, request=body, leave_after=SEEN, then="retrieve", pause_before_then=True)
    stream_id = client.wait_reached("left")["id"].removeprefix("chatcmpl-")
    client.wait_reached("then")
    chatwait.wait_for_log("reader_left", timeout=20.0, stream=log_name(stream_id))
    upstream.open("cut")
    client.go_on()
    saw = client.result()

    assert "raised" not in saw, saw["raised"]
    assert text_of(saw["retrieved"]) == TEXT


def test_killed_worker_never_passes_for_the_end(client: Program, upstream: ScriptedUpstream) -> None:
    """A body ends properly only behind `[DONE]` (rule 3)."""
    body = about(upstream, Script(steps=STEPS))
    with ChatWait(check_output=False, **settings(upstream, ALLOWED_MODELS="scripted")) as chatwait:
        client.begin("stream", chatwait.base_url, request=body, pause_after=SEEN)
        client.wait_reached("chunk")
        (worker,) = chatwait.worker_pids()
        os.kill(worker, signal.SIGKILL)
        assert_raised(client.result(), CONTENT_CHUNKS[:SEEN])


def test_drain_that_cannot_wait_longer_never_passes_for_the_end(client: Program, upstream: ScriptedUpstream) -> None:
    """The drain ends an answer as cancelled or cuts it; in both cases the client raises (rule 3)."""
    body = about(upstream, Script(steps=STEPS))
    with ChatWait(**settings(upstream, ALLOWED_MODELS="scripted", DRAIN_SECONDS=1)) as chatwait:
        client.begin("stream", chatwait.base_url, request=body, pause_after=SEEN)
        client.wait_reached("chunk")
        assert chatwait.stop() == 0
        assert_raised(client.result(), CONTENT_CHUNKS[:SEEN])


def test_answer_that_ends_within_the_drain_is_whole(client: Program, upstream: ScriptedUpstream) -> None:
    """A deploy is not noticed by who reads, also not by a `Connection: close` (rule 4)."""
    body = about(upstream, Script(steps=STEPS))
    with ChatWait(**settings(upstream, ALLOWED_MODELS="scripted")) as chatwait:
        client.begin("stream", chatwait.base_url, request=body, pause_after=SEEN)
        client.wait_reached("chunk")
        chatwait.signal(signal.SIGTERM)
        chatwait.wait_for_log("drain_started")
        upstream.open("cut")
        saw = client.result()
        assert chatwait.wait_exit(35.0) == 0

    assert "raised" not in saw, saw["raised"]
    assert content_of(saw["chunks"]) == TEXT
    assert saw["chunks"][-1]["choices"][0]["finish_reason"] == "stop"
