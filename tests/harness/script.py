"""Say, step by step, what the scripted upstream answers.

Must never do it: no input and no output here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

CREATED = 1_700_000_000


@dataclass(frozen=True)
class Token:
    """Send a chunk with `delta.content`, after a pause. Units: `pause` in seconds."""

    text: str
    pause: float = 0.0


@dataclass(frozen=True)
class Delta:
    """Send a chunk with any delta."""

    delta: Mapping[str, Any]


@dataclass(frozen=True)
class Event:
    """Send any JSON, or any one-line text, as `data:`."""

    data: dict[str, Any] | str


@dataclass(frozen=True)
class Raw:
    """Send bytes as they are, as one chunk of the body (among `before` and `after`, without that)."""

    data: bytes


@dataclass(frozen=True)
class Pause:
    """Send nothing for a while. Units: seconds."""

    seconds: float


@dataclass(frozen=True)
class Gate:
    """Wait until the test calls `upstream.open(name)`."""

    name: str


@dataclass(frozen=True)
class Stall:
    """Be silent until the peer goes away or the server stops."""


@dataclass(frozen=True)
class Finish:
    """Send the chunk with the finish reason."""

    reason: str = "stop"


@dataclass(frozen=True)
class Usage:
    """Send the chunk with usage and without choices."""

    usage: Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    """Send `data: [DONE]`."""


@dataclass(frozen=True)
class Close:
    """Close with FIN, in mid-body if that is where we are."""


@dataclass(frozen=True)
class EndBody:
    """End the chunked body properly; the connection stays. (What follows the last step anyway.)"""


@dataclass(frozen=True)
class Reset:
    """Close with RST, when everything before it has been sent."""


@dataclass(frozen=True)
class TruncatedChunk:
    """Announce a larger chunk than is sent, then close with FIN."""

    data: bytes


@dataclass(frozen=True)
class Paced:
    """Send many tokens on an absolute schedule: the i-th at `i * gap_seconds` after the first, without drift."""

    texts: Sequence[str]
    gap_seconds: float


Step: TypeAlias = (
    Token
    | Delta
    | Event
    | Raw
    | Pause
    | Gate
    | Stall
    | Finish
    | Usage
    | Done
    | Close
    | EndBody
    | Reset
    | TruncatedChunk
    | Paced
)
_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
BARE_STEPS = (Raw, Pause, Gate, Stall, Close, Reset)


@dataclass(frozen=True)
class Script:
    """Say how one request is answered: steps as a chunked event stream, or else `body` with its length.

    `after` is what the connection gets behind the answer's end, though nobody asked for it.
    Raises: TypeError for a step that makes no sense before the head, or behind the end.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    steps: Sequence[Step] = ()
    before: Sequence[Step] = ()
    body: bytes | None = None
    after: Sequence[Step] = ()

    def __post_init__(self) -> None:
        for step in (*self.before, *self.after):
            if not isinstance(step, BARE_STEPS):
                raise TypeError(f"{step!r} cannot come before the head of the answer or after its end")
        if self.body is not None and self.steps:
            raise TypeError("a script has either a body or steps")


def answer(
    texts: Iterable[str],
    gap: float = 0.0,
    finish: str | None = "stop",
    usage: Mapping[str, Any] | None = None,
    role_chunk: bool = True,
) -> Script:
    """Write the script of an ordinary answer. Units: `gap` in seconds."""
    texts = list(texts)
    steps: list[Step] = [Delta({"role": "assistant", "content": ""})] if role_chunk else []
    steps += [Paced(texts, gap)] if gap > 0 else [Token(text) for text in texts]
    if finish is not None:
        steps.append(Finish(finish))
    if usage is not None:
        steps.append(Usage(usage))
    return Script(steps=[*steps, Done()])


def error(
    status: int,
    message: str = "The scripted upstream says no.",
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Script:
    """Write the script of a refusal with OpenAI's error body."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return Script(
        status=status, headers={"content-type": "application/json", **(headers or {})}, body=encode_json(body)
    )


def encode_json(value: Any) -> bytes:
    """Encode as OpenAI does, in UTF-8; half a surrogate pair has no UTF-8 and is escaped."""
    try:
        return _COMPACT.encode(value).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def encode_text(text: str) -> bytes:
    """Encode a text in the same way. Raises: UnicodeEncodeError for half a surrogate pair."""
    return _COMPACT.encode(text).encode()
