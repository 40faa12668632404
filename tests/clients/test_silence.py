"""Real clients and a model that says nothing for a long while: the stream lives, and no client takes it for an end.

The rules are those of the service for OpenAI's chat completions: a docstring says which one a test protects.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.conftest import lend
from tests.clients.programs import KINDS, Program
from tests.clients.steps import CONTENT_CHUNKS, about, content_of
from tests.clients.test_answers import whole
from tests.harness.chaos import ChaosProxy
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Pause, Script, ScriptedUpstream, Token
from tests.live.steps import settings

HEARTBEATS = 6
HEARTBEAT_BYTES = len("c\r\n: keepalive\n\r\n")
PATIENCE_SECONDS = 4.0
"""How long the clients of these tests wait for a byte: shorter than the silence, longer than between heartbeats."""


@pytest.fixture
def clients(programs: dict[str, Program]) -> Iterator[list[Program]]:
    """All real clients: what takes long they do at the same time."""
    lent = [lend(programs, kind) for kind in KINDS]
    yield [next(one) for one in lent]
    for one in lent:
        next(one, None)


def wait_for_heartbeats(proxy: ChaosProxy) -> None:
    """Wait until some have passed, behind the head of the answer."""
    proxy.wait_until(lambda: proxy.bytes_down, 20, "the head")
    enough = proxy.bytes_down + HEARTBEATS * HEARTBEAT_BYTES
    proxy.wait_until(lambda: proxy.bytes_down >= enough, 60, "heartbeats")


@pytest.mark.parametrize("spoken", [0, 2], ids=["before the first chunk", "between two chunks"])
def test_heartbeats_keep_a_silent_stream_alive(
    clients: list[Program], chatwait: ChatWait, upstream: ScriptedUpstream, spoken: int
) -> None:
    """A heartbeat is one line: with a blank line behind it, openai-python would parse nothing as JSON (rule 1).

    The clients give up after 4 s without a byte (openai-node only until the head). The silence takes longer.
    """
    tokens = [Token(text) for text in CONTENT_CHUNKS]
    body = about(upstream, Script(steps=[*tokens[:spoken], Gate("silence"), *tokens[spoken:], Finish(), Done()]))
    proxies = [ChaosProxy("127.0.0.1", chatwait.port).start() for _ in clients]
    try:
        for client, proxy in zip(clients, proxies, strict=True):
            more = {"pause_after": spoken} if spoken else {"timeout": 20.0}  # the head may be held back for 10 s
            options = {"timeout": PATIENCE_SECONDS, **more}
            client.begin("stream", proxy.base_url, request=body, **options)
        if spoken:
            for client in clients:
                client.wait_reached("chunk")
        else:
            upstream.wait_reached("silence", count=len(clients))
        for proxy in proxies:
            wait_for_heartbeats(proxy)
        upstream.open("silence")
        for client in clients:
            saw = client.result()
            assert "raised" not in saw, (client.kind, saw["raised"])
            assert content_of(saw["chunks"]) == "".join(CONTENT_CHUNKS), client.kind
    finally:
        for proxy in proxies:
            proxy.stop()


def test_silence_of_25_seconds_with_the_usual_settings(clients: list[Program], upstream: ScriptedUpstream) -> None:
    """The head comes after 10 s at most, heartbeats each HEARTBEAT_SECONDS: no client's 15 s are over (section 3)."""
    body = about(upstream, Script(steps=[Pause(25), *map(Token, CONTENT_CHUNKS), Finish(), Done()]))
    usual = settings(upstream, HEARTBEAT_SECONDS=None, ALLOWED_MODELS="scripted")
    with ChatWait(**usual) as chatwait:
        for client in clients:
            client.begin("stream", chatwait.base_url, request=body, timeout=15.0, retries=0)
        for client in clients:
            saw = client.result()
            assert "raised" not in saw, (client.kind, saw["raised"])
            assert content_of(saw["chunks"]) == "".join(CONTENT_CHUNKS), client.kind


def test_answer_that_is_not_streamed_may_take_longer_than_a_stream_may_be_silent(
    clients: list[Program], upstream: ScriptedUpstream
) -> None:
    """With `stream: false` the limit of silence is MAX_GENERATION_SECONDS, not TIMEOUT_SECONDS (section 3, `stream`)."""
    slow = whole({"content": "At last."})
    body = about(upstream, Script(headers=slow.headers, before=[Pause(4)], body=slow.body))
    with ChatWait(**settings(upstream, TIMEOUT_SECONDS=1, ALLOWED_MODELS="scripted")) as chatwait:
        for client in clients:
            client.begin("create", chatwait.base_url, request=body, retries=0)
        for client in clients:
            saw = client.result()
            assert "raised" not in saw, (client.kind, saw["raised"])
            assert saw["completion"]["choices"][0]["message"]["content"] == "At last.", client.kind


def test_stream_that_is_silent_for_too_long_is_raised(client: Program, upstream: ScriptedUpstream) -> None:
    """After TIMEOUT_SECONDS the answer has failed, and no client takes what it has for the whole (section 3, Status)."""
    body = about(upstream, Script(steps=[Token("One "), Gate("stays shut")]))
    with ChatWait(**settings(upstream, TIMEOUT_SECONDS=1, ALLOWED_MODELS="scripted")) as chatwait:
        saw = client.run("stream", chatwait.base_url, request=body)
        assert content_of(saw["chunks"]) == "One "
        assert saw["raised"]["names"][0] == "APIError"
        assert saw["raised"]["code"] == "upstream_timeout"
