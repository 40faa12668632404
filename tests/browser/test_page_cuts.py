"""The chat page over connections that are cut, at every place that differs: nothing is lost, nothing is paid twice."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.page_steps import LOST, assert_whole, gated, open_gates
from tests.harness.chaos import ChaosProxy, CutAfter, Pass
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Paced, Script, ScriptedUpstream

pytestmark = pytest.mark.browser

TOKENS = ["One ", "two, ", "thr", "ee é🙂 ", "and four."]
TEXT = "".join(TOKENS)
LAST = len(TOKENS)
FRAMES = 300
CUTS = 20


@pytest.fixture(scope="module")
def service_settings() -> dict[str, Any]:
    """Keep pings out of the byte counts."""
    return {"HEARTBEAT_SECONDS": 30}


@pytest.fixture
def proxied(proxied: ChatPage) -> ChatPage:
    """Take it as part of each test here that the browser tells of lost connections."""
    proxied.expect_fault(LOST)
    return proxied


@pytest.mark.requirement("page US3.1", "page FR-003", "page FR-004", "page SC-006", "page US2.3")
@pytest.mark.parametrize("there", [0, 1, 2, 3, LAST - 1, LAST], ids=lambda there: f"{there} tokens there")
def test_page_cut_after_tokens_says_so_and_reads_on(
    proxied: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream, there: int
) -> None:
    """Before the first token, in the middle of a word, before the last, and between the last and the terminal event."""
    upstream.always(gated(TOKENS))
    open_gates(upstream, 0, there)
    proxied.open()
    proxied.send("Count to four.")
    proxied.wait_state("streaming" if there else "waiting")
    proxied.wait_text("".join(TOKENS[:there]))
    upstream.wait_reached(str(there))
    assert proxy.live == 1

    proxy.refuse()
    proxy.cut_all()
    proxied.wait_state("reconnecting")
    words = len("".join(TOKENS[:there]).split())
    proxied.wait_shown(rf"Connection lost\. {words} words? (is|are) safe" if there else r"Connection lost\. Reconn")
    assert proxied.text() == "".join(TOKENS[:there])
    assert proxied.has_button("Try now")

    proxy.accept()
    open_gates(upstream, there, LAST + 1)
    answer = assert_whole(proxied, upstream, TEXT, LAST)
    assert answer["reconnects"] == 1
    assert answer["sequence"] == LAST


@pytest.mark.requirement("page US3.1", "page SC-006", "page US1.4", "page FR-008")
@pytest.mark.parametrize("count", [0, 1, 100, 400, 600, 700])
def test_page_whose_post_is_cut_within_its_answers_first_bytes_pays_once(
    proxied: ChatPage, proxy: ChaosProxy, service: ChatWait, upstream: ScriptedUpstream, count: int
) -> None:
    """Up to 400 the headers are lost: the page does not know the stream, and asks again under the same key."""
    before = len(service.log_of("request_received", method="POST"))
    upstream.always(gated(TOKENS))
    proxied.open()
    proxy.default = CutAfter(count)
    asked: list[str] = []
    proxied.page.on("request", lambda request: asked.append(request.method) if "/streaming" in request.url else None)
    proxied.send("Count to four.")
    # A browser itself repeats what it had asked over a connection that was used before; that is not the page's.
    proxied.wait(lambda: len(asked) >= 2, 20, "the page to come back")
    proxy.default = Pass()
    open_gates(upstream, 0, LAST + 1)

    assert_whole(proxied, upstream, TEXT, LAST)
    posts = len(service.log_of("request_received", method="POST")) - before
    assert (posts > 1) == (count <= 400)
    assert asked[1] == ("POST" if count <= 400 else "GET")
    assert len(proxied.stored_answers()) == 1


@pytest.mark.requirement("page US3.1", "page FR-011")
def test_page_whose_post_is_lost_on_a_connection_that_was_used_before_pays_once(
    proxied: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    """There a browser itself repeats a request that got no answer, a POST too."""
    proxied.open()
    proxied.send("Say hello.")
    proxied.wait_state("complete")
    assert (proxy.connections, len(upstream.completions)) == (1, 1)

    upstream.always(gated(TOKENS))
    open_gates(upstream, 0, LAST + 1)
    proxy.plan(CutAfter(0))
    proxied.send("Count to four.")
    proxied.wait_state("complete", index=1)
    assert proxied.text(1) == TEXT
    assert proxy.connections >= 3
    assert len(upstream.completions) == 2


def cut_within_frames(chat: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream, step: int) -> None:
    """Cut one answer again and again, each time in its next token's frame, `step` bytes further on than before."""
    tokens = [f"{number:03} é🙂 " for number in range(FRAMES)]
    upstream.always(gated(tokens))
    chat.open()
    chat.send("Count on.")
    chat.wait_state("waiting")
    before, connections = proxy.bytes_down, proxy.connections
    upstream.open("0")
    chat.wait_text(tokens[0])
    frame_bytes = proxy.bytes_down - before
    assert 100 < frame_bytes < 250  # one frame in one chunk

    places = range(0, frame_bytes, step)
    assert len(places) < FRAMES
    for number, place in enumerate(places, 1):
        assert proxy.live == 1
        proxy.cut_all_after(place)
        upstream.open(str(number))
        expected = connections + number
        proxy.wait_until(lambda expected=expected: proxy.connections == expected, what="the page to come back")
        chat.wait_state("streaming")  # so the head and the first frame of the new connection are behind us
        chat.wait_text("".join(tokens[: number + 1]))
    open_gates(upstream, 0, FRAMES + 1)
    answer = assert_whole(chat, upstream, "".join(tokens), FRAMES)
    assert answer["reconnects"] == len(places)


@pytest.mark.long
@pytest.mark.requirement("page US3.1", "page FR-003", "page SC-006")
def test_page_cut_within_a_frame_at_any_place_reads_on(
    proxied: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    cut_within_frames(proxied, proxy, upstream, step=9)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.requirement("page US3.1", "page FR-003")
def test_page_cut_after_every_byte_of_a_frame_reads_on(
    proxied: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    cut_within_frames(proxied, proxy, upstream, step=1)


@pytest.mark.long
@pytest.mark.requirement("page US3.1", "page FR-003", "page FR-004", "page US3 test")
def test_page_cut_twenty_times_in_two_thousand_tokens_has_every_token(
    proxied: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    """Each cut is at a byte of its own among a hundred tokens that are on their way."""
    blocks = [[f"word{100 * block + number:04} " for number in range(100)] for block in range(CUTS)]
    steps = [step for number, block in enumerate(blocks) for step in (Gate(str(number)), Paced(block, 0.002))]
    upstream.always(Script(steps=[*steps, Finish(), Done()]))
    proxied.open()
    proxied.send("Tell a long story.")
    proxied.wait_state("waiting")
    places = random.Random(4)
    connections = proxy.connections
    for number in range(CUTS):
        assert proxy.live == 1
        proxy.cut_all_after(places.randrange(700))  # a hundred tokens are more, however they are packed
        upstream.open(str(number))
        expected = connections + number + 1
        proxy.wait_until(lambda expected=expected: proxy.connections == expected, what="the page to come back")
        whole = "".join(text for block in blocks[: number + 1] for text in block)
        proxied.wait_text(whole)
    answer = assert_whole(proxied, upstream, whole, 100 * CUTS)
    assert answer["reconnects"] == CUTS
