"""The interface of logs and stores. It is the specification: one test suite runs over every store.

A generation is one `StreamLog`: chunks of text with sequence numbers from 1, and at most one terminal event
after them. A store finds logs by id, starts each idempotency key once, and keeps everything within bounds.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import msgspec

__all__ = [
    "Binding",
    "Origin",
    "Piece",
    "Reader",
    "Store",
    "StreamLog",
    "Terminal",
    "Totals",
    "log_name",
    "new_stream_id",
]

STREAM_ID_PREFIX = "cw_"


def new_stream_id() -> str:
    """Make a capability: URL-safe, without a dot, ending in 128 random bits."""
    return STREAM_ID_PREFIX + secrets.token_urlsafe(16)


def log_name(stream_id: str) -> str:
    """Name a stream in log lines, where its id, which is a capability, must not appear."""
    return hashlib.sha256(stream_id.encode("utf-8", "replace")).hexdigest()[:12]


class Piece(msgspec.Struct, frozen=True, gc=False):
    """Consecutive chunks of a log: the last one's sequence number, how many they are, their text."""

    sequence: int
    chunks: int
    text: str


class Totals(NamedTuple):
    """What a log holds at its end. Units: tokens in chunks, characters in code points, sha256 in hex."""

    tokens: int
    characters: int
    sha256: str
    text: str


@dataclass(frozen=True, slots=True)
class Terminal:
    """The one last event: `event` is done, cancelled or failed; `content` is its data, keys in order."""

    event: str
    content: dict[str, Any]
    frees_key: bool = False
    """Nothing was delivered and asking again may help: the idempotency key may be used again."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of a generation when it begins. Units: `created` in UTC ISO 8601, milliseconds."""

    correlation_id: str
    model: str
    created: str


@dataclass(frozen=True, slots=True)
class Binding:
    """An idempotency key and the request it stands for, both hashed."""

    key: str
    fingerprint: str


class Reader(Protocol):
    """One reader's place in a log. It is counted as a reader between `__enter__` and `__exit__`."""

    after: int
    frame_at: float
    """When its last frame was begun, for its heartbeat. Units: monotonic seconds."""
    sending: bool
    """A frame is being written to its connection right now."""
    deliver: Callable[[Piece], bool] | None
    """Given by `append` what it appended, before a reader that sleeps is woken for it. True: it need not be."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def read(self, max_bytes: int) -> Piece | None:
        """Return what follows `after`, whole chunks of at most `max_bytes` of UTF-8 together (a single larger
        chunk is returned alone), without moving on; None at the head."""

    def wait(self) -> None:
        """Return when the log may hold something new, or when `nudge` is called. May return for nothing."""

    def nudge(self) -> None:
        """Make `wait` return, from any thread."""


class StreamLog(Protocol):
    """One generation's chunks, in order, and its end."""

    stream_id: str
    origin: Origin
    end_read: bool
    """Somebody has been given the terminal event."""

    @property
    def head(self) -> int:
        """The last chunk's sequence number, 0 for none."""

    @property
    def terminal(self) -> Terminal | None: ...

    def append(self, *chunks: str) -> bool:
        """Add chunks that came together, and tell the readers once; False when the log has ended, or is about to.

        Never waits. Raises: Overloaded when the store has no memory left for them; none is added then.
        """

    def finish(self, end: Callable[[Totals], Terminal]) -> bool:
        """End the log, once only: the first call's `end` is asked for the terminal event, and wakes the
        readers; any later call returns False and changes nothing."""

    def reader(self, after: int, *, only_end: bool = False) -> Reader:
        """Make a reader that has everything up to `after`; one that wants `only_end` sleeps through chunks."""

    def text(self) -> str: ...

    def sizes(self, first: int, last: int) -> list[int]:
        """Tell how large the chunks from `first` to `last` are. Units: bytes of UTF-8."""

    @property
    def readers(self) -> int: ...

    @property
    def unread_since(self) -> float | None:
        """Monotonic time at which the last reader left (or the log began); None while there is a reader."""

    @property
    def resumes(self) -> int:
        """How many readers attached after the first."""


class Store(Protocol):
    """Finds logs, starts each once, and stays within its bounds."""

    def create(self, origin: Origin, binding: Binding | None = None) -> tuple[StreamLog, bool]:
        """Begin a log, or return the one that the same key and request began; True when it is new.

        Raises: IdempotencyKeyReused, StreamExpired (the key's log is gone), Overloaded, ShuttingDown.
        """

    def find(self, stream_id: str) -> StreamLog:
        """Return a log, and note that it was used.

        Raises: StreamExpired, StreamUnknown.
        """

    def stop_admitting(self) -> None:
        """Refuse new logs from now on; attaching to one that exists goes on."""

    def sweep(self, now: float) -> None:
        """Drop what has outlived its retention. Units: `now` is monotonic seconds."""

    def ready(self) -> bool:
        """Tell whether logs can be begun and read."""
