"""The page for a person who sees nothing: only roles, names, keys, and what the live regions announce, once each."""

from __future__ import annotations

import re

import pytest

from tests.browser.chatpage import STOP_MS, ChatPage
from tests.browser.conftest import OpenChat
from tests.browser.page_steps import LOST, gated, open_gates
from tests.browser.person_steps import announced, fallen, wait_announced, watch
from tests.browser.tab_steps import begin, choose, other_tab
from tests.harness.chaos import Answer, ChaosProxy
from tests.harness.upstream import ScriptedUpstream, answer

pytestmark = pytest.mark.browser

SENT = "Your message is sent. The answer is on its way."
GONE = "Connection lost. 1 word is safe. Reconnecting…"
BACK = "Connected again. The answer goes on."
# What a slow tab is told is only the end, and it reads the rest from the storage.
DEAF = """
const { set } = Object.getOwnPropertyDescriptor(BroadcastChannel.prototype, "onmessage");
Object.defineProperty(BroadcastChannel.prototype, "onmessage", { set(listen) {
  set.call(this, (event) => ["text", "whole"].includes(event.data.kind) || listen(event));
} });
"""
# A tab that is so slow that it hears of a new question together with the end of its answer.
SLOW = """
const { set } = Object.getOwnPropertyDescriptor(BroadcastChannel.prototype, "onmessage");
const late = [];
Object.defineProperty(BroadcastChannel.prototype, "onmessage", { set(listen) {
  set.call(this, (event) => {
    late.push(event);
    if (!event.data.answer?.endedAt) return;
    window.wasLate = Math.max(window.wasLate ?? 0, late.length);
    for (const one of late.splice(0)) listen(one);
  });
} });
"""


@pytest.mark.requirement("page US2 test", "page US3.1", "page FR-006", "page assumption 5")
def test_person_who_sees_nothing_asks_loses_the_link_comes_back_stops_asks_again_and_deletes(
    open_chat: OpenChat, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    chat = watch(open_chat(proxy.base_url)).open()
    chat.expect_fault(LOST)
    page = chat.page

    def press(role: str, name: str) -> None:
        found = page.get_by_role(role, name=name, exact=True)
        found.last.press("Enter")

    upstream.always(gated(["One ", "two ", "three."]))
    page.get_by_role("textbox", name="Message", exact=True).press_sequentially("Count.")
    page.keyboard.press("Enter")
    wait_announced(chat, [SENT])
    upstream.open("0")
    chat.wait_text("One ")

    proxy.refuse()
    proxy.cut_all()
    wait_announced(chat, [SENT, GONE])
    chat.wait_shown(r"in ([4-9]|10) s")  # its own next try does not take the button away
    proxy.accept()
    press("button", "Try now")
    wait_announced(chat, [SENT, GONE, "Trying to reconnect.", BACK])
    assert page.get_by_role("button", name="Try now").count() == 0
    page.wait_for_timeout(STOP_MS)  # Stop is ignored until then
    press("button", "Stop")
    heard = [SENT, GONE, "Trying to reconnect.", BACK, "Stopped by you: 1 word kept."]
    wait_announced(chat, heard)

    press("button", "Ask again")
    heard.append(SENT)
    wait_announced(chat, heard)
    open_gates(upstream, 1, 4)
    heard.append("The answer is complete: 3 words.")
    wait_announced(chat, heard)
    log = page.get_by_role("log", name="Conversation")
    assert re.search(r"One two three\.\s+Complete\.$", log.get_by_role("article").last.inner_text().split("\nCopy")[0])

    page.set_viewport_size({"width": 390, "height": 800})  # from here on, the list is in a drawer
    press("button", "Conversations")
    press("button", "Options for Count.")
    press("menuitem", "Delete")
    dialog = page.get_by_role("dialog", name="Delete “Count.”?")
    dialog.get_by_role("button", name="Delete", exact=True).press("Enter")
    wait_announced(chat, [*heard, "The conversation is deleted."])
    assert page.get_by_role("list", name="Conversations", include_hidden=True).get_by_role("listitem").count() == 0
    assert fallen(chat) == []


@pytest.mark.requirement("page FR-005", "page edge 7")
def test_end_of_an_answer_is_announced_in_its_place_elsewhere_and_in_the_tab_that_only_follows(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    watch(chat).open()
    upstream.always(gated(["One ", "two."]))
    begin(chat, "First")
    follower = watch(chat.tab())
    follower.page.add_init_script(DEAF)
    follower.open(chat.page.evaluate("location.hash"))
    follower.wait_state("waiting")
    chat.new_conversation()
    open_gates(upstream, 0, 3)
    follower.wait_state("complete")
    wait_announced(chat, [SENT, "In “First”: The answer is complete: 2 words."])
    wait_announced(follower, ["The answer is complete: 2 words."], progress=False)

    # What it follows ends while its messages are read anew.
    upstream.always(answer(["Three."]))
    reader = other_tab(follower)
    reader.send("Second")
    reader.wait_state("complete")
    wait_announced(follower, ["The answer is complete: 2 words.", "The answer is complete: 1 word."], progress=False)
    follower.reload()
    follower.wait_state("complete")
    assert announced(follower) == []  # what was over is no news


def test_end_of_an_answer_of_another_tab_is_announced_however_late_this_tab_hears_of_its_question(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    upstream.always(answer(["One."]))
    chat.open()
    chat.send("First")
    chat.wait_state("complete")
    follower = watch(chat.tab())
    follower.page.add_init_script(SLOW)
    follower.open(chat.page.evaluate("location.hash"))
    follower.wait_state("complete")

    upstream.always(answer(["Two ", "three."]))
    chat.send("Second")
    follower.wait_text("Two three.")
    wait_announced(follower, ["The answer is complete: 2 words."], progress=False)
    assert follower.page.evaluate("wasLate") > 2


@pytest.mark.requirement("page FR-005")
def test_problem_that_is_announced_is_not_announced_again_when_another_is_put_away(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    watch(chat).open()
    chat.page.evaluate('for (const one of ["a", "b"]) localStorage.setItem(`chatwait.conversation.${one}`, "{")')
    chat.reload()
    chat.wait(lambda: len(announced(chat)) == 2, 10, "both problems")
    chat.press("Dismiss")
    chat.page.locator("#notices .box").nth(1).wait_for(state="detached")
    upstream.always(answer(["One."]))
    chat.send("Count.")
    chat.wait(lambda: "The answer is complete: 1 word." in announced(chat), 10, "an end")
    assert announced(chat)[2:] == [SENT, "The answer is complete: 1 word."]


@pytest.mark.requirement("page FR-005")
def test_page_without_a_single_script_says_what_to_do_and_says_it_no_more_once_it_has_them(chat: ChatPage) -> None:
    watch(chat).expect_fault(r"net::ERR_FAILED")
    chat.page.route("**/*.js", lambda route: route.abort())
    chat.page.goto(chat.base_url)
    hint = "The page is loading. If this text stays, reload the page."
    assert chat.page.locator("#hint").inner_text() == hint
    assert hint in chat.page.get_by_role("form", name="New message").aria_snapshot()
    chat.page.unroute("**/*.js")
    chat.reload()
    assert chat.page.locator("#hint").inner_text() == "Enter sends the message. Shift+Enter starts a new line."
    assert announced(chat) == []


@pytest.mark.requirement("page FR-005", "page edge 3")
def test_nothing_is_said_behind_a_dialog_and_it_is_said_afterwards(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    watch(chat).open()
    upstream.always(gated(["One."]))
    begin(chat, "First")
    wait_announced(chat, [SENT])
    chat.page.locator("#polite:empty").wait_for(state="attached")
    choose(chat, "First", "Delete")
    open_gates(upstream, 0, 2)
    chat.wait_state("complete")
    chat.page.wait_for_timeout(700)  # longer than it takes to look whether the dialog is closed
    assert announced(chat) == [SENT]
    chat.page.keyboard.press("Escape")
    wait_announced(chat, [SENT, "The answer is complete: 1 word."])


@pytest.mark.requirement("page FR-005", "page FR-006")
def test_message_that_is_not_taken_is_said_to_be_back_once(
    proxied: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    chat = watch(proxied).open()
    chat.expect_fault(r"the server responded with a status of 400")
    proxy.plan(Answer(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
    chat.send("Count.")
    chat.wait_state("failed")
    assert chat.box.input_value() == "Count."
    upstream.always(answer(["One."]))
    chat.box.press("Enter")
    chat.wait(lambda: "The answer is complete: 1 word." in announced(chat), 10, "an end")
    not_taken, *then = announced(chat)
    assert "back in the box" in not_taken
    assert then == [SENT, "The answer is complete: 1 word."]
