"""One thread of each worker checks every deadline, a few times a second.

Deadlines have no timers of their own. Timers for every read and every wait would be started and cancelled with each
chunk (DESIGN.md, 6). A check must be quick, and must not wait for anything.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

__all__ = ["TICK_SECONDS", "Clock"]

TICK_SECONDS = 0.2

_log = logging.getLogger(__name__)


class Clock:
    """Calls each of its checks every TICK_SECONDS, with the time. Units: monotonic seconds."""

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
        while not self._stopped.wait(TICK_SECONDS):
            self.tick(time.monotonic())
