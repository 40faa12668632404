"""Ends of generations, made one after the other.

An outage makes hundreds of ends due at once. Made together, they would hold up every stream of the worker.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["DueEnds", "Turns"]

BETWEEN_ENDS_SECONDS = 0.001
"""How long other threads can run between two ends, at least."""

_log = logging.getLogger(__name__)


class Turns:
    """A lock that gives other threads a moment after each holder."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        try:
            time.sleep(BETWEEN_ENDS_SECONDS)
        finally:
            self._lock.release()


class DueEnds:
    """The ends that are due, made in turn by a thread of their own. The thread stops after the last one."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._due: deque[tuple[object, Callable[[], object]]] = deque()
        self._known: set[object] = set()
        self._lock = threading.Lock()
        self._running = False

    @property
    def busy(self) -> bool:
        """Tell whether an end is due that has not been made."""
        return self._running

    def add(self, generation: object, end: Callable[[], object]) -> None:
        """Note an end. Does nothing when one of this generation's is due already."""
        with self._lock:
            if generation in self._known:
                return
            self._known.add(generation)
            self._due.append((generation, end))
            if self._running:
                return
            self._running = True
        try:
            threading.Thread(target=self._run, name="endings", daemon=True).start()
        except RuntimeError:  # no more threads; never with gevent, whose threads are objects
            self._run()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._due:
                    self._running = False
                    return
                generation, end = self._due.popleft()
            try:
                with self._turns:
                    end()
            except Exception:  # noqa: BLE001 - the other ends are due all the same
                _log.exception("a generation could not be ended")
            finally:
                with self._lock:
                    self._known.discard(generation)
