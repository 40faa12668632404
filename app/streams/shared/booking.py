"""Books the end of a log once, under the right name. The name is known only when the end is stored or given up."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["BOOKED", "CUT_OFF_BOOKED", "Booking", "Unbooked"]

BOOKED = "response_complete"
CUT_OFF_BOOKED = "response_cut_off"


class Booking:
    """The booking of one owned log. Its two parts come in any order: the function that writes the line, and the line's
    name."""

    __slots__ = ("_name", "_unbooked", "_write")

    def __init__(self, unbooked: Unbooked) -> None:
        self._unbooked = unbooked
        self._write: Callable[[str], None] | None = None
        self._name: str | None = None

    def by(self, write: Callable[[str], None]) -> None:
        """Take the function that writes the line. The function is called once, with the name."""
        self._write = write
        self._unbooked.add(self)
        self._book()

    def under(self, name: str) -> None:
        """Take the line's name. The first one stands."""
        if self._name is None:
            self._name = name
        self._book()

    def leave(self) -> None:
        """Write no line: another worker does."""
        self._write = None
        self._unbooked.discard(self)

    def _book(self) -> None:
        write, name = self._write, self._name
        if write is None or name is None or not self._unbooked.pop(self):
            return
        self._write = None
        write(name)


class Unbooked:
    """The ends of this worker that wait to be booked."""

    def __init__(self) -> None:
        self._waiting: dict[Booking, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, booking: Booking) -> None:
        self._waiting[booking] = None

    def discard(self, booking: Booking) -> None:
        self._waiting.pop(booking, None)

    def pop(self, booking: Booking) -> bool:
        """Remove a booking. True for the caller that removed it."""
        try:
            del self._waiting[booking]
        except KeyError:
            return False
        return True

    def book_all(self, name: str) -> None:
        """Book all that still wait: no answer about them will come any more."""
        for booking in list(self._waiting):
            booking.under(name)
