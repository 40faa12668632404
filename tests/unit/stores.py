"""Stores of every kind for the suite of stores, and how their logs are begun, ended and read."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from app import errors
from app.streams import readable, readership, retention
from app.streams.chunk import Chunk
from app.streams.interface import Binding, End, Origin, Piece, StreamLog, Totals
from app.streams.memory import log as memory_log
from app.streams.memory.store import MemoryStore
from app.streams.shared import committer, copies
from app.streams.shared import log as shared_log
from app.streams.shared import store as shared
from app.streams.shared.log import SharedLog
from app.streams.shared.store import SharedStore
from tests.harness.valkey import Database
from tests.unit.ends import end_with
from tests.unit.shared import wait_until

__all__ = [
    "BUDGET_BYTES",
    "KEY",
    "ORIGIN",
    "OTHER_REQUEST",
    "PATIENCE_SECONDS",
    "RETENTION_SECONDS",
    "Factory",
    "Time",
    "begin",
    "clock_of",
    "factory_of",
    "finished",
    "follow",
    "is_kept",
    "read_all",
    "totals_of",
]

PATIENCE_SECONDS = 20.0
BUDGET_BYTES = 1_048_576
RETENTION_SECONDS = 60.0
KEY = Binding("k" * 64, "f" * 64)
OTHER_REQUEST = Binding(KEY.key, "e" * 64)
ORIGIN = Origin("c-1", "m", "2026-11-21T09:00:00.000Z")

Factory = Callable[..., Any]


class Time:
    """Stand for the clock that the stores read; what waits for Valkey's own clock is told how far it goes."""

    def __init__(self) -> None:
        self.passed: list[Callable[[float], None]] = []
        self._now = 1000.0

    @property
    def now(self) -> float:
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        for passed in self.passed:
            passed(now - self._now)
        self._now = now

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # the store asked for it


def clock_of(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Time:
    """Give the stores of one kind a clock that the test sets."""
    clock = Time()
    for module in (retention, readership, readable, memory_log, shared_log):
        monkeypatch.setattr(module, "time", clock)
    if kind != "memory":
        clock.passed.append(database_of(kind, request).let_pass)
    return clock


def database_of(kind: str, request: pytest.FixtureRequest) -> Database:
    """Give the test's database of one kind of server."""
    database: Database = request.getfixturevalue(f"{kind}_database")
    return database


@contextlib.contextmanager
def factory_of(kind: str, request: pytest.FixtureRequest) -> Iterator[Factory]:
    """Make stores of one kind, and close them with the test."""
    if kind == "memory":
        yield memory_store
        return
    # Each chunk of the suite is waited for, and would wait for others to come with it.
    request.getfixturevalue("monkeypatch").setattr(committer, "SPACING_SECONDS", 0.0)
    with shared_stores(database_of(kind, request)) as make:
        yield make


def memory_store(*, max_active: int = 1000, budget_bytes: int = BUDGET_BYTES) -> MemoryStore:
    return MemoryStore(max_active=max_active, budget_bytes=budget_bytes, retention_seconds=RETENTION_SECONDS)


class SettledLog(SharedLog):
    """A log whose chunks and end are stored, and so shown, when it is looked at next."""

    def append(self, *chunks: str) -> bool:
        taken = super().append(*chunks)
        self._keeper.flush()
        return taken

    def append_chunks(self, chunks: Sequence[Chunk]) -> bool:
        taken = super().append_chunks(chunks)
        self._keeper.flush()
        return taken

    def finish(self, end: Callable[[Totals], End]) -> bool:
        ended = super().finish(end)
        assert not ended or self.settle(PATIENCE_SECONDS)
        return ended


@contextlib.contextmanager
def shared_stores(database: Database) -> Iterator[Factory]:
    """Make stores that share a Valkey's database, each another worker's."""
    made: list[SharedStore] = []

    def make(*, max_active: int = 1000, budget_bytes: int = BUDGET_BYTES) -> SharedStore:
        store = SharedStore(
            database.url,
            max_active=max_active,
            budget_bytes=budget_bytes,
            retention_seconds=RETENTION_SECONDS,
            generation_seconds=600.0,
            abandoned_seconds=300.0,
        )
        store.start(cancel=lambda *_: None, abort=lambda _: None, lost=lambda *_: None)
        wait_until(store.ready, "Valkey")  # on a machine that is busy its first answer may be late
        made.append(store)
        return store

    with pytest.MonkeyPatch.context() as patch:
        for module in (shared, copies):
            patch.setattr(module, "SharedLog", SettledLog)
        try:
            yield make
        finally:
            for store in made:
                store.close()


def begin(store: Any, binding: Binding | None = None) -> Any:
    log, created = store.create(ORIGIN, binding)
    assert created
    return log


def finished(store: Any, *chunks: str, binding: Binding | None = None, frees_key: bool = False) -> Any:
    log = begin(store, binding)
    for chunk in chunks:
        assert log.append(chunk)
    assert log.finish(end_with("failed" if frees_key else "done", frees_key=frees_key))
    return log


def totals_of(log: StreamLog) -> tuple[int, int, str]:
    """Tell what the end of a log says of its text."""
    assert log.end is not None
    return log.end.records, log.end.characters, log.end.sha256


def read_all(log: StreamLog, after: int = 0, max_bytes: int = 1_000_000) -> list[Piece]:
    reader = log.reader(after)
    pieces = []
    while (piece := reader.read(max_bytes)) is not None:
        pieces.append(piece)
        reader.after = piece.sequence
    return pieces


def follow(log: StreamLog, after: int = 0, max_bytes: int = 64) -> tuple[list[Piece], End]:
    """Read as the frames' loop does: to the terminal event."""
    pieces = []
    with log.reader(after) as reader:
        while True:
            terminal = log.end
            piece = reader.read(max_bytes)
            if piece is not None:
                pieces.append(piece)
                reader.after = piece.sequence
            elif terminal is not None:
                return pieces, terminal
            else:
                reader.wait()


def is_kept(store: Any, log: Any) -> bool:
    """Tell whether the store still has a log in memory; one that is shared is found again, by another object."""
    if isinstance(store, SharedStore):
        return store._copies.table.get(log.stream_id) is log or store._retention.kept(log.stream_id) is log
    try:
        return bool(store.find(log.stream_id) is log)
    except errors.StreamExpired:
        return False
