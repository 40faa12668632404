"""Workers of a test's own over one Valkey, in this process: begun, crashed, and looked at."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from app.streams.interface import Origin, StreamLog
from app.streams.shared.log import SharedLog
from app.streams.shared.state import Arrow, State
from app.streams.shared.store import SharedStore
from tests.unit.ends import end_with

LEASE_SECONDS = 0.7
PATIENCE_SECONDS = 20.0
ORIGIN = Origin("c-1", "m", "2026-11-21T09:00:00.000Z", 7)


class Worker:
    """A store with its clock, and what it was told to do."""

    def __init__(
        self,
        url: str,
        *,
        lease_seconds: float = LEASE_SECONDS,
        retention_seconds: float = 60.0,
        tick_seconds: float = 0.05,
    ) -> None:
        self.cancelled: list[str] = []
        self.aborted: list[str] = []
        self.store = SharedStore(
            url,
            max_active=100,
            budget_bytes=1 << 20,
            retention_seconds=retention_seconds,
            generation_seconds=60.0,
            abandoned_seconds=30.0,
            lease_seconds=lease_seconds,
        )
        self._ticks = True
        self._tick_seconds = tick_seconds
        self._runs = threading.Event()
        self._runs.set()
        for connection in (self.store._committer._connection, self.store._tail._connection):
            connection.ask = self._when_running(connection.ask)  # type: ignore[method-assign]
        self._clock = threading.Thread(target=self._tick, daemon=True)

    def start(self) -> Worker:
        self.store.start(cancel=self._cancel, abort=self.aborted.append, lost=self._lost)
        self._clock.start()
        return self

    def begin(self) -> SharedLog:
        log, created = self.store.create(ORIGIN)
        assert created
        return log

    @property
    def is_paused(self) -> bool:
        return not self._runs.is_set()

    def pause(self) -> None:
        """Stand still as after SIGSTOP: it asks Valkey nothing, and takes none of its answers, until `go_on`."""
        self._runs.clear()

    def go_on(self) -> None:
        self._runs.set()

    def _when_running(self, ask: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def asked(*arguments: Any, **more: Any) -> list[Any]:
            self._runs.wait()
            answers = ask(*arguments, **more)
            self._runs.wait()
            return answers

        return asked

    def crash(self) -> None:
        """End as a process that is killed: nothing more is written, nothing said."""
        self.go_on()
        self._ticks = False
        self._clock.join()
        committer, tail = self.store._committer, self.store._tail
        committer.stop()
        tail.stop()
        committer.join()
        tail._connection.close()
        self.store.flush = lambda: None  # type: ignore[method-assign] # `close` would wait for an answer that cannot come

    def has_valkey_back(self) -> bool:
        """Tell whether it has noticed that its Valkey was away, and that it answers again.

        `ready` alone is true until the loss is noticed, which takes a question.
        """
        return self.store._committer.back_at is not None and self.store.ready()

    def close(self) -> None:
        self.go_on()
        self._ticks = False
        self._clock.join()
        self.store.close()

    def _cancel(self, stream_id: str, reason: str) -> None:
        self.cancelled.append(stream_id)

    @staticmethod
    def _lost(log: StreamLog, error: Exception) -> None:
        log.finish(end_with("failed"))

    def _tick(self) -> None:
        while self._ticks:
            self._runs.wait()
            self.store.sweep(time.monotonic())
            time.sleep(self._tick_seconds)


@contextlib.contextmanager
def workers(url: str, count: int, **options: Any) -> Iterator[list[Worker]]:
    """Run so many over one Valkey."""
    made = [Worker(url, **options).start() for _ in range(count)]
    try:
        yield made
    finally:
        for worker in made:
            worker.close()


def wait_until(fact: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for what happens in another thread. Raises: AssertionError."""
    until = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.002)


class Step(NamedTuple):
    """What one log did, or was refused: then `after` is None."""

    log: SharedLog
    before: State
    arrow: Arrow
    after: State | None


@contextlib.contextmanager
def steps_taken() -> Iterator[list[Step]]:
    """Write down each step of every log of this process, in order."""
    taken: list[Step] = []
    go = SharedLog._go

    def observed(log: SharedLog, arrow: Arrow) -> None:
        before, after = log.state, None
        try:
            go(log, arrow)
            after = log.state
        finally:
            taken.append(Step(log, before, arrow, after))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedLog, "_go", observed)
        yield taken
