"""The focus never falls to nothing, whatever vanishes: buttons that go with their press, dialogs, rows, messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import OpenChat
from tests.browser.page_steps import LOST, gated, open_gates
from tests.browser.person_steps import fallen, focus, tab_to, watch
from tests.browser.tab_steps import begin, choose, conversation_id, listed, other_tab
from tests.harness.chaos import ChaosProxy
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream, answer, error

pytestmark = pytest.mark.browser

NARROW: dict[str, Any] = {"viewport": {"width": 390, "height": 800}}
INTERRUPT = """
() => {
  const key = "chatwait.conversation." + location.hash.slice(1);
  const conversation = JSON.parse(localStorage.getItem(key));
  Object.assign(conversation.messages.at(-1), { state: "interrupted", error: { code: "connection_lost" } });
  localStorage.setItem(key, JSON.stringify(conversation));
  for (const name of ["one", "two"]) localStorage.setItem(`chatwait.conversation.${name}`, "{");
}
"""
LONG = [f"Line {number}.\n\n" for number in range(60)]


def press(chat: ChatPage, name: str, key: str = "Enter") -> None:
    """Put the focus on a button, and press it by a key."""
    button = chat.button(name)
    button.wait_for()
    button.focus()
    assert focus(chat) == name
    chat.page.keyboard.press(key)


def has(chat: ChatPage, name: str) -> None:
    """Wait until this has the focus, and check that nothing never had it."""
    chat.wait(lambda: focus(chat) == name, 10, f"the focus on {name!r}, but {focus(chat)!r} has it")
    assert fallen(chat) == []


@pytest.mark.requirement("page assumption 5")
def test_focus_stays_when_the_button_that_was_pressed_is_gone(
    open_chat: OpenChat, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    chat = watch(open_chat(proxy.base_url)).open()
    chat.expect_fault(LOST)
    chat.expect_fault(r"the server responded with a status of")
    has(chat, "Message")
    upstream.always(gated(["One ", "two."]))
    begin(chat)
    upstream.open("0")
    chat.wait_text("One ")
    chat.stop()
    chat.wait_state("stopped")
    chat.button("Ask again").wait_for()

    upstream.always(error(400))
    press(chat, "Ask again")
    chat.wait(lambda: chat.states()[1:] == ["failed"], 20, "a failure")
    has(chat, "Message")
    upstream.always(answer(["A new ", "one."]))
    press(chat, "Ask again", "Space")
    chat.wait(lambda: chat.states()[2:] == ["complete"], 20, "a new answer")
    has(chat, "Message")
    press(chat, "Details")
    chat.page.locator("dl.details").wait_for()
    has(chat, "Details")
    chat.page.keyboard.press("Enter")
    has(chat, "Details")

    upstream.always(gated(["More."]))
    chat.send("To be stopped")
    chat.wait_text("More.")
    chat.stop()
    chat.wait_state("stopped")
    upstream.always(answer(["And more."]))
    press(chat, "Continue")
    chat.wait(lambda: chat.states()[4:] == ["complete"], 20, "its continuation")
    has(chat, "Message")

    chat.page.evaluate(INTERRUPT)
    chat.reload()
    press(chat, "Reconnect")
    chat.wait_state("complete")
    has(chat, "Message")
    press(chat, "Dismiss")
    has(chat, "Dismiss")  # of the other notice
    chat.page.keyboard.press("Enter")
    chat.page.locator("#notices .box").wait_for(state="detached")
    has(chat, "Message")

    upstream.always(gated(["One ", "two."]))
    chat.send("To be lost")
    chat.wait_text("One ")
    proxy.refuse()
    proxy.cut_all()
    chat.button("Try now").wait_for()
    chat.button("Try now").focus()
    proxy.accept()
    chat.page.keyboard.press("Enter")
    chat.wait_state("streaming", "slow")
    has(chat, "Message")
    open_gates(upstream, 1, 3)
    chat.wait_state("complete")


@pytest.mark.requirement("page assumption 5")
def test_focus_goes_to_the_messages_where_a_keyboard_would_pop_up(
    open_chat: OpenChat, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    chat = watch(open_chat(service.base_url, has_touch=True, is_mobile=True, **NARROW)).open()
    upstream.always(answer(["One "], finish="length"))
    chat.box.fill("Count.")
    chat.button("Send").tap()
    chat.wait_state("complete")
    press(chat, "Continue")
    chat.wait(lambda: chat.states() == ["complete"] * 2, 20, "its continuation")
    has(chat, "Messages")


@pytest.mark.requirement("page assumption 5", "page FR-009")
def test_focus_stays_where_one_reads_when_the_way_to_the_latest_is_gone(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    watch(chat).open()
    upstream.always(answer(LONG))
    chat.send("Count.")
    chat.wait_state("complete")
    tab_to(chat, "Messages", "Shift+Tab")
    chat.page.keyboard.press("Home")
    press(chat, "Jump to latest")
    has(chat, "Messages")


@pytest.mark.requirement("page assumption 5")
def test_focus_stays_through_the_list_its_menus_and_its_dialog(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    watch(chat).open()
    upstream.always(answer(["One."]))
    for name in ("First", "Second", "Third"):
        chat.send(name)
        chat.wait_state("complete")
        press(chat, "New conversation")
        has(chat, "Message")
    assert listed(chat) == ["Third", "Second", "First"]
    keyboard = chat.page.keyboard

    press(chat, "Options for Second")
    has(chat, "Rename")
    keyboard.press("ArrowDown")
    has(chat, "Delete")
    keyboard.press("Escape")
    has(chat, "Options for Second")
    keyboard.press("Enter")
    keyboard.press("Enter")
    has(chat, "Title")
    keyboard.press("Escape")
    has(chat, "Second")
    keyboard.press("F2")
    keyboard.type("Renamed")
    keyboard.press("Enter")
    has(chat, "Renamed")
    press(chat, "Options for Renamed")
    keyboard.press("ArrowUp")
    has(chat, "Delete")
    keyboard.press("Enter")
    has(chat, "Cancel")
    keyboard.press("Escape")
    has(chat, "Options for Renamed")
    with chat.page.expect_file_chooser() as chooser:
        press(chat, "Import")
    cancel(chooser.value)
    has(chat, "Import")
    with chat.page.expect_download():
        press(chat, "Export")
    has(chat, "Export")

    for name, then in (("Renamed", "First"), ("Third", "First"), ("First", "New conversation")):
        press(chat, f"Options for {name}")
        keyboard.press("ArrowDown")
        keyboard.press("Enter")
        has(chat, "Cancel")
        keyboard.press("Tab")
        has(chat, "Delete")
        keyboard.press("Enter")
        has(chat, then)
    assert listed(chat) == []


@pytest.mark.requirement("page assumption 5")
def test_focus_stays_when_another_tab_deletes_what_has_it(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    watch(chat).open()
    upstream.always(answer(["One."]))
    for name in ("First", "Second", "Third", "Fourth"):
        chat.send(name)
        chat.wait_state("complete")
        if name != "Fourth":
            chat.new_conversation()
    other = watch(chat.tab()).open()

    def remove(name: str) -> None:
        choose(other, name, "Delete")
        other.page.get_by_role("button", name="Delete", exact=True).click()
        chat.wait(lambda: name not in listed(chat), 10, f"the end of {name}")

    chat.page.locator("#list").get_by_role("link", name="Second", exact=True).focus()
    remove("Second")
    has(chat, "First")
    press(chat, "Options for First")
    has(chat, "Rename")
    remove("First")
    has(chat, "Third")
    remove("Fourth")  # which is shown here
    assert conversation_id(chat) == ""
    has(chat, "Third")
    chat.page.keyboard.press("Enter")
    chat.wait_state("complete")
    chat.button("Copy").focus()
    remove("Third")
    has(chat, "Message")


@pytest.mark.requirement("page assumption 5")
def test_focus_that_the_reader_gave_away_is_not_fetched_back(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    """Whoever clicks into the page to scroll it by keys has nothing focused, and that stays."""
    watch(chat).open()
    upstream.always(answer(["One."]))
    chat.send("First")
    chat.wait_state("complete")
    chat.button("Copy").focus()
    chat.page.locator("h1").click()
    assert focus(chat) == ""
    other_tab(chat).send("Second")
    chat.wait(lambda: chat.states() == ["complete", "complete"], 20, "the other tab's answer")
    assert focus(chat) == ""


@pytest.mark.requirement("page scope 2", "page assumption 5")
def test_drawer_holds_the_focus_and_escape_closes_it_and_stops_nothing(
    open_chat: OpenChat, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    chat = watch(open_chat(service.base_url, **NARROW)).open()
    upstream.always(gated(["One ", "two."]))
    begin(chat, "First")
    upstream.open("0")
    chat.wait_text("One ")
    keyboard, page = chat.page.keyboard, chat.page

    def is_open() -> bool:
        return bool(page.locator("#list").is_visible())

    press(chat, "Conversations")
    has(chat, "First (an answer is on its way)")
    met = set()
    for _ in range(20):
        keyboard.press("Tab")
        met.add(focus(chat))
    assert met >= {"Keyboard shortcuts", "Close", "New conversation", "Options for First", "Export", "Import"}
    assert not met & {"Message", "Messages", "Stop", "Copy", "Conversations"}, "behind the drawer"
    page.evaluate("document.activeElement.blur()")
    assert focus(chat) == ""
    page.evaluate("fallen.length = 0")  # Tab goes past the page's end, too
    keyboard.press("Escape")
    assert not is_open()
    has(chat, "Conversations")

    ways: list[tuple[str, Callable[[], Any]]] = [
        ("Escape on a control", lambda: keyboard.press("Escape")),
        ("its button", lambda: press(chat, "Close")),
        ("beside it", lambda: page.mouse.click(380, 400)),
        ("a wider window", lambda: page.set_viewport_size({"width": 1280, "height": 800})),
    ]
    for name, close in ways:
        press(chat, "Conversations")
        assert is_open(), name
        close()
        chat.wait(lambda: page.evaluate("!document.querySelector('#main').inert"), 5, name)
        assert focus(chat) == ("First (an answer is on its way)" if name == "a wider window" else "Conversations"), name
        assert page.evaluate("document.querySelector('#drawer').ariaExpanded") == "false"
    assert chat.state() in ("streaming", "slow")
    page.set_viewport_size({"width": 390, "height": 800})
    chat.button("Conversations").focus()
    keyboard.press("Escape")
    chat.wait_state("stopped")


@pytest.mark.requirement("page assumption 5")
@pytest.mark.parametrize("is_narrow", [False, pytest.param(True, marks=pytest.mark.long)], ids=["wide", "narrow"])
def test_keys_are_listed_and_escape_closes_the_list_and_stops_nothing(
    open_chat: OpenChat, service: ChatWait, upstream: ScriptedUpstream, is_narrow: bool
) -> None:
    chat = watch(open_chat(service.base_url, **(NARROW if is_narrow else {}))).open()
    upstream.always(gated(["One ", "two."]))
    begin(chat, "First")
    keyboard, keys = chat.page.keyboard, chat.page.get_by_role("dialog", name="Keyboard shortcuts", exact=True)

    def on_heading() -> bool:
        return bool(keys.locator("h2").evaluate("one => one === document.activeElement"))

    keyboard.type("Why?")  # a question mark in the box is one
    assert (chat.box.input_value(), keys.is_visible()) == ("Why?", False)

    tab_to(chat, "Messages", "Shift+Tab")
    keyboard.press("?")
    keys.wait_for()
    assert on_heading()
    keyboard.press("Tab")
    has(chat, "Close")
    listed_keys = keys.locator("dt:visible").all_inner_texts()
    assert [one.replace(" ", "") for one in listed_keys] == ["Enter", "Shift+Enter", "Esc", "End", "↑↓", "F2", "?"]
    keys.locator("h2").click()  # nothing of the dialog has the focus now
    keyboard.press("Escape")
    keys.wait_for(state="hidden")
    chat.wait(lambda: focus(chat) == "Messages", 5, "the focus where it was")

    into_list(chat, is_narrow)
    press(chat, "Keyboard shortcuts", "Space")
    keys.wait_for()
    keyboard.press("Enter")
    assert on_heading()  # nothing is closed by who pressed a key twice
    keyboard.press("Tab")
    keyboard.press("Enter")  # on Close
    keys.wait_for(state="hidden")
    has(chat, "Keyboard shortcuts")
    if is_narrow:
        assert chat.page.locator("#list").is_visible()  # Esc and Close were the dialog's
        keyboard.press("Escape")
    assert chat.state() == "waiting"

    chat.page.evaluate("document.activeElement.blur()")
    keyboard.press("?")
    keys.wait_for()
    keyboard.press("Escape")
    keys.wait_for(state="hidden")
    chat.wait(lambda: focus(chat) == "Message", 5, "the focus where one writes")
    assert chat.state() == "waiting"

    chat.page.set_viewport_size({"width": 320, "height": 480})
    chat.page.evaluate("document.activeElement.blur()")
    keyboard.press("?")
    assert on_heading()
    higher, top = keys.evaluate("one => [one.scrollHeight - one.clientHeight, one.scrollTop]")
    assert (higher > 0, top) == (True, 0)  # one reads it from its beginning


def into_list(chat: ChatPage, is_narrow: bool) -> None:
    """Open the drawer where the list is in one."""
    if is_narrow and not chat.page.locator("#list").is_visible():
        press(chat, "Conversations")


def cancel(chooser: Any) -> None:
    """Close the browser's dialog without a file: the page gets a `cancel`, and nothing is chosen."""
    chooser.element.evaluate("one => one.dispatchEvent(new Event('cancel', { bubbles: true }))")
