"""The messages of the page in a real browser: what every state says and offers, and how text gets into the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.modules import Modules
from tests.browser.samples import (
    ANSWERS,
    ENDED,
    LIVE,
    NOW,
    PROSE,
    SERVICE_ERROR,
    TEXT,
    answer,
    conversation,
    question,
)

pytestmark = pytest.mark.browser

BODY = '<div id="log" role="log" aria-live="off"></div><textarea id="pasted"></textarea>'
START = """
async (load, now) => {
  const { createView } = await load("view");
  const log = document.getElementById("log");
  const t = window.t = { now, actions: [], commits: [], copies: [] };
  t.view = createView({
    log,
    now: () => t.now,
    onAction: (...action) => t.actions.push(action),
    onCopy: (isDone) => t.copies.push(isDone),
    onCommit: (...commit) => t.commits.push(commit),
  });
  t.text = () => log.querySelector("article:last-child [data-answer]").textContent;
}
"""
SEEN = """
() => {
  const article = document.querySelector("#log article:last-child");
  const all = (selector) => [...article.querySelectorAll(selector)];
  return {
    state: article.dataset.state, sequence: article.dataset.sequence, busy: article.getAttribute("aria-busy"),
    status: article.querySelector(".status").textContent, statusTone: article.querySelector(".status").dataset.tone,
    buttons: all(".foot button").filter((one) => one.checkVisibility()).map((one) => one.textContent),
    box: all(".box p").map((one) => one.textContent), tone: article.querySelector(".box")?.dataset.tone,
    text: all("[data-answer]").map((one) => one.textContent), heading: all("h2").map((one) => one.textContent),
    live: all("[aria-live], [role=alert], [role=status]").length,
  };
}
"""
LOST = ("The connection was lost and did not come back within two minutes.", "Reconnect to go on")
GONE = ("The server no longer has this answer.", "Continue from here, or ask again")
CUT_OFF = ("The server was stopped or restarted during this answer.", "Continue from here, or ask again")
DAMAGED = ("The text of this answer arrived damaged.", "Reconnect to load it once more")
SERVICE = (
    "The model's answer could not be used. The model's server broke off.",
    "Continue from here, or ask again for a new one.",
)
AT_ONCE = (SERVICE[0], "Ask again for a new one.")
REFUSED = (SERVICE[0], "Shorten the message, or send it in parts.")
QUEUED = "Waiting: this browser already receives four answers."
CUT_SHORT = {"complete, cut", "complete, cut at once", "complete, filtered"}
KEPT = "11 words are safe here."
MINE = "Your message is kept."

# status line, buttons, and in a box: what happened (its beginning), what is safe, what to do (its beginning)
EXPECTED: dict[str, tuple[str, list[str], tuple[str, str, str] | None]] = {
    "sending": ("Sending… 4 s", [], None),
    "queued": (f"{QUEUED} This one is next.", [], None),
    "queued, second": (f"{QUEUED} 1 other is ahead of this one.", [], None),
    "queued, later": (f"{QUEUED} 2 others are ahead of this one.", [], None),
    "queued, somewhere": (f"{QUEUED} This one starts when its turn comes.", [], None),
    "waiting": ("Thinking… 4 s", [], None),
    "streaming": ("Answering…", ["Copy"], None),
    "stopping": ("Stopping…", ["Copy"], None),
    "slow": ("Still answering; last words 12 s ago", ["Copy"], None),
    "reconnecting": ("Connection lost. 11 words are safe. Reconnecting…", ["Try now", "Copy"], None),
    "reconnecting, later": (
        "Connection lost. 11 words are safe. Reconnecting… Next try in 4 s.",
        ["Try now", "Copy"],
        None,
    ),
    "reconnecting, busy": ("The server is busy. Reconnecting…", ["Try now"], None),
    "complete": ("Complete.", ["Copy", "Details"], None),
    "complete, cut": (
        "Stopped at the length limit.",
        ["Continue", "Copy", "Details"],
        None,
    ),
    "complete, cut at once": (
        "Stopped at the length limit before the first word.",
        ["Ask again", "Details"],
        None,
    ),
    "complete, filtered": (
        "Ended by the provider's content filter. For more, ask in other words.",
        ["Copy", "Details"],
        None,
    ),
    "complete, of an old format": ("Complete.", ["Copy", "Details"], None),
    "stopped": ("Stopped by you.", ["Continue", "Ask again", "Copy", "Details"], None),
    "stopped at once": ("Stopped by you.", ["Ask again", "Details"], None),
    "interrupted": ("Interrupted.", ["Reconnect", "Ask again", "Copy", "Details"], (LOST[0], KEPT, LOST[1])),
    "gone": ("Interrupted.", ["Continue", "Ask again", "Copy", "Details"], (GONE[0], KEPT, GONE[1])),
    "ended by the server": (
        "Interrupted.",
        ["Continue", "Ask again", "Copy", "Details"],
        (CUT_OFF[0], "1 word is safe here.", CUT_OFF[1]),
    ),
    "damaged": ("Failed.", ["Reconnect", "Ask again", "Copy", "Details"], (DAMAGED[0], KEPT, DAMAGED[1])),
    "failed": ("Failed.", ["Continue", "Ask again", "Copy", "Details"], (SERVICE[0], KEPT, SERVICE[1])),
    "failed at once": ("Failed.", ["Ask again", "Details"], (AT_ONCE[0], MINE, AT_ONCE[1])),
    "refused": ("Not sent.", ["Details"], (REFUSED[0], "Your message is back in the box below.", REFUSED[1])),
}


@pytest.fixture
def view(modules: Modules) -> Modules:
    modules.open(BODY, "page.css")
    modules.run(START, NOW)
    return modules


def show(view: Modules, messages: list[dict[str, Any]] | None) -> None:
    view.run("(_, messages) => { t.view.show(messages && { messages }); window.last = messages?.at(-1); }", messages)


def settled(view: Modules, fact: Callable[[], bool], what: str) -> None:
    """Wait for what the page does by itself, in its next frames."""
    for _ in range(250):
        if fact():
            return
        view.page.wait_for_timeout(20)
    raise AssertionError(what)


@pytest.mark.requirement("page FR-005", "page FR-006", "page SC-007", "page US2 test")
def test_view_of_every_state_has_its_words_and_actions_and_no_error_in_the_text(view: Modules) -> None:
    for name, shown in ANSWERS.items():
        show(view, conversation(name)["messages"])
        seen = view.run(SEEN)

        status, buttons, box = EXPECTED[name]
        assert (seen["status"], seen["buttons"]) == (status, buttons), name
        assert seen.get("statusTone") == ("warning" if name in CUT_SHORT else None), name
        assert (seen["state"], seen["sequence"]) == (shown["state"], str(shown["sequence"])), name
        assert seen["busy"] == str(shown["state"] in LIVE).lower(), name
        assert seen["heading"] == ["Answer"], name
        assert seen["live"] == 0, name  # the announcer speaks, not the messages
        assert len(seen["text"]) == 1, name
        if shown["content"] != PROSE:
            assert seen["text"] == [shown["content"]], name
        if box is None:
            assert seen["box"] == [], name
            continue
        happened, safe, todo = seen["box"]
        told = (
            [f"Correlation id: {SERVICE_ERROR['correlation_id']}Copy id"] if "correlation_id" in shown["error"] else []
        )
        assert view.page.locator(".box .id").all_text_contents() == told, name
        assert (happened.startswith(box[0]), safe, todo.startswith(box[2])) == (True, box[1], True), seen["box"]
        assert seen["tone"] == ("warning" if shown["state"] == "interrupted" else "danger"), name
        assert "oops" not in " ".join(seen["box"]).lower()


def test_view_goes_through_the_states_in_place_and_keeps_what_has_the_focus(view: Modules) -> None:
    show(view, [question(), answer("waiting")])
    view.run("() => { window.article = document.querySelector('[data-state]'); }")
    for name in ("streaming", "slow", "reconnecting"):
        view.run("(_, answer) => { Object.assign(last, answer); t.view.update(last); }", ANSWERS[name])
        assert view.run(SEEN)["status"] == EXPECTED[name][0]
    view.page.get_by_role("button", name="Copy", exact=True).focus()
    view.run("(_, answer) => { Object.assign(last, answer); t.view.update(last); }", ANSWERS["failed"])
    seen = view.run(SEEN)

    assert (seen["status"], seen["text"]) == ("Failed.", [TEXT])
    assert view.run("() => article === document.querySelector('[data-state]')")
    assert view.run("() => document.activeElement.textContent") == "Copy"


@pytest.mark.requirement("page FR-002", "page SC-002")
def test_view_commits_once_a_frame_and_marks_how_far_it_is(view: Modules) -> None:
    show(view, [question(), answer("streaming")])
    seen = view.run("""
    async () => {
      let changes = 0;
      const text = document.querySelector("[data-answer]");
      const watcher = new MutationObserver(() => changes++); // one call a task, whatever it did
      watcher.observe(text, { subtree: true, childList: true, characterData: true });
      const told = [];
      for (let frame = 0; frame < 3; frame++) {
        await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
        for (let piece = 0; piece < 100; piece++) {
          last.content += "word ";
          last.sequence += 1;
          t.view.append(last, "word ");
        }
        const before = text.textContent.length;
        await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
        told.push([before, text.textContent.length, text.closest("article").dataset.sequence]);
      }
      return { told, changes };
    }
    """)

    assert seen["told"] == [[0, 500, "100"], [500, 1000, "200"], [1000, 1500, "300"]]
    assert seen["changes"] == 3
    assert view.run("() => t.commits") == [["a1", 100], ["a1", 200], ["a1", 300]]


@pytest.mark.requirement("page edge 3")
def test_view_of_a_hidden_page_commits_without_waiting_for_a_frame(plain_browser: Any, module_origin: Any) -> None:
    view = Modules(plain_browser, module_origin)
    view.open(BODY, "page.css")
    view.run(START, NOW)
    show(view, [question(), answer("streaming")])
    plain_browser.new_page().bring_to_front()
    settled(view, lambda: bool(view.run("() => document.hidden")), "a hidden page")
    text = view.run("""
    () => {
      last.content = "all of it";
      last.sequence = 1;
      t.view.append(last, "all of it");
      return [t.text(), document.querySelector("[data-state]").dataset.sequence];
    }
    """)

    assert text == ["all of it", "1"]
    assert view.close() == []


def test_view_shows_all_of_the_text_when_the_end_comes_in_the_same_frame(view: Modules) -> None:
    show(view, [question(), answer("streaming")])
    text = view.run("""
    () => {
      last.content = "a *b*\\n\\n```\\nc";
      last.sequence = 3;
      t.view.append(last, last.content);
      const before = t.text();
      last.state = "complete";
      t.view.update(last);
      return [before, document.querySelector("[data-state]").dataset.sequence, t.commits];
    }
    """)

    assert text == ["", "3", [["a1", 3]]]
    assert view.page.locator("[data-answer] em").text_content() == "b"
    assert view.page.locator("[data-answer] pre").text_content() == "c"


def test_view_heals_a_text_that_was_read_again_or_missed(view: Modules) -> None:
    show(view, [question(), answer("streaming", "damaged text")])
    view.run("() => { Object.assign(last, { content: '', sequence: 0 }); t.view.show({ messages: [last] }); }")
    assert view.run("() => t.text()") == ""

    view.run(
        "() => { last.content = 'one two three'; last.sequence = 3; t.view.append(last, ' three'); t.view.flush(); }"
    )
    assert view.run("() => t.text()") == "one two three"

    view.run("() => { last.state = 'interrupted'; t.view.update(last); }")
    view.run("() => { last.state = 'streaming'; t.view.update(last); last.content += ' four'; last.sequence = 4; }")
    view.run("() => { t.view.append(last, ' four'); t.view.flush(); }")
    assert view.run("() => t.text()") == "one two three four"


def test_view_lets_the_seconds_go_on_in_live_answers_only(view: Modules) -> None:
    show(view, conversation("waiting")["messages"])
    view.run("(_, at) => t.view.tick(at)", NOW + 61_000)

    statuses = view.page.locator(".status").all_text_contents()
    assert statuses == ["Complete.", "Thinking… 1 min 5 s"]


def test_view_actions_tell_their_name_and_answer_and_older_answers_offer_no_new_one(view: Modules) -> None:
    failed = [question(0), answer("failed", TEXT, number=0, error=ANSWERS["failed"]["error"])]
    show(view, [*failed, question(), ANSWERS["interrupted"]])
    buttons = view.page.locator(".foot button").filter(visible=True)

    assert buttons.all_text_contents() == ["Copy", "Details", "Reconnect", "Ask again", "Copy", "Details"]
    for name in ("Reconnect", "Ask again"):
        view.page.get_by_role("button", name=name, exact=True).click()
    show(view, conversation("reconnecting")["messages"])
    view.page.get_by_role("button", name="Try now").click()
    show(view, conversation("stopped")["messages"])
    view.page.get_by_role("button", name="Continue").click()
    actions = [["reconnect", "a1"], ["again", "a1"], ["try", "a1"], ["continue", "a1"]]
    assert view.run("() => t.actions") == actions


@pytest.mark.parametrize("host", ["127.0.0.1", "chat.test"])
def test_view_copies_answers_and_code_with_and_without_a_clipboard(host: str, view: Modules) -> None:
    view.page.goto(view.page.url.replace("127.0.0.1", host))
    view.run(START, NOW)
    assert view.run("() => isSecureContext && 'clipboard' in navigator") == (host == "127.0.0.1")
    source = "Some *text*.\n\n```js\nlet a = 1;\nlet b;\n```"
    show(view, [question(), answer("complete", source, **ENDED)])
    for name, text in (("Copy", source), ("Copy code", "let a = 1;\nlet b;")):
        button = view.page.get_by_role("button", name=name, exact=True)
        button.click()
        view.page.locator(".copied").wait_for(state="attached")
        view.page.locator("#pasted").fill("")
        view.page.locator("#pasted").press("Control+V")
        assert view.page.locator("#pasted").input_value() == text
        assert button.evaluate("one => one.classList.remove('copied')") is None
    assert view.run("() => t.copies") == [True, True]
    assert view.run("() => document.querySelectorAll('textarea').length") == 1


def test_view_details_tell_times_speed_and_model_when_asked(view: Modules) -> None:
    more = {**ENDED, "model": "gpt-4o-mini", "reconnects": 2, "note": "checked"}
    show(view, [question(), answer("complete", TEXT, **more)])
    details = view.page.get_by_role("button", name="Details")
    assert view.page.locator(".details").count() == 0
    assert details.get_attribute("aria-expanded") == "false"
    details.click()

    assert details.get_attribute("aria-expanded") == "true"
    rows = view.page.locator(".details > div").evaluate_all(
        "rows => rows.map(r => [...r.children].map(c => c.textContent))"
    )
    assert rows == [
        ["First word after", "0.4 s"],
        ["Duration", "2.4 s"],
        ["Length", "11 words"],
        ["Tokens", "21"],
        ["Speed", "10 tokens/s"],
        ["Times", "by the server's clock"],
        ["Model", "gpt-4o-mini"],
        ["Reconnects", "2"],
        ["Note", "checked"],
    ]
    details.click()
    assert view.page.locator(".details").count() == 0


def test_view_marks_where_older_messages_were_left_out(view: Modules) -> None:
    show(view, [*conversation("waiting")["messages"][:3], answer("waiting", sent={"model": None, "skip": 2})])

    above = "() => document.querySelector('.cut').nextElementSibling.textContent"
    assert view.page.locator(".cut").text_content() == "2 older messages were not sent"
    assert view.run(above) == "QuestionAnd of Italy?"


def test_view_that_is_shown_again_changes_what_differs_and_nothing_else(view: Modules) -> None:
    shown = "() => [...document.querySelectorAll('#log > *')]"
    turns = [
        [question(number, f"Question {number}"), answer("complete", f"Text {number}", number)] for number in (0, 1)
    ]
    show(view, turns[0] + turns[1])
    view.run("() => { window.first = [...document.querySelectorAll('#log > *')]; }")
    other = turns[0][1] | {"content": "Other text"}
    failed = ANSWERS["failed"] | {"id": "a3", "asks": "q3", "sent": {"model": None, "skip": 1}}
    show(view, [question(3, "Question 3"), failed, turns[0][0], other])
    assert view.page.locator("article").evaluate_all("all => all.map((one) => one.dataset.id)") == [
        "q3",
        "a3",
        "q0",
        "a0",
    ]
    assert view.page.locator("[data-answer]").all_text_contents() == [TEXT, "Other text"]
    assert view.page.locator(".cut + article").get_attribute("data-id") == "q3"
    assert view.run(f"() => ({shown})().map((one) => first.indexOf(one))") == [-1, -1, -1, 0, 1]

    view.run("() => { window.second = [...document.querySelectorAll('#log > *')]; }")
    show(view, [question(3, "Question 3"), failed, turns[0][0], other | {"state": "stopped"}])
    assert view.run(f"() => ({shown})().map((one) => second.indexOf(one))") == [0, 1, 2, 3, 4]
    assert view.run(SEEN)["status"] == "Stopped by you."

    # What has the same ids in another conversation, as all of the old format have, is another message.
    view.run("(_, messages) => t.view.show({ id: 'other', messages })", turns[0])
    assert view.run(f"() => ({shown})().map((one) => second.indexOf(one))") == [-1, -1]
    assert view.page.locator("[data-answer]").all_text_contents() == ["Text 0"]


def test_view_shows_questions_as_text_and_an_empty_page_as_a_greeting(view: Modules) -> None:
    show(view, None)
    assert view.page.locator("h2").text_content() == "What would you like to ask?"
    assert view.page.locator("article").count() == 0

    hostile = '<img src=x onerror="alert(1)">\n**not bold**'
    show(view, [question(1, hostile)])
    assert view.page.locator(".greeting").count() == 0
    assert view.page.locator(".question:not([data-state]) .bubble").text_content() == hostile
    assert view.page.locator("img, strong").count() == 0

    show(view, [])
    assert view.page.locator(".greeting").count() == 1


def test_view_title_and_icon_tell_what_goes_on(view: Modules) -> None:
    page = view.page
    page.evaluate("document.head.append(Object.assign(document.createElement('link'), {rel: 'icon', href: 'data:,'}))")
    seen = {}
    for mark in (None, "streaming", "done", "error"):
        view.run("async (load, mark) => (await load('view')).showMark('Capitals', mark ?? undefined)", mark)
        href = page.locator('link[rel="icon"]').get_attribute("href")
        assert page.request.get(href).headers["content-type"] == "image/svg+xml"
        seen[page.title()] = href.rpartition("/")[2]

    assert seen == {
        "Capitals · ChatWait": "icon.svg",
        "… Capitals · ChatWait": "icon-streaming.svg",
        "✓ Capitals · ChatWait": "icon-done.svg",
        "! Capitals · ChatWait": "icon-error.svg",
    }


def test_words_count_and_time_as_people_do(view: Modules) -> None:
    words = view.run(
        "async (load, texts) => texts.map((await load('words')).countWords)", ["", " \n", "a", " a\n b  c "]
    )
    spans = view.run(
        "async (load, all) => all.map((await load('words')).spanOf)", [0, 449, 9_940, 9_960, 60_000, 125_400]
    )

    assert words == [0, 0, 1, 3]
    assert spans == ["0.0 s", "0.4 s", "9.9 s", "10 s", "1 min", "2 min 5 s"]
