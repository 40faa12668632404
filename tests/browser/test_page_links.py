"""The chat page over links that go silent, refuse, or answer for themselves: it says so, and comes back by itself."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import OpenChat, RunService
from tests.browser.page_steps import LOST, assert_whole, gated, open_gates, status
from tests.harness.chaos import Answer, BlackholeAfter, ChaosProxy, CleanCloseAfter
from tests.harness.upstream import ScriptedUpstream

pytestmark = pytest.mark.browser

TOKENS = ["One ", "two, ", "three, ", "and four."]
TEXT = "".join(TOKENS)
HALF = TOKENS[0] + TOKENS[1]
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/html\r\nRetry-After: 2\r\nConnection: close\r\n"
    b"Content-Length: 52\r\n\r\n<html><h1>Backend fetch failed: try later</h1></html>"
)

AWAY = {
    "error_code": "store_unavailable",
    "message": "The server cannot reach its storage.",
    "detail": "It does not answer.",
    "action": "Try again in a few seconds.",
    "correlation_id": "4f1c2a90-7d0b-4b7e-9c55-0e6a3d1f8b21",
    "origin": "service",
    "retryable": True,
    "retry_after_seconds": 2,
}


def answered(status: str, kind: str, body: str) -> bytes:
    more = "Retry-After: 2\r\n" if status.startswith("503") else ""
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.fixture
def half(proxied: ChatPage, upstream: ScriptedUpstream) -> ChatPage:
    """Give a page that has read two of four tokens; the others are behind the gates 2 and 3, the end behind 4."""
    upstream.always(gated(TOKENS))
    open_gates(upstream, 0, 2)
    proxied.open()
    proxied.send("Count to four.")
    proxied.wait_text(HALF)
    upstream.wait_reached("2")
    return proxied


@pytest.mark.requirement("page edge 6", "page US3.1", "page SC-007")
def test_page_on_a_link_that_went_silent_says_so_and_reads_on(
    half: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    """No FIN and no RST: only the missing heartbeats tell. The first connection after it is as silent."""
    half.expect_fault(LOST)
    proxy.plan(BlackholeAfter(0))
    assert proxy.live == 1
    went_silent = time.monotonic()
    proxy.blackhole_all(counted=True)
    half.wait_state("reconnecting", seconds=10)
    assert time.monotonic() - went_silent > 1.4  # at most a heartbeat of 1 s may have been on its way
    half.wait_shown(r"Connection lost\. 2 words are safe\. Reconnecting")
    assert half.text() == HALF

    proxy.wait_until(lambda: proxy.connections >= 3, 15, "the page to leave the second silent connection")
    open_gates(upstream, 2, 5)
    assert assert_whole(half, upstream, TEXT, 4)["reconnects"] >= 1


@pytest.mark.long
@pytest.mark.requirement("page edge 6", "page SC-007")
def test_page_on_a_link_that_went_silent_tells_since_when_before_it_reconnects(
    run_service: RunService, open_chat: OpenChat, upstream: ScriptedUpstream
) -> None:
    upstream.always(gated(TOKENS))
    open_gates(upstream, 0, 2)
    service = run_service(HEARTBEAT_SECONDS=3)
    with ChaosProxy("127.0.0.1", service.port, marker=b"/chat/streaming") as proxy:
        chat = open_chat(proxy.base_url).open()
        chat.expect_fault(LOST)
        chat.send("Count to four.")
        chat.wait_text(HALF)
        proxy.blackhole_all(counted=True)
        chat.wait_shown(r"No sign from the server for 5 s")
        assert (chat.state() in ("streaming", "slow"), chat.text()) == (True, HALF)
        chat.wait_state("reconnecting")
        assert "No sign" not in chat.shown()
        open_gates(upstream, 2, 5)
        assert_whole(chat, upstream, TEXT, 4)
        chat.page.close()


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.requirement("page edge 6", "page US3.1")
def test_page_whose_kept_connections_are_all_dead_comes_back_before_it_gives_up(
    run_service: RunService, open_chat: OpenChat, upstream: ScriptedUpstream
) -> None:
    """A browser tries its idle connections first, one after another, and each of them is silent."""
    upstream.always(gated(TOKENS))
    open_gates(upstream, 0, 2)
    service = run_service(HEARTBEAT_SECONDS=10, TIMEOUT_SECONDS=300)
    with ChaosProxy("127.0.0.1", service.port, marker=b"/chat/streaming") as proxy:
        chat = open_chat(proxy.base_url).open()
        chat.send("Count to four.")
        chat.wait_text(HALF)
        proxy.blackhole_all()
        chat.wait_state("reconnecting", seconds=40)
        proxy.wait_until(lambda: proxy.connections >= 2, 80, "the page to find a connection that lives")
        open_gates(upstream, 2, 5)
        assert_whole(chat, upstream, TEXT, 4)
        chat.page.close()


@pytest.mark.requirement("page US3.1", "page US3.2", "page FR-006")
@pytest.mark.parametrize("how", [pytest.param("by itself", marks=pytest.mark.long), "by Try now"])
def test_page_refused_for_ten_seconds_comes_back(
    half: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream, how: str
) -> None:
    half.expect_fault(LOST)
    proxy.refuse()
    proxy.cut_all()
    refused = time.monotonic()
    half.wait_shown(r"Connection lost\. 2 words are safe\. Reconnecting")
    open_gates(upstream, 2, 5)  # the model goes on meanwhile
    half.wait_shown(r"Reconnecting… Next try in [6-9] s", seconds=25)
    assert (half.text(), half.state()) == (HALF, "reconnecting")
    assert time.monotonic() - refused > 5

    proxy.accept()
    if how == "by Try now":
        half.press("Try now")
        half.wait_state("complete", seconds=4)
    assert_whole(half, upstream, TEXT, 4)


@pytest.mark.requirement("page FR-006", "page US3.1")
def test_page_whose_resume_meets_a_proxys_503_waits_as_told_and_shows_nothing_of_it(
    half: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    half.expect_fault(LOST)
    half.expect_fault(status(503))
    proxy.plan(Answer(BUSY))
    proxy.cut_all()
    proxy.wait_until(lambda: proxy.connections == 2, what="the resume that meets the 503")
    met = time.monotonic()
    half.wait_shown("2 words are safe")
    proxy.wait_until(lambda: proxy.connections == 3, what="the next resume")
    assert time.monotonic() - met > 1.8
    assert half.text() == HALF
    open_gates(upstream, 2, 5)
    assert_whole(half, upstream, TEXT, 4)
    assert "Backend" not in half.page.content()


@pytest.mark.requirement("page FR-006")
def test_page_whose_message_meets_a_proxys_503_sends_it_again(
    proxied: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    proxied.expect_fault(status(503))
    proxied.open()
    proxy.plan(Answer(BUSY))
    proxied.send("Say hello.")
    proxied.wait_state("reconnecting")
    assert upstream.completions == []
    assert_whole(proxied, upstream, "Hello, world.", 4)
    assert "Backend" not in proxied.page.content()


@pytest.mark.requirement("page edge 6", "page FR-006")
def test_page_whose_stream_is_ended_in_good_form_before_its_end_reads_on(
    half: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    """A proxy may end an answer as if it were whole; without a terminal event it is not."""
    half.expect_fault(LOST)
    stream_id = half.stored_answers()[-1]["streamId"]
    data = json.dumps({"sequence": 3, "count": 1, "content": TOKENS[2], "is_final": False})
    events = f"event: ping\ndata: {{}}\n\nevent: token\ndata: {data}\nid: {stream_id}.3\n\n".encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {len(events)}\r\n\r\n".encode()
    proxy.refuse()
    proxy.cut_all()
    open_gates(upstream, 2, 3)
    upstream.wait_reached("3")  # so the service has the third token, too
    proxy.plan(Answer(head + events))
    proxy.accept()
    half.wait_text(HALF + TOKENS[2])
    proxy.wait_until(lambda: proxy.connections == 3, what="the page to come back from a whole answer")
    half.wait_state("streaming")
    open_gates(upstream, 3, 5)
    assert assert_whole(half, upstream, TEXT, 4)["reconnects"] == 2


def test_page_of_a_service_whose_storage_is_away_goes_on_quietly(
    half: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    """What may not be resumable is read like anything else, and a resume that is refused for it is tried again."""
    half.expect_fault(LOST)
    half.expect_fault(status(503))
    stream_id = half.stored_answers()[-1]["streamId"]
    data = json.dumps({"sequence": 3, "count": 1, "content": TOKENS[2], "is_final": False})
    frames = [
        f'event: ping\ndata: {{"phase":"generating","tokens":2}}\nid: {stream_id}.2',
        'event: unresumable\ndata: {"tokens":2}',
        f"event: token\ndata: {data}\nid: {stream_id}.3",
        'event: resumable\ndata: {"tokens":3}',
        'event: unresumable\ndata: {"tokens":3}',
    ]
    proxy.refuse()
    proxy.cut_all()
    open_gates(upstream, 2, 3)
    upstream.wait_reached("3")
    proxy.plan(Answer(answered("200 OK", "text/event-stream", "".join(f"{one}\n\n" for one in frames))))
    proxy.plan(Answer(answered("503 Service Unavailable", "application/json", json.dumps(AWAY))))
    proxy.accept()
    half.wait_text(HALF + TOKENS[2])
    proxy.wait_until(lambda: proxy.connections == 3, what="the resume that is refused")
    assert (half.text(), half.has_button("Reconnect"), half.has_button("Ask again")) == (HALF + TOKENS[2], False, False)
    proxy.wait_until(lambda: proxy.connections == 4, what="the next resume")
    open_gates(upstream, 3, 5)
    assert assert_whole(half, upstream, TEXT, 4)["reconnects"] == 2


@pytest.mark.requirement("page edge 6", "page US3.1")
def test_page_whose_connection_is_closed_in_mid_stream_reads_on(
    proxied: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    """With FIN, and not RST."""
    proxied.expect_fault(LOST)
    upstream.always(gated(TOKENS))
    proxied.open()
    proxy.plan(CleanCloseAfter(1_000))
    proxied.send("Count to four.")
    proxied.wait_state("waiting")
    open_gates(upstream, 0, 4)
    proxied.wait_text(TEXT)
    proxy.wait_until(lambda: proxy.connections == 2, what="the page to come back")
    upstream.open("4")
    assert assert_whole(proxied, upstream, TEXT, 4)["reconnects"] == 1


@pytest.mark.long
@pytest.mark.requirement("page US2.1", "page edge 2", "page SC-007")
def test_page_of_a_slow_model_says_still_answering_and_keeps_its_connection(
    half: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    """Pings come, tokens do not: that is slow, and no loss."""
    half.wait_state("slow", seconds=10)
    told = half.wait_shown(r"Still answering; last words \d+ s ago")
    assert 5 <= int(re.search(r"last words (\d+) s", told)[1]) <= 15
    assert half.text() == HALF
    upstream.open("2")
    half.wait_text(HALF + TOKENS[2])
    assert half.wait_state("streaming") == "streaming"
    open_gates(upstream, 3, 5)
    assert assert_whole(half, upstream, TEXT, 4)["reconnects"] == 0
    assert proxy.connections == 1
