"""Keep what came of one generation, and fail the test where the load suite's check finds something wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from load import answer
from load.answer import Incomplete
from load.events import Event
from tests.harness.http1 import Headers


class Answer(answer.Answer):
    """Put the events of one generation together, and check what they promise: see load.answer.Answer.

    Every method raises AssertionError that says what differs.
    """

    def __init__(self, *, stream_id: str | None = None, after: int = 0, prefix: str | None = None) -> None:
        super().__init__(stream_id=stream_id, after=after, prefix=prefix)
        self.events: list[Event] = []
        self.drops: list[str] = []
        self.status = 0
        self.headers = Headers([])

    def begin_connection(self, headers: Headers) -> None:
        """Note that what follows comes over another connection."""
        self.headers = headers
        with self._asserted():
            super().begin_connection(headers)

    def add(self, event: Event) -> None:
        """Take the next event."""
        self.events.append(event)
        with self._asserted():
            super().add(event)

    def verify(self) -> Answer:
        """Check that the stream came to its end."""
        with self._asserted():
            self.end_connection()
        return self

    @contextmanager
    def _asserted(self) -> Iterator[None]:
        try:
            yield
        except Incomplete as wrong:
            tail = "\n".join(f"  {event.id} {event.event}: {event.data[:200]}" for event in self.events[-5:])
            raise AssertionError(
                f"{wrong}: {wrong.detail}\n{self.connections} connections; the last events:\n{tail or '  none'}"
            ) from None
