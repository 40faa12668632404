"""Text from right to left in the page, and characters that turn the direction of what follows: boxes and pixels."""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.modules import Modules
from tests.browser.parts import Parts, open_parts
from tests.browser.samples import ENDED, NOW, SERVICE_ERROR, answer, question
from tests.browser.test_page_look import START

pytestmark = pytest.mark.browser

RTL = """قائمة الأدوات:

- `git` لتتبع التغييرات
- Docker لتشغيل الحاويات
  1. خطوة واحدة

> اقتباس قصير

| الاسم | القيمة |
|---|---:|
| سرعة | 12 |

```js
let a = 1;
```

An English paragraph, with an end."""
LTR = "Words:\n\n- apples\n- תפוחים\n\nשלום עולם"
TURNS = [*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))]
# selector -> [direction, left, right, where the text's ink begins and ends, of each such element]
LAID = """
(selector) => [...document.querySelectorAll(`article:last-child .prose ${selector}`)].map((one) => {
  const { left, right } = one.getBoundingClientRect();
  const range = document.createRange();
  range.selectNodeContents(one);
  const rects = [...range.getClientRects()].filter(({ width }) => width > 1);
  const ink = [Math.min(...rects.map((rect) => rect.left)), Math.max(...rects.map((rect) => rect.right))];
  return [getComputedStyle(one).direction, left, right, ...ink];
})
"""
# [png, colour] -> the columns of a picture in which there is a pixel of this colour, or (null) not of its corner's
COLUMNS = """
async ([png, wanted]) => {
  const image = new Image();
  image.src = `data:image/png;base64,${png}`;
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, image.width, image.height);
  const is = (at, [r, g, b]) => Math.abs(data[at] - r) + Math.abs(data[at + 1] - g) + Math.abs(data[at + 2] - b) < 40;
  const found = new Set();
  for (let at = 0; at < data.length; at += 4) {
    if (wanted ? is(at, wanted) : !is(at, data)) found.add((at / 4) % image.width);
  }
  return [...found].sort((a, b) => a - b);
}
"""
# Of all shown texts that hold one of the page's words: the words whose letters do not go from left to right.
TURNED = """
(words) => {
  const wrong = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    for (const word of words) {
      const at = node.data.indexOf(word);
      if (at < 0 || !node.parentElement.checkVisibility()) continue;
      const range = document.createRange();
      const lefts = [...word].map((_, index) => {
        range.setStart(node, at + index);
        range.setEnd(node, at + index + 1);
        return range.getBoundingClientRect().left;
      });
      seen.add(word);
      if (lefts.some((left, index) => index && left < lefts[index - 1])) wrong.push(word);
    }
  }
  return wrong;
}
"""


@pytest.fixture
def parts(chromium: Any, module_origin: Any) -> Iterator[Parts]:
    options = {"viewport": {"width": 1280, "height": 1000}, "reduced_motion": "reduce", "color_scheme": "light"}
    with open_parts(chromium, module_origin, **options) as parts:
        parts.run(START, NOW)
        yield parts


def show(parts: Parts, shown: dict[str, Any], asked: str = "And?") -> None:
    parts.run("(messages) => t.view.show({ messages })", [question(1, asked), shown])


def columns(parts: Parts, box: dict[str, float], colour: list[int] | None = None) -> list[int]:
    """List the columns of a part of the window where something is drawn, or is of this colour."""
    return list(parts.run(COLUMNS, [base64.b64encode(parts.page.screenshot(clip=box)).decode(), colour]))


def bullets(parts: Parts, name: str) -> tuple[bool, bool]:
    """Tell whether something is drawn in the room left and right of a list's items."""
    around = parts.page.locator(f"article:last-child .prose > {name}").bounding_box()
    side = {"y": around["y"], "height": around["height"], "width": 24}
    left = columns(parts, {**side, "x": around["x"]})
    return bool(left), bool(columns(parts, {**side, "x": around["x"] + around["width"] - 24}))


def test_blocks_bullets_and_tables_stand_on_the_side_of_their_text_and_code_from_left_to_right(parts: Parts) -> None:
    show(parts, answer("complete", RTL, **ENDED))
    directions = {
        name: [one[0] for one in parts.run(LAID, name)] for name in ("> p", "ul, ol", "blockquote", "table", "code")
    }
    assert directions == {
        "> p": ["rtl", "ltr"], "ul, ol": ["rtl", "rtl"], "blockquote": ["rtl"], "table": ["rtl"], "code": ["ltr"] * 2,
    }  # fmt: skip
    assert bullets(parts, "ul") == (False, True)
    # The text of both items, also of one that begins with code or a Latin name, stands beside its bullet.
    for _, left, right, ink_left, ink_right in parts.run(LAID, "> ul > li > p"):
        assert ink_right > right - 2 and ink_left > left + 100
    (_, _, edge, ink_left, ink_right), english = parts.run(LAID, "> p")
    assert ink_right > edge - 2 and ink_left > english[3] + 100
    assert english[3] < english[1] + 2
    name, value = parts.run(LAID, "th")
    assert value[2] <= name[1] + 1  # the second column is left of the first
    number = parts.run(LAID, "td")[1]
    padding = 16
    assert number[4] > number[2] - padding * 2 and number[3] - number[1] > number[2] - number[4]  # at its right
    (code,) = parts.run(LAID, "pre code")
    assert code[3] < parts.page.locator(".code").bounding_box()["x"] + 24
    copy, block = parts.page.locator(".copy-code").bounding_box(), parts.page.locator(".code").bounding_box()
    assert copy["x"] > block["x"] + block["width"] / 2

    show(parts, answer("complete", LTR, **ENDED))
    assert [one[0] for one in parts.run(LAID, "> :is(p, ul)")] == ["ltr", "ltr", "rtl"]
    assert bullets(parts, "ul") == (True, False)
    assert [one[3] < one[1] + 2 for one in parts.run(LAID, "> ul > li > p")] == [True, True]


@pytest.mark.parametrize("text", ["שלום עולם", "- פריט אחרון"])
def test_caret_stands_at_the_left_end_of_text_from_right_to_left(parts: Parts, text: str) -> None:
    show(parts, answer("streaming", text))
    (_, left, right, ink_left, _), *_ = parts.run(LAID, "p")
    box = parts.page.locator("article:last-child .prose p").bounding_box()
    found = columns(parts, {**box, "x": left, "width": right - left}, [11, 100, 96])
    assert found, "no caret"
    assert ink_left - left - 8 <= found[0] <= found[-1] <= ink_left - left + 1


def test_fields_and_titles_take_the_direction_of_what_is_in_them(parts: Parts) -> None:
    page = parts.page
    parts.run("() => t.list.show([{ id: 'a', title: 'שלום עולם', updated: 0 }, { id: 'b', title: 'Hi', updated: 0 }])")
    parts.run("() => { document.getElementById('title').textContent = 'שלום עולם'; }")
    page.locator("#message").fill("שלום")
    page.locator(".more").first.click()
    page.get_by_role("menuitem", name="Rename").click()
    read = "all => all.map((one) => getComputedStyle(one).direction)"
    seen = {
        one: page.locator(one).evaluate_all(read) for one in ("#title", "#message", ".rename", ".open .title", "#list")
    }
    page.locator("#message").fill("Hello, שלום")
    assert page.locator("#message").evaluate_all(read) == ["ltr"]
    assert seen == {
        "#title": ["rtl"], "#message": ["rtl"], ".rename": ["rtl"], ".open .title": ["rtl", "ltr"], "#list": ["ltr"],
    }  # fmt: skip


def test_characters_that_turn_the_direction_turn_nothing_beside_them(parts: Parts) -> None:
    """In a question, an answer, its links, a title, a model's name and an error's texts; never closed where opened."""
    page = parts.page
    parts.run("() => { window.seen = new Set(); }")
    for turn in TURNS:
        evil = f"x{turn}yz"
        error = {**SERVICE_ERROR, "message": evil, "detail": f"Reasons {evil}", "correlation_id": evil}
        text = f"One [{evil}](https://a.example/) linked `{evil}` coded.\n\nNext {evil}\n\n- Item"
        show(parts, answer("failed", text, error=error, **{**ENDED, "model": evil}), evil)
        page.get_by_role("button", name="Details").click()
        parts.run("evil => t.list.show([{ id: 'a', title: evil, updated: 0 }], 'a')", evil)
        parts.run("evil => { document.getElementById('title').textContent = evil; }", evil)
        words = ["linked", "coded.", "Next", "Item", "Reasons", "words are safe", "Continue from", "Copy id", "Failed."]
        assert parts.run(TURNED, [*words, "Duration", "Model", "Details"]) == [], hex(ord(turn))
        page.locator(".more").click()
        page.get_by_role("menuitem", name="Delete").click()
        assert parts.run(TURNED, ["Delete “", "This deletes it"]) == []
        quotes = """
        (node) => {
          const range = document.createRange();
          range.selectNode(node.lastChild);
          return range.getBoundingClientRect().right;
        }
        """
        heading = page.locator("#delete-question")
        inner = heading.locator("bdi").bounding_box()
        assert heading.evaluate(quotes) > inner["x"] + inner["width"], hex(ord(turn))
        page.keyboard.press("Escape")
        title = "async (evil) => (await import('/assets/words.js')).titleOf(evil, 'done')"
        assert parts.run(title, evil) == "✓ xyz · ChatWait"
    assert len(parts.run("() => [...seen]")) == 14  # all of them were there


def test_where_a_direction_is_set_depends_on_the_text_alone(modules: Modules) -> None:
    """On each block but what gives its item or its quote theirs, and never on an item: its bullet is the list's."""
    script = """
    async (load, text) => {
      const { createMarkdown } = await load("markdown");
      const place = document.createElement("div");
      const markdown = createMarkdown(place);
      for (const letter of text) markdown.append(letter);
      markdown.end();
      return [...place.querySelectorAll("*")].map((one) => one.localName + (one.dir ? ` ${one.dir}` : ""));
    }
    """
    text = "a `b`\n\n# c\n\n- d\n\n  e\n  - f\n\n> - g\n>\n> h\n\n| i |\n|---|\n| j |\n\n```\nk\n```\n"
    assert modules.run(script, text) == [
        "p ltr", "code ltr", "h3 ltr", "ul ltr", "li", "p", "p ltr", "ul ltr", "li", "p",
        "blockquote ltr", "ul", "li", "p", "p ltr", "div ltr", "table", "thead", "tr", "th", "tbody", "tr", "td",
        "div ltr", "div", "button", "pre", "code",
    ]  # fmt: skip


# texts -> of each block of each text: its direction as it is, and as `dir=auto` would have it
DIRECTED = """
async (load, texts) => {
  const { createMarkdown } = await load("markdown");
  const place = document.body.appendChild(document.createElement("div"));
  const markdown = createMarkdown(place);
  return texts.map((text) => {
    markdown.set(text);
    markdown.end();
    return Array.from(place.children, (one) => {
      const is = one.dir;
      one.dir = "auto";
      return [is, getComputedStyle(one).direction];
    });
  });
}
"""


def test_direction_is_that_of_the_first_letter_in_every_script(modules: Modules) -> None:
    """As the browser's own `dir=auto`, which would look for the letter anew with each change."""
    right = [*range(0x0590, 0x0900), *range(0xFB1D, 0xFF00), *range(0x10800, 0x11000), *range(0x1E800, 0x1F000)]
    codes = [*range(0x41, 0x1E000, 37), *right]
    letters = [chr(code) for code in codes if unicodedata.category(chr(code)) in {"Lu", "Ll", "Lt", "Lo"}]
    letters += ["\u200e", "\u200f", "\u061c"]
    directions = modules.run(DIRECTED, [f"1. {letter}" for letter in letters])
    wrong = [(letter, one) for letter, [one] in zip(letters, directions, strict=True) if one[0] != one[1]]
    assert wrong == []
    assert {one[0] for [one] in directions} == {"ltr", "rtl"}


@pytest.mark.parametrize(
    ("text", "directions"),
    [
        ("12 + 30 = שלום", ["rtl"]),
        ("`code` is שלום", ["ltr"]),
        ("`code` (שלום) is", ["rtl"]),
        ("- 1\n- שלום", ["rtl"]),
        ("| 1 | שלום |\n|---|---|\n| a | b |", ["rtl"]),
        ("12 + 30", [""]),
        ("1 " * 120 + "שלום", [""]),  # too far to wait for
    ],
)
def test_direction_is_that_of_the_first_letter_near_the_beginning(
    modules: Modules, text: str, directions: list[str]
) -> None:
    [found] = modules.run(DIRECTED, [text])
    assert [one[0] for one in found] == directions
