"""Notes when each record of a generation was appended, and tells of many records at once."""

from __future__ import annotations

import logging
from collections.abc import Callable

from app.observability.facts import RecordSent, RecordsSent
from app.observability.observer import tell

__all__ = ["ChunkLog"]

_log = logging.getLogger("app")


class ChunkLog:
    """Tells every record's sequence number, size and time: once a second, at the end, and when LINE_CHUNKS have come.

    Units: `bytes` of UTF-8; `ms` since the generation began.
    """

    LINE_CHUNKS = 240

    __slots__ = ("_correlation_id", "_due", "_first", "_sizes", "_started", "_stream", "_times", "debug")

    def __init__(
        self, *, stream: str, correlation_id: str, started: float, sizes: Callable[[int, int], list[int]]
    ) -> None:
        """`sizes` returns the sizes of the records from one sequence number to another, both included."""
        self._stream = stream
        self._correlation_id = correlation_id
        self._started = started
        self._sizes = sizes
        self._due = started + 1.0
        self._first = 1
        self._times: list[float] = []
        self.debug = _log.isEnabledFor(logging.DEBUG)

    def add(self, count: int, at: float) -> None:
        """Note records that were appended together. Units: `at` in monotonic seconds."""
        for _ in range(count):
            self._times.append(at)
            if self.debug:
                self._tell_last()
            if len(self._times) >= self.LINE_CHUNKS:
                self.flush(at)
        if at >= self._due:
            self.flush(at)

    def flush(self, at: float) -> None:
        """Tell of the records noted since the last time, if there are any. Units: `at` in monotonic seconds."""
        times, self._times = self._times, []
        if not times:
            return
        first, self._first = self._first, self._first + len(times)
        self._due = at + 1.0
        tell(
            RecordsSent(
                stream=self._stream,
                correlation_id=self._correlation_id,
                first=first,
                last=self._first - 1,
                bytes=self._sizes(first, self._first - 1),
                ms=[self._ms(sent) for sent in times],
            )
        )

    def _tell_last(self) -> None:
        sequence = self._first + len(self._times) - 1
        tell(
            RecordSent(
                stream=self._stream,
                correlation_id=self._correlation_id,
                sequence=sequence,
                bytes=self._sizes(sequence, sequence)[0],
                ms=self._ms(self._times[-1]),
            )
        )

    def _ms(self, at: float) -> int:
        return int((at - self._started) * 1000)
