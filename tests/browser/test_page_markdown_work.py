"""markdown.js: the work that a long or a hostile answer makes, in a real browser."""

from __future__ import annotations

import pytest

from tests.browser.markdown_samples import HOSTILE
from tests.browser.modules import Modules

pytestmark = [pytest.mark.browser, pytest.mark.long]

TOKENS = 12_000
LIMIT_MS = 100
LONG = {  # tokens of 12,000 in one block
    "paragraph": ("", ["word ", "**bold** ", "and ", "`code`, ", "[a](http://b.c) ", "so "]),
    "plain paragraph": ("", ["word "]),
    "list": ("", ["- ", "item ", "with ", "**some** ", "`words`", "\n"]),
    "nested list": ("", ["- a", "\n", "  - ", "b", " c", "\n"]),
    "code": ("```py\n", ["value", " = ", "call", "(1, 2)", "  # note", "\n"]),
    "one line of code": ("```\n", ["word "]),
    "table": ("| a | b |\n|---|---|\n", ["| x", " y ", "| **", "z** ", "|", "\n"]),
    "quote": ("> ", ["quoted ", "words ", "are ", "here", "\n", "> "]),
}
# [short text, long text, size of a piece] -> milliseconds for all of each, the best of three. The long one is not
# timed again once that is little enough: another run could only make it less.
TIME = """
async (load, [short, long, size]) => {
  const { createMarkdown } = await load("markdown");
  const time = (text) => {
    const markdown = createMarkdown(document.createElement("div"));
    const begun = performance.now();
    for (let at = 0; at < text.length; at += size) markdown.append(text.slice(at, at + size));
    markdown.end();
    return performance.now() - begun;
  };
  const once = Math.min(time(short), time(short), time(short));
  let eightfold = Infinity;
  for (let run = 0; run < 3 && !(eightfold < Math.max(25 * once, 300)); run++) {
    eightfold = Math.min(eightfold, time(long));
  }
  return [once, eightfold];
}
"""
# [tokens, limit] -> milliseconds of the longest append, the means of all, of the first tenth and of the last tenth, the
# longest layout, and the characters shown. Other processes take their time too, but seldom at the same token: of every
# token's times, at most three, the least one counts. When all of these are below the limit, another run could only make
# them less. A tenth's mean leaves out the fiftieth of its tokens that took longest, which may have waited for a core.
STREAM = """
async (load, [tokens, limit]) => {
  const { createMarkdown } = await load("markdown");
  const appends = tokens.map(() => Infinity);
  const layouts = [];
  let characters = 0;
  for (let run = 0; run < 3 && !(Math.max(...appends) < limit); run++) {
    const place = document.createElement("div");
    place.className = "prose";
    document.body.append(place);
    const markdown = createMarkdown(place);
    tokens.forEach((token, index) => {
      const begun = performance.now();
      markdown.append(token);
      const done = performance.now();
      appends[index] = Math.min(appends[index], done - begun);
      if (index % 400) return;
      place.offsetHeight;
      layouts[index / 400] = Math.min(layouts[index / 400] ?? Infinity, performance.now() - done);
    });
    characters = place.textContent.length;
    place.remove();
  }
  const mean = (times) => times.reduce((sum, one) => sum + one, 0) / times.length;
  const tenth = tokens.length / 10;
  const usual = (times) => mean(times.toSorted((one, other) => one - other).slice(0, -times.length / 50));
  const [first, last] = [usual(appends.slice(0, tenth)), usual(appends.slice(-tenth))];
  return [Math.max(...appends), mean(appends), first, last, Math.max(...layouts), characters];
}
"""
# texts -> the depth of the deepest node
DEEPEST = """
async (load, texts) => {
  const { createMarkdown } = await load("markdown");
  const depth = (node) => 1 + Math.max(0, ...Array.from(node.children, depth));
  return Math.max(...texts.map((text) => {
    const place = document.createElement("div");
    createMarkdown(place).set(text);
    return depth(place);
  }));
}
"""


@pytest.mark.parametrize("name", LONG)
def test_long_answers_are_appended_without_a_pause(
    modules: Modules, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    modules.open(style="page.css")
    start, pieces = LONG[name]
    tokens = [start, *(pieces * TOKENS)[:TOKENS]]

    longest, mean, first, last, layout, characters = modules.run(STREAM, [tokens, 5 * LIMIT_MS])

    with capsys.disabled():
        print(
            f"\n{name}: {TOKENS} tokens, longest append {longest:.1f} ms, mean {mean:.3f} ms, "
            f"of the first tenth {first:.3f} ms, of the last {last:.3f} ms, longest layout {layout:.1f} ms, "
            f"{characters} characters"
        )
    assert characters >= TOKENS
    assert last < 10 * max(first, 0.01)  # with the whole block in each token, it would be 19 times
    assert longest < 5 * LIMIT_MS


@pytest.mark.parametrize("size", [64, 1_000_000])
def test_hostile_text_takes_time_in_proportion_to_its_length(modules: Modules, size: int) -> None:
    slow = []
    for name, (start, piece) in HOSTILE.items():
        short, long = (start + piece * (count // len(piece)) for count in (8_000, 64_000))
        for _ in range(3):  # eight times the text; in the square of it would be 64 times
            once, eightfold = modules.run(TIME, [short, long, size])
            if eightfold < max(25 * once, 300):
                break
        else:
            slow.append((name, once, eightfold))

    assert slow == []


def test_hostile_nesting_is_bounded(modules: Modules) -> None:
    texts = [start + piece * 5000 for start, piece in HOSTILE.values()]

    assert 20 < modules.run(DEEPEST, texts) < 80
