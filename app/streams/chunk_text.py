"""The records of a log of chunks: their text as in any log, and beside it what each chunk holds besides.

A record takes its text, four bytes for its end, and one byte that names its envelope. What is not text is kept
sparsely: raw chunks, reasoning, arguments of tools. It is packed block by block, so that no read and no append handles
more than one block.
"""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import msgspec

from app.streams.chunk import MOST_ENVELOPES, Chunk, Envelope
from app.streams.interface import Kind, Piece
from app.streams.text import OFFSET_BYTES, Text

__all__ = ["ChunkText", "text_for"]

RAW = 255
"""The form of a record that has no envelope."""

BLOCK_BYTES = 32_768
"""A block that holds so much besides text is packed, and a new one begins."""

BLOCK_RECORDS = 4096

LARGEST_PACKED_BYTES = 262_144
"""A larger block, which is one huge chunk, stays as it is. To pack it would hold up every stream."""

PLACE_BYTES = 8
"""What the place of something besides text takes."""

BLOCK_OVERHEAD_BYTES = 128


class _Block:
    """What some consecutive records hold besides their text. `start` is how many records stand before it. `forms` has
    one byte for each record: the number of its envelope, or RAW. `places` are the records that hold something, counted
    from 0, and `ends` is where that ends in `data`, as UTF-8."""

    __slots__ = ("data", "ends", "forms", "places", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.forms = bytearray()
        self.places = array("I")
        self.ends = array("I")
        self.data = bytearray()

    @property
    def size(self) -> int:
        return BLOCK_OVERHEAD_BYTES + len(self.forms) + PLACE_BYTES * len(self.places) + len(self.data)

    @property
    def is_full(self) -> bool:
        return len(self.data) >= BLOCK_BYTES or len(self.forms) >= BLOCK_RECORDS

    def hold(self, held: bytes) -> None:
        """Keep what the next record holds."""
        self.places.append(len(self.forms))
        self.data += held
        self.ends.append(len(self.data))

    def add(self, form: int, held: bytes | None) -> None:
        if held is not None:
            self.hold(held)
        self.forms.append(form)

    def held(self, index: int) -> str:
        """Return what a place has, counted from 0."""
        start = self.ends[index - 1] if index else 0
        return self.data[start : self.ends[index]].decode()

    def cut(self, count: int) -> None:
        """Forget the records behind the first `count`."""
        kept = bisect_left(self.places, count)
        del self.forms[count:]
        del self.places[kept:]
        del self.ends[kept:]
        del self.data[self.ends[-1] if kept else 0 :]

    def pack(self, envelopes: Sequence[Envelope] = (), firsts: Sequence[int] = ()) -> bytes:
        parts = (bytes(self.forms), self.places.tobytes(), self.ends.tobytes(), bytes(self.data), envelopes, firsts)
        return zlib.compress(msgspec.msgpack.encode(parts), 6)


class _Packed(msgspec.Struct, array_like=True):
    forms: bytes
    places: bytes
    ends: bytes
    data: bytes
    envelopes: list[Envelope]
    firsts: list[int]


_decode = msgspec.msgpack.Decoder(_Packed).decode


def _unpacked(packed: bytes, start: int = 0) -> tuple[_Block, list[Envelope], list[int]]:
    parts = _decode(zlib.decompress(packed))
    block = _Block(start)
    block.forms += parts.forms
    block.places.frombytes(parts.places)
    block.ends.frombytes(parts.ends)
    block.data += parts.data
    return block, parts.envelopes, parts.firsts


class ChunkText(Text):
    """The records of a log of chunks. Not safe for threads: the log has the lock. Records up to a head that was told
    may be read while others are added."""

    __slots__ = ("_blocks", "_envelopes", "_firsts", "_last", "_open", "_other_bytes", "_starts")

    def __init__(self) -> None:
        super().__init__()
        self._envelopes: list[Envelope] | None = []
        """None once the log has ended: the last block has them."""
        self._firsts: list[int] = []
        """The record with which each envelope begins."""
        self._last: tuple[Envelope, int] | None = None
        """The envelope that was used last, and its number."""
        self._blocks: list[bytes | _Block] = []
        self._starts: list[int] = []
        """How many records stand before each block."""
        self._open: _Block | None = _Block(0)
        self._other_bytes = BLOCK_OVERHEAD_BYTES
        """How much memory is taken besides the text."""

    @property
    def size(self) -> int:
        return super().size + self._other_bytes

    def size_with_chunks(self, chunks: Sequence[Chunk], data: bytes) -> int:
        """How much memory the records would take at most with more of them, whose text together is `data`. Units:
        bytes."""
        size = len(self._data) + OFFSET_BYTES * len(self._ends) + self._other_bytes
        size += len(data) + (OFFSET_BYTES + 1) * len(chunks)
        last = None if self._last is None else self._last[0]
        for chunk in chunks:
            envelope = chunk.envelope
            if envelope is None or not envelope.is_text:
                size += PLACE_BYTES + _bytes_of(chunk.value)
            if envelope is not None and envelope is not last:
                size += _size_of(envelope)
                last = envelope
        return size

    def add_chunks(self, chunks: Sequence[Chunk], data: bytes) -> None:
        """Add records. `data` is the UTF-8 of their texts together."""
        block, last = self._open, self._last
        if len(chunks) == 1 and last is not None and chunks[0].envelope is last[0]:
            assert block is not None  # as most chunks come, one at a time, in the same envelope
            self._data += data
            self._ends.append(len(self._data))
            if last[0].is_text:
                self._other_bytes += 1
            else:
                value = chunks[0].value.encode()
                block.hold(value)
                self._other_bytes += 1 + PLACE_BYTES + len(value)
            block.forms.append(last[1])
            if block.is_full:
                self._seal(block)
            return
        number = len(self._ends)
        self.add([chunk.text for chunk in chunks], data)
        for chunk in chunks:
            number += 1
            block = self._open
            assert block is not None
            envelope = chunk.envelope
            form = RAW if envelope is None else self._form_of(envelope, number)
            held = None
            if form == RAW:
                held = chunk.data.encode("ascii")
            elif envelope is not None and not envelope.is_text:
                held = chunk.value.encode()
            block.add(form, held)
            self._other_bytes += 1 if held is None else 1 + PLACE_BYTES + len(held)
            if block.is_full:
                self._seal(block)

    def _form_of(self, envelope: Envelope, number: int) -> int:
        """Return the number of an envelope, which may be a new one. RAW when there are too many."""
        last = self._last
        if last is not None and last[0] is envelope:
            return last[1]
        envelopes = self._envelopes
        assert envelopes is not None
        try:
            form = envelopes.index(envelope)
        except ValueError:
            if len(envelopes) >= MOST_ENVELOPES:
                return RAW
            form = len(envelopes)
            envelopes.append(envelope)
            self._firsts.append(number)
            self._other_bytes += _size_of(envelope)
        self._last = envelope, form
        return form

    def _seal(self, block: _Block) -> None:
        """Close the open block, and begin a new one."""
        self._close(block, block.pack() if len(block.data) <= LARGEST_PACKED_BYTES else block)
        self._open = following = _Block(block.start + len(block.forms))
        self._other_bytes += following.size

    def _close(self, block: _Block, kept: bytes | _Block) -> None:
        self._blocks.append(kept)
        self._starts.append(block.start)  # last, so that a reader finds the block
        self._other_bytes += _size_of_kept(kept) - block.size

    @property
    def envelopes(self) -> list[Envelope]:
        """The envelopes so far, in a list of the caller's own."""
        return list(self._all_envelopes()[0])

    # What is read

    def chunks(self, after: int, head: int, max_bytes: int) -> Piece | None:
        """Return the records behind `after`, up to `head`, chunk by chunk: at most `max_bytes` of JSON, but at least
        one record. None when there is none."""
        if after >= head:
            return None
        envelopes, block = self._block_behind(after)
        start = block.start
        found: list[Chunk] = []
        at = bisect_left(block.places, after - start)
        begin = text_start = self._ends[after - 1] if after else 0
        left = max_bytes
        for number in range(after, min(head, start + len(block.forms))):
            text_end = self._ends[number]
            text = self._data[text_start:text_end].decode()
            form = block.forms[number - start]
            if form == RAW:
                chunk = Chunk(text, block.held(at))
                left -= len(chunk.value)
            else:
                envelope = envelopes[form]
                chunk = Chunk(text, text if envelope.is_text else block.held(at), envelope)
                left -= len(envelope.prefix) + len(chunk.value) + len(envelope.suffix)
            if left < 0 and found:
                break
            at += form == RAW or not envelope.is_text
            text_start = text_end
            found.append(chunk)
        return Piece(after + len(found), len(found), self._data[begin:text_start].decode(), found)

    def _block_behind(self, after: int) -> tuple[Sequence[Envelope], _Block]:
        """Return the log's envelopes, and the block with the record behind `after`."""
        envelopes, block = self._envelopes, self._open
        if block is None or after < block.start:
            index = bisect_right(self._starts, after) - 1
            kept, start = self._blocks[index], self._starts[index]
            block = kept if isinstance(kept, _Block) else _unpacked(kept, start)[0]
        return self._all_envelopes()[0] if envelopes is None else envelopes, block

    def _all_envelopes(self) -> tuple[list[Envelope], list[int]]:
        """Return the envelopes, and the record with which each begins."""
        if self._envelopes is not None:
            return self._envelopes, self._firsts
        last = self._blocks[-1]
        assert isinstance(last, bytes)
        return _unpacked(last)[1:]

    def form_of(self, chunk: Chunk, number: int) -> tuple[int | None, bool]:
        """Tell the number of a record's envelope, None for a raw record, and whether the envelope begins there."""
        envelope, last = chunk.envelope, self._last
        if envelope is None:
            return None, False
        if last is not None and last[0] is envelope:
            return last[1], self._firsts[last[1]] == number
        envelopes, firsts = self._all_envelopes()
        if envelope not in envelopes:
            return None, False
        form = envelopes.index(envelope)
        return form, firsts[form] == number

    # What becomes of it

    def cut(self, head: int) -> None:
        """Forget the records behind `head`, of a log that has not ended."""
        block = self._open
        assert block is not None
        while block.start > head:
            kept, start = self._blocks.pop(), self._starts.pop()
            reopened = kept if isinstance(kept, _Block) else _unpacked(kept, start)[0]
            self._other_bytes += reopened.size - _size_of_kept(kept) - block.size
            self._open = block = reopened
        self._other_bytes -= block.size
        block.cut(head - block.start)
        self._other_bytes += block.size
        super().cut(head)
        kept_envelopes = sum(first <= head for first in self._firsts)
        assert self._envelopes is not None
        self._other_bytes -= sum(map(_size_of, self._envelopes[kept_envelopes:]))
        del self._envelopes[kept_envelopes:], self._firsts[kept_envelopes:]
        self._last = None

    def pack(self) -> None:
        """Give back what the buffers reserve, and pack what is no text. Nothing may be added from now on."""
        super().pack()
        block, envelopes = self._open, self._envelopes
        if block is None or envelopes is None:
            return
        if len(block.data) > LARGEST_PACKED_BYTES:
            self._close(block, block)
            block = _Block(block.start + len(block.forms))
            self._other_bytes += block.size
        self._close(block, block.pack(envelopes, self._firsts))
        self._other_bytes -= sum(map(_size_of, envelopes))
        self._envelopes = self._last = self._open = None
        self._firsts = []


def text_for(kind: Kind) -> Text:
    """Make what keeps the records of a log of a kind."""
    return Text() if kind == "text" else ChunkText()


def _size_of(envelope: Envelope) -> int:
    return 2 * BLOCK_OVERHEAD_BYTES + len(envelope.prefix) + len(envelope.suffix)


def _size_of_kept(kept: bytes | _Block) -> int:
    return kept.size if isinstance(kept, _Block) else PLACE_BYTES + len(kept)


def _bytes_of(value: str) -> int:
    return len(value) if value.isascii() else len(value.encode())
