"""Every fact of a worker's life, as values that any listener can use and keep.

A new event is a class here and one call of `tell` where it happens. A fact's fields are the fields of its log line,
in their order. Facts hold texts and numbers only: an error would keep its frames alive, and a log its text.

`stream` is always the name that the log uses for a stream (`log_name`), never its id. `correlation_id` is the id of
the request that began the stream or that the fact is about.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from app.observability.exceptions import Description

__all__ = [
    "DrainCut",
    "DrainFinished",
    "DrainStarted",
    "Fact",
    "GenerationCutOff",
    "GenerationEnded",
    "GenerationFailed",
    "ReaderAttached",
    "ReaderLeft",
    "RecordSent",
    "RecordsSent",
    "RequestFailed",
    "RequestReceived",
    "StoreAway",
    "StoreBack",
    "StreamCutOff",
    "StreamDamaged",
    "StreamFenced",
    "StreamStarted",
    "TreeDamaged",
    "UpstreamDistrusted",
    "UpstreamRetried",
    "WorkerStarted",
]


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened. `event` is its name in the log."""

    event: ClassVar[str]
    usual_level: ClassVar[int] = logging.INFO

    @property
    def level(self) -> int:
        """How much an operator should care, as one of logging's levels."""
        return self.usual_level

    def fields(self) -> dict[str, Any]:
        """Return the values that a line shows, in their order."""
        return msgspec.structs.asdict(self)


# Requests


class RequestReceived(Fact, frozen=True, kw_only=True):
    """A request has arrived. `request_id` is the client's own, if it has a sound one."""

    event = "request_received"
    correlation_id: str
    method: str
    route: str | None
    request_id: str | None


class _Failed(Fact, frozen=True, kw_only=True):
    """A request or a generation has met an error: its code and its three texts.

    `origin` says whose error it is: client, service or upstream. `exception` describes the cause, if there is one.
    """

    event = "error_occurred"
    correlation_id: str
    error_type: str
    error_message: str
    detail: str
    recovery_action: str
    origin: str
    exception: Description | None = None

    def fields(self) -> dict[str, Any]:
        """Return the values without `origin`, and with `exception` at the end, if there is one."""
        told = super().fields()
        del told["origin"]
        exception = told.pop("exception")
        return told if exception is None else told | {"exception": exception}


class RequestFailed(_Failed, frozen=True, kw_only=True):
    """A request is refused, or fails here. `status` is the answer's."""

    status: int

    @property
    def level(self) -> int:
        if self.status == 500:
            return logging.ERROR
        return logging.INFO if self.origin == "client" else logging.WARNING


# Generations


class StreamStarted(Fact, frozen=True, kw_only=True):
    """A generation begins. Units: `max_tokens` (None: unlimited), `prompt_tokens` in tokens; `messages` is a count."""

    event = "stream_started"
    stream: str
    correlation_id: str
    model: str
    max_tokens: int | None
    messages: int
    prompt_tokens: int


class UpstreamRetried(Fact, frozen=True, kw_only=True):
    """The upstream is asked again after an attempt that failed. `cause` lists the types behind the error."""

    event = "upstream_retry"
    usual_level = logging.WARNING
    stream: str
    correlation_id: str
    attempt: int
    error_code: str
    delay_ms: int
    cause: list[str]


class RecordsSent(Fact, frozen=True, kw_only=True):
    """Records were appended: from `first` to `last`, the UTF-8 bytes of each, and when, in ms since the beginning."""

    event = "chunks_sent"
    stream: str
    correlation_id: str
    first: int
    last: int
    bytes: list[int]
    ms: list[int]


class RecordSent(Fact, frozen=True, kw_only=True):
    """One record was appended: told only at DEBUG. Units as in `RecordsSent`."""

    event = "chunk_sent"
    usual_level = logging.DEBUG
    stream: str
    correlation_id: str
    sequence: int
    bytes: int
    ms: int


class GenerationFailed(_Failed, frozen=True, kw_only=True):
    """A generation ends with an error. `GenerationEnded` follows, with its figures."""

    stream: str

    @property
    def level(self) -> int:
        return logging.ERROR if self.origin == "service" else logging.WARNING


class _Ended(Fact, frozen=True, kw_only=True):
    """The figures of a generation at its end.

    `status` is complete, cancelled or failed. `reason` is set for cancelled. `tokens` counts the records. `usage` has
    prompt_tokens, completion_tokens, total_tokens and source. `rate_limits` are the upstream's headers of that name.
    Units: milliseconds since the generation began.
    """

    status: str
    reason: str | None
    model: str
    finish_reason: str | None
    tokens: int
    duration_ms: int
    first_token_ms: int | None
    usage: Mapping[str, int | str]
    resumes: int
    rate_limits: Mapping[str, str]
    stream: str
    correlation_id: str


class GenerationEnded(_Ended, frozen=True, kw_only=True):
    """A generation has ended, for all readers everywhere. Every generation has exactly one such fact."""

    event = "response_complete"


class GenerationCutOff(_Ended, frozen=True, kw_only=True):
    """A generation has ended here, after another worker had ended it for everybody else. That worker books it."""

    event = "response_cut_off"


# Readers


class ReaderAttached(Fact, frozen=True, kw_only=True):
    """A reader begins. `mode` is streaming or wait. `after` is the last record that it has already."""

    event = "reader_attached"
    stream: str
    correlation_id: str
    mode: str
    after: int


class ReaderLeft(Fact, frozen=True, kw_only=True):
    """A reader has left. `sequence` is the last record that it was given."""

    event = "reader_left"
    stream: str
    correlation_id: str
    mode: str
    sequence: int


# The store, the upstream, the page


class StoreAway(Fact, frozen=True, kw_only=True):
    """Valkey takes nothing. `cause` is a short text."""

    event = "store_away"
    usual_level = logging.ERROR
    cause: str


class StoreBack(Fact, frozen=True, kw_only=True):
    """Valkey takes everything again."""

    event = "store_back"


class StreamDamaged(Fact, frozen=True, kw_only=True):
    """What Valkey holds of a stream cannot be read. `what` says which part."""

    event = "stream_damaged"
    usual_level = logging.ERROR
    stream: str
    what: str


class StreamCutOff(Fact, frozen=True, kw_only=True):
    """Another worker has taken over a stream whose readers here have had more than Valkey holds."""

    event = "stream_cut_off"
    stream: str
    correlation_id: str


class StreamFenced(Fact, frozen=True, kw_only=True):
    """Another worker has taken over a stream, because it took this worker for dead."""

    event = "stream_fenced"
    stream: str
    correlation_id: str


class UpstreamDistrusted(Fact, frozen=True, kw_only=True):
    """No connection to an upstream is kept any more: it sent what nobody asked for (surplus, idle, nonsense)."""

    event = "upstream_distrusted"
    usual_level = logging.WARNING
    seen: str


class TreeDamaged(Fact, frozen=True, kw_only=True):
    """The page's files of another version cannot be read. `tree` is their hash."""

    event = "tree_damaged"
    usual_level = logging.WARNING
    tree: str


# The beginning and the end of a worker


class WorkerStarted(Fact, frozen=True, kw_only=True):
    """A worker is ready. `version` is the service's."""

    event = "worker_started"
    version: str


class DrainStarted(Fact, frozen=True, kw_only=True):
    """The worker stops: so many generations and readers are left."""

    event = "drain_started"
    generations: int
    readers: int


class DrainCut(Fact, frozen=True, kw_only=True):
    """The drain's time is over, and so many generations are cancelled."""

    event = "drain_cut"
    usual_level = logging.WARNING
    generations: int


class DrainFinished(Fact, frozen=True, kw_only=True):
    """The worker leaves. `readers` have not finished. `cut` says whether generations were cancelled."""

    event = "drain_finished"
    readers: int
    cut: bool
