"""The specification of this room: what is asked of a model, and how its answer arrives.

Callers and tests know only these types and `Call`, and neither the SDK nor HTTP.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec

from app.streams.chunk import Chunk
from app.upstream.call import Call

__all__ = ["Answer", "Forwarded", "Model", "Part", "Question", "Upstream"]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the model. `temperature` None leaves it to the model."""

    messages: Sequence[Mapping[str, str]]
    model: str
    max_tokens: int
    temperature: float | None

    @property
    def messages_count(self) -> int:
        return len(self.messages)

    @property
    def held_bytes(self) -> int:
        """How much memory the question takes until it is answered: its messages, and the request's body with them."""
        return sum(
            sys.getsizeof(message) + sum(sys.getsizeof(text) + len(text.encode()) for text in message.values())
            for message in self.messages
        )


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A request for chat completions that a client of OpenAI's made, and that is sent on as it stands.

    `write` writes the body, without those of our own additions that the upstream is known to refuse. `choices` is how
    many answers were asked for. `keeps_usage`: the client wants the chunk that tells the usage. `is_streamed`: the
    answer comes as events, else as one JSON object. `asked_once`: the client asks again by itself, so we do not.
    """

    model: str
    write: Callable[[Set[str]], bytes]
    completion_id: str
    choices: int = 1
    is_streamed: bool = True
    keeps_usage: bool = False
    asked_once: bool = False
    max_tokens: int | None = None
    messages_count: int = 0
    held_bytes: int = 0
    rate_limits: dict[str, str] = field(default_factory=dict)
    """The upstream's x-ratelimit-* headers, once it has answered."""


class Model(NamedTuple):
    """A model that an upstream lists. Units: `created` in seconds since 1970, 0 where it is not told."""

    name: str
    created: int = 0
    owner: str = ""


class Part(msgspec.Struct, frozen=True):
    """What one chunk adds to the answer.

    `text` may be empty. `usage` is as the upstream reports it, unchecked. `done` means `[DONE]`. An answer to a
    `Forwarded` request adds `chunks` instead of `text`, and `chars` is how much the model wrote in them: content,
    refusals, reasoning and arguments. There `finish_reason` comes when the last choice has finished, and is the first
    choice's.
    """

    text: str = ""
    finish_reason: str | None = None
    usage: Any = None
    done: bool = False
    chunks: tuple[Chunk, ...] = ()
    chars: int = 0


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

    def pending(self) -> Part | None:
        """Return the replacement for half a character that nothing completed, once. None when there is none."""

    def close(self) -> None:
        """Keep the connection if the answer was read to its end, else close it."""


class Upstream(Protocol):
    """Where answers come from. Tests pass one of their own."""

    def ask(self, question: Question | Forwarded, call: Call) -> Answer:
        """Ask once, without any retry. Raises: errors.UpstreamError."""

    def models(self) -> Sequence[Model]:
        """List the models that may be asked. Raises: errors.UpstreamError."""

    def ready(self) -> bool:
        """Tell whether a question would be answered."""

    def close(self) -> None:
        """Close the connections that are kept between answers."""
