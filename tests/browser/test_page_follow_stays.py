"""A log that its reader has left somewhere stands exactly there, whatever comes, goes or is resized."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.follow_steps import assert_view_stays, detach, is_detached, open_log
from tests.browser.parts import Parts

pytestmark = [pytest.mark.browser, pytest.mark.long]

CHANGES = {
    "text": "() => commit('many more words '.repeat(100))",
    "an open block built again": """() => {
        const old = current.querySelector(".live");
        const made = document.createElement("p");
        made.className = "live";
        made.textContent = old.textContent + "and more ".repeat(50);
        old.replaceWith(made);
        follow.changed();
    }""",
    "an end": """() => {
        current.dataset.state = "complete";
        current.querySelector(".foot").replaceChildren("Complete. ", document.createElement("button"));
        current.querySelector(".foot").append(...Array.from({length: 5}, () => document.createElement("dl")));
        follow.changed();
    }""",
    "an error box": """() => {
        const box = Object.assign(document.createElement("div"), {className: "box", textContent: "What happened.\\n"});
        box.dataset.tone = "danger";
        current.append(box);
        current.previousElementSibling.append(box.cloneNode(true)); // of an answer further up, too
        follow.changed();
    }""",
    "an error box that nobody tells of": """async () => {
        await nextFrames(1);
        const box = Object.assign(document.createElement("div"), {className: "box", textContent: "What happened."});
        current.previousElementSibling.append(box);
    }""",
    "a notice above the log": """() => {
        const box = Object.assign(document.createElement("div"), {className: "box", textContent: "Storage is full."});
        document.getElementById("notices").append(box);
        follow.changed();
    }""",
    "a notice that goes": "() => { document.getElementById('notices').replaceChildren(); follow.changed(); }",
    "a message": "() => { answer(1); follow.changed(); }",
}

WRITE = """async (text) => {
    await nextFrames(1);
    document.getElementById("message").value = text;
}"""


@pytest.fixture
def parts(chromium: Any, module_origin: Any) -> Iterator[Parts]:
    with open_log(chromium, module_origin) as parts:
        yield parts


@pytest.mark.parametrize("change", CHANGES)
def test_detached_view_stays_at(change: str, parts: Parts) -> None:
    detach(parts)
    assert_view_stays(parts, lambda: parts.run(CHANGES[change]))
    assert is_detached(parts)


def test_detached_view_stays_while_the_block_at_its_top_is_built_again(parts: Parts) -> None:
    """A table above and below the top of the view: its columns, and so the lines above, change with every row."""
    parts.run("""() => {
        window.rows = 60;
        window.build = () => {
            const table = document.createElement("table");
            for (let number = 0; number < rows; number++) {
                const row = table.insertRow();
                row.insertCell().textContent = `Row ${number}: ${"words that wrap ".repeat(12)}`;
                row.insertCell().textContent = "wide ".repeat(Math.floor(Math.max(0, rows - 55) * 3));
            }
            current.querySelector("table")?.remove();
            current.querySelector(".prose").append(table);
            follow.changed();
        };
        build();
    }""")
    parts.run("nextFrames(3)")
    detach(parts, -900)
    row, offset, before = parts.run("""() => {
        const at = scroller.getBoundingClientRect();
        const left = log.firstElementChild.getBoundingClientRect().left + 2;
        const {offsetNode, offset} = document.caretPositionFromPoint(left, at.top + 2);
        window.place = (text, offset) => {
            const range = document.createRange();
            range.setStart(text, offset);
            range.setEnd(text, offset + 1);
            return range.getBoundingClientRect().top;
        };
        return [offsetNode.parentElement.closest("tr").rowIndex, offset, place(offsetNode, offset)];
    }""")
    assert row > 20
    height = parts.run("current.querySelector('tr').offsetHeight")
    parts.run("() => { rows += 5; build(); }")
    assert parts.run("current.querySelector('tr').offsetHeight") > height  # the premise: rows above became higher
    where = "([row, offset]) => place(current.querySelectorAll('tr')[row].cells[0].firstChild, offset)"
    assert parts.run(where, [row, offset]) == pytest.approx(before, abs=1)
    parts.run("nextFrames(3)")
    assert parts.run(where, [row, offset]) == pytest.approx(before, abs=1)
    assert is_detached(parts)


@pytest.mark.parametrize("size", [(500, 720), (1280, 400), (800, 900), (340, 500)])
def test_detached_view_stays_when_the_window_changes(parts: Parts, size: tuple[int, int]) -> None:
    """The letter that was first in the view stays there, in paragraphs of other lines."""
    detach(parts, -1500)
    parts.run("watch()")
    width, height = size
    parts.page.set_viewport_size({"width": width, "height": height})
    parts.wait("window.innerWidth === " + str(width), "the new size")
    parts.run("nextFrames(10)")
    line = parts.run("parseFloat(getComputedStyle(current.querySelector('p')).lineHeight)")
    assert parts.run("drift.frames") >= 5
    assert parts.run("drift.most") <= line  # the letter may have gone to the next line, no further
    assert is_detached(parts)


def test_detached_view_near_the_end_stays_when_what_is_below_goes(parts: Parts) -> None:
    """Neither a shorter log nor a lower composer may pull it down."""
    parts.page.locator("#message").fill("\n" * 8)
    parts.wait("gap() <= 1", "the end")
    detach(parts, -30)
    assert parts.run("gap()") < 60
    assert_view_stays(parts, lambda: parts.run("() => { current.lastElementChild.remove(); follow.changed(); }"))
    assert_view_stays(parts, lambda: parts.run(WRITE, ""))
    assert_view_stays(parts, lambda: parts.page.set_viewport_size({"width": 1280, "height": 760}))

    parts.run("begin('words that go on and on ')")  # and the room that was kept is filled again
    assert_view_stays(parts, lambda: None, frames=40)
    parts.wait(lambda: is_detached(parts), "text below the view")
    parts.run("() => { flow.on = false; }")
    parts.page.get_by_role("button", name="Jump to latest").click()
    parts.run("nextFrames(2)")
    end = "scroller.getBoundingClientRect().bottom - log.getBoundingClientRect().bottom"
    assert parts.run(end) == pytest.approx(0, abs=1)  # no room is left below


def test_detached_view_stays_while_the_composer_grows(parts: Parts) -> None:
    detach(parts)
    assert_view_stays(parts, lambda: parts.run(WRITE, "\n" * 10))
    assert_view_stays(parts, lambda: parts.run(WRITE, ""))
