"""The records of one log as text: UTF-8 in one buffer, and where each record ends in it.

So a cursor is exact. A finished answer takes its text and four bytes for each record. A hash needs no copy.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from app.streams.interface import Piece, Totals

__all__ = ["Text"]

OFFSET_BYTES = 4


class Text:
    """The text of a log. Records are numbered from 1, and `len` counts them. Not safe for threads: the log has the
    lock."""

    __slots__ = ("_data", "_ends")

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("I")

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def size(self) -> int:
        """How much memory the text takes. Units: bytes."""
        return len(self._data) + OFFSET_BYTES * len(self._ends)

    def size_with(self, data: bytes, count: int) -> int:
        """How much memory the text would take with `count` more records, together `data`. Units: bytes."""
        return len(self._data) + len(data) + OFFSET_BYTES * (len(self._ends) + count)

    def add(self, texts: Sequence[str], data: bytes) -> None:
        """Add records. `data` is the UTF-8 of all of them together."""
        end = len(self._data)
        self._data += data
        ends = self._ends
        for text in texts:
            end += len(text.encode())
            ends.append(end)

    def piece(self, after: int, head: int, max_bytes: int) -> Piece | None:
        """Return the records behind `after`, up to `head`: at most `max_bytes` of UTF-8, but at least one record.

        None when there is none.
        """
        if after >= head:
            return None
        ends = self._ends
        start = ends[after - 1] if after else 0
        last = head
        if ends[last - 1] - start > max_bytes:
            last = max(after + 1, bisect_right(ends, start + max_bytes, after, head))
        return Piece(last, last - after, self._data[start : ends[last - 1]].decode())

    def until(self, head: int) -> str:
        """Return the text of the records up to `head`."""
        return self._data[: self._ends[head - 1]].decode() if head else ""

    def sizes(self, first: int, last: int) -> list[int]:
        """Tell how large the records from `first` to `last` are. Units: bytes of UTF-8."""
        ends = self._ends[first - 2 : last] if first > 1 else (0, *self._ends[:last])
        return [end - start for start, end in pairwise(ends)]

    def records(self, first: int, last: int) -> list[bytes]:
        """Return the records from `first` to `last`, each as UTF-8."""
        ends = [self._ends[first - 2] if first > 1 else 0, *self._ends[first - 1 : last]]
        return [bytes(self._data[start:end]) for start, end in pairwise(ends)]

    def cut(self, head: int) -> None:
        """Forget the records behind `head`."""
        del self._data[self._ends[head - 1] if head else 0 :]
        del self._ends[head:]

    def pack(self) -> None:
        """Give back what the buffers reserve: a growing buffer is up to an eighth larger than its text."""
        self._data = bytearray(bytes(self._data))
        self._ends = array("I", self._ends.tobytes())

    def totals(self) -> Totals:
        text = self._data.decode()
        return Totals(len(self._ends), len(text), hashlib.sha256(self._data).hexdigest(), text)

    def measured_with(self, rest: bytes) -> tuple[int, str]:
        """Tell the characters and the SHA-256 in hex of this text with `rest` behind it. Raises: UnicodeDecodeError."""
        data = self._data + rest
        return len(data.decode()), hashlib.sha256(data).hexdigest()
