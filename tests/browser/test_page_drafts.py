"""What was written and not sent: no send and no refusal takes it, and a deleted conversation leaves none of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.dialogues import exchange, learned, pick
from tests.browser.page_steps import status
from tests.browser.tab_steps import choose, conversation_id, hint, listed, other_tab
from tests.harness.upstream import ScriptedUpstream

pytestmark = [pytest.mark.browser, pytest.mark.long]

FIRST = "About apples"
DRAFT = "A long thought that is not sent yet"
GIVEN_BACK = "The message was not sent. It is back in the box."
DRAFTS = """
() => Object.fromEntries(
  Object.entries(localStorage)
    .filter(([key]) => key.startsWith("chatwait.draft."))
    .map(([key, text]) => [key.slice("chatwait.draft.".length), text]))
"""
KEEP_WRITING = """
() => {
  const box = document.querySelector("#composer textarea");
  box.focus();
  const timer = setInterval(() => {
    if (!location.hash) return clearInterval(timer);
    box.value += "x";
    box.dispatchEvent(new InputEvent("input", {bubbles: true}));
  }, 10);
}
"""


@pytest.fixture
def begun(chat: ChatPage, upstream: ScriptedUpstream) -> ChatPage:
    """Give a page with one conversation of one question, which is shown."""
    exchange(learned(chat.open()), upstream, FIRST)
    assert drafts(chat) == {}
    return chat


def drafts(chat: ChatPage) -> dict[str, str]:
    """Give the stored drafts by conversation; "" is the new one."""
    stored: dict[str, str] = chat.page.evaluate(DRAFTS)
    return stored


def write(chat: ChatPage, text: str) -> None:
    """Write a draft where one is, and wait until it is stored."""
    chat.box.fill(text)
    chat.wait(lambda: drafts(chat).get(conversation_id(chat)) == text, 5, "the stored draft")


def hold_questions(chat: ChatPage) -> list[Any]:
    """Keep what the page asks from now on on its way; give the list that it comes into."""
    held: list[Any] = []
    chat.page.route("**/v1/chat/streaming", lambda route: held.append(route))
    return held


def refuse(chat: ChatPage, held: list[Any]) -> None:
    """Refuse the one question that is held, as a gateway does that lets nobody in."""
    chat.expect_fault(status(403))
    (route,) = held
    route.fulfill(status=403, body="no")


def test_draft_of_the_new_conversation_outlives_a_message_sent_in_another_one(
    begun: ChatPage, upstream: ScriptedUpstream
) -> None:
    begun.new_conversation()
    write(begun, DRAFT)
    pick(begun, FIRST)
    assert begun.box.input_value() == ""

    begun.send("And pears?")
    begun.wait(lambda: begun.states() == ["complete"] * 2, 20, "the second answer")
    assert drafts(begun) == {"": DRAFT}
    begun.new_conversation()
    assert begun.box.input_value() == DRAFT


def test_draft_that_was_sent_as_a_new_conversation_is_gone(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    write(learned(chat.open()), DRAFT)
    chat.box.press("Enter")
    chat.wait_state("complete")
    assert listed(chat) == [DRAFT]
    chat.wait(lambda: drafts(chat) == {}, 5, "no draft to be stored")


def test_message_refused_is_put_before_what_was_written_meanwhile(begun: ChatPage) -> None:
    held = hold_questions(begun)
    begun.send("And pears?")
    begun.wait(lambda: held, 10, "the question on its way")
    assert begun.box.input_value() == ""
    write(begun, DRAFT)

    refuse(begun, held)
    begun.wait_state("failed")
    both = f"And pears?\n\n{DRAFT}"
    begun.wait(lambda: begun.box.input_value() == both, 5, "both texts in the box")
    begun.wait(lambda: drafts(begun) == {conversation_id(begun): both}, 5, "both to be stored")
    assert hint(begun) == GIVEN_BACK


def test_message_refused_while_another_conversation_is_shown_is_put_before_its_own_draft(begun: ChatPage) -> None:
    held = hold_questions(begun)
    begun.send("And pears?")
    begun.wait(lambda: held, 10, "the question on its way")
    write(begun, DRAFT)
    id_ = conversation_id(begun)
    begun.new_conversation()
    begun.box.fill("Something else")

    refuse(begun, held)
    both = f"And pears?\n\n{DRAFT}"
    begun.wait(lambda: drafts(begun) == {id_: both, "": "Something else"}, 10, "both drafts, each in its place")
    assert begun.box.input_value() == "Something else"
    pick(begun, FIRST)
    assert begun.box.input_value() == both
    assert begun.states() == ["complete", "failed"]


def test_conversation_deleted_while_it_is_shown_leaves_no_draft(begun: ChatPage) -> None:
    begun.new_conversation()
    write(begun, "Something else")
    pick(begun, FIRST)
    write(begun, DRAFT)

    choose(begun, FIRST, "Delete")
    begun.press("Delete")
    begun.wait(lambda: listed(begun) == [] and conversation_id(begun) == "", 5, "an empty page")
    begun.wait(lambda: begun.box.input_value() == "Something else", 5, "the new conversation's own draft")
    assert drafts(begun) == {"": "Something else"}
    assert DRAFT not in begun.page.evaluate("JSON.stringify({...localStorage})")
    begun.reload()
    assert drafts(begun) == {"": "Something else"}


def test_conversation_deleted_in_another_tab_while_one_writes_in_it_leaves_no_draft(begun: ChatPage) -> None:
    other = other_tab(begun)
    choose(other, FIRST, "Delete")
    begun.page.evaluate(KEEP_WRITING)
    begun.wait(lambda: drafts(begun).get(conversation_id(begun)), 5, "a stored draft")
    other.press("Delete")
    for chat in (begun, other):
        chat.wait(lambda chat=chat: listed(chat) == [] and conversation_id(chat) == "", 5, "an empty page")
    assert begun.box.input_value() == ""
    begun.reload()
    assert drafts(begun) == {}


def test_message_sent_into_a_conversation_whose_storage_was_cleared_goes_on_there(
    begun: ChatPage, upstream: ScriptedUpstream
) -> None:
    """Another program, or the user with the browser's own means, emptied the storage: the page hears nothing of it."""
    title, name = listed(begun), conversation_id(begun)
    begun.page.evaluate("localStorage.clear()")
    count, answers = len(upstream.completions), len(begun.states())
    begun.send(DRAFT)
    begun.wait(lambda: begun.states() == ["complete"] * (answers + 1), 10, "the answer")
    assert (conversation_id(begun), listed(begun), begun.box.input_value()) == (name, title, "")
    assert len(upstream.completions) == count + 1
    begun.reload()
    assert begun.states() == ["complete"] * (answers + 1)
