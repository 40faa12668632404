"""The page for a person who has no mouse: keys alone reach everything, and at no step is the focus lost."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.chatpage import STOP_MS, ChatPage
from tests.browser.conftest import OpenChat
from tests.browser.page_steps import LOST, gated, open_gates
from tests.browser.person_steps import fallen, focus, tab_to, watch
from tests.harness.chaos import ChaosProxy
from tests.harness.upstream import ScriptedUpstream

pytestmark = pytest.mark.browser


@pytest.mark.requirement("page US2 test", "page US3.2", "page assumption 5")
@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"viewport": {"width": 390, "height": 800}}, marks=pytest.mark.long)],
    ids=["wide", "narrow"],
)
def test_person_without_a_mouse_asks_loses_the_link_comes_back_stops_asks_again_and_deletes(
    open_chat: OpenChat, proxy: ChaosProxy, upstream: ScriptedUpstream, options: dict[str, Any]
) -> None:
    chat = watch(open_chat(proxy.base_url, **options)).open()
    chat.expect_fault(LOST)
    keyboard = chat.page.keyboard
    upstream.always(gated(["One ", "two ", "three."]))
    assert focus(chat) == "Message"
    keyboard.type("Count.")
    keyboard.press("Enter")
    chat.wait_state("waiting")
    upstream.open("0")
    chat.wait_text("One ")

    proxy.refuse()
    proxy.cut_all()
    chat.button("Try now").wait_for()
    tab_to(chat, "Try now", "Shift+Tab")
    proxy.accept()
    keyboard.press("Space")
    chat.wait_state("streaming", "slow")
    at(chat, "Message")
    chat.page.wait_for_timeout(STOP_MS)  # Stop is ignored until then
    keyboard.press("Escape")
    chat.wait_state("stopped")

    tab_to(chat, "Ask again", "Shift+Tab")
    open_gates(upstream, 1, 4)
    keyboard.press("Enter")
    chat.wait(lambda: chat.states() == ["stopped", "complete"], 20, "a new answer")
    at(chat, "Message")
    tab_to(chat, "Copy", "Shift+Tab", "Shift+Tab", "Shift+Tab")

    if options:
        tab_to(chat, "Conversations", "Shift+Tab")
        keyboard.press("Enter")
        at(chat, "Count.")
    else:
        tab_to(chat, "Count.", "Shift+Tab")
    tab_to(chat, "Keyboard shortcuts", "Shift+Tab")
    keyboard.press("Enter")
    chat.page.locator("#keys-title:focus").wait_for()
    keyboard.press("Tab")
    at(chat, "Close")
    keyboard.press("Escape")
    at(chat, "Keyboard shortcuts")
    tab_to(chat, "Options for Count.")
    keyboard.press("Enter")
    keyboard.press("ArrowDown")
    at(chat, "Delete")
    keyboard.press("Space")
    at(chat, "Cancel")
    keyboard.press("Tab")
    keyboard.press("Enter")
    chat.wait(lambda: chat.states() == [] and not chat.page.locator("#list li").count(), 5, "nothing")
    at(chat, "Message")
    assert fallen(chat) == []


def at(chat: ChatPage, name: str) -> None:
    """Wait until this has the focus."""
    chat.wait(lambda: focus(chat) == name, 5, f"the focus on {name!r}, but {focus(chat)!r} has it")
