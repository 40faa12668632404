"""The chat page whose storage is cleared while it is open: no deletion, so what is there stays and goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import OpenChat
from tests.browser.dialogues import FLOWING, exchange, learned, partly, titles, turns
from tests.browser.page_steps import open_gates
from tests.browser.tab_steps import choose, other_tab
from tests.browser.test_page_storage import notices, wait_notice
from tests.harness.script import answer
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream

pytestmark = pytest.mark.browser

TOKENS = ["One ", "two, ", "thr", "ee é🙂 ", "and four."]
TEXT = "".join(TOKENS)
LAST = len(TOKENS)
CLEARED = "This browser or another tab cleared the stored conversations."


def by_a_script(chat: ChatPage) -> None:
    """Clear the storage in a tab that shows something else."""
    other = chat.tab()
    other.page.goto(f"{chat.base_url}/docs")
    other.page.evaluate("localStorage.clear()")


def by_the_browser(chat: ChatPage) -> None:
    """Clear the site's data as the browser does when its user says so."""
    session = chat.context.new_cdp_session(chat.page)
    session.send("Storage.clearDataForOrigin", {"origin": chat.base_url, "storageTypes": "local_storage"})


@pytest.mark.requirement("page FR-004", "page SC-006", "page constraint 1", "page FR-008")
@pytest.mark.parametrize("clear", [by_a_script, pytest.param(by_the_browser, marks=pytest.mark.long)])
def test_storage_cleared_in_mid_answer_is_said_and_the_answer_goes_on_and_is_stored(
    chat: ChatPage, upstream: ScriptedUpstream, clear: Callable[[ChatPage], None]
) -> None:
    record = partly(chat, upstream, TOKENS, 2)
    chat.wait(lambda: chat.stored_answers()[-1]["content"] == "".join(TOKENS[:2]), 10, "the first part to be stored")
    clear(chat)
    chat.page.bring_to_front()
    chat.wait(lambda: not chat.page.evaluate("localStorage.length") or notices(chat), 10, "an empty storage")
    assert (chat.text(), chat.state() in FLOWING) == ("".join(TOKENS[:2]), True)
    open_gates(upstream, 2, LAST + 1)
    chat.wait_state("complete")
    assert chat.text() == TEXT
    wait_notice(chat, CLEARED)
    assert record.finished_at is not None  # nobody has stopped it
    assert chat.stored_answers()[-1]["content"] == TEXT
    assert titles(chat) == ["Count."]

    chat.press("Dismiss")
    upstream.always(answer(["Yes."]))
    assert turns(exchange(chat, upstream, "Is that all?"))[1] == ("assistant", TEXT)
    assert notices(chat) == []
    chat.reload()
    assert chat.states() == ["complete"] * 2
    assert notices(chat) == []


@pytest.mark.requirement("page FR-004", "page constraint 1")
def test_storage_cleared_leaves_a_conversation_that_is_only_looked_at(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    learned(chat.open())
    exchange(chat, upstream, "First?")
    by_a_script(chat)
    wait_notice(chat, CLEARED)
    assert (chat.states(), chat.text(), titles(chat)) == (["complete"], "Hello, world.", ["First?"])
    chat.wait(lambda: chat.stored_answers(), 10, "the conversation to be stored again")
    chat.reload()
    assert chat.text() == "Hello, world."


@pytest.mark.long
@pytest.mark.requirement("page edge 7", "page FR-004")
def test_conversation_deleted_where_tabs_cannot_talk_is_gone_and_its_model_is_stopped(
    open_chat: OpenChat, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Without a channel the storage alone tells that this was a person, and no clearing."""
    chat = open_chat(service.base_url)
    chat.context.add_init_script("delete globalThis.BroadcastChannel;")
    record = partly(chat, upstream, TOKENS, 2)
    other = other_tab(chat)
    choose(other, "Count.", "Delete")
    other.page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()
    upstream.open("2")
    record.wait_closed(timeout=10)
    chat.wait(lambda: chat.states() == [], 10, "the empty page")
    assert notices(chat) == []
    assert titles(chat) == []
