"""The page behind another tab, and the page that was left for another one and kept for "back": nothing is missed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import OpenChat
from tests.browser.page_steps import LOST, gated, open_gates
from tests.browser.tab_steps import begin, stream_id, wait_attached, wait_reading
from tests.harness.chaos import ChaosProxy
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream

pytestmark = [pytest.mark.browser, pytest.mark.long]

TOKENS = ["One ", "two, ", "thr", "ee é🙂 ", "and four."]
TEXT = "".join(TOKENS)
LAST = len(TOKENS)
STALE_MS = 12_000
NOTE_SHOWS = """
window.shows = [];
addEventListener("pageshow", (event) => shows.push(event.persisted));
window.hides = [];
addEventListener("pagehide", (event) => hides.push(event.persisted));
"""
SKIP = """
(() => { const real = Date.now; let ahead = 0; Date.now = () => real() + ahead; window.skip = (ms) => ahead += ms; })();
"""


@pytest.fixture(scope="module")
def service_settings() -> dict[str, Any]:
    """The heartbeat of a real service: a dead connection is only found after 25 s, or by a wake-up."""
    return {"HEARTBEAT_SECONDS": 10}


def hide(chat: ChatPage) -> Any:
    """Bring another tab to the front, and give it; the page is hidden, as the browser itself says."""
    front = chat.context.new_page()
    front.goto("about:blank")
    front.bring_to_front()
    chat.wait(lambda: chat.page.evaluate("document.hidden") is True, 10, "a hidden page")
    return front


def unhide(chat: ChatPage) -> None:
    chat.page.bring_to_front()
    chat.wait(lambda: chat.page.evaluate("document.hidden") is False, 10, "a visible page")


def icon(chat: ChatPage) -> str:
    """Tell the name of the window's icon."""
    return str(chat.page.locator('link[rel="icon"]').get_attribute("href")).rpartition("/")[2]


@pytest.mark.requirement("page edge 3", "page FR-008", "page FR-004", "page FR-005")
def test_page_behind_another_tab_receives_stores_and_shows_it_in_its_title(
    plain_chat: ChatPage, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    upstream.always(gated(TOKENS))
    plain_chat.open()
    begin(plain_chat)
    plain_chat.wait(lambda: plain_chat.page.title() == "… Count. · ChatWait", 5, "a title of an answer on its way")
    assert icon(plain_chat) == "icon-streaming.svg"
    hide(plain_chat)
    for number, _ in enumerate(TOKENS):
        upstream.open(str(number))
        plain_chat.wait_text("".join(TOKENS[: number + 1]))
    stored = lambda: plain_chat.stored_answers()[-1]["content"]  # noqa: E731
    plain_chat.wait(lambda: stored() == TEXT, 10, "the text in the storage, before the end")
    assert plain_chat.state() == "streaming"
    upstream.open(str(LAST))
    plain_chat.wait_state("complete")
    plain_chat.wait(lambda: plain_chat.page.title() == "✓ Count. · ChatWait", 5, "a title of an answer that is done")
    assert icon(plain_chat) == "icon-done.svg"
    assert plain_chat.stored_answers()[-1]["state"] == "complete"
    assert plain_chat.page.evaluate("document.hidden") is True

    unhide(plain_chat)
    plain_chat.wait(lambda: plain_chat.page.title() == "Count. · ChatWait", 5, "a title without a mark")
    assert plain_chat.text() == TEXT
    assert icon(plain_chat) == "icon.svg"
    wait_attached(plain_chat, service, stream_id(plain_chat), 1)


@pytest.mark.requirement("page edge 3", "page US3.3", "page FR-011", "page SC-006")
def test_page_left_in_mid_answer_and_kept_for_back_reads_on(
    plain_chat: ChatPage, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    leave_in_mid_answer(plain_chat, upstream)
    stream = stream_of_left(service)
    write_twice(plain_chat, upstream)
    wait_reading(plain_chat, service, stream, 0)
    back(plain_chat)
    plain_chat.wait_text("".join(TOKENS[:4]))
    wait_reading(plain_chat, service, stream, 1)
    open_gates(upstream, 4, LAST + 1)
    plain_chat.wait_state("complete")
    assert plain_chat.text() == TEXT
    assert plain_chat.stored_answers()[-1]["content"] == TEXT
    assert len(upstream.completions) == 1


@pytest.mark.requirement("page edge 3", "page edge 7", "page US3.3")
def test_page_left_in_mid_answer_lets_another_tab_read_and_comes_back_to_its_text(
    plain_chat: ChatPage, open_chat: OpenChat, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    conversation = leave_in_mid_answer(plain_chat, upstream)
    stream = stream_of_left(service)
    other = open_chat(service.base_url, plain_chat.context).open(f"#{conversation}")
    other.wait_text("".join(TOKENS[:2]))
    write_twice(other, upstream)
    other.wait_text("".join(TOKENS[:4]))
    wait_attached(plain_chat, service, stream, 2)  # it has the lock that the kept page had
    wait_reading(other, service, stream, 1)

    plain_chat.page.bring_to_front()
    back(plain_chat)
    plain_chat.wait_text("".join(TOKENS[:4]))
    open_gates(upstream, 4, LAST + 1)
    for chat in (plain_chat, other):
        chat.wait_state("complete")
        assert chat.text() == TEXT
        assert chat.states() == ["complete"]
    wait_reading(plain_chat, service, stream, 0)
    wait_attached(plain_chat, service, stream, 2)
    assert len(upstream.completions) == 1


@pytest.mark.long
@pytest.mark.requirement("page edge 3", "page US3.3", "page FR-008")
def test_page_kept_for_back_shows_an_answer_that_ended_meanwhile(
    plain_chat: ChatPage, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    leave_in_mid_answer(plain_chat, upstream)
    open_gates(upstream, 2, LAST + 1)
    upstream.completions[0].wait_finished()
    back(plain_chat)
    plain_chat.wait_state("complete")
    assert plain_chat.text() == TEXT
    assert len(upstream.completions) == 1


def leave_in_mid_answer(chat: ChatPage, upstream: ScriptedUpstream) -> str:
    """Go to another page after two tokens; give the conversation's id."""
    upstream.always(gated(TOKENS))
    chat.page.add_init_script(NOTE_SHOWS)
    chat.open()
    conversation = begin(chat)
    open_gates(upstream, 0, 2)
    chat.wait_text("".join(TOKENS[:2]))
    chat.page.goto(f"{chat.base_url}/docs")
    return conversation


def write_twice(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    """Send two tokens: the first that is written to a reader who has left is lost, the second tells the server.

    Written at once they may be one frame; then the next heartbeat tells.
    """
    for number in (2, 3):
        upstream.wait_reached(str(number))
        upstream.open(str(number))
        chat.page.wait_for_timeout(500)  # at once, both might be one frame
    upstream.wait_reached("4")


def back(chat: ChatPage) -> None:
    """Go back, to the very page that was left: neither loaded again nor painted from the storage."""
    chat.page.go_back(wait_until="commit")
    chat.wait(lambda: chat.page.evaluate("window.shows ?? []") == [False, True], 10, "a page that was kept")
    assert chat.page.evaluate("hides") == [True]


def stream_of_left(service: ChatWait) -> str:
    """Tell the log's name of the stream that was read last."""
    return str(service.log_of("reader_attached")[-1]["stream"])


@pytest.mark.requirement("page edge 3", "page edge 6", "page US3.1")
@pytest.mark.parametrize("wake", ["online", "visible"])
def test_page_woken_reconnects_at_once_when_its_last_bytes_are_old_and_only_then(
    plain_browser: Any, open_chat: OpenChat, proxy: ChaosProxy, upstream: ScriptedUpstream, wake: str
) -> None:
    """The page's clock is put forward; the connection is dead and does not say so."""
    chat = open_chat(proxy.base_url, plain_browser)
    chat.page.add_init_script(SKIP)
    asleep(chat, proxy, upstream)
    awake = waker(chat, wake)

    chat.page.evaluate("ms => skip(ms)", STALE_MS - 6_000)
    connections = proxy.connections
    awake()
    upstream.open("2")
    chat.page.wait_for_timeout(700)  # nothing may happen, and nothing tells that it does not
    assert proxy.connections == connections
    assert chat.text() == "".join(TOKENS[:2])

    chat.page.evaluate("ms => skip(ms)", 6_500)
    awake()
    chat.wait_text("".join(TOKENS[:3]), seconds=8)  # the machine itself would only ask after 25 s
    assert proxy.connections == connections + 1
    open_gates(upstream, 3, LAST + 1)
    chat.wait_state("complete")
    assert chat.text() == TEXT
    assert len(upstream.completions) == 1


@pytest.mark.long
@pytest.mark.requirement("page edge 3", "page edge 6", "page US3.1")
def test_page_brought_to_the_front_after_twelve_real_seconds_reconnects(
    plain_browser: Any,
    open_chat: OpenChat,
    proxy: ChaosProxy,
    upstream: ScriptedUpstream,
    record_property: Callable[[str, object], None],
) -> None:
    chat = open_chat(proxy.base_url, plain_browser)
    asleep(chat, proxy, upstream)
    hide(chat)
    upstream.open("2")
    chat.page.wait_for_timeout(STALE_MS + 1_500)  # what is tested is that time passes
    assert chat.text() == "".join(TOKENS[:2])
    unhide(chat)
    awake_at = time.monotonic()
    chat.wait_text("".join(TOKENS[:3]), seconds=8)
    record_property("figure", f"the missing text is there {time.monotonic() - awake_at:.2f} s after a wake-up")
    open_gates(upstream, 3, LAST + 1)
    chat.wait_state("complete")
    assert chat.text() == TEXT


def asleep(chat: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream) -> None:
    """Begin an answer, and let its connection die without a word after two tokens."""
    upstream.always(gated(TOKENS))
    chat.expect_fault(LOST)
    chat.open()
    begin(chat)
    open_gates(upstream, 0, 2)
    chat.wait_text("".join(TOKENS[:2]))
    assert proxy.live == 1
    proxy.blackhole_all(counted=True)


def waker(chat: ChatPage, wake: str) -> Callable[[], None]:
    def online() -> None:
        chat.page.evaluate("dispatchEvent(new Event('online'))")

    def visible() -> None:
        front = hide(chat)
        unhide(chat)
        front.close()

    return online if wake == "online" else visible
