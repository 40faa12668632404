"""The specification of this room: what is asked of a model, and how its answer arrives.

Callers and tests know only these types and `Call`, and neither the SDK nor HTTP.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from app.upstream.call import Call

__all__ = ["Answer", "Part", "Question", "Upstream"]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the model. `temperature` None leaves it to the model."""

    messages: Sequence[Mapping[str, str]]
    model: str
    max_tokens: int
    temperature: float | None

    @property
    def held_bytes(self) -> int:
        """How much memory the question takes until it is answered: its messages, and the request's body with them."""
        return sum(
            sys.getsizeof(message) + sum(sys.getsizeof(text) + len(text.encode()) for text in message.values())
            for message in self.messages
        )


class Part(msgspec.Struct, frozen=True):
    """What one chunk adds to the answer.

    `text` may be empty. `usage` is as the upstream reports it, unchecked. `done` means `[DONE]`.
    """

    text: str = ""
    finish_reason: str | None = None
    usage: Any = None
    done: bool = False


class Answer(Protocol):
    """A model's answer under way."""

    @property
    def rate_limits(self) -> Mapping[str, str]:
        """The upstream's x-ratelimit-* headers, for the log."""

    def receive(self, take: Callable[[Sequence[Part]], bool]) -> bool:
        """Give the parts to `take` as they arrive, until `take` returns False. An empty list of parts is a sign of
        life.

        `take` must not wait: the worker's event loop may call it. Returns True when `take` returned False and more
        may follow. Returns False when the stream has ended, whether or not the answer was complete.
        Raises: errors.UpstreamError, and what `take` raises.
        """

    def pending(self) -> str:
        """Return the replacement for half a character that nothing completed, once. Empty when there is none."""

    def close(self) -> None:
        """Keep the connection if the answer was read to its end, else close it."""


class Upstream(Protocol):
    """Where answers come from. Tests pass one of their own."""

    def ask(self, question: Question, call: Call) -> Answer:
        """Ask once, without any retry. Raises: errors.UpstreamError."""

    def ready(self) -> bool:
        """Tell whether a question would be answered."""

    def close(self) -> None:
        """Close the connections that are kept between answers."""
