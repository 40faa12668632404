"""The chat page before a model that reads less at once than the service lets through: it sends less by itself."""

from __future__ import annotations

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.dialogues import exchange, learned, turns
from tests.browser.test_page_limits import cuts
from tests.harness.script import answer, error
from tests.harness.upstream import Event, Script, ScriptedUpstream

pytestmark = pytest.mark.browser

WINDOW = 330  # characters
TEXTS = [f"{'word ' * 22}{number}" for number in range(4)]  # of two turns and a question the model reads all


REPORT = {"code": 400, "message": "the request exceeds the available context size", "type": "exceed_context_size_error"}
REFUSALS = {
    "a refusal": error(400, "This model's maximum context length is 80 tokens.", "context_length_exceeded"),
    "a report in the stream": Script(steps=[Event({"error": REPORT})]),
}


def begin(chat: ChatPage, upstream: ScriptedUpstream, texts: list[str], refusal: Script) -> None:
    """Give the model its window, and let it answer so."""
    upstream.when(lambda asked: sum(len(one["content"]) for one in asked["messages"]) > WINDOW, refusal)
    learned(chat.open())
    for number, text in enumerate(texts, 1):
        upstream.always(answer([text]))
        exchange(chat, upstream, f"Question {number}?")


def read(upstream: ScriptedUpstream) -> list[bool]:
    """Tell of each request whether the model could read it."""
    return [sum(len(text) for _, text in turns(record)) <= WINDOW for record in upstream.completions]


@pytest.mark.requirement("page FR-011", "page FR-006", "page FR-010")
@pytest.mark.parametrize("refusal", REFUSALS)
def test_context_too_long_for_the_model_is_shortened_and_the_next_question_begins_with_what_fitted(
    chat: ChatPage, upstream: ScriptedUpstream, refusal: str
) -> None:
    begin(chat, upstream, TEXTS[:3], REFUSALS[refusal])
    assert read(upstream) == [True] * 3
    upstream.always(answer([TEXTS[3]]))
    chat.send("Question 4?")
    chat.wait(lambda: chat.states() == ["complete"] * 4, 10, "the fourth answer")
    fitting = [("user", "Question 3?"), ("assistant", TEXTS[2]), ("user", "Question 4?")]
    assert turns(upstream.completions[-1]) == fitting
    assert read(upstream) == [True, True, True, False, True]
    assert cuts(chat) == ["4 older messages were not sent | Question 4?"]
    assert chat.box.input_value() == ""

    chat.send("Question 5?")
    chat.wait(lambda: chat.states() == ["complete"] * 5, 10, "the fifth answer")
    assert read(upstream) == [True, True, True, False, True, True]
    assert turns(upstream.completions[-1]) == [*fitting, ("assistant", TEXTS[3]), ("user", "Question 5?")]
    chat.reload()
    assert cuts(chat) == [f"4 older messages were not sent | Question {number}?" for number in (4, 5)]
    assert chat.states() == ["complete"] * 5


@pytest.mark.requirement("page FR-011", "page FR-006", "page FR-010")
def test_message_too_long_for_the_model_by_itself_is_said_to_be_and_given_back(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    begin(chat, upstream, ["One.", "Two."], REFUSALS["a refusal"])
    long = "far too long " * 30
    chat.send(long)
    chat.wait_state("failed")
    assert read(upstream) == [True, True, False, False, False]  # with all before it, with half of that, with none
    assert turns(upstream.completions[-1]) == [("user", long)]
    for words in ("Not answered.", "The message is too long.", "Your message is back in the box below."):
        assert words in chat.shown()
    chat.wait(lambda: chat.box.input_value() == long, 10, "the message to be given back")
    assert chat.page.locator("#hint").inner_text() == (
        "The message is too long. It is back in the box. Shorten it there."
    )

    upstream.always(answer(["Three."]))
    chat.send("Question 3?")
    chat.wait(lambda: chat.states() == ["complete"] * 3, 10, "an answer to a shorter one")
    assert [text for _, text in turns(upstream.completions[-1])] == [
        *["Question 1?", "One.", "Question 2?", "Two."],
        "Question 3?",
    ]
