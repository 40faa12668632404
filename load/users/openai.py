"""The same users over OpenAI's route: who reads along, whose connection keeps breaking, and who waits for the whole."""

from __future__ import annotations

import json
import time

from load.answer import Incomplete, Text
from load.completion import Completion, whole_text
from load.upstream import token
from load.users.asking import JSON, Asking
from load.users.reading import ChatUser, ResumingUser
from load.users.waiting import WaitUser

PATH = "/v1/chat/completions"


class _Compatible(Asking):
    """Ask as OpenAI's clients do. They name the model, which is the service's first one here."""

    abstract = True
    path = PATH
    answer_type = Completion
    is_streamed = True
    model = ""

    def request_of(self, most: int, manner: str = "") -> tuple[int | None, bytes]:
        """Write a request for so many tokens."""
        if not self.model:
            with self.asked("GET", "/v1/models") as response:
                type(self).model = str(json.loads(response.read())["default"])
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.question_of(most)}],
            "max_tokens": most,
            "stream": self.is_streamed,
        }
        return (most if self.options.stamped else None), json.dumps(body).encode()

    def question_of(self, most: int) -> str:
        return f"Count to {most}."

    def resume_path(self, stream_id: str | None) -> str:
        """Name where a stream goes on."""
        return f"{PATH}/{stream_id}?stream=true"


class OpenAIUser(_Compatible, ChatUser):
    """Read a stream of chunks from its first to its last."""

    kind = "chunks"


class ResumingOpenAIUser(_Compatible, ResumingUser):
    """Lose the connection anywhere, come back with the last id, and miss nothing."""

    kind = "chunks (resumed)"


class WholeOpenAIUser(_Compatible, WaitUser):
    """Ask for an answer that is not streamed."""

    kind = "whole (wait)"
    is_streamed = False

    def question_of(self, most: int) -> str:
        """Ask the mock model for a whole answer, which has no stamps."""
        return f"tokens={most} gap_ms=1" if self.options.stamped else super().question_of(most)

    def take_whole(self) -> None:
        """Ask, and check the whole answer. Raises: Incomplete."""
        wanted, body = self.request()
        with self.asked("POST", PATH, body, JSON) as response:
            content, usage = whole_text(response.read())
        text = Text()
        text.add(content, int(usage["completion_tokens"]), time.monotonic())
        text.prove_count(wanted)
        if wanted is not None and content != "".join(map(token, range(1, wanted + 1))):
            raise Incomplete("the text is not the one that the model sent")
        self.measurements.tokens += text.tokens * self.measurements.is_measuring
