"""A browser that keeps nothing, no more, or what the page cannot read: said in three parts, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import ARGUMENTS, OpenChat
from tests.browser.dialogues import exchange, learned, partly, pick, titles, turns
from tests.browser.page_steps import open_gates
from tests.harness.script import answer
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream

pytestmark = [pytest.mark.browser, pytest.mark.long]

TOKENS = ["One ", "two, ", "thr", "ee é🙂 ", "and four."]
TEXT = "".join(TOKENS)
LAST = len(TOKENS)
FULL = "This browser's storage for the page is full."
BLOCKED = "This browser does not let the page store anything."
FILL = """() => {
  for (let size = 1 << 22, number = 0; size >= 1; ) {
    try {
      localStorage.setItem(`filler.${number++}`, "x".repeat(size));
    } catch {
      size = Math.floor(size / 2);
    }
  }
}"""
EMPTY = """() => {
  for (const key of Object.keys(localStorage)) if (key.startsWith("filler")) localStorage.removeItem(key);
}"""
IS_FULL = "() => { try { localStorage.setItem('more', 'x'.repeat(100)); return false; } catch { return true; } }"
THROWS = """Object.defineProperty(window, "localStorage", {
  get() { throw new DOMException("denied", "SecurityError"); },
});"""
NO_ARCHIVE = "indexedDB.open = () => { throw new DOMException('denied', 'SecurityError'); };"
OLD = [{"role": "user", "content": "Old question?"}, {"role": "assistant", "content": "Old answer."}]


@pytest.fixture
def blocked_browser(playwright: Any, chromium_path: str, tmp_path: Path) -> Iterator[Any]:
    """Run a Chromium whose user has forbidden all sites to store anything, and give its context."""
    preferences = tmp_path / "profile" / "Default" / "Preferences"
    preferences.parent.mkdir(parents=True)
    preferences.write_text(json.dumps({"profile": {"default_content_setting_values": {"cookies": 2}}}))
    options = {"executable_path": chromium_path, "headless": True, "args": ARGUMENTS}
    context = playwright.chromium.launch_persistent_context(tmp_path / "profile", **options)
    try:
        yield context
    finally:
        context.close()


def key(name: str) -> str:
    """Name the key of a conversation."""
    return f"chatwait.conversation.{name}"


def put(chat: ChatPage, values: dict[str, str]) -> ChatPage:
    """Have these values in the storage when the page opens."""
    chat.page.goto(f"{chat.base_url}/health")
    chat.page.evaluate("(values) => Object.assign(localStorage, values)", values)
    return learned(chat.open())


def kept(chat: ChatPage) -> dict[str, str]:
    """Give the whole storage."""
    found: dict[str, str] = chat.page.evaluate("({...localStorage})")
    return found


def notices(chat: ChatPage) -> list[list[str]]:
    """List the notices, each with its parts."""
    parts = "boxes => boxes.map((box) => [...box.querySelectorAll('p')].map((part) => part.textContent))"
    found: list[list[str]] = chat.page.locator("#notices .box").evaluate_all(parts)
    return found


def wait_notice(chat: ChatPage, text: str) -> None:
    """Wait for a notice that begins so, of three parts, none of them empty."""
    chat.wait(lambda: text in [notice[0] for notice in notices(chat)], 10, f"the notice {text!r}")
    assert all(len(notice) == 3 and all(notice) for notice in notices(chat))


@pytest.mark.requirement("page FR-004", "page SC-006", "page constraint 1", "page FR-008")
def test_storage_that_becomes_full_in_mid_answer_is_said_and_the_answer_goes_on(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    chat.page.add_init_script(NO_ARCHIVE)  # with it, there would be room
    learned(chat.open())
    exchange(chat, upstream, "Before")
    before = chat.conversation()["id"]
    partly(chat, upstream, TOKENS, 2)
    hash_ = chat.page.url.partition("#")[2]
    assert hash_ != before
    chat.wait(lambda: chat.stored_answers()[-1]["content"] == "".join(TOKENS[:2]), 10, "the first part to be stored")
    assert notices(chat) == []
    chat.page.evaluate(FILL)
    assert chat.page.evaluate(IS_FULL)
    there = {name: text for name, text in kept(chat).items() if not name.startswith("filler")}

    open_gates(upstream, 2, LAST + 1)
    chat.wait_state("complete")
    assert chat.text() == TEXT
    wait_notice(chat, FULL)
    now = kept(chat)
    assert set(there) <= set(now)
    assert now[key(before)] == there[key(before)]
    assert TEXT.startswith(json.loads(now[key(hash_)])["messages"][-1]["content"])

    upstream.always(answer(["In memory."]))
    assert turns(exchange(chat, upstream, "And on?"))[1] == ("assistant", TEXT)
    pick(chat, "Before")
    assert chat.states() == ["complete"]
    pick(chat, "Count.")
    assert (chat.states(), chat.text(0), chat.text(1)) == (["complete"] * 2, TEXT, "In memory.")

    chat.page.evaluate(EMPTY)
    exchange(chat, upstream, "And now?")
    chat.wait(lambda: notices(chat) == [], 10, "the notice to go")
    assert [one["state"] for one in chat.stored_answers()] == ["complete"] * 3
    chat.reload()
    assert chat.states() == ["complete"] * 3
    assert chat.text(0) == TEXT


@pytest.mark.requirement("page FR-004", "page constraint 1")
@pytest.mark.parametrize("how", ["by a script", "by its user"])
def test_storage_that_is_blocked_is_said_and_the_page_works_without(
    request: pytest.FixtureRequest, open_chat: OpenChat, service: ChatWait, upstream: ScriptedUpstream, how: str
) -> None:
    chat = open_chat(service.base_url, request.getfixturevalue("blocked_browser") if how == "by its user" else None)
    if how == "by a script":
        chat.page.add_init_script(THROWS)
    learned(chat.open())
    is_blocked = "() => { try { return !localStorage; } catch { return true; } }"
    assert chat.page.evaluate(is_blocked)
    wait_notice(chat, BLOCKED)
    upstream.always(answer(TOKENS))
    exchange(chat, upstream, "First?")
    assert chat.text() == TEXT
    assert turns(exchange(chat, upstream, "Second?")) == [
        ("user", "First?"),
        ("assistant", TEXT),
        ("user", "Second?"),
    ]
    chat.new_conversation()
    exchange(chat, upstream, "Elsewhere?")
    pick(chat, "First?")
    assert chat.states() == ["complete"] * 2
    assert chat.text(0) == TEXT
    assert BLOCKED in [notice[0] for notice in notices(chat)]


@pytest.mark.requirement("page constraint 1", "page SC-006")
def test_conversations_that_cannot_be_read_are_said_and_left_as_they_are(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    """One is no JSON, one of a wrong shape, one of a newer version; the list itself is broken too."""
    good = {"v": 2, "id": "good", "title": "Good one", "created": 1, "updated": 1, "messages": []}
    broken = {
        key("torn"): '{"v": 2, "id": "torn", "messages": [{"ro',
        key("odd"): '{"v": 2, "id": "odd", "messages": 7}',
        key("newer"): json.dumps({**good, "v": 3, "id": "newer", "title": "From tomorrow", "messages": {"of": 3}}),
    }
    put(chat, {**broken, key("good"): json.dumps(good), "chatwait.index": "{torn"})
    chat.wait(lambda: len(notices(chat)) == 4, 10, "four notices")
    firsts = sorted(notice[0] for notice in notices(chat))
    assert firsts == [
        "A newer version of this page stored one of the conversations.",
        "A stored conversation cannot be read.",
        "A stored conversation cannot be read.",
        "The stored list of conversations cannot be read.",
    ]
    assert all(len(notice) == 3 and all(notice) for notice in notices(chat))
    assert len(titles(chat)) == 4
    listed = chat.page.locator("#list ul").text_content()
    assert "cannot be read" in listed
    assert "made by a newer version of this page" in listed

    exchange(chat, upstream, "Does it work?")
    chat.page.locator("#list a.open").filter(has_text="From tomorrow").click()
    chat.wait(lambda: chat.states() == [], 10, "a new conversation")
    assert broken.items() <= kept(chat).items()
    assert json.loads(kept(chat)["chatwait.index"])["v"] == 2
    chat.reload()
    assert broken.items() <= kept(chat).items()
    assert len(notices(chat)) == 3


@pytest.mark.requirement("page constraint 2", "page FR-008", "page FR-011")
@pytest.mark.parametrize(
    "stored",
    [OLD, {"messages": OLD}, {"id": "old", "title": "Old question?", "messages": OLD}],
    ids=["a list", "messages only", "no version"],
)
def test_conversation_of_the_old_format_is_shown_and_goes_on(
    chat: ChatPage, upstream: ScriptedUpstream, stored: Any
) -> None:
    put(chat, {key("old"): json.dumps(stored)})
    assert titles(chat) == ["Old question?"]
    assert notices(chat) == []
    pick(chat, "Old question?")
    assert (chat.states(), chat.text()) == (["complete"], "Old answer.")
    assert json.loads(kept(chat)[key("old")]) == stored

    assert turns(exchange(chat, upstream, "New question?")) == [
        ("user", "Old question?"),
        ("assistant", "Old answer."),
        ("user", "New question?"),
    ]
    now = chat.conversation()
    assert (now["v"], now["id"], now["title"]) == (2, "old", "Old question?")
    assert [one["content"] for one in now["messages"]] == [
        "Old question?",
        "Old answer.",
        "New question?",
        "Hello, world.",
    ]
    chat.reload()
    assert chat.states() == ["complete"] * 2


@pytest.mark.requirement("page constraint 1")
def test_notice_that_is_put_away_stays_away_and_the_draft_survives_a_full_storage(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    learned(chat.open())
    exchange(chat, upstream, "First?")
    chat.page.evaluate(FILL)
    chat.box.fill("A draft that has no room")
    chat.new_conversation()
    wait_notice(chat, FULL)
    chat.press("Dismiss")
    assert notices(chat) == []
    pick(chat, "First?")
    assert chat.box.input_value() == "A draft that has no room"
    assert notices(chat) == []
