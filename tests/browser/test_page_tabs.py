"""Several tabs of one browser: one connection for an answer, everybody sees it, and nobody is needed for it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import OpenChat, lan
from tests.browser.page_steps import gated, open_gates
from tests.browser.tab_steps import (
    attached,
    begin,
    choose,
    conversation_id,
    crash,
    hint,
    listed,
    other_tab,
    reading,
    stream_id,
    wait_attached,
    wait_reading,
)
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream, answer
from tests.live.steps import poll

pytestmark = pytest.mark.browser

TOKENS = ["One ", "two, ", "thr", "ee é🙂 ", "and four."]
TEXT = "".join(TOKENS)
LAST = len(TOKENS)
TAKEOVER_SECONDS = 15.0  # twice what is promised, and more: the machine of a test may be busy


@pytest.fixture(params=["near", pytest.param("lan", marks=pytest.mark.long)])
def tab(request: pytest.FixtureRequest, open_chat: OpenChat, service: ChatWait, upstream: ScriptedUpstream) -> ChatPage:
    """Give a page with Web Locks, and one of plain HTTP on a LAN, where rows in IndexedDB stand in for them."""
    chat = open_chat(service.base_url if request.param == "near" else lan(service.base_url)).open()
    assert chat.page.evaluate("Boolean(navigator.locks)") is (request.param == "near")
    upstream.always(gated(TOKENS))
    return chat


def assert_same_end(*chats: ChatPage, text: str = TEXT) -> None:
    """Check that all show the whole answer once, and have one record of it."""
    for chat in chats:
        chat.wait_state("complete")
        assert chat.text() == text
        assert chat.states() == ["complete"]
        assert chat.page.locator("article.question").count() == 1
    assert len({str(chat.stored_answers()) for chat in chats}) == 1


@pytest.mark.requirement("page edge 7", "page entity Conversation Session")
def test_page_in_two_tabs_reads_once_and_both_show_each_token_and_the_end(
    tab: ChatPage, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    begin(tab)
    other = other_tab(tab)
    for number, text in enumerate(TOKENS):
        upstream.open(str(number))
        for chat in (tab, other):
            chat.wait_text("".join(TOKENS[:number]) + text)
            chat.wait_state("streaming")
    stream = stream_id(tab)
    wait_reading(tab, service, stream, 1)
    upstream.open(str(LAST))
    assert_same_end(tab, other)
    wait_attached(tab, service, stream, 1)
    assert len(upstream.completions) == 1
    assert other.shown() == tab.shown()


@pytest.mark.requirement("page edge 7", "page US3.3")
def test_page_in_a_tab_opened_in_mid_answer_shows_what_there_is_and_follows(
    tab: ChatPage, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    """The last words are younger than what is stored, and the model is silent."""
    begin(tab)
    open_gates(upstream, 0, 3)
    tab.wait_text("".join(TOKENS[:3]))
    other = other_tab(tab)
    other.wait_text("".join(TOKENS[:3]))
    open_gates(upstream, 3, LAST + 1)
    assert_same_end(tab, other)
    wait_attached(tab, service, stream_id(tab), 1)


@pytest.mark.requirement("page edge 7", "page US3.3", "page SC-006")
@pytest.mark.parametrize("leave", [ChatPage.close, crash], ids=["closed", "crashed"])
def test_page_whose_reading_tab_is_gone_is_read_on_by_the_other_one(
    tab: ChatPage,
    service: ChatWait,
    upstream: ScriptedUpstream,
    record_property: Callable[[str, object], None],
    leave: Callable[[ChatPage], object],
    request: pytest.FixtureRequest,
) -> None:
    begin(tab)
    stream = stream_id(tab)
    other = ChatPage(tab.context.new_page(), tab.base_url)
    other.expect_fault("^the page crashed$")
    try:
        other.open(f"#{conversation_id(tab)}")
        open_gates(upstream, 0, 2)
        other.wait_text("".join(TOKENS[:2]))
        wait_reading(tab, service, stream, 1)

        if leave is crash:
            crash(tab)
        else:
            tab.page.close(run_before_unload=True)
        gone_at = time.monotonic()
        other.wait(lambda: attached(service, stream) == 2, TAKEOVER_SECONDS, "the other tab to read")
        taken_after = time.monotonic() - gone_at
        promised = (
            2 if leave is not crash or other.page.evaluate("Boolean(navigator.locks)") else 7
        )  # a lease, which a crash leaves
        record_property("figure", f"{request.node.name}: read on after {taken_after:.2f} s (promised: {promised})")
        open_gates(upstream, 2, LAST + 1)
        assert_same_end(other)
        wait_attached(tab, service, stream, 2)
        assert len(upstream.completions) == 1
    finally:
        other.page.close()
    assert other.unexpected == []


BLOCK = "ms => { const until = performance.now() + ms; while (performance.now() < until); }"


@pytest.mark.long
@pytest.mark.requirement("page edge 7")
def test_page_too_slow_to_keep_its_lease_leaves_the_answer_to_the_tab_that_took_it(
    open_chat: OpenChat, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Timers of a hidden tab are slow; here the tab is busy for longer than a lease."""
    upstream.always(gated(TOKENS))
    tab = open_chat(lan(service.base_url)).open()
    begin(tab)
    other = other_tab(tab)
    upstream.open("0")
    other.wait_text(TOKENS[0])
    stream = stream_id(tab)
    tab.page.evaluate(BLOCK, 8_000)
    other.wait(lambda: attached(service, stream) == 2, TAKEOVER_SECONDS, "the other tab to read")
    other.wait(lambda: reading(service, stream) == 1, TAKEOVER_SECONDS, "one connection again")
    open_gates(upstream, 1, LAST + 1)
    assert_same_end(tab, other)
    assert len(upstream.completions) == 1


@pytest.mark.requirement("page edge 7", "page scope 2")
def test_page_stops_from_the_tab_that_does_not_read(
    tab: ChatPage, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    begin(tab)
    other = other_tab(tab)
    open_gates(upstream, 0, 2)
    other.wait_text("".join(TOKENS[:2]))
    wait_reading(tab, service, stream_id(tab), 1)

    other.stop()
    for chat in (tab, other):
        chat.wait_state("stopped")
        chat.wait_shown("Stopped by you")
        assert chat.text() == "".join(TOKENS[:2])
        chat.button("Send").wait_for()
    upstream.completions[0].wait_closed()
    assert tab.stored_answers()[-1]["reason"] == "client"


@pytest.mark.requirement("page edge 1", "page FR-007", "page edge 7", "page entity Conversation Session")
def test_page_in_the_other_tab_does_not_send_either_and_says_why(tab: ChatPage, upstream: ScriptedUpstream) -> None:
    begin(tab)
    other = other_tab(tab)
    upstream.open("0")
    other.wait_text(TOKENS[0])
    other.button("Stop").wait_for()
    other.send("And another one?")
    other.wait(lambda: "An answer is on its way" in hint(other), 5, "why nothing is sent")
    assert other.box.input_value() == "And another one?"
    assert len(upstream.completions) == 1

    open_gates(upstream, 1, LAST + 1)
    assert_same_end(tab, other)
    other.button("Send").wait_for()
    other.box.press("Enter")
    for chat in (other, tab):
        chat.wait(lambda chat=chat: chat.states() == ["complete", "complete"], 20, "both answers")
    assert [len(record.json["messages"]) for record in upstream.completions] == [1, 3]


SEND_AT = """
(at) => setTimeout(() => {
  const enter = new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true });
  document.getElementById("message").dispatchEvent(enter);
}, at - Date.now())
"""


@pytest.mark.requirement("page edge 1", "page FR-007", "page FR-003", "page edge 7", "page entity Conversation Session")
def test_page_sent_from_two_tabs_at_the_same_moment_asks_one_question(
    tab: ChatPage, upstream: ScriptedUpstream
) -> None:
    upstream.always(answer(["Hello."]))
    tab.send("Hello?")
    tab.wait_state("complete")
    other = other_tab(tab)
    other.wait_state("complete")
    for number in range(1, 6):
        send_at_once(tab, other, upstream, number)


def send_at_once(tab: ChatPage, other: ChatPage, upstream: ScriptedUpstream, number: int) -> None:
    """Send the conversation's question of this number from both tabs at one moment."""
    words = "An answer is on its way"
    reply = [f"No. {number}"]
    upstream.reset()
    upstream.always(gated(reply))
    both = {tab: f"First {number}?", other: f"Second {number}?"}
    for chat, text in both.items():
        chat.button("Send").wait_for()
        chat.box.fill(text)
    at = time.time() * 1000 + 400
    for chat in both:
        chat.page.evaluate(SEND_AT, at)
    tab.wait(lambda: words in hint(tab) or words in hint(other), 10, f"one to be refused; {hint(other)}")
    taken, refused = (tab, other) if words in hint(other) else (other, tab)
    assert refused.box.input_value() == both[refused]
    assert taken.box.input_value() == ""
    open_gates(upstream, 0, 2)
    for chat in both:
        chat.wait(lambda chat=chat: chat.states() == ["complete"] * (number + 1), 10, "the new answer")
        assert chat.text() == reply[0]
        questions = chat.page.locator("article.question").all_inner_texts()
        assert len(questions) == number + 1
        assert both[taken] in questions[-1]
    assert len(upstream.completions) == 1


@pytest.mark.requirement("page edge 7")
@pytest.mark.parametrize("is_reader", [False, True], ids=["by the other tab", "by the reading tab"])
def test_conversation_deleted_in_mid_answer_is_gone_from_both_tabs_and_its_model_is_stopped(
    tab: ChatPage, upstream: ScriptedUpstream, is_reader: bool
) -> None:
    begin(tab, "To be deleted")
    other = other_tab(tab)
    upstream.open("0")
    other.wait_text(TOKENS[0])
    choose(tab if is_reader else other, "To be deleted", "Delete")
    (tab if is_reader else other).press("Delete")
    for chat in (tab, other):
        chat.wait(lambda chat=chat: listed(chat) == [] and conversation_id(chat) == "", 5, "an empty page")
        assert chat.states() == []
    upstream.completions[0].wait_closed()
    open_gates(upstream, 1, LAST + 1)
    tab.send("Something else")
    tab.wait_state("complete")
    assert listed(tab) == ["Something else"]
    keys = tab.page.evaluate("Object.keys(localStorage)")
    assert [key for key in keys if key.startswith("chatwait.conversation.")] == [
        f"chatwait.conversation.{conversation_id(tab)}"
    ]


@pytest.mark.requirement("page edge 7", "page FR-003")
def test_conversation_renamed_in_the_other_tab_in_mid_answer_keeps_the_name_and_the_answer(
    tab: ChatPage, upstream: ScriptedUpstream
) -> None:
    begin(tab, "An old name")
    other = other_tab(tab)
    upstream.open("0")
    other.wait_text(TOKENS[0])
    choose(other, "An old name", "Rename")
    name = other.page.get_by_role("textbox", name="Title")
    name.fill("A new name")
    name.press("Enter")
    for chat in (tab, other):
        chat.wait(lambda chat=chat: listed(chat) == ["A new name"], 5, "the new name in the list")
        chat.wait(lambda chat=chat: chat.page.locator("#title").inner_text() == "A new name", 5, "it at the top")
    open_gates(upstream, 1, LAST + 1)
    assert_same_end(tab, other)
    assert tab.conversation()["title"] == "A new name"
    assert tab.reload().text() == TEXT
    assert listed(tab) == ["A new name"]


@pytest.mark.requirement("page edge 7")
def test_conversation_begun_in_one_tab_is_in_the_list_of_the_other(tab: ChatPage, upstream: ScriptedUpstream) -> None:
    upstream.always(answer(["Hello."]))
    other = tab.tab().open()
    assert listed(other) == []
    tab.send("Hello?")
    tab.wait_state("complete")
    other.wait(lambda: listed(other) == ["Hello?"], 5, "the conversation in the list")
    assert other.states() == []
    other.page.locator("#list a.open").click()
    other.wait_text("Hello.")
    poll(lambda: conversation_id(other) == conversation_id(tab), seconds=5, what="the same conversation")
