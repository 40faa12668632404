"""The page in the few colours of somebody's system (forced colours): what is drawn, and what can be told apart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from tests.browser.parts import Parts, open_parts
from tests.browser.samples import NOW, TEXT, answer, conversation, question
from tests.browser.test_page_look import START

pytestmark = pytest.mark.browser

MARKS = [None, "streaming", "done", "error"]


@pytest.fixture(params=["light", "dark"])
def parts(request: pytest.FixtureRequest, chromium: Any, module_origin: Any) -> Iterator[Parts]:
    options = {"forced_colors": "active", "color_scheme": request.param, "reduced_motion": "reduce"}
    with open_parts(chromium, module_origin, **options) as parts:
        parts.run(START, NOW)
        assert parts.run("() => matchMedia('(forced-colors: active)').matches")
        yield parts


def picture(parts: Parts, selector: str, around: int = 0) -> bytes:
    """Take the pixels of an element, and of so many around it."""
    box = parts.page.locator(selector).last.bounding_box()
    clip = {"x": box["x"] - around, "y": box["y"] - around}
    clip |= {"width": box["width"] + 2 * around, "height": box["height"] + 2 * around}
    return bytes(parts.page.screenshot(clip=clip))


def test_page_in_forced_colours_is_drawn_and_told_apart(parts: Parts) -> None:
    """By real pixels: a thing that is not drawn looks like the same place without it."""
    page = parts.page
    entries = [{"id": f"c{number}", "title": "Same", "updated": NOW, "mark": mark} for number, mark in enumerate(MARKS)]
    parts.run("entries => t.list.show(entries, '')", entries)
    marks = [picture(parts, f"[data-id=c{number}] .open") for number in range(len(MARKS))]
    assert len(set(marks)) == len(MARKS), "a conversation's marks look alike"
    parts.run("entries => t.list.show(entries, 'c0')", entries)
    assert picture(parts, "[data-id=c0] .open") != marks[0], "the current conversation looks like another"

    def rows(name: str) -> bytes:
        parts.run("(messages) => t.view.show({ messages })", conversation(name)["messages"])
        return picture(parts, ".status", 1)

    dot = "article:last-child .status::before, article:last-child .prose p::after { display: none !important; }"
    with_dot = [rows(name) for name in ("waiting", "reconnecting")]
    parts.run("(messages) => t.view.show({ messages })", [question(), answer("streaming", TEXT)])
    with_caret = picture(parts, "article .prose p")
    parts.rule(dot)
    assert picture(parts, "article .prose p") != with_caret, "no caret"
    assert all(rows(name) != seen for name, seen in zip(("waiting", "reconnecting"), with_dot, strict=True)), "no dot"

    send = [picture(parts, "#send")]
    for script in (
        "t.composer.busy('streaming')", "t.composer.busy('stopping')",
        "document.getElementById('send').disabled = true",
    ):  # fmt: skip
        parts.run(f"() => {{ {script}; }}")
        send.append(picture(parts, "#send"))
    assert all(before != after for before, after in pairwise(send[:3])), "Send, Stop and stopping look alike"
    parts.run("() => { document.getElementById('send').disabled = false; t.composer.busy(null); }")

    parts.run("(messages) => t.view.show({ messages })", conversation("failed")["messages"])
    for selector in (".new", ".open", ".foot .action", ".box .action", "#model", "#message", "#scroller", ".bubble"):
        around = parts.page.locator(selector).last
        if selector != ".bubble":
            at_rest = picture(parts, selector, 4 if selector != "#scroller" else 0)
            page.keyboard.press("Shift")  # from here on the focus is a keyboard's
            around.focus()
            assert picture(parts, selector, 4 if selector != "#scroller" else 0) != at_rest, f"no focus at {selector}"
            around.blur()
        edge = "one => [getComputedStyle(one).borderTopWidth, getComputedStyle(one).borderTopColor]"
        if selector in (".bubble", ".new", ".box .action"):
            width, colour = around.evaluate(edge)
            assert width != "0px" and colour != parts.run("() => getComputedStyle(document.body).backgroundColor")
