"""Logs that are read in ChatWait's own dialect."""

from __future__ import annotations

from typing import Any

from app.dialects.native.frames import NativeFrames
from app.reading.loop import frames
from app.reading.readers import Readers
from app.streams.interface import Origin
from app.streams.memory.store import MemoryStore
from load.events import Event, EventParser
from tests.unit.ends import end_with

__all__ = ["PATIENCE_SECONDS", "Time", "finish", "ignore", "log_of", "new_log", "parse", "read", "stream"]

PATIENCE_SECONDS = 20.0


def new_log() -> Any:
    store = MemoryStore(max_active=10, budget_bytes=100_000_000, retention_seconds=60)
    return store.create(Origin("c-1", "m", "2026-11-21T09:00:00.000Z"))[0]


def log_of(*chunks: str, end: bool = True) -> Any:
    log = new_log()
    for chunk in chunks:
        log.append(chunk)
    if end:
        finish(log)
    return log


def finish(log: Any) -> None:
    log.finish(end_with())


def ignore(*_: object) -> None: ...


def stream(log: Any, after: int, readers: Readers, **more: Any) -> Any:
    """Run the loop in ChatWait's own dialect."""
    return frames(log, after, NativeFrames(log.stream_id, log.origin), readers, **more)


def read(log: Any, after: int = 0, readers: Readers | None = None) -> list[bytes]:
    readers = readers or Readers(limit=10, heartbeat_seconds=10.0)
    return list(stream(log, after, readers, left=ignore, drop=ignore))


def parse(pieces: list[bytes]) -> list[Event]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now
