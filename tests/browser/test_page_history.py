"""The list of conversations in the real page: rename, delete, export, import, and what title and icon tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import OpenChat
from tests.browser.dialogues import ask, exchange, fragment, learned, partly, pick, titles, turns
from tests.browser.page_steps import open_gates
from tests.harness.script import answer
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Event, Finish, Gate, Script, ScriptedUpstream, Token

pytestmark = [pytest.mark.browser, pytest.mark.long]

TOKENS = ["One ", "two, ", "thr", "ee é🙂 ", "and four."]
TEXT = "".join(TOKENS)
LAST = len(TOKENS)
ICON = "() => document.querySelector('link[rel=icon]').href.split('/').pop()"
BROKEN = Event({"error": {"message": "CUDA out of memory", "type": "server_error"}})


def option(chat: ChatPage, title: str, name: str) -> None:
    """Choose from the menu of a conversation in the list."""
    chat.page.get_by_role("button", name=f"Options for {title}", exact=True).click()
    chat.page.get_by_role("menuitem", name=name, exact=True).click()


def marks(chat: ChatPage) -> tuple[str, str]:
    """Tell the window's title and icon."""
    return chat.page.title(), chat.page.evaluate(ICON)


def two(chat: ChatPage, upstream: ScriptedUpstream) -> ChatPage:
    """Have one exchange in each of two conversations, the second of which is shown."""
    learned(chat.open())
    exchange(chat, upstream, "About apples")
    chat.new_conversation()
    upstream.always(answer(["A pear é🙂."]))
    exchange(chat, upstream, "About pears")
    assert titles(chat) == ["About pears", "About apples"]
    return chat


@pytest.mark.requirement("page FR-008", "page dependency 3")
def test_conversation_that_is_renamed_keeps_its_new_title(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    two(chat, upstream)
    option(chat, "About apples", "Rename")
    field = chat.page.get_by_role("textbox", name="Title", exact=True)
    field.fill("<b>Fruit</b>")
    field.press("Enter")
    chat.wait(lambda: sorted(titles(chat)) == ["<b>Fruit</b>", "About pears"], 10, "the new title")
    pick(chat, "<b>Fruit</b>")
    assert chat.page.title() == "<b>Fruit</b> · ChatWait"
    chat.reload()
    assert sorted(titles(chat)) == ["<b>Fruit</b>", "About pears"]
    exchange(chat, upstream, "More apples")
    assert chat.conversation()["title"] == "<b>Fruit</b>"


@pytest.mark.requirement("page FR-004", "page FR-007")
def test_conversation_renamed_in_mid_answer_keeps_title_and_answer(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    partly(chat, upstream, TOKENS, 2)
    option(chat, "Count.", "Rename")
    field = chat.page.get_by_role("textbox", name="Title", exact=True)
    field.fill("Numbers")
    upstream.open("2")
    chat.wait_text("".join(TOKENS[:3]))
    assert field.input_value() == "Numbers"
    field.press("Enter")
    open_gates(upstream, 3, LAST + 1)
    chat.wait_state("complete")
    kept = chat.conversation()
    assert (kept["title"], kept["messages"][-1]["content"]) == ("Numbers", TEXT)
    assert titles(chat) == ["Numbers"]


@pytest.mark.requirement("page dependency 3", "page SC-006")
def test_conversation_is_deleted_only_after_asking(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    two(chat, upstream)
    dialog = chat.page.get_by_role("dialog")
    option(chat, "About apples", "Delete")
    assert "About apples" in dialog.inner_text()
    dialog.get_by_role("button", name="Cancel").click()
    assert titles(chat) == ["About pears", "About apples"]

    hash_ = fragment(chat)
    option(chat, "About apples", "Delete")
    dialog.get_by_role("button", name="Delete").click()
    chat.wait(lambda: titles(chat) == ["About pears"], 10, "one to be gone")
    assert fragment(chat) == hash_
    keys = chat.page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('chatwait.conversation'))")
    assert keys == [f"chatwait.conversation.{hash_[1:]}"]

    option(chat, "About pears", "Delete")
    dialog.get_by_role("button", name="Delete").click()
    chat.wait(lambda: titles(chat) == [] and chat.states() == [], 10, "the other one to be gone")
    assert "#" not in chat.page.url
    chat.reload()
    assert titles(chat) == []


@pytest.mark.requirement("page dependency 3", "page scope 2")
def test_conversation_deleted_in_mid_answer_is_stopped_and_stays_deleted(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    record = partly(chat, upstream, TOKENS, 2)
    option(chat, "Count.", "Delete")
    chat.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    record.wait_closed()
    chat.wait(lambda: titles(chat) == [] and chat.states() == [], 10, "it to be gone")
    chat.reload()
    assert titles(chat) == []
    upstream.always(answer(["Yes."]))
    assert turns(exchange(chat, upstream, "Still here?")) == [("user", "Still here?")]


@pytest.mark.requirement("page FR-008", "page constraint 1", "page constraint 2")
def test_conversations_exported_are_the_same_in_another_browser(
    chat: ChatPage, open_chat: OpenChat, service: ChatWait, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    two(chat, upstream)
    mine = chat.conversation()
    with chat.page.expect_download() as download:
        chat.press("Export")
    file = tmp_path / "conversations.json"
    download.value.save_as(file)
    assert {one["title"] for one in json.loads(file.read_text())["conversations"]} == {"About apples", "About pears"}

    other = open_chat(service.base_url).open()
    assert titles(other) == []
    other.page.locator("#list input[type=file]").set_input_files(file)
    other.wait(lambda: titles(other) == ["About pears", "About apples"], 10, "both conversations")
    assert "2 conversations added." in other.page.locator("#hint").inner_text()
    pick(other, "About pears")
    assert (other.states(), other.text()) == (["complete"], "A pear é🙂.")
    theirs = other.conversation()
    assert theirs["id"] == mine["id"]
    assert [one["content"] for one in theirs["messages"]] == [one["content"] for one in mine["messages"]]
    assert turns(exchange(other, upstream, "And?"))[:2] == [("user", "About pears"), ("assistant", "A pear é🙂.")]


@pytest.mark.requirement("page FR-006")
@pytest.mark.parametrize("text", ["no JSON", '{"format": "chatwait", "v": 3, "conversations": []}', '{"a": 1}'])
def test_file_that_cannot_be_imported_is_refused_in_words_and_changes_nothing(
    chat: ChatPage, upstream: ScriptedUpstream, tmp_path: Path, text: str
) -> None:
    two(chat, upstream)
    file = tmp_path / "other.json"
    file.write_text(text)
    before = chat.page.evaluate("({...localStorage})")
    chat.page.locator("#list input[type=file]").set_input_files(file)
    chat.wait(lambda: "Nothing was added" in chat.page.locator("#hint").inner_text(), 10, "the refusal")
    assert chat.page.evaluate("({...localStorage})") == before
    assert titles(chat) == ["About pears", "About apples"]


@pytest.mark.requirement("page US2.1", "page US2.2", "page FR-005", "page SC-007")
def test_title_and_icon_show_an_answer_on_its_way(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    chat.open()
    assert marks(chat) == ("ChatWait", "icon.svg")
    partly(chat, upstream, TOKENS, 1)
    assert marks(chat) == ("… Count. · ChatWait", "icon-streaming.svg")
    open_gates(upstream, 1, LAST + 1)
    chat.wait_state("complete")
    assert marks(chat) == ("Count. · ChatWait", "icon.svg")


@pytest.mark.requirement("page US2.3", "page FR-005", "page SC-007")
@pytest.mark.parametrize(
    ("end", "title", "icon", "words"),
    [
        ("complete", "✓ About pears · ChatWait", "icon-done.svg", "a new answer is complete"),
        ("length", "✓ About pears · ChatWait", "icon-done.svg", "a new answer ended early"),
        ("failed", "! About pears · ChatWait", "icon-error.svg", "the answer failed"),
    ],
)
def test_title_and_icon_and_list_show_what_ended_elsewhere_until_it_is_looked_at(
    chat: ChatPage, upstream: ScriptedUpstream, end: str, title: str, icon: str, words: str
) -> None:
    two(chat, upstream)
    pick(chat, "About apples")
    rest = [BROKEN] if end == "failed" else [Token("way."), Finish("length" if end == "length" else "stop"), Done()]
    upstream.always(Script(steps=[Token("Half "), Gate("end"), *rest]))
    ask(chat, upstream, "Go on")
    chat.wait_text("Half ")
    pick(chat, "About pears")
    listed = chat.page.locator("#list li").filter(has_text="About apples")
    assert "an answer is on its way" in listed.text_content()
    assert marks(chat) == ("About pears · ChatWait", "icon.svg")

    upstream.open("end")
    chat.wait(lambda: marks(chat) == (title, icon), 10, f"{title} with {icon}")
    assert words in listed.text_content()
    pick(chat, "About apples")
    assert chat.state() == end.replace("length", "complete")
    assert marks(chat) == ("About apples · ChatWait", "icon.svg")
    assert words not in listed.text_content()
