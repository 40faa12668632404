"""A long conversation in the page's storage: asking 200 questions would take minutes, and measures nothing."""

from __future__ import annotations

import json
from typing import Any

from tests.browser.chatpage import ChatPage
from tests.browser.samples import ENDED, PROSE, answer, question

MANY = 200
CHARACTERS = 2_500


def long_conversation(answers: int = MANY, name: str = "long") -> dict[str, Any]:
    """Make the record of a conversation whose answers have 2.5 kB each, a part of it Markdown of every kind."""
    messages = []
    for number in range(answers):
        prose = "".join(f"Words that go on for some lines, {number}.{line}. " for line in range(60))
        text = f"The answer {number} of {name}.\n\n{PROSE}\n\n{prose}"[:CHARACTERS]
        own = {"id": f"{name}-q{number}"}
        messages += [
            question(number, f"Question {number} of {name}?") | own,
            answer("complete", text, number, **ENDED) | {"id": f"{name}-a{number}", "asks": own["id"]},
        ]
    return {"v": 2, "id": name, "title": f"The {name} one", "created": 1, "updated": 1, "messages": messages}


def open_long(chat: ChatPage, answers: int = MANY, name: str = "long") -> ChatPage:
    """Put such a conversation into the storage of an open page, and show it."""
    record = json.dumps(long_conversation(answers, name), separators=(",", ":"))
    chat.page.evaluate("([id, text]) => localStorage.setItem(`chatwait.conversation.${id}`, text)", [name, record])
    chat.open(f"#{name}")
    chat.wait(lambda: len(chat.states()) == answers and f"of {name}." in chat.text(), 20, "all answers")
    return chat
