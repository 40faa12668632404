"""A conversation of 200 long answers: what a message in it touches, what is laid out, and what a reader finds there."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import ARGUMENTS
from tests.browser.dialogues import learned, pick
from tests.browser.long_log import MANY, open_long
from tests.browser.page_steps import gated, open_gates
from tests.harness.script import answer
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream

pytestmark = pytest.mark.browser

SOME = 100

NOTE = """
() => {
  const log = document.getElementById("log");
  window.before = [...log.children];
  window.touched = { added: 0, removed: 0, older: 0 };
  const recent = () => [...log.children].slice(-4); // the two messages before, and the two new ones
  new MutationObserver((changes) => {
    for (const { target, addedNodes, removedNodes } of changes) {
      if (target === log) touched.added += addedNodes.length;
      if (target === log) touched.removed += removedNodes.length;
      else if (!recent().some((one) => one.contains(target))) touched.older += 1;
    }
  }).observe(log, { subtree: true, childList: true, characterData: true });
}
"""
FAR = """
() => [...document.querySelectorAll("article .prose")].filter(
  (one) => !one.checkVisibility({ contentVisibilityAuto: true })).length
"""
# Each height that is told for what is not laid out, against the height that it has.
WRONG = """
() => {
  const all = [...document.querySelectorAll("article")];
  const told = all.map((one) => one.getBoundingClientRect().height);
  for (const one of all) one.style.contentVisibility = "visible";
  const wrong = all.filter((one, index) => Math.abs(one.getBoundingClientRect().height - told[index]) > 0.1).length;
  for (const one of all) one.style.contentVisibility = "";
  return wrong;
}
"""


TOLD = "document.querySelector('article:nth-child(20)').style.cssText"


def is_known(chat: ChatPage) -> bool:
    """Tell whether the height of every message was told."""
    return chat.page.evaluate("!document.querySelector('article:not([style])')") is True


def test_message_in_a_long_conversation_touches_nothing_but_its_own(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    """Before, all 400 messages were made anew: focus, selection and open details were gone."""
    texts = [f"word{number} " for number in range(20)]
    upstream.always(gated(texts))
    open_long(learned(chat.open()))
    chat.box.fill("And on?")
    chat.article().get_by_role("button", name="Details").click()
    chat.page.evaluate("getSelection().selectAllChildren([...document.querySelectorAll('.prose p')].at(-1))")
    selected = chat.page.evaluate("getSelection().toString()")
    assert len(selected) > 100
    chat.page.evaluate(NOTE)
    chat.press("Send")
    open_gates(upstream, 0, 10)
    chat.wait_text("".join(texts[:10]))
    chat.page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")  # reads all again
    open_gates(upstream, 10, 21)
    chat.wait_state("complete")

    mark = chat.page.locator(".cut + .question")
    assert mark.count() == 1  # above the oldest question that was sent
    assert chat.page.evaluate("touched") == {"added": 3, "removed": 0, "older": 0}
    assert chat.page.evaluate("before.every((one) => one.isConnected)") is True
    assert len(chat.states()) == MANY + 1
    assert chat.article(-2).locator(".details").count() == 1
    assert chat.page.evaluate("getSelection().toString()") == selected
    chat.reload()
    assert len(chat.states()) == MANY + 1
    assert chat.text() == "".join(texts)


def test_long_conversation_is_all_there_though_only_what_is_near_is_laid_out(chat: ChatPage) -> None:
    open_long(chat.open(), SOME)
    assert chat.page.evaluate(FAR) > SOME / 2
    chat.wait(lambda: is_known(chat), 20, "the heights of all messages")
    assert chat.page.evaluate(FAR) > SOME / 2
    assert chat.page.evaluate(WRONG) == 0

    scroller = chat.page.locator("#scroller")
    scroller.focus()
    chat.page.keyboard.press("Home")
    chat.wait(lambda: scroller.evaluate("one => one.scrollTop") == 0, 10, "the beginning")
    chat.page.get_by_text("Question 0 of long?").wait_for()
    told = chat.page.evaluate(TOLD)
    chat.page.set_viewport_size({"width": 390, "height": 800})
    chat.wait(lambda: chat.page.evaluate(TOLD) != told, 20, "the heights in a narrow window")
    assert chat.page.evaluate(WRONG) < SOME / 2  # what was near the view, and is remembered as it was
    scroller.focus()
    chat.page.keyboard.press("End")
    chat.page.get_by_text(f"The answer {SOME - 1} of long.").wait_for()

    chat.page.emulate_media(media="print")
    chat.wait(lambda: chat.page.evaluate(FAR) == 0, 10, "all of it on paper")

    # A browser's search cannot be driven from here; a link to a text finds it in the same way.
    tab = chat.tab()
    tab.open("#long:~:text=Question%2050%20of%20long")
    found = tab.page.get_by_text("Question 50 of long?")
    tab.wait(lambda: 0 < found.evaluate("one => one.getBoundingClientRect().top") < 720, 20, "what was sought")


def test_two_long_conversations_and_another_tab_are_each_shown_right(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    open_long(chat.open(), 40)
    other = open_long(chat.tab().open(), 30, "other")
    open_long(chat, 30, "other")
    chat.page.evaluate(NOTE)
    upstream.always(answer(["One ", "two."]))
    other.send("And on?")
    other.wait_state("complete")
    chat.wait(lambda: (len(chat.states()), chat.text()) == (31, "One two."), 20, "what the other tab asked")
    assert chat.page.evaluate("[touched, before.every((one) => one.isConnected)]") == [
        {"added": 2, "removed": 0, "older": 0},
        True,
    ]
    pick(chat, "The long one")
    assert (len(chat.states()), chat.text(0)[:20]) == (40, "The answer 0 of long")
    pick(chat, "The other one")
    assert (len(chat.states()), chat.text()) == (31, "One two.")
    for _ in range(2):
        chat.page.get_by_role("button", name="Options for").last.click()
        chat.page.get_by_role("menuitem", name="Delete").click()
        chat.page.locator("dialog").get_by_role("button", name="Delete").click()
    chat.page.locator(".greeting").wait_for()
    assert chat.states() == []


@pytest.mark.long
def test_who_listens_finds_also_what_is_far_away(
    playwright: Any, chromium_path: str, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    """A Chromium that a screen reader asks: what is not laid out is in its tree of roles and names all the same."""
    arguments = [*ARGUMENTS, "--force-renderer-accessibility"]
    browser = playwright.chromium.launch(executable_path=chromium_path, headless=True, args=arguments)
    try:
        chat = open_long(ChatPage(browser.new_page(), service.base_url).open(), 40)
        assert chat.page.evaluate(FAR) > 20
        devtools = chat.context.new_cdp_session(chat.page)
        nodes = devtools.send("Accessibility.getFullAXTree")["nodes"]
        names = {node["name"]["value"] for node in nodes if node["role"]["value"] == "StaticText"}
        assert {f"Question {number} of long?" for number in range(40)} <= names
        assert chat.close() == []
    finally:
        browser.close()
