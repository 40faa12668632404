"""What the page says of an answer that has ended, against the buttons it puts beside it: every code there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.modules import ASSETS, Modules
from tests.browser.samples import ENDED, NOW, SERVICE_ERROR, TEXT, answer, question
from tests.browser.test_page_view import BODY, SEEN, START, show
from tests.harness.contract import read_document

pytestmark = pytest.mark.browser

WORDS = (ASSETS / "words.js").read_text(encoding="utf-8")
OWN = re.findall(r"^  (\w+): \{$", WORDS.split("const OWN = {")[1].split("\n};")[0], re.MULTILINE)
BUTTONS = ("Reconnect", "Ask again", "Continue", "Try now")
ELSEWHERE = re.compile(r"\b(?:try|send) (?:it |them )?again|try once more|retry|resend|GET /|`|\breload", re.IGNORECASE)
# [question, answers] -> of each: what is said, the buttons of its row, its box, all that is shown
SHOWN = """
async (load, [question, answers]) => {
  const { failureOf } = await load("words");
  return answers.map((answer) => {
    t.view.show({ messages: [question, answer] });
    const article = document.querySelector("article:last-child");
    const buttons = [...article.querySelectorAll(".foot button")].filter((one) => one.checkVisibility());
    return [failureOf(answer), buttons.map((one) => one.textContent), article.querySelector(".box").innerText,
      article.innerText];
  });
}
"""
# innerText is empty where the layout was left out, as it is of what was not in a frame yet.
ALL_LAID_OUT = """() => {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync("article { content-visibility: visible !important }");
  document.adoptedStyleSheets = [sheet];
}"""
OUTCOMES = ("Failed.", "Not answered.", "Interrupted.", "Not sent.", "Stopped by you.", "Complete.")


def told_by_the_service() -> dict[str, dict[str, Any]]:
    """Give an example of each error code that the page can meet, as the contract has it. Errors in OpenAI's shape have
    a type, and two codes come in that shape alone."""
    contract = read_document()

    def found(value: Any) -> Iterator[dict[str, Any]]:
        if (
            isinstance(value, dict)
            and isinstance(value.get("error_code"), str)
            and "action" in value
            and "type" not in value
        ):
            yield value
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from found(inner)

    assert {"connection_lost", "answer_gone", "refused"} <= set(OWN)
    examples = {one["error_code"]: one for one in found(contract)}
    codes = set(contract["components"]["schemas"]["ErrorCode"]["enum"])
    assert set(examples) == codes - {"cancelled", "upstream_refused"}
    return examples


def ends() -> list[dict[str, Any]]:
    """List every way in which an answer gets no end of its own, with and without a text."""
    strange = {**SERVICE_ERROR, "error_code": "rate_limited", "action": "Try again, with the same Idempotency-Key."}
    errors = [{"code": code, "retryable": True} for code in OWN] + list(told_by_the_service().values()) + [strange, {}]
    return [
        answer(state, text, refused=refused, error=error)
        for error in errors
        for state, text, refused in (
            ("failed", TEXT, False), ("failed", "", False), ("failed", "", True),
            ("interrupted", TEXT, False), ("interrupted", "", False),
        )
        if not (refused and error.get("code", "refused") != "refused")  # only what answers can refuse
    ]  # fmt: skip


@pytest.fixture
def view(modules: Modules) -> Modules:
    modules.open(BODY, "page.css")
    modules.run(START, NOW)
    modules.run(ALL_LAID_OUT)
    return modules


def test_what_to_do_after_each_error_names_the_buttons_that_are_beside_it(view: Modules) -> None:
    for shown, (failure, buttons, box, whole) in zip(ends(), view.run(SHOWN, [question(), ends()]), strict=True):
        what = f"{shown['error']} {shown['state']} {shown['content']!r} refused={shown['refused']}: {failure}"
        offered = set(buttons) - {"Copy", "Details"}
        todo = failure["todo"]
        named = {name for name in BUTTONS if name.lower() in todo.lower()}

        assert todo.endswith("."), what
        assert named <= offered, what
        assert bool(offered) is not shown["refused"], what  # that message is in the box below, with its own button
        assert shown["refused"] or not ELSEWHERE.search(todo), what
        assert shown["error"].get("correlation_id", "") in box, what
        assert ("Correlation id:" in box) == ("correlation_id" in shown["error"]), what
        assert sum(whole.count(one) for one in OUTCOMES) == 1, what


def test_answer_that_is_not_the_last_one_says_nothing_of_buttons_it_has_no_more(view: Modules) -> None:
    """What happened, what is safe and the id to tell stay."""
    ended = [
        *(one for one in ends() if not one["refused"]),
        answer("complete", **ENDED),
        answer("complete", TEXT, finishReason="length", **ENDED),
        answer("complete", finishReason="length", **ENDED),
        answer("stopped", TEXT),
    ]
    messages = []
    for number, one in enumerate(ended):
        messages += [question(number), {**one, "id": f"a{number}", "asks": f"q{number}"}]
    show(view, [*messages, question(1000)])
    shown = view.page.locator("article.answer").evaluate_all(
        "all => all.map((one) => [one.querySelector('[data-answer]').innerText, one.innerText])"
    )

    assert len(shown) == len(ended)
    for (text, whole), one in zip(shown, ended, strict=True):
        rest = whole.removeprefix(text)
        assert [name for name in BUTTONS if name.lower() in rest.lower()] == [], (one, rest)
        error = one["error"] or {}
        for kept in (error.get("message"), error.get("correlation_id")):
            assert kept is None or kept in rest, (one, rest)


@pytest.mark.parametrize("host", ["127.0.0.1", "chat.test"])
def test_id_to_tell_stands_in_the_box_and_is_copied_with_and_without_a_clipboard(host: str, view: Modules) -> None:
    view.page.goto(view.page.url.replace("127.0.0.1", host))
    view.run(START, NOW)
    show(view, [question(), answer("failed", TEXT, error=SERVICE_ERROR, **ENDED)])
    # What was copied is shown for two seconds: here until it has been looked at.
    view.run(
        "() => { const later = setTimeout; globalThis.setTimeout = (call, ms) => ms === 2000 || later(call, ms); }"
    )
    button = view.page.locator(".box").get_by_role("button", name="Copy id", exact=True)
    assert "4f1c2a90" in view.page.locator(".box").inner_text()
    button.click()
    view.page.locator(".copied").wait_for(state="attached")
    assert button.evaluate("one => one === document.activeElement")  # nothing takes the focus away
    view.page.locator("#pasted").press("Control+V")
    assert view.page.locator("#pasted").input_value() == "4f1c2a90"
    assert view.run("() => t.copies") == [True]
    view.run("() => t.view.update(last)")  # as when another tab tells of it again
    assert button.evaluate("one => one.isConnected && one.classList.contains('copied')")
    view.page.get_by_role("button", name="Details").click()
    assert view.page.locator("article").last.inner_text().count("4f1c2a90") == 1


def test_answer_without_a_word_says_so_and_offers_another(view: Modules) -> None:
    for text in ("", " \n\n "):
        show(view, [question(), answer("complete", text, finishReason="stop", **ENDED)])
        seen = view.run(SEEN)
        assert (seen["status"], seen["statusTone"]) == ("The answer is empty.", "warning")
        assert seen["buttons"] == ["Ask again", "Details"]
        assert seen["text"] == [text]  # not a word of the page's own
    view.page.get_by_role("button", name="Ask again").click()
    assert view.run("() => t.actions") == [["again", "a1"]]


@pytest.mark.parametrize("width", [1280, 390])
def test_end_at_the_length_limit_is_told_in_one_line_and_goes_on(width: int, view: Modules) -> None:
    size = view.page.viewport_size
    view.page.set_viewport_size({"width": width, "height": 800})
    try:
        show(view, [question(), answer("complete", TEXT, finishReason="length", **ENDED)])
        status = view.page.locator(".status").last
        assert status.inner_text() == "Stopped at the length limit."
        assert status.evaluate("one => one.offsetHeight / parseFloat(getComputedStyle(one).lineHeight)") < 1.5
        view.page.get_by_role("button", name="Continue").click()
        assert view.run("() => t.actions") == [["continue", "a1"]]
    finally:
        view.page.set_viewport_size(size)


def test_details_come_from_one_clock_and_agree(view: Modules) -> None:
    """The server's where it told, else this browser's: which of both is said."""
    cases = {
        "the server": answer("complete", TEXT, firstAt=NOW + 5_000, **ENDED),
        "this browser": answer("interrupted", TEXT, error={"code": "connection_lost"}, endedAt=NOW),
        "the server, who lost its first word": answer(
            "failed", TEXT, error=SERVICE_ERROR, **{**ENDED, "firstTokenMs": None}
        ),
    }
    rows = {}
    for name, shown in cases.items():
        rows[name] = dict(
            view.run("async (load, answer) => (await load('words')).detailsOf(answer)", {**shown, "model": None})
        )
    picked = {
        name: {what: told.get(what) for what in ("First word after", "Duration", "Speed", "Times")}
        for name, told in rows.items()
    }
    assert picked == {
        "the server": {
            "First word after": "0.4 s", "Duration": "2.4 s", "Speed": "10 tokens/s", "Times": "by the server's clock",
        },
        "this browser": {
            "First word after": "0.5 s", "Duration": "4.0 s", "Speed": None, "Times": "by this browser's clock",
        },
        "the server, who lost its first word": {
            "First word after": None, "Duration": "2.4 s", "Speed": None, "Times": "by the server's clock",
        },
    }  # fmt: skip
