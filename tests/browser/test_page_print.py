"""The page on paper: every message whole, in light colours, and nothing that only a screen is good for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.parts import Parts, open_parts
from tests.browser.samples import ENDED, NOW, PROSE, SERVICE_ERROR, TEXT, answer, question
from tests.browser.test_page_look import START

pytestmark = pytest.mark.browser

A4 = {"width": 718, "height": 1047}  # CSS pixels between its default margins
COUNT = 40
WIDE = "```\n" + "a line of code that is longer than a sheet of paper is wide, " * 4 + "end\n```"
TABLE = (
    "| " + " | ".join("column" + str(number) for number in range(9)) + " |\n" + "|---" * 9 + "|\n" + "| words here " * 9
)
# What is not on the paper whole, of all that stands in the log; and controls that are.
MISSING = """
() => {
  const log = document.getElementById("log");
  const wrong = [];
  const bottom = document.documentElement.scrollHeight;
  const walker = document.createTreeWalker(log, NodeFilter.SHOW_TEXT);
  let count = 0;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || parent.closest("button, .quiet, .todo")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const rects = [...range.getClientRects()];
    const isShown = parent.checkVisibility({ visibilityProperty: true, opacityProperty: true,
      contentVisibilityAuto: true }) && rects.length > 0;
    const isCut = rects.some(({ left, right, bottom: end }) => left < -1 || right > innerWidth + 1
      || end + scrollY > bottom + 1);
    if (!isShown || isCut) wrong.push([isShown ? "cut" : "hidden", node.data.slice(0, 40)]);
    for (let one = parent; one; one = one.parentElement) {
      const { overflowX, overflowY } = getComputedStyle(one);
      const cuts = overflowX !== "visible" && one.scrollWidth > one.clientWidth + 1
        || overflowY !== "visible" && one.scrollHeight > one.clientHeight + 1;
      if (cuts && one.id) wrong.push(["scrolls", one.id]);
      else if (cuts && one.className) wrong.push(["scrolls", one.className]);
    }
    count += 1;
  }
  for (const one of document.querySelectorAll("button, select, textarea, input, nav, dialog, .shade")) {
    if (one.checkVisibility()) wrong.push(["control", one.textContent || one.id]);
  }
  return [count, wrong];
}
"""


@pytest.fixture(params=["light", "dark"])
def parts(request: pytest.FixtureRequest, chromium: Any, module_origin: Any) -> Iterator[Parts]:
    """Give a long conversation that stands in the middle of its scroller, with the drawer open or no room for one."""
    with open_parts(chromium, module_origin, viewport=A4, color_scheme=request.param) as parts:
        parts.run(START, NOW)
        parts.run("() => t.list.show([{ id: 'a', title: 'One', updated: 0 }], 'a')")
        texts = [PROSE, WIDE, TABLE, TEXT]
        messages = []
        for number in range(COUNT):
            shown = answer("complete", texts[number % len(texts)], number, **ENDED)
            messages += [question(number, f"Question {number}?"), shown]
        messages += [question(COUNT), answer("failed", TEXT, COUNT, error=SERVICE_ERROR)]
        parts.run("(messages) => t.view.show({ messages })", messages)
        parts.run("() => { document.querySelector('[data-action=details]').click(); t.follow.pin(); }")
        yield parts


def test_paper_has_every_message_whole_and_no_controls(parts: Parts) -> None:
    page = parts.page
    page.emulate_media(media="print")
    count, wrong = parts.run(MISSING)
    assert wrong == []
    assert count > COUNT * 3
    height = parts.run("() => document.documentElement.scrollHeight")
    assert height > A4["height"] * 5  # the log is not in a box of its own any more
    pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4")))
    assert pages >= height / A4["height"] / 2  # a sheet at another scale holds more, but not all of it

    style = "([selector, name, part]) => getComputedStyle(document.querySelector(selector), part ?? null)[name]"
    assert parts.run(style, ["body", "color"]) == "rgb(30, 28, 25)"
    assert parts.run(style, ["body", "backgroundColor"]) in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)")
    assert parts.run(style, [".bubble", "borderTopColor"]) != "rgba(0, 0, 0, 0)"  # paper shows no backgrounds
    assert parts.run(style, ["pre code", "whiteSpace"]) == "pre-wrap"
    assert "https://example.com/" in parts.run(style, [".prose a", "content", "::after"])
    for block in (".bubble", ".prose p", ".prose tr", ".box", ".details", ".prose .code"):
        assert parts.run(style, [block, "breakInside"]) == "avoid", block
    assert parts.run(style, [".prose h3", "breakAfter"]) == "avoid"


def test_answer_on_its_way_is_printed_as_far_as_it_is(parts: Parts) -> None:
    """Without a caret, and whatever the browser draws only when it is seen."""
    parts.rule("article { content-visibility: auto; contain-intrinsic-size: auto 200px; }")
    parts.run("(messages) => t.view.show({ messages })", [question(), answer("streaming", TEXT)])
    parts.page.emulate_media(media="print")
    assert parts.run(MISSING)[1] == []
    read = "(name) => getComputedStyle(document.querySelector('article:last-child'), null)[name]"
    assert parts.run(read, "contentVisibility") == "visible"
    caret = "() => getComputedStyle(document.querySelector('article:last-child .prose p'), '::after').display"
    assert parts.run(caret) == "none"
