"""markdown.js: an answer as nodes while it grows, in a real browser and under the page's policy."""

from __future__ import annotations

import random
import re

import pytest

from tests.browser.markdown_samples import DOCUMENTS, LINK, NO_LINKS, UNSEEN, chance
from tests.browser.modules import Modules

pytestmark = pytest.mark.browser

# [Markdown, ended] -> its nodes as HTML, without the directions, which test_page_directions.py looks at
HTML = """
async (load, [text, ended]) => {
  const { createMarkdown } = await load("markdown");
  const place = document.createElement("div");
  const markdown = createMarkdown(place);
  markdown.set(text);
  if (ended) markdown.end();
  for (const one of place.querySelectorAll("[dir]")) one.removeAttribute("dir");
  return place.innerHTML;
}
"""
# [[text, cuts], ...] -> the first text whose nodes depend on where it was cut, or on an end() on the way
CUT = """
async (load, cases) => {
  const { createMarkdown } = await load("markdown");
  const shape = (node) => node.nodeType === Node.TEXT_NODE ? node.data
    : [node.localName, ...Array.from(node.attributes, ({ name, value }) => `${name}=${value}`).sort(),
      ...Array.from(node.childNodes, shape)];
  const make = () => {
    const place = document.createElement("div");
    return { place, ...createMarkdown(place) };
  };
  for (const [text, cuts] of cases) {
    const cut = make();
    let from = 0;
    for (const to of [...cuts, text.length]) {
      cut.append(text.slice(from, to));
      from = to;
      const whole = make();
      whole.set(text.slice(0, to));
      for (const ended of to % 5 && to < text.length ? [false] : [false, true]) {
        if (ended) for (const one of [cut, whole]) one.end();
        const [is, expected] = [cut, whole].map(({ place }) => JSON.stringify(shape(place)));
        if (is !== expected) return { text: text.slice(0, to), cuts, ended, is, expected };
      }
    }
  }
  return null;
}
"""
# texts -> [what is not allowed in their nodes, tag names of the whole text]
INSPECT = """
async (load, texts) => {
  const { createMarkdown } = await load("markdown");
  const allowed = {
    p: ["dir"], h3: ["dir"], h4: ["dir"], h5: ["dir"], h6: ["dir"], ul: ["dir"], ol: ["start", "style", "dir"], li: [],
    blockquote: ["dir"], hr: [], pre: ["tabindex"], code: ["dir"], em: [], strong: [], del: [],
    table: [], thead: [], tbody: [], tr: [],
    th: ["scope", "class"], td: ["class"],
    a: ["href", "rel", "target"], div: ["class", "tabindex", "data-language", "dir"],
    button: ["type", "class", "aria-label"],
  };
  const wrong = [];
  const seen = new Set();
  const inspect = (node, text, whole) => {
    for (const child of node.childNodes) {
      const name = child.localName;
      if (child.nodeType === Node.TEXT_NODE && child.data) continue;
      if (!allowed[name]) wrong.push([child.nodeName, text]);
      else {
        if (text === whole) seen.add(name);
        for (const { name: attribute } of child.attributes) {
          if (!allowed[name].includes(attribute)) wrong.push([`${name} ${attribute}`, text]);
        }
        if (name === "a" && child.closest("a a")) wrong.push(["a in a", text]);
        if (name === "a" && child.hasAttribute("href") && !["http:", "https:", "mailto:"].includes(child.protocol)) {
          wrong.push([child.href, text]);
        }
        if (name === "a" && child.rel !== "noopener noreferrer nofollow") wrong.push(["rel", text]);
      }
      inspect(child, text, whole);
    }
  };
  for (const text of texts) {
    const place = document.createElement("div");
    document.body.append(place);
    const markdown = createMarkdown(place);
    for (let at = 0; at < 8; at++) {
      markdown.append(text.slice((text.length * at) >> 3, (text.length * (at + 1)) >> 3));
      inspect(place, text);
    }
    markdown.end();
    inspect(place, text, text);
    place.remove();
  }
  if (window.hit) wrong.push(["a script ran", ""]);
  return [wrong, [...seen].sort()];
}
"""
# text -> the first moment at which the shown text is not the source, while it is appended in pieces of 3
FAITHFUL = """
async (load, text) => {
  const { createMarkdown } = await load("markdown");
  const place = document.createElement("div");
  const markdown = createMarkdown(place);
  for (let to = 0; to < text.length; ) {
    markdown.append(text.slice(to, to + 3));
    to = Math.min(to + 3, text.length);
    if (place.textContent !== text.slice(0, to)) return [text.slice(0, to), place.textContent];
  }
  markdown.end();
  return place.textContent === text ? null : [text, place.textContent];
}
"""
# [begin, more] -> [kinds of changes while `more` was appended, whether one was in a closed block, the open text]
GROW = """
async (load, [begin, more]) => {
  const { createMarkdown } = await load("markdown");
  const place = document.createElement("div");
  const markdown = createMarkdown(place);
  markdown.set(begin);
  const closed = [...place.children].slice(0, -1);
  const reader = document.createRange();
  reader.selectNodeContents(place);
  let open = place;
  while (open.lastChild) open = open.lastChild;
  reader.setEnd(open, open.length);
  const selected = reader.toString();
  const observer = new MutationObserver(() => {});
  observer.observe(place, { subtree: true, childList: true, characterData: true, attributes: true });
  for (const piece of more) markdown.append(piece);
  const records = observer.takeRecords();
  const inClosed = records.filter(({ target }) => closed.some((block) => block.contains(target))).length;
  const changed = (type) => records.filter((record) => record.type === type).length;
  return { closed: closed.length, inClosed, nodes: changed("childList"), texts: changed("characterData"),
    attributes: changed("attributes"), selected, left: reader.toString(), text: place.lastElementChild.textContent };
}
"""

# Markdown -> [the button's name, all text, what copytext told outside of the container]
COPY = """
async (load, text) => {
  const { createMarkdown } = await load("markdown");
  const place = document.createElement("div");
  document.body.append(place);
  createMarkdown(place).set(text);
  const copied = [];
  document.body.addEventListener("copytext", (event) => copied.push(event.detail));
  const button = place.querySelector("button");
  button.click();
  return [button.getAttribute("aria-label"), place.textContent, copied];
}
"""


@pytest.mark.parametrize("name", DOCUMENTS)
def test_markdown_of_every_kind_makes_its_nodes(modules: Modules, name: str) -> None:
    text, expected = DOCUMENTS[name]

    assert modules.run(HTML, [text, True]).replace(LINK, "") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a **", "<p>a <strong></strong></p>"),
        ("a **b", "<p>a <strong>b</strong></p>"),
        ("a **b *c", "<p>a <strong>b <em>c</em></strong></p>"),
        ("a `b", "<p>a <code>b</code></p>"),
        ("[a](https://b.c/d", "<p><a>a</a></p>"),
        ("[a](javascript:b", "<p>[a](javascript:b</p>"),
        ("see https://b.c/d", "<p>see <a>https://b.c/d</a></p>"),
        (
            "| a | b |\n|--",
            '<div class="table" tabindex="0"><table><thead><tr><th scope="col">a</th>\t<th scope="col">b</th>',
        ),
        ("a\n\n- ", "<p>a</p>\n\n<ul><li></li></ul>"),
    ],
)
def test_markdown_half_open_shows_what_it_becomes(modules: Modules, text: str, expected: str) -> None:
    assert modules.run(HTML, [text, False]).replace(LINK, "").startswith(expected)


def test_nodes_do_not_depend_on_a_cut_at_any_character(modules: Modules) -> None:
    texts = [text for text, _ in DOCUMENTS.values()]
    texts += ["99. a\n100.5 b\n", "999. a\n1000. b\n1001.5", "> 999. a\n> 1000"]

    assert modules.run(CUT, [[text, list(range(1, len(text)))] for text in texts]) is None


@pytest.mark.parametrize("seed", range(8))
def test_nodes_do_not_depend_on_how_the_text_was_cut(modules: Modules, seed: int) -> None:
    maker = random.Random(seed)

    assert modules.run(CUT, [[text, _cuts(maker, text)] for text in chance(seed)]) is None


def _cuts(maker: random.Random, text: str) -> list[int]:
    size = len(text.encode("utf-16-le", "surrogatepass")) // 2
    if size < 400 and maker.random() < 0.4:
        return list(range(1, size))
    return sorted(maker.sample(range(size), min(size, maker.randint(0, 30))))


@pytest.mark.parametrize(
    "text",
    [
        'Plain prose, in two lines\nwith a snake_case_name; 2 < 3 & "quotes" (all of it).\n\n\n  Indented…\n\nEnd.\n\n',
        "\n\n Late.\r\nCR, \u2028 LS, \0 NUL, \u00a0 NBSP, é, e\u0301, 🙂👩‍👩‍👧, 请注意：是的\r\n\r\nSecond\tpart \n",
        "It was\n1986, not #1 or -1; 3.5 +1\n(1) [note] ~7 C:\\x\n42",
    ],
)
def test_plain_prose_is_shown_exactly_at_every_moment(modules: Modules, text: str) -> None:
    assert modules.run(FAITHFUL, text) is None


@pytest.mark.parametrize("text", NO_LINKS)
def test_text_that_would_run_or_load_is_shown_as_it_stands(modules: Modules, text: str) -> None:
    modules.open()
    wrong, names = modules.run(INSPECT, [text])

    assert (wrong, names) == ([], ["p"])
    assert modules.run(FAITHFUL.replace("to + 3", "to + 500"), text) is None


def test_address_with_a_sign_that_nobody_sees_is_no_link(modules: Modules) -> None:
    addresses = [address for sign in UNSEEN for address in (f"http://b.c/{sign}gnp.exe", f"https://b{sign}.c/d")]
    addresses += [f"mailto:b{sign}@c.d" for sign in UNSEEN]
    texts = [text for address in addresses for text in (f"[a]({address})", f"<{address}>")]
    texts += [address for address in addresses if address.startswith("http")]

    linked = [text for text in texts if "<a" in modules.run(HTML, [text, True])]

    assert linked == []
    assert "<a" in modules.run(HTML, ["[a](http://b.c/gnp.exe)", True])


def test_nodes_of_any_text_are_of_the_expected_kinds(modules: Modules) -> None:
    texts = [text for text, _ in DOCUMENTS.values()]
    texts += [text for seed in range(100, 120) for text in chance(seed)]
    texts += [f"{around}{vector}{around}" for vector in NO_LINKS for around in ("**", "- ", "> ", "| ", "[", "\n\n")]

    wrong, names = modules.run(INSPECT, texts)

    assert wrong == []
    assert {"a", "code", "blockquote", "table", "ol", "del", "h4"} <= set(names)


@pytest.mark.parametrize(
    ("begin", "more"),
    [("a\n\n**b** c", " word" * 50), ("- x\n\n```\na", "b c\n" * 50), ("# t\n\n- a", " b" * 50)],
)
def test_open_text_grows_in_its_own_node_and_closed_blocks_rest(modules: Modules, begin: str, more: str) -> None:
    seen = modules.run(GROW, [begin, re.findall(r"\s?\w+", more)])

    assert seen["closed"] == 1
    assert seen["texts"] > 40
    assert seen["left"] == seen["selected"] != ""
    assert (seen["inClosed"], seen["nodes"], seen["attributes"]) == (0, 0, 0)


def test_copy_button_has_a_name_but_no_text_and_hands_over_the_code(modules: Modules) -> None:
    label, text, copied = modules.run(COPY, "a\n```py\nx = 1\n\n  y <b>\n```\nb")

    assert label == "Copy code"
    assert copied == ["x = 1\n\n  y <b>"]
    assert text == "a\nx = 1\n\n  y <b>\n\nb"


def test_set_replaces_what_was_there(modules: Modules) -> None:
    assert (
        modules.run(HTML.replace("markdown.set", "markdown.append('```\\na'); markdown.set"), ["b", True]) == "<p>b</p>"
    )


# texts -> [last number, room at its list's start, the number's width] while each text grows letter by letter
NUMBERS = """
async (load, texts) => {
  const { createMarkdown } = await load("markdown");
  const pen = document.createElement("canvas").getContext("2d");
  const found = [];
  for (const text of texts) {
    const place = document.createElement("div");
    place.className = "prose";
    document.body.append(place);
    const markdown = createMarkdown(place);
    for (const letter of text) {
      markdown.append(letter);
      const list = [...place.querySelectorAll("ol")].at(-1);
      if (!list) continue;
      const number = list.start + list.childElementCount - 1;
      const { paddingInlineStart, font } = getComputedStyle(list);
      pen.font = font;
      found.push([number, parseFloat(paddingInlineStart), pen.measureText(`${number}. `).width]);
    }
    place.remove();
  }
  return found;
}
"""


def test_numbers_of_a_list_have_the_room_that_their_digits_need(modules: Modules) -> None:
    modules.open("", "page.css")
    texts = ["1945. End of the war\n1946. Next\n", "- 1999. b\n", "> 12345. a", "123456789. a", "سنة:\n\n1945. حرب"]
    texts += [f"{last}. a\n{last + 1}. b\n{last + 1}.5" for last in (9, 99, 999)]

    found = modules.run(NUMBERS, [*texts, "1. a\n" * 101])

    assert {1945, 1946, 1999, 12345, 123456789, 10, 100, 1000, 101} <= {number for number, _, _ in found}
    assert [one for one in found if one[0] >= 100 and one[1] < one[2]] == []
    assert {room for number, room, _ in found if number < 100} == {26}
    assert max(room - width for number, room, width in found if number >= 100) < 16  # and little more
