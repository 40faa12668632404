"""A log ends once: the first caller writes the end, and every other one changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from app.streams.interface import End, Totals

__all__ = ["Finishing", "finish_once"]

LOOK_SECONDS = 0.001


class Finishing(Protocol):
    """A log, as `finish_once` ends it."""

    def begin_end(self) -> bool:
        """Take no more records from now on. False when another thread has begun to end the log."""

    def go_on(self) -> None:
        """Take records again, because the end could not be written."""

    def is_decided(self) -> bool:
        """Tell whether the log has its end, so that no other end is wanted."""

    def decide(self, end: End) -> bool:
        """Take the end. False when another worker has taken the log over meanwhile: that one ends it."""

    def totals(self) -> Totals: ...


def finish_once(log: Finishing, write: Callable[[Totals], End]) -> bool:
    """End a log. False when another caller has ended it. What `write` raises is raised, and the log goes on."""
    while not log.begin_end():
        if log.is_decided():
            return False
        time.sleep(LOOK_SECONDS)  # Another thread is finishing this log. If it fails, we finish it.
    try:
        end = write(log.totals())
    except BaseException:
        log.go_on()
        raise
    return log.decide(end)
