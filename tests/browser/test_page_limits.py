"""What the chat page sends of a long conversation: the newest turns that fit the service's limits, and it says so."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.dialogues import exchange, learned, turns
from tests.browser.page_steps import status
from tests.harness.script import answer
from tests.harness.upstream import ScriptedUpstream

pytestmark = [pytest.mark.browser, pytest.mark.long]

MOST_MESSAGES = 4
MOST_TOKENS = 400


@pytest.fixture(scope="module")
def service_settings() -> dict[str, Any]:
    return {"MAX_CONTEXT_MESSAGES": MOST_MESSAGES, "MAX_INPUT_TOKENS": MOST_TOKENS}


def cuts(chat: ChatPage) -> list[str]:
    """List the marks of a cut, each with the question that stands below it."""
    told: list[str] = chat.page.locator(".cut").evaluate_all(
        "all => all.map((cut) => `${cut.textContent} | ${cut.nextElementSibling.querySelector('.bubble').textContent}`)"
    )
    return told


def numbered(upstream: ScriptedUpstream, chat: ChatPage, answers: list[str]) -> Any:
    """Ask Question 1, 2, … and let the model answer so; give the last request to the model."""
    learned(chat.open())
    for number, text in enumerate(answers, 1):
        upstream.always(answer([text]))
        record = exchange(chat, upstream, f"Question {number}?")
    return record


@pytest.mark.requirement("page FR-011", "page FR-003")
def test_context_of_too_many_messages_is_cut_to_the_newest_and_the_cut_is_marked(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    record = numbered(upstream, chat, ["One.", "Two.", "Three.", "Four."])
    assert turns(record) == [
        ("user", "Question 2?"),
        ("assistant", "Two."),
        ("user", "Question 3?"),
        ("assistant", "Three."),
        ("user", "Question 4?"),
    ]
    assert cuts(chat) == ["2 older messages were not sent | Question 4?"]
    assert chat.states() == ["complete"] * 4
    chat.reload()
    assert cuts(chat) == ["2 older messages were not sent | Question 4?"]
    assert len(chat.conversation()["messages"]) == 8


@pytest.mark.requirement("page FR-011")
def test_context_of_too_many_tokens_is_cut_to_the_newest_and_the_cut_is_marked(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    long = "word " * 140
    record = numbered(upstream, chat, [f"{long}one", f"{long}two", "Three."])
    assert turns(record) == [("user", "Question 2?"), ("assistant", f"{long}two"), ("user", "Question 3?")]
    assert cuts(chat) == ["2 older messages were not sent | Question 3?"]


@pytest.mark.requirement("page FR-011", "page FR-006")
def test_context_that_only_the_service_finds_too_long_is_shortened_and_asked_again(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    """These answers have a token a character, far more than the page reckons with."""
    chat.expect_fault(status(400))
    dense = "7|" * 160
    refusals: list[int] = []
    chat.page.on("response", lambda response: refusals.append(response.status) if response.status != 200 else None)
    record = numbered(upstream, chat, [f"{dense}1", f"{dense}2", "Three."])
    assert refusals == [400]
    assert turns(record) == [("user", "Question 2?"), ("assistant", f"{dense}2"), ("user", "Question 3?")]
    assert chat.states() == ["complete"] * 3
    assert chat.box.input_value() == ""
    assert cuts(chat) == ["2 older messages were not sent | Question 3?"]
    assert len(upstream.completions) == 3
