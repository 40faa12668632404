"""What a reader of a growing answer meets in the whole page: a view that stays, hostile text, and what is announced."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.page_steps import gated, open_gates
from tests.browser.tab_steps import begin
from tests.harness.upstream import Done, Finish, Gate, Paced, Script, ScriptedUpstream, error

pytestmark = [pytest.mark.browser, pytest.mark.long]

WATCH = """
() => {
  const scroller = document.getElementById("scroller");
  const view = scroller.getBoundingClientRect();
  const found = document.caretPositionFromPoint(view.left + view.width / 2, view.top + 60);
  const range = document.createRange();
  const length = found.offsetNode.length;
  const from = Math.min(found.offset, length - 1);
  range.setStart(found.offsetNode, from);
  range.setEnd(found.offsetNode, from + 1);
  const place = () => range.getBoundingClientRect().top;
  const start = place();
  window.drift = { most: 0, frames: 0, letter: range.toString() };
  const channel = new MessageChannel();
  channel.port1.onmessage = () => {
    drift.most = Math.max(drift.most, Math.abs(place() - start));
    drift.frames++;
    requestAnimationFrame(() => channel.port2.postMessage(0));
  };
  channel.port2.postMessage(0);
}
"""
PLACE = "() => document.getElementById('scroller').scrollTop"
AT_END = """
() => {
  const { scrollHeight, clientHeight, scrollTop } = document.getElementById("scroller");
  return scrollHeight - clientHeight - scrollTop <= 2;
}
"""
NOTE_SAID = """
window.said = [];
addEventListener("DOMContentLoaded", () => {
  for (const id of ["polite", "alert"]) {
    const region = document.getElementById(id);
    new MutationObserver(() => region.textContent && said.push([id, region.textContent]))
      .observe(region, { childList: true, characterData: true, subtree: true });
  }
});
"""


@pytest.mark.requirement("page FR-009")
@pytest.mark.parametrize("end", ["complete", "failed"])
def test_view_of_a_reader_who_went_up_stays_while_an_answer_grows_and_ends(
    chat: ChatPage, upstream: ScriptedUpstream, end: str
) -> None:
    lines = [f"Line {number} of a long answer, with words.\n\n" for number in range(60)]
    more = [f"More words {number}, " for number in range(400)]
    last = [Finish(), Done()] if end == "complete" else []
    upstream.always(Script(steps=[Paced(lines, 0.002), Gate("up"), Paced(more, 0.005), Gate("end"), *last]))
    chat.open()
    begin(chat)
    chat.wait_text("".join(lines))
    chat.wait(lambda: chat.page.evaluate(AT_END), 10, "the view at the end")
    bottom = chat.page.evaluate(PLACE)
    assert bottom > 500  # the premise: there is much to read

    chat.page.locator("#scroller").hover()
    chat.page.mouse.wheel(0, -600)
    chat.wait(lambda: chat.has_button("Jump to latest"), 5, "the button")
    places = [chat.page.evaluate(PLACE)]
    chat.wait(
        lambda: places.append(chat.page.evaluate(PLACE)) or places[-1] == places[-6:][0] < bottom - 400, 5, "rest"
    )
    chat.page.evaluate(WATCH)
    before = chat.page.evaluate("drift.frames")
    upstream.open("up")
    chat.wait(lambda: chat.text().rstrip().endswith("More words 399,"), 40, "all words")
    upstream.open("end")
    chat.wait_state(end)
    if end == "failed":
        assert chat.page.locator("article .box").count() == 1
    at_end = chat.page.evaluate("drift.frames")
    chat.wait(lambda: chat.page.evaluate("drift.frames") >= at_end + 10, 20, "frames after the end")
    drift = chat.page.evaluate("drift")
    assert at_end > before, "premise: the text came in the frames that were watched"
    assert drift["letter"].strip()
    assert drift["most"] <= 1, drift

    chat.press("Jump to latest")
    chat.wait(lambda: chat.page.evaluate(AT_END) and not chat.has_button("Jump to latest"), 5, "the end")


HOSTILE = [
    "<script>window.ran = 'script'</script>\n\n",
    "<img src='http://evil.test/x.png' onerror=\"window.ran = 'img'\">\n\n",
    "![picture](http://evil.test/picture.png) ![local](/health)\n\n",
    "[click](javascript:window.ran='link') [also](JaVaScRiPt&colon;window.ran='link') <javascript:window.ran=1>\n\n",
    "[data](data:text/html,<script>window.ran=1</script>) [file](file:///etc/passwd) [v](vbscript:x)\n\n",
    "<iframe src='/docs'></iframe><svg onload=\"window.ran='svg'\"><style>body{display:none}</style>\n\n",
    '<a href="javascript:window.ran=1" onclick="window.ran=1">x</a><form action="http://evil.test/"><input>\n\n',
    "```html\n<script>window.ran = 'code'</script>\n```\n\n",
    "| <b onclick=window.ran=1>a</b> | [x](javascript:window.ran=1) |\n|---|---|\n",
    "| <img src=x onerror=window.ran=1> | y |\n",
]
LOADED = "() => performance.getEntriesByType('resource').map(({ name }) => name)"
MADE = """
() => {
  const answer = [...document.querySelectorAll("[data-answer]")].at(-1);
  const all = [...answer.querySelectorAll("*")];
  return {
    names: [...new Set(all.map((one) => one.localName))],
    links: [...answer.querySelectorAll("a")].map((one) => one.href),
    handlers: all.flatMap((one) => one.getAttributeNames()).filter((name) => /^(on|style|src)/.test(name)),
    ran: window.ran ?? null,
  };
}
"""


@pytest.mark.requirement("page FR-002", "page FR-003")
@pytest.mark.parametrize("is_whole", [True, False], ids=["blocks", "letters"])
def test_hostile_answer_runs_nothing_and_asks_nobody(
    chat: ChatPage, upstream: ScriptedUpstream, is_whole: bool
) -> None:
    """The driver adds what it hears of the policy, of the console, and of requests to other hosts."""
    text = "".join(HOSTILE)
    upstream.always(Script(steps=[Paced(HOSTILE if is_whole else list(text), 0.002), Finish(), Done()]))
    asked: list[str] = []
    chat.open()
    chat.page.locator("#model option").first.wait_for(state="attached")
    chat.page.on("request", lambda request: asked.append(request.url))
    chat.send("Be evil.")
    chat.wait_state("complete", seconds=40)
    made = chat.page.evaluate(MADE)
    assert made["ran"] is None
    assert made["handlers"] == []
    assert not {"script", "img", "iframe", "svg", "style", "form", "input", "object", "b"} & set(made["names"])
    assert made["links"], "premise: some of it became links"
    assert all(re.match("https?://", link) for link in made["links"]), made["links"]
    assert "<script>window.ran = 'script'</script>" in chat.text()

    for link in chat.page.locator("[data-answer] a").all():
        assert set(str(link.get_attribute("rel")).split()) == {"noopener", "noreferrer", "nofollow"}
        assert link.get_attribute("target") == "_blank"
    paths = {url.removeprefix(chat.base_url).split("?")[0] for url in asked}
    assert any(path.startswith("/v1/") for path in paths), "premise: its requests are seen"
    assert all(path.startswith(("/chat/", "/v1/", "/models", "/assets/")) for path in paths), paths
    chat.reload()  # as it is read from the storage
    assert chat.page.evaluate(MADE) == made
    loaded = chat.page.evaluate(LOADED)
    assert loaded, "premise: what was loaded is seen"
    assert not [url for url in loaded if "evil.test" in url or url.endswith("/health")]


def said(chat: ChatPage) -> list[Any]:
    told: list[Any] = chat.page.evaluate("said")
    return told


@pytest.mark.requirement("page FR-005", "page US2 test", "page FR-006")
def test_announcer_says_start_and_end_once_each_and_a_failure_as_an_alert(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    chat.page.add_init_script(NOTE_SAID)
    upstream.always(gated(["One ", "two ", "three."]))
    chat.open()
    begin(chat)
    for number in range(3):
        upstream.open(str(number))
        chat.wait_text("".join(["One ", "two ", "three."][: number + 1]))
    open_gates(upstream, 3, 4)
    end = ["polite", "The answer is complete: 3 words."]
    chat.wait(lambda: end in said(chat), 10, "the end to be said")
    assert said(chat) == [["polite", "Your message is sent. The answer is on its way."], end]

    upstream.always(error(400))
    chat.send("And now?")
    chat.wait_state("failed")
    chat.wait(lambda: said(chat)[-1][0] == "alert", 10, "an alert")
    chat.page.wait_for_timeout(1_800)  # as long as a sentence stands: another one would follow now
    told = said(chat)[2:]
    assert [region for region, _ in told].count("alert") == 1
    assert len(told) <= 2  # the start may have been said before
    assert "three." not in str(said(chat))


@pytest.mark.long
@pytest.mark.requirement("page FR-005", "page edge 2")
def test_announcer_of_a_long_answer_talks_at_most_every_ten_seconds(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    chat.page.add_init_script(NOTE_SAID)
    upstream.always(Script(steps=[Paced([f"word{number} " for number in range(250)], 0.1), Finish(), Done()]))
    chat.open()
    begin(chat)
    chat.wait_state("complete", seconds=60)
    chat.wait(lambda: "complete" in str(said(chat)), 10, "the end to be said")
    progress = [text for _, text in said(chat) if text.startswith("Still answering: ")]
    assert len(progress) == 2
    assert len(said(chat)) == 4
