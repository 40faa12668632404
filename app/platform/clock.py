"""One thread of each worker checks every deadline, a few times a second.

Deadlines have no timers of their own. Timers for every read and every wait would be started and cancelled with each
chunk (DESIGN.md, 6). A check must be quick, and must not wait for anything.

A machine may be paused, and a process may be stopped. When such a worker goes on, every deadline has passed, although
what others sent has arrived and waits to be read. So the checks get the time of the last tick once more, and a second
later the true time, by which the worker has read what has come. What a check does by its own clock happens at once: a
sign of life, for one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

__all__ = ["TICK_SECONDS", "Clock"]

TICK_SECONDS = 0.2

STOOD_STILL_SECONDS = 0.8
"""A worker whose last tick was so long ago has stood still, or has been too busy to read. The shortest time that a
check judges by is one second."""

READ_SECONDS = 1.0
"""What such a worker gets to read what has arrived. It gets that once between two ticks, so a worker that is always
late still checks its deadlines."""

_log = logging.getLogger(__name__)


class Clock:
    """Calls each of its checks every TICK_SECONDS, with the time to judge by. Units: monotonic seconds."""

    def __init__(self) -> None:
        self._checks: list[Callable[[float], None]] = []
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, check: Callable[[float], None]) -> None:
        self._checks.append(check)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def tick(self, now: float) -> None:
        """Run every check once. A check that fails is logged, and the other deadlines still hold."""
        for check in self._checks:
            try:
                check(now)
            except Exception:  # noqa: BLE001 - see above
                _log.exception("a deadline check failed")

    def _run(self) -> None:
        ticked_at = time.monotonic()
        while not self._stopped.wait(TICK_SECONDS):
            if time.monotonic() - ticked_at > STOOD_STILL_SECONDS:
                self.tick(ticked_at)
                if self._stopped.wait(READ_SECONDS):
                    break
            ticked_at = time.monotonic()
            self.tick(ticked_at)
