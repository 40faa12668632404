"""The specification of logs and stores. One test suite runs over every store.

A generation is one `StreamLog`: records of text with sequence numbers from 1, and at most one end behind them. A store
finds logs by id, begins one log for each idempotency key, and keeps everything within bounds.

What only several workers need is a second interface, which a store and its logs may have or not: `Elsewhere` and
`Sharing`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self

import msgspec

from app.errors import ChatError, Failure
from app.tokens.usage import Usage

__all__ = [
    "Binding",
    "Elsewhere",
    "End",
    "Origin",
    "Piece",
    "Reader",
    "Sharing",
    "Status",
    "Store",
    "StreamLog",
    "Totals",
    "log_name",
    "new_stream_id",
]

STREAM_ID_PREFIX = "cw_"

Status = Literal["complete", "cancelled", "failed"]


def new_stream_id() -> str:
    """Make a capability: URL-safe, without a dot, ending in 128 random bits."""
    return STREAM_ID_PREFIX + secrets.token_urlsafe(16)


def log_name(stream_id: str) -> str:
    """Name a stream in log lines, where its id, which is a capability, must not appear."""
    return hashlib.sha256(stream_id.encode("utf-8", "replace")).hexdigest()[:12]


class Piece(msgspec.Struct, frozen=True, gc=False):
    """Consecutive records of a log: the last one's sequence number, how many they are, their text."""

    sequence: int
    records: int
    text: str


class Totals(NamedTuple):
    """What a log holds at its end. Units: characters in code points, sha256 in hex of the text's UTF-8."""

    records: int
    characters: int
    sha256: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a generation ended. Units: milliseconds since it began; for the rest see `Totals`.

    `reason` is set when it was cancelled, `error` when it failed.
    """

    status: Status
    records: int
    characters: int
    sha256: str
    usage: Usage
    finish_reason: str | None
    first_token_ms: int | None
    duration_ms: int
    reason: str | None = None
    error: Failure | None = None

    @property
    def frees_key(self) -> bool:
        """Tell whether nothing was delivered and asking again may help: the idempotency key may be used again."""
        return self.error is not None and self.error.retryable and not self.records


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of a generation when it begins. Units: `created` in UTC ISO 8601, milliseconds."""

    correlation_id: str
    model: str
    created: str
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Binding:
    """An idempotency key and the request it stands for, both hashed."""

    key: str
    fingerprint: str


class Reader(Protocol):
    """One reader's place in a log. It is counted as a reader between `__enter__` and `__exit__`."""

    after: int
    """The sequence number of the last record that it has."""
    frame_at: float
    """When its last frame was begun, for its heartbeat. Units: monotonic seconds."""
    sending: bool
    """A frame is being written to its connection right now."""
    knows_unresumable: bool
    """It has been told that its log is `Sharing.is_unresumable`."""
    deliver: Callable[[Piece], bool] | None
    """`append` gives it what it appended, before it wakes a reader that sleeps. True: the reader need not be woken."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def log(self) -> StreamLog: ...

    def read(self, max_bytes: int) -> Piece | None:
        """Return the records behind `after`: at most `max_bytes` of UTF-8 together, but at least one record.

        The reader's place does not move. None at the head.
        """

    def wait(self) -> None:
        """Return when the log may hold something new, or when `nudge` is called. May return for nothing."""

    def nudge(self) -> None:
        """Make `wait` return, from any thread."""

    @property
    def is_released(self) -> bool:
        """The reader is to leave without an end, and to come back."""

    def release(self) -> None:
        """Send the reader away, from any thread."""

    @property
    def is_departed(self) -> bool:
        """The client has sent its last byte, and has probably left."""

    def depart(self) -> None:
        """Note that the client has probably left. It is served on, but does not keep a log from being abandoned."""


class StreamLog(Protocol):
    """One generation's records, in order, and its end."""

    stream_id: str
    origin: Origin
    end_read: bool
    """Somebody has been given the end."""

    @property
    def head(self) -> int:
        """The sequence number of the last record that readers may have, 0 for none."""

    @property
    def end(self) -> End | None:
        """How it ended, once readers may know. None before."""

    @property
    def sharing(self) -> Sharing | None:
        """What several workers need to know of it. None where there is one worker."""

    def append(self, *records: str) -> bool:
        """Add records that came together, and tell the readers once. False when the log has ended, or is about to.

        Never waits. Raises: Overloaded when there is no memory left for them. None of them is added then.
        """

    def finish(self, write: Callable[[Totals], End]) -> bool:
        """End the log, once only: the first caller's `write` makes the end. Any later call returns False and changes
        nothing.

        Where other workers must be able to read the end, readers get it a little later, when it is stored.
        """

    def release_prompt(self) -> None:
        """Count the question no more: it has been answered, or is not asked any more. May be called again."""

    def book(self, write: Callable[[str], None]) -> None:
        """Have the decided end booked. `write` is called once, with the name of the log line, when it is known that
        this worker's end is the log's, and how many have read it.

        The name is `response_cut_off` where another worker has ended the log for all other readers. `write` is not
        called where nobody here has had more than what that worker has.
        """

    def reader(self, after: int, *, only_end: bool = False) -> Reader:
        """Make a reader that has all records up to `after`. With `only_end` it sleeps through records."""

    def text(self) -> str: ...

    def sizes(self, first: int, last: int) -> list[int]:
        """Tell how large the records from `first` to `last` are. Units: bytes of UTF-8."""

    @property
    def readers(self) -> int: ...

    @property
    def unread_since(self) -> float | None:
        """When the last reader left, or the log began. None while there is a reader. Units: monotonic seconds."""

    @property
    def resumes(self) -> int:
        """How many readers attached after the first, at any worker. Exact when the end is booked."""


class Sharing(Protocol):
    """What only logs of several workers can tell."""

    @property
    def is_foreign(self) -> bool:
        """Another worker generates it."""

    @property
    def is_unresumable(self) -> bool:
        """Readers have, or will be given, more than `stored`, which no other worker can give them."""

    @property
    def stored(self) -> int:
        """The sequence number of the last record that every worker can give."""

    def settle(self, seconds: float) -> bool:
        """Wait until readers have the end. False when they have not after so many seconds."""


class Store(Protocol):
    """Finds logs, begins each once, and stays within its bounds."""

    @property
    def elsewhere(self) -> Elsewhere | None:
        """What the store can do beyond this worker. None where there is one worker."""

    def admit(self) -> None:
        """Raises: Overloaded, ShuttingDown, when no log could be begun now."""

    def knows(self, key: str) -> bool:
        """Tell whether a key, hashed, has begun a log. Raises: StoreUnavailable."""

    def create(
        self, origin: Origin, binding: Binding | None = None, *, prompt_bytes: int = 0
    ) -> tuple[StreamLog, bool]:
        """Begin a log, or return the one that the same key and request began. True when it is new.

        `prompt_bytes` is what its question takes in memory. It is counted with the log until `release_prompt`. All
        questions together count for half of the budget at most, and so does a single one, whatever its size.

        Raises: IdempotencyKeyReused, StreamExpired (the key's log is gone), Overloaded, ShuttingDown,
        StoreUnavailable.
        """

    def find(self, stream_id: str, *, reach: int = 0) -> StreamLog:
        """Return a log, and note that it was used. `reach` is a sequence number that a client names: a copy of another
        worker's log that has not got so far is brought up to date first.

        Raises: StreamExpired, StreamUnknown, StoreUnavailable, Overloaded.
        """

    def stop_admitting(self) -> None:
        """Refuse new logs from now on. Attaching to one that exists goes on."""

    def sweep(self, now: float) -> None:
        """Drop what has outlived its retention. Units: `now` is monotonic seconds."""

    def ready(self) -> bool:
        """Tell whether logs can be begun and read."""

    def close(self) -> None:
        """Let go of what the store holds open."""


class Elsewhere(Protocol):
    """What only a store of several workers can do."""

    def start(
        self,
        *,
        cancel: Callable[[str, str], object],
        abort: Callable[[str], object],
        lost: Callable[[StreamLog, ChatError], object],
    ) -> None:
        """Begin to serve.

        `cancel` ends a generation of this worker for a reason. `abort` stops one, without an end, whose log is another
        worker's now. `lost` ends a log with an error, because nobody can go on with it.
        """

    def cancel(self, stream_id: str) -> tuple[End | None, int]:
        """Have a log ended by the worker that generates it, without a copy of it here.

        Returns its end, if it had one before, and its number of records by now. Raises: StreamUnknown, StreamExpired,
        StoreUnavailable.
        """

    def publish(self, name: str, content: bytes) -> None:
        """Let instances of other versions have a page's files, under their hash."""

    def published(self, name: str) -> bytes | None:
        """Return what an instance published under a hash not long ago. Raises: StoreUnavailable."""
