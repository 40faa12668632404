"""What several tests of the chat page's transport do alike."""

from __future__ import annotations

from typing import Any

from tests.browser.chatpage import ChatPage
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Step, Token

LOST = r"^console error: Failed to load resource: net::ERR_(?!ABORTED)"  # what Chromium says of a lost connection


def status(code: int) -> str:
    """Match what Chromium says of an HTTP error."""
    return rf"^console error: Failed to load resource: the server responded with a status of {code} "


def gated(texts: list[str]) -> Script:
    """Write an answer with a gate, named by its number from 0, before each token, and one before the end."""
    steps: list[Step] = [step for number, text in enumerate(texts) for step in (Gate(str(number)), Token(text))]
    return Script(steps=[*steps, Gate(str(len(texts))), Finish(), Done()])


def open_gates(upstream: ScriptedUpstream, first: int, end: int) -> None:
    """Open the gates from the first to the one before the end."""
    for number in range(first, end):
        upstream.open(str(number))


def assert_whole(chat: ChatPage, upstream: ScriptedUpstream, text: str, tokens: int) -> dict[str, Any]:
    """Check that an answer is complete in the page and in the storage, and was generated once; give its record."""
    chat.wait_state("complete")
    assert chat.text() == text
    answer = chat.stored_answers()[-1]
    assert (answer["state"], answer["content"], answer["tokens"]) == ("complete", text, tokens)
    assert answer["error"] is None
    assert len(upstream.completions) == 1
    assert not chat.has_button("Try now")
    return answer
