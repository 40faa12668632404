"""The specification of logs and stores. One test suite runs over every store.

A generation is one `StreamLog`: records of text with sequence numbers from 1, and at most one end behind them. A store
finds logs by id, begins one log for each idempotency key, and keeps everything within bounds.

`Elsewhere` and `Sharing` are a second, optional interface: what stores and logs of several workers can do besides.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self

import msgspec

from app.errors import ChatError, Failure
from app.streams.chunk import Chunk
from app.tokens.usage import Usage

__all__ = [
    "Binding",
    "Elsewhere",
    "End",
    "ErasedMeanwhile",
    "Kind",
    "Origin",
    "Piece",
    "Reader",
    "Sharing",
    "Status",
    "Store",
    "StreamLog",
    "Totals",
    "belongs_to",
    "bound_to",
    "is_bound",
    "log_name",
    "new_stream_id",
]

STREAM_ID_PREFIXES: Mapping[Kind, str] = {"text": "cw_", "chunks": "cwc_", "json": "cwc_"}
"""What a log holds can be told from its id. Version 0.1 knows the first prefix alone, and finds no other stream."""

Status = Literal["complete", "cancelled", "failed"]

Kind = Literal["text", "chunks", "json"]
"""What the records of a log are: text alone; chunks of OpenAI's; or one record that is OpenAI's whole answer, which was
not streamed."""


def new_stream_id(kind: Kind = "text") -> str:
    """Make a capability: URL-safe, without a dot, ending in 128 random bits."""
    return STREAM_ID_PREFIXES[kind] + secrets.token_urlsafe(16)


def bound_to(stream_id: str, credential: str) -> str:
    """Name the client that a log is bound to, by what it shows to prove who it is. Empty: it shows nothing."""
    return hashlib.sha256(f"{stream_id}{credential}".encode("utf-8", "surrogateescape")).hexdigest()


def is_bound(stream_id: str) -> bool:
    """Tell whether the log of an id may be bound to a client."""
    return not stream_id.startswith(STREAM_ID_PREFIXES["text"])


def belongs_to(origin: Origin, stream_id: str, credential: str) -> bool:
    """Tell whether a client that shows a credential may read a log. The comparison takes the same time for all."""
    return origin.client is None or hmac.compare_digest(origin.client, bound_to(stream_id, credential))


def log_name(stream_id: str) -> str:
    """Name a stream in log lines. Its id is a capability and must not appear there."""
    return hashlib.sha256(stream_id.encode("utf-8", "replace")).hexdigest()[:12]


class ErasedMeanwhile(Exception):
    """The records of a log were erased while they were read."""


class Piece(msgspec.Struct, frozen=True, gc=False):
    """Consecutive records of a log: the last one's sequence number, their number, and their text.

    `chunks` are the records of a log of chunks, one by one. None for a log of text.
    """

    sequence: int
    records: int
    text: str
    chunks: Sequence[Chunk] | None = None


class Totals(NamedTuple):
    """What a log holds at its end. Units: characters in code points, sha256 in hex of the text's UTF-8."""

    records: int
    characters: int
    sha256: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a generation ended. Units: milliseconds since the generation began; for the rest see `Totals`.

    `reason` is set when the generation was cancelled, `error` when it failed.
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
        """Tell whether the idempotency key may be used again: nothing was delivered, and asking again may help."""
        return self.error is not None and self.error.retryable and not self.records


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of a generation when it begins. Units: `created` in UTC ISO 8601, milliseconds."""

    correlation_id: str
    model: str
    created: str
    prompt_tokens: int = 0
    kind: Kind = "text"
    client: str | None = None
    """To whom the log is bound (`bound_to`). None: whoever knows the stream's id may read it."""


@dataclass(frozen=True, slots=True)
class Binding:
    """An idempotency key and the request it stands for, both hashed."""

    key: str
    fingerprint: str


class Reader(Protocol):
    """One reader's place in a log, which counts as a reader between `__enter__` and `__exit__`."""

    after: int
    """The sequence number of the last record that it has."""
    frame_at: float
    """When its last frame was begun, for heartbeats. Units: monotonic seconds."""
    sending: bool
    """A frame is being written to its connection right now."""
    knows_unresumable: bool
    """It has been told that its log is `Sharing.is_unresumable`."""
    deliver: Callable[[Piece], bool] | None
    """The log calls this with an appended piece before it wakes a sleeping reader. True: the reader need not be woken.
    """

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

    def read_chunks(self, max_bytes: int) -> Piece | None:
        """Return the records behind `after` of a log of chunks, chunk by chunk: at most `max_bytes` of JSON together,
        but at least one record.

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
        """Note that the client has probably left. The client is still served, but the log may count as abandoned."""


class StreamLog(Protocol):
    """One generation's records, in order, and its end."""

    stream_id: str
    origin: Origin
    end_read: bool
    """Somebody has been given the end."""
    is_erased: bool
    """The records are gone, and readers are to be cut off."""

    @property
    def head(self) -> int:
        """The sequence number of the last record that readers may have, 0 for none."""

    @property
    def end(self) -> End | None:
        """How the generation ended, once readers may know. None before."""

    @property
    def sharing(self) -> Sharing | None:
        """What several workers need to know of the log. None where there is one worker."""

    def append(self, *records: str) -> bool:
        """Add records that came together, and tell the readers once. False when the log has ended, or is about to.

        Never waits. Raises: Overloaded, and adds nothing, when there is no memory left for the records.
        """

    def append_chunks(self, chunks: Sequence[Chunk]) -> bool:
        """Add records to a log of chunks, as `append` adds them to a log of text."""

    def finish(self, write: Callable[[Totals], End]) -> bool:
        """End the log, once only: the first caller's `write` makes the end. Any later call returns False and changes
        nothing.

        Where other workers must be able to read the end, readers get it a little later, when it is stored.
        """

    def release_prompt(self) -> None:
        """Count the question's memory no more, because the question is no longer needed. May be called again."""

    def book(self, write: Callable[[str], None]) -> None:
        """Have the decided end booked. `write` is called once with the name of the log line, as soon as it is known
        that this worker books the end, and how many readers there were.

        The name is `response_complete`, or `response_cut_off` where another worker has ended the log for all other
        readers. `write` is not called where another worker has taken the log over, and readers here have no more than
        that worker has.
        """

    def reader(self, after: int, *, only_end: bool = False, is_counted: bool = True) -> Reader:
        """Make a reader that has all records up to `after`. A reader with `only_end` sleeps through records. One that
        another reader follows at once is not counted among those that attached."""

    def text(self) -> str:
        """Return the text of all records up to `head`."""

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
    """Finds logs, begins each log once, and stays within its bounds."""

    @property
    def elsewhere(self) -> Elsewhere | None:
        """What the store can do beyond this worker. None where there is one worker."""

    def admit(self) -> None:
        """Raises: Overloaded, ShuttingDown, when no log could be begun now."""

    def knows(self, key: str) -> bool:
        """Tell whether a key, hashed, has begun a log. Raises: StoreUnavailable."""

    def create(
        self, origin: Origin, binding: Binding | None = None, *, prompt_bytes: int = 0, credential: str | None = None
    ) -> tuple[StreamLog, bool]:
        """Begin a log, or return the one that the same key and request began. True when it is new.

        A log that is begun with a `credential` is bound to it: whoever shows another one finds no such log.
        `prompt_bytes` is the memory of the log's question, which counts with the log until `release_prompt`. One
        question counts for half of the budget at most, and so do all questions together.

        Raises: IdempotencyKeyReused, StreamExpired (the key's log is gone), Overloaded, ShuttingDown,
        StoreUnavailable.
        """

    def find(self, stream_id: str, *, reach: int = 0, credential: str = "") -> StreamLog:
        """Return a log, and note that it was used. A log that is bound to another `credential` counts as unknown.

        `reach` is a sequence number that a client names. A copy of another worker's log is first brought up to that
        number.

        Raises: StreamExpired, StreamUnknown, StoreUnavailable, Overloaded.
        """

    def erase(self, log: StreamLog) -> None:
        """Forget a log for good: its records, its key, and that there was such a log. Its readers are cut off.

        Raises: StoreUnavailable.
        """

    def stop_admitting(self) -> None:
        """Refuse new logs from now on. Existing logs can still be read."""

    def sweep(self, now: float) -> None:
        """Drop logs that have outlived their retention. Units: `now` in monotonic seconds."""

    def ready(self) -> bool:
        """Tell whether logs can be begun and read."""

    def close(self) -> None:
        """Close what the store holds open."""


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

        `cancel` ends a generation of this worker for a reason. `abort` stops a generation without an end, because its
        log is another worker's now. `lost` ends a log with an error, because no worker can go on with it.
        """

    def cancel(self, stream_id: str) -> tuple[End | None, int]:
        """Have a log ended by the worker that generates it. No copy is made here.

        Returns the end, if the log had one before, and the number of records by now. Raises: StreamUnknown,
        StreamExpired, StoreUnavailable.
        """

    def erase_unread(self, stream_id: str) -> None:
        """Erase a log of which no copy is here. The caller has seen that it may. Raises: StreamUnknown, StreamExpired,
        StoreUnavailable."""

    def publish(self, name: str, content: bytes) -> None:
        """Give instances of other versions a page's files, under the files' hash."""

    def published(self, name: str) -> bytes | None:
        """Return what an instance published under a hash not long ago, None for nothing. Raises: StoreUnavailable."""
