"""Real clients and a model that says nothing for a long while: the stream lives, and no client takes it for an end.

The docstring of a test says what it protects. The numbers of the rules are those of the package's docstring.
"""

from __future__ import annotations

import contextlib
from functools import partial

from tests.clients.programs import Program
from tests.clients.steps import CONTENT_CHUNKS, TEXT, about, content_of, whole
from tests.harness.chaos import ChaosProxy
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Pause, Script, ScriptedUpstream, Token
from tests.live.steps import settings

HEARTBEATS = 6
SPOKEN = 2
HEARTBEAT_BYTES = len("c\r\n: keepalive\n\r\n")
PATIENCE_SECONDS = 4.0
"""How long the clients of these tests wait for a byte: shorter than the silence, longer than between heartbeats."""


def has_passed(proxy: ChaosProxy, size: int) -> bool:
    """Tell whether so many bytes have come down. Units: bytes."""
    return proxy.bytes_down >= size


def test_heartbeats_keep_a_silent_stream_alive(
    clients: list[Program], chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """A heartbeat is one line: behind a blank line openai-python would parse nothing as JSON (rule 1).

    The clients give up after 4 s without a byte (openai-node only until the head). The silence takes longer.
    """
    tokens = [Token(text) for text in CONTENT_CHUNKS]
    body = about(upstream, Script(steps=[*tokens[:SPOKEN], Gate("silence"), *tokens[SPOKEN:], Finish(), Done()]))
    with contextlib.ExitStack() as running:
        proxies = [running.enter_context(ChaosProxy("127.0.0.1", chatwait.port)) for _ in clients]
        for client, proxy in zip(clients, proxies, strict=True):
            client.begin("stream", proxy.base_url, request=body, timeout=PATIENCE_SECONDS, pause_after=SPOKEN)
        for client in clients:
            client.wait_reached("chunk")
        enough = [(proxy, proxy.bytes_down + HEARTBEATS * HEARTBEAT_BYTES) for proxy in proxies]
        for proxy, size in enough:
            proxy.wait_until(partial(has_passed, proxy, size), 60, "heartbeats")
        upstream.open("silence")
        for client in clients:
            saw = client.result()
            assert "raised" not in saw, (client.kind, saw["raised"])
            assert content_of(saw["chunks"]) == TEXT, client.kind


def test_answer_that_is_not_streamed_may_take_longer_than_a_stream_may_be_silent(
    clients: list[Program], upstream: ScriptedUpstream
) -> None:
    """With `stream: false` the limit of silence is MAX_GENERATION_SECONDS, not TIMEOUT_SECONDS."""
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
    """After TIMEOUT_SECONDS the answer has failed. No client takes what it has for the whole."""
    body = about(upstream, Script(steps=[Token("One "), Gate("stays shut")]))
    with ChatWait(**settings(upstream, TIMEOUT_SECONDS=1, ALLOWED_MODELS="scripted")) as chatwait:
        saw = client.run("stream", chatwait.base_url, request=body)
        assert content_of(saw["chunks"]) == "One "
        assert saw["raised"]["names"][0] == "APIError"
        assert saw["raised"]["code"] == "upstream_timeout"
