"""A page whose server goes away while nothing is on its way: it says so, and says when the server is back."""

from __future__ import annotations

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import OpenChat, RunService
from tests.browser.dialogues import learned
from tests.browser.page_steps import LOST
from tests.harness.upstream import ScriptedUpstream

pytestmark = pytest.mark.browser

AWAY = "The server cannot be reached."


def notice(chat: ChatPage) -> str:
    """Read what is said about the server; "" when nothing is."""
    found = chat.page.locator("#notices [role=alert]").all_inner_texts()
    return next((text for text in found if AWAY in text), "")


def said(chat: ChatPage) -> str:
    """Read what is just being said aloud."""
    return str(chat.page.locator("#polite").inner_text())


def test_page_that_is_open_hears_that_the_server_went_away_and_is_back(
    run_service: RunService, open_chat: OpenChat, upstream: ScriptedUpstream
) -> None:
    service = run_service()
    chat = open_chat(service.base_url)
    chat.expect_fault(LOST)
    chat.page.clock.install()
    learned(chat.open())
    service.kill()
    chat.page.clock.fast_forward(31_000)
    chat.wait(lambda: chat.page.clock.run_for(1_000) or notice(chat), 10, "the notice")
    chat.press("Dismiss")
    assert notice(chat) == ""
    service.start()
    chat.wait(lambda: chat.page.clock.run_for(500) or said(chat) == "The server is back.", 10, "it is said")

    service.kill()
    chat.page.clock.run_for(11_000)
    with chat.page.expect_request("**/v1/models", timeout=10_000):  # long before the page would have asked by itself
        chat.box.press_sequentially("A word")
        chat.page.clock.run_for(1_000)
    chat.wait(lambda: chat.page.clock.run_for(1_000) or notice(chat), 10, "who writes hears of it again")
