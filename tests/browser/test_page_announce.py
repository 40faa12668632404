"""What a screen reader is given to say: few sentences, one after the other, each in a region that was empty before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.parts import Parts, open_parts

pytestmark = [pytest.mark.browser, pytest.mark.long]

START = """
async () => {
    const { createAnnouncer } = await import("/assets/announce.js");
    window.clock = 1_000_000;
    window.heard = [];
    for (const id of ["polite", "alert"]) {
        const region = document.getElementById(id);
        const listen = () => heard.push([id, region.textContent]);
        new MutationObserver(listen).observe(region, {childList: true, characterData: true, subtree: true});
    }
    window.announcer = createAnnouncer({
        polite: document.getElementById("polite"), alert: document.getElementById("alert"), now: () => clock,
    });
    window.answer = (id, state, more) => ({id, role: "assistant", state, content: "one two three", ...more});
}
"""
# Wait in the page until nothing more is said, a next sentence comes 0.1 s after the last one went, and give what was.
HEARD = """
async () => {
    for (let silent = 0; silent < 6;) {
        const isQuiet = ["polite", "alert"].every((id) => document.getElementById(id).textContent === "");
        silent = isQuiet ? silent + 1 : 0;
        await new Promise((resolve) => setTimeout(resolve, 100));
    }
    return heard;
}
"""
BROKEN = {
    "error": {
        "code": "upstream_timeout",
        "message": "The model took too long.",
        "detail": "No word came for 60 s.",
        "action": "Ask again.",
        "retryable": True,
    }
}


class Announcer:
    """Drive the announcer, and hear what it says."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        parts.run(START)

    def call(self, script: str, argument: Any = None) -> None:
        self.parts.run(f"argument => {{ {script} }}", argument)

    def later(self, seconds: float) -> None:
        self.parts.run("ms => { window.clock += ms; }", 1000 * seconds)

    def heard(self, region: str) -> list[str]:
        """Wait until all was said; give the sentences of a region, and see that it was empty between them."""
        said = [text for id_, text in self.parts.run(HEARD) if id_ == region]
        assert said[1::2] == [""] * (len(said) // 2), said
        assert len(said) % 2 == 0
        return said[::2]


@pytest.fixture
def announcer(chromium: Any, module_origin: Any) -> Iterator[Announcer]:
    with open_parts(chromium, module_origin) as parts:
        assert parts.page.locator("#polite").get_attribute("role") == "status"
        assert parts.page.locator("#alert").get_attribute("role") == "alert"
        yield Announcer(parts)


def test_answer_is_said_to_start_once_and_to_be_complete_once(announcer: Announcer) -> None:
    announcer.call("for (let time = 0; time < 5; time++) announcer.started(answer('a', 'sending'));")
    announcer.call("for (let time = 0; time < 5; time++) announcer.ended(answer('a', 'complete'));")

    assert announcer.heard("polite") == [
        "Your message is sent. The answer is on its way.",
        "The answer is complete: 3 words.",
    ]
    assert announcer.heard("alert") == []


def test_answer_that_was_cut_short_is_not_said_to_be_complete(announcer: Announcer) -> None:
    for number, (reason, content) in enumerate(
        [("length", "one two"), ("length", ""), ("content_filter", "one"), ("stop", "")]
    ):
        announcer.call(
            "announcer.ended(answer(...argument));", [number, "complete", {"finishReason": reason, "content": content}]
        )

    assert announcer.heard("polite") == [
        "The answer stopped at the length limit: 2 words so far. Choose Continue to go on from here.",
        "The answer stopped at the length limit: 0 words so far. Ask again, or ask for less.",
        "The provider's content filter ended the answer: 1 word so far.",
        "The answer is empty. Ask again for a new one.",
    ]
    assert announcer.heard("alert") == []


def test_progress_is_said_at_most_every_ten_seconds(announcer: Announcer) -> None:
    """Half a minute of an answer, asked for every half second; the page's clock ticks each second."""
    announcer.call("announcer.started(answer('a', 'sending'));")
    announcer.heard("polite")
    said = []
    for number in range(64):
        announcer.later(0.5)
        before = len(announcer.parts.run("heard"))
        announcer.call("announcer.answering(argument);", number)
        if len(announcer.parts.run("heard")) > before:
            said.append((number + 1) / 2)
            announcer.heard("polite")
    assert said == [10, 20, 30]
    assert announcer.heard("polite")[1:3] == ["Still answering: 19 words so far.", "Still answering: 39 words so far."]


def test_progress_without_a_word_yet_says_so(announcer: Announcer) -> None:
    announcer.call("announcer.started(answer('a', 'sending'));")
    announcer.heard("polite")
    announcer.later(11)
    announcer.call("announcer.answering(0);")
    assert announcer.heard("polite")[1:] == ["Still waiting for the first word."]
    announcer.later(11)
    announcer.call("announcer.answering(1);")
    assert announcer.heard("polite")[2:] == ["Still answering: 1 word so far."]


def test_progress_that_is_old_is_not_said_after_the_end(announcer: Announcer) -> None:
    announcer.call("announcer.say('Something else.');")
    announcer.call("announcer.answering(5); announcer.ended(answer('a', 'complete'));")
    assert announcer.heard("polite") == ["Something else.", "The answer is complete: 3 words."]


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_failure_is_an_alert_in_three_parts_and_is_said_once(announcer: Announcer, state: str) -> None:
    announcer.call("announcer.started(answer('a', 'sending')); announcer.say('Not so important.');")
    script = f"for (let time = 0; time < 3; time++) announcer.ended(answer('a', '{state}', argument));"
    announcer.call(script, BROKEN)

    (said,) = announcer.heard("alert")
    assert said.startswith("The model took too long.")
    assert "3 words are safe" in said
    assert said.endswith("Continue from here, or ask again for a new one.")
    assert announcer.heard("polite") == ["Your message is sent. The answer is on its way."]  # nothing behind an alert


def test_answer_that_was_stopped_is_said_calmly(announcer: Announcer) -> None:
    announcer.call("announcer.ended(answer('a', 'stopped')); announcer.ended(answer('b', 'stopped', {content: ''}));")
    assert announcer.heard("polite") == ["Stopped by you: 3 words kept.", "Stopped by you."]
    announcer.call(
        "for (const [id, content] of argument) announcer.ended(answer(id, 'stopped', "
        "{content, note: 'stop_unconfirmed'}));",
        [["c", "one"], ["d", ""]],
    )
    assert announcer.heard("polite")[2:] == [
        "Stopped by you: 1 word kept. The server did not confirm the stop.",
        "Stopped by you. The server did not confirm the stop.",
    ]
    assert announcer.heard("alert") == []


def test_stop_that_takes_long_says_so_once(announcer: Announcer) -> None:
    look(announcer, "streaming")
    assert not look(announcer, "streaming", 1, stopping=True)  # as most do
    announcer.call("announcer.look(answer('a', 'stopped'));")
    assert announcer.heard("polite") == ["Stopped by you: 3 words kept."]
    announcer.call("announcer.resumed(answer('a', 'reconnecting'));")
    assert not look(announcer, "reconnecting", 20, stopping=True)
    assert announcer.heard("polite")[1:] == ["Trying to reconnect.", "Stopping…"]


def test_two_answers_at_once_are_each_said_once_and_share_the_ten_seconds(announcer: Announcer) -> None:
    announcer.call("announcer.started(answer('a', 'sending')); announcer.started(answer('b', 'sending'));")
    announcer.parts.wait("heard.filter(([, text]) => text).length === 2", "both, before an end makes one untrue")
    announcer.later(10)
    announcer.call("announcer.answering(7); announcer.answering(8);")
    announcer.call(
        "announcer.ended(answer('b', 'complete', {content: 'x'})); announcer.ended(answer('a', 'complete'));"
    )
    announcer.call("announcer.ended(answer('b', 'complete', {content: 'x'}));")

    said = announcer.heard("polite")
    assert said[:2] == ["Your message is sent. The answer is on its way."] * 2  # the same words, twice
    assert said[-2:] == ["The answer is complete: 1 word.", "The answer is complete: 3 words."]
    assert len(said) == 4


def test_answer_that_goes_on_after_a_failure_is_said_again(announcer: Announcer) -> None:
    announcer.call(
        "announcer.started(answer('a', 'sending')); announcer.ended(answer('a', 'failed', argument));", BROKEN
    )
    announcer.heard("alert")
    announcer.call(
        "announcer.started(answer('a', 'sending')); announcer.ended(answer('a', 'failed', argument));", BROKEN
    )
    first, second = announcer.heard("alert")
    assert first == second
    assert len(announcer.heard("polite")) == 2


def test_words_are_text_never_html(announcer: Announcer) -> None:
    announcer.call("announcer.error('<img src=x> & <b>bold</b>');")
    assert announcer.heard("alert") == ["<img src=x> & <b>bold</b>"]


GONE = "Connection lost. 3 words are safe. Reconnecting…"
BACK = "Connected again. The answer goes on."


def look(announcer: Announcer, state: str, seconds: float = 0, **more: Any) -> bool:
    """Let an answer be looked at each second for so long, and tell whether its progress may be told at the end."""
    for _ in range(int(seconds)):
        announcer.later(1)
        announcer.parts.run("([state, more]) => announcer.look(answer('a', state, more))", [state, more])
    return bool(announcer.parts.run("([state, more]) => announcer.look(answer('a', state, more))", [state, more]))


def test_loss_that_is_mended_in_a_moment_is_not_worth_a_word(announcer: Announcer) -> None:
    for _ in range(5):
        assert look(announcer, "streaming", 3)
        assert not look(announcer, "reconnecting", 1)
    look(announcer, "streaming", 30)
    assert announcer.heard("polite") == []


def test_loss_and_return_are_said_once_each_and_no_progress_between_them(announcer: Announcer) -> None:
    look(announcer, "streaming")
    assert not look(announcer, "reconnecting", 60)
    assert announcer.heard("polite") == [GONE]
    assert not look(announcer, "streaming", 1)
    assert look(announcer, "streaming", 2)
    look(announcer, "slow", 30)
    look(announcer, "streaming", 30)
    assert announcer.heard("polite") == [GONE, BACK]
    assert not look(announcer, "reconnecting", 3)  # another one, later
    announcer.call("announcer.look(answer('a', 'complete'));")
    announcer.call("announcer.look(answer('a', 'complete'));")
    assert announcer.heard("polite") == [GONE, BACK, GONE, "The answer is complete: 3 words."]


def test_what_is_lost_otherwise_is_said_once_too_and_no_progress_meanwhile(announcer: Announcer) -> None:
    """`silentSince`, `signedOut`: what the answer tells of a link that is not broken, and gives nothing."""
    look(announcer, "streaming")
    assert not look(announcer, "streaming", 5, silentSince=1)
    assert not look(announcer, "reconnecting", 5)  # what comes of a silent link is no news
    silent = announcer.heard("polite")
    assert len(silent) == 1
    look(announcer, "streaming", 5)
    announcer.heard("polite")
    assert not look(announcer, "reconnecting", 5, signedOut=True, retryAt=9_000_000)
    told = announcer.heard("polite")
    assert told[:2] == [*silent, BACK]
    assert len(told) == 3
    assert "Next try" not in told[2]  # it would not be so any more


def test_link_that_flaps_does_not_chatter_and_what_is_said_last_is_so(announcer: Announcer) -> None:
    look(announcer, "streaming")
    for _ in range(8):
        for state in ("reconnecting", "streaming"):
            before = announcer.parts.run("heard.length")
            look(announcer, state, 3)
            if announcer.parts.run("heard.length") > before:
                announcer.heard("polite")  # it is over before the clock goes on
    said = announcer.heard("polite")
    assert 2 <= len(said) <= 6  # in 48 s
    assert said == [GONE, BACK] * (len(said) // 2)
    look(announcer, "reconnecting", 21)
    assert announcer.heard("polite")[len(said) :] == [GONE]


def test_question_that_waits_says_so_once_and_is_sent_when_it_is(announcer: Announcer) -> None:
    announcer.call("announcer.asked(answer('a', 'sending'));")
    assert not look(announcer, "sending", 1)
    assert not look(announcer, "sending", 20, queued=True)
    (waiting,) = announcer.heard("polite")
    assert waiting.startswith("Waiting")
    look(announcer, "sending", 1)
    look(announcer, "waiting", 5)
    assert announcer.heard("polite") == [waiting, "Your message is sent. The answer is on its way."]
    assert not look(announcer, "streaming", 5, stopping=True)  # no "still answering" after Stop


def test_question_that_is_lost_on_its_way_is_said_to_be_sent_when_it_is(announcer: Announcer) -> None:
    announcer.call("announcer.asked(answer('a', 'sending'));")
    look(announcer, "reconnecting", 5, content="")
    look(announcer, "waiting", 5, content="")
    assert announcer.heard("polite") == [
        "Connection lost. Reconnecting…",
        "Your message is sent. The answer is on its way.",
    ]


def test_reconnect_that_was_pressed_is_answered_and_its_success_is_said(announcer: Announcer) -> None:
    look(announcer, "reconnecting", 3)
    announcer.call("announcer.look(answer('a', 'interrupted', argument));", BROKEN)
    announcer.heard("polite")
    announcer.call("announcer.resumed(answer('a', 'reconnecting'));")
    look(announcer, "reconnecting", 5)
    look(announcer, "streaming", 5)
    announcer.heard("polite")
    announcer.call("announcer.look(answer('a', 'interrupted', argument));", BROKEN)
    assert announcer.heard("polite") == [GONE, "Trying to reconnect.", BACK]
    assert len(announcer.heard("alert")) == 2


def test_end_in_another_conversation_is_said_with_its_title_also_behind_an_alert(announcer: Announcer) -> None:
    announcer.call("announcer.look(answer('a', 'streaming'), 'Rome'); announcer.say('Copied.');")
    announcer.call("announcer.look(answer('a', 'complete'), 'Rome'); announcer.error('Broken.');")
    announcer.call("announcer.look(answer('b', 'complete'), 'Old'); announcer.look(answer('a', 'complete'));")
    assert announcer.heard("polite") == ["Copied.", "In “Rome”: The answer is complete: 3 words."]
    assert announcer.heard("alert") == ["Broken."]


def test_hidden_page_says_what_is_still_so_once_it_is_seen(announcer: Announcer) -> None:
    hide = "Object.defineProperty(document, 'hidden', { configurable: true, get: () => argument });"
    announcer.call(hide, argument=True)
    look(announcer, "streaming")
    look(announcer, "reconnecting", 5)
    look(announcer, "streaming", 5)
    announcer.call("announcer.answering(7); announcer.answering(8);")
    announcer.call("announcer.look(answer('a', 'complete'));")
    announcer.parts.page.wait_for_timeout(700)  # longer than it takes to look whether the page is seen
    assert announcer.parts.run("heard") == []
    announcer.call(hide, argument=False)
    announcer.parts.wait("() => heard.length", "the first words")
    assert announcer.heard("polite") == ["The answer is complete: 3 words."]


def test_what_waits_to_be_said_of_an_answer_goes_with_its_end_and_its_place_when_it_is_not_shown(
    announcer: Announcer,
) -> None:
    sent = "Your message is sent. The answer is on its way."
    announcer.call("announcer.say('First.');")  # all the others wait behind it
    announcer.call("announcer.started(answer('a', 'sending')); announcer.started(answer('b', 'sending'));")
    announcer.call("for (const id of ['c', 'd', 'e']) announcer.look(answer(id, 'sending', { queued: true }));")
    announcer.call("announcer.look(answer('a', 'complete'));")
    announcer.call("announcer.look(answer('c', 'complete'), 'Rome');")
    announcer.call("announcer.look(answer('d', 'sending', { queued: true }), 'Paris');")
    announcer.call("announcer.look(answer('e', 'waiting'));")  # its turn came
    assert announcer.heard("polite") == [
        "First.",
        sent,
        "The answer is complete: 3 words.",
        "In “Rome”: The answer is complete: 3 words.",
    ]
    announcer.call("announcer.look(answer('d', 'sending', { queued: true }));")  # shown again
    assert announcer.heard("polite")[4:] == [
        "Waiting: this browser already receives four answers. This one starts when its turn comes."
    ]
