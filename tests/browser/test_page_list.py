"""The list of conversations in a real browser: by keyboard and mouse, with names for those who do not see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.parts import Parts, open_parts

pytestmark = pytest.mark.browser

START = """
async () => {
    const { createList } = await import("/assets/list.js");
    window.told = [];
    const tell = (what) => (...more) => told.push([what, ...more]);
    window.list = createList({
        nav: document.getElementById("list"),
        onOpen: tell("open"), onNew: tell("new"), onRename: tell("rename"), onImport: tell("import"),
        onDelete: (id) => {
            told.push(["delete", id]);
            entries = entries.filter((entry) => entry.id !== id);
            list.show(entries, "b");
        },
        onExport: () => JSON.stringify({format: "chatwait", text: "é🙂".repeat(100_000)}),
    });
    window.entry = (id, title, more) => ({id, title, updated: 0, active: false, ...more});
    window.entries = [entry("a", "Apples"), entry("b", "Pears"), entry("c", "Plums and other stone fruit")];
    list.show(entries, "b");
}
"""
HTML = '<img src=x onerror="window.hacked = 1"><b>bold</b> & &amp;'


class Conversations:
    """Drive the list."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.page = parts.page
        parts.run(START)
        self.nav = self.page.get_by_role("navigation", name="Conversations")

    def told(self) -> list[list[Any]]:
        told: list[list[Any]] = self.parts.run("told.splice(0)")
        return told

    def show(self, script: str) -> None:
        self.parts.run(f"() => {{ {script}; list.show(entries, 'b'); }}")

    def link(self, name: str) -> Any:
        return self.nav.get_by_role("link", name=name, exact=True)

    def options(self, title: str) -> Any:
        return self.nav.get_by_role("button", name=f"Options for {title}", exact=True)

    def titles(self) -> list[str]:
        return list(self.nav.locator(".title").all_text_contents())

    def focus(self) -> str:
        """Tell the accessible name of what has the focus."""
        name = "one => one.ariaLabel ?? one.querySelector?.('.title')?.textContent ?? one.textContent"
        return str(self.parts.run(f"(({name})(document.activeElement))"))

    def choose(self, title: str, action: str) -> None:
        self.options(title).focus()
        self.page.keyboard.press("Enter")
        self.nav.get_by_role("menuitem", name=action, exact=True).click()


@pytest.fixture
def conversations(chromium: Any, module_origin: Any) -> Iterator[Conversations]:
    with open_parts(chromium, module_origin) as parts:
        yield Conversations(parts)


def test_list_names_everything_and_marks_the_current_one(conversations: Conversations) -> None:
    nav = conversations.nav
    assert nav.get_by_role("list", name="Conversations").get_by_role("listitem").count() == 3
    assert conversations.link("Pears").get_attribute("aria-current") == "page"
    assert nav.locator("[aria-current]").count() == 1
    for name in ("New conversation", "Export", "Import", "Options for Apples"):
        assert nav.get_by_role("button", name=name, exact=True).is_visible(), name

    conversations.link("Apples").click()
    nav.get_by_role("button", name="New conversation", exact=True).click()
    assert conversations.told() == [["open", "a"], ["new"]]
    assert conversations.parts.run("location.hash") == ""  # who made the list decides


def test_list_without_conversations_says_so(conversations: Conversations) -> None:
    conversations.show("entries = []")
    assert conversations.nav.get_by_text("No conversations yet.").is_visible()
    assert conversations.nav.get_by_role("button", name="Export", exact=True).is_disabled()
    conversations.show("entries = [entry('n', 'New')]")
    assert not conversations.nav.get_by_text("No conversations yet.").is_visible()


def test_titles_are_text_never_html(conversations: Conversations) -> None:
    conversations.parts.run("title => { entries[0].title = title; list.show(entries, 'b'); }", HTML)
    assert conversations.titles()[0] == HTML
    conversations.choose(HTML, "Delete")
    assert HTML in conversations.page.get_by_role("dialog").inner_text()
    conversations.page.keyboard.press("Escape")
    conversations.choose(HTML, "Rename")
    assert conversations.nav.get_by_role("textbox").input_value() == HTML
    assert conversations.parts.run(
        "[window.hacked ?? 0, document.querySelectorAll('#list img, dialog img').length]"
    ) == [0, 0]


def test_marks_have_words(conversations: Conversations) -> None:
    conversations.show(
        "entries = [entry('a', 'A', {mark: 'streaming'}), entry('b', 'B', {mark: 'done'}),"
        " entry('c', 'C', {mark: 'error'}), entry('d', 'D', {active: true}),"
        " entry('e', 'E', {problem: 'damaged'}), entry('f', 'F', {problem: 'newer'})]"
    )
    names = [
        "A (an answer is on its way)",
        "B (a new answer is complete)",
        "C (the answer failed)",
        "D (an answer is on its way)",
        "E (cannot be read)",
        "F (made by a newer version of this page)",
    ]
    for name in names:
        assert conversations.link(name).is_visible(), name
    conversations.show("entries = [entry('a', 'A')]")
    assert conversations.link("A").is_visible()
    assert not conversations.nav.locator(".mark").is_visible()


def test_rename_in_place_takes_enter_and_blur_and_not_escape(conversations: Conversations) -> None:
    page, box = conversations.page, conversations.nav.get_by_role("textbox", name="Title")
    conversations.choose("Apples", "Rename")
    page.keyboard.type("Oranges")  # over the old title, which is selected
    page.keyboard.press("Enter")
    assert conversations.told() == [["rename", "a", "Oranges"]]
    assert conversations.focus() == "Apples"  # until the list is shown with the new title
    assert box.count() == 0

    page.keyboard.press("F2")
    page.keyboard.type("Not this")
    page.keyboard.press("Escape")
    assert conversations.told() == []
    assert conversations.focus() == "Apples"

    page.keyboard.press("F2")
    page.keyboard.type("  By blur  ")
    page.locator("#message").click()
    assert conversations.told() == [["rename", "a", "By blur"]]
    assert page.evaluate("document.activeElement.id") == "message"

    for text in ("   ", "Apples"):  # neither empty nor the same is a new title
        conversations.choose("Apples", "Rename")
        box.fill(text)
        page.keyboard.press("Enter")
    assert conversations.told() == []


def test_rename_leaves_an_input_method_alone(conversations: Conversations) -> None:
    conversations.choose("Apples", "Rename")
    devtools = conversations.page.context.new_cdp_session(conversations.page)
    devtools.send("Input.imeSetComposition", {"text": "にほん", "selectionStart": 3, "selectionEnd": 3})
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    devtools.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **key})
    devtools.send("Input.dispatchKeyEvent", {"type": "keyUp", **key})
    assert conversations.told() == []
    devtools.send("Input.insertText", {"text": "日本"})
    conversations.page.keyboard.press("Enter")
    assert conversations.told() == [["rename", "a", "日本"]]


def test_list_shown_again_keeps_the_focus_and_what_is_typed(conversations: Conversations) -> None:
    """An answer elsewhere moves its conversation to the top while another one is renamed, or chosen."""
    conversations.choose("Plums and other stone fruit", "Rename")
    conversations.page.keyboard.type("Half a ti")
    conversations.show("entries = [entry('n', 'New'), entries[2], entries[1], entries[0]]")
    conversations.page.keyboard.type("tle")
    assert conversations.titles() == ["New", "Plums and other stone fruit", "Pears", "Apples"]
    conversations.show("entries = [entries[1], entries[3], entries[0], entries[2]]")
    assert conversations.titles() == ["Plums and other stone fruit", "Apples", "New", "Pears"]
    conversations.page.keyboard.press("Enter")
    assert conversations.told() == [["rename", "c", "Half a title"]]

    conversations.options("Pears").focus()
    conversations.show("entries = [entries[3], entries[0], entries[1], entries[2]]")
    assert conversations.focus() == "Options for Pears"
    assert conversations.titles()[0] == "Pears"


def test_delete_asks_and_gives_the_focus_back(conversations: Conversations) -> None:
    page = conversations.page
    dialog = page.get_by_role("dialog", name="Delete “Apples”?")
    for way in ("Escape", "Enter"):  # the second is on Cancel, which has the focus
        conversations.choose("Apples", "Delete")
        dialog.wait_for()
        assert conversations.focus() == "Cancel"
        page.keyboard.press(way)
        dialog.wait_for(state="hidden")
        assert conversations.focus() == "Options for Apples"
    assert conversations.told() == []

    conversations.choose("Apples", "Delete")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert conversations.told() == [["delete", "a"]]
    assert conversations.titles() == ["Pears", "Plums and other stone fruit"]
    assert conversations.focus() == "Pears"  # what took its place

    for title in ("Plums and other stone fruit", "Pears"):
        conversations.choose(title, "Delete")
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    assert conversations.focus() == "New conversation"


def test_menu_works_by_keyboard(conversations: Conversations) -> None:
    page, options = conversations.page, conversations.options("Pears")
    options.focus()
    for key, name in [("Enter", "Rename"), ("Space", "Rename"), ("ArrowDown", "Rename"), ("ArrowUp", "Delete")]:
        page.keyboard.press(key)
        assert options.get_attribute("aria-expanded") == "true"
        assert conversations.nav.get_by_role("menu", name="Options for Pears").is_visible()
        assert conversations.focus() == name
        page.keyboard.press("Escape")
        assert conversations.focus() == "Options for Pears"
        assert options.get_attribute("aria-expanded") == "false"
    page.keyboard.press("Enter")
    walked = []
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "Home", "End"):
        page.keyboard.press(key)
        walked.append(conversations.focus())
    assert walked == ["Delete", "Rename", "Delete", "Rename", "Delete"]
    page.keyboard.press("Tab")
    assert conversations.nav.get_by_role("menu").count() == 0
    assert conversations.focus() == "Plums and other stone fruit"

    options.click()
    page.locator("#message").click()
    assert conversations.nav.get_by_role("menu").count() == 0
    options.click()
    options.click()
    assert conversations.nav.get_by_role("menu").count() == 0
    assert conversations.told() == []


def test_menu_of_the_last_row_is_seen_whole(conversations: Conversations) -> None:
    conversations.show("entries = Array.from({length: 60}, (_, number) => entry(`n${number}`, `Number ${number}`))")
    conversations.choose("Number 59", "Rename")  # playwright clicks only what is in view and not covered
    assert conversations.nav.get_by_role("textbox").input_value() == "Number 59"


def test_arrow_keys_go_from_conversation_to_conversation(conversations: Conversations) -> None:
    conversations.link("Apples").focus()
    walked = []
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"):
        conversations.page.keyboard.press(key)
        walked.append(conversations.focus())
    assert walked == ["Pears", "Plums and other stone fruit", "Plums and other stone fruit", "Pears"]
    conversations.page.keyboard.press("Enter")
    assert conversations.told() == [["open", "b"]]


def test_link_opens_another_tab_as_links_do(conversations: Conversations) -> None:
    with conversations.page.context.expect_page() as opened:
        conversations.link("Apples").click(modifiers=["Control"])
    opened.value.wait_for_url("**#a", wait_until="commit")
    assert conversations.told() == []
    opened.value.close()


def test_export_is_downloaded_under_the_policy(conversations: Conversations, tmp_path: Path) -> None:
    with conversations.page.expect_download() as found:
        conversations.nav.get_by_role("button", name="Export", exact=True).click()
    found.value.save_as(tmp_path / "export.json")
    assert found.value.suggested_filename.startswith("chatwait-2")
    assert found.value.suggested_filename.endswith(".json")
    kept = json.loads((tmp_path / "export.json").read_text(encoding="utf-8"))
    assert kept == {"format": "chatwait", "text": "é🙂" * 100_000}


def test_import_reads_a_file_and_the_same_one_again(conversations: Conversations, tmp_path: Path) -> None:
    file = tmp_path / "import.json"
    file.write_text('{"format": "chatwait", "text": "é🙂"}', encoding="utf-8")
    for _ in range(2):
        with conversations.page.expect_file_chooser() as chooser:
            conversations.nav.get_by_role("button", name="Import", exact=True).click()
        chooser.value.set_files(file)
        conversations.parts.wait("told.length", "the file is read")
        assert conversations.told() == [["import", file.read_text(encoding="utf-8")]]


def test_hundreds_of_conversations_are_quick(conversations: Conversations) -> None:
    took = conversations.parts.run("""() => {
        entries = Array.from({length: 800}, (_, number) => entry(`n${number}`, `Conversation number ${number}`));
        const nav = document.getElementById("list");
        const time = (work) => {
            const begun = performance.now();
            work();
            nav.offsetHeight;
            return performance.now() - begun;
        };
        const first = time(() => list.show(entries, "n5"));
        const again = [];
        for (let turn = 0; turn < 20; turn++) {
            entries = [entries[400], ...entries.filter((_, at) => at !== 400)];
            again.push(time(() => list.show(entries, "n5")));
        }
        const links = [...nav.querySelectorAll(".open")];
        list.show(entries, "n6");
        const kept = links.every((link, at) => nav.querySelectorAll(".open")[at] === link);
        return {first, again: again.sort((a, b) => a - b)[10], kept, right: links[0].hash === `#${entries[0].id}`};
    }""")
    assert took["kept"]
    assert took["right"]
    assert took["first"] < 10_000
    assert took["again"] < 1000  # 10 on a machine that does nothing else
