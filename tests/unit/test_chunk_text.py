"""The records of a log of chunks agree with a list of them, wherever the log is cut, sealed or packed."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.streams import chunk_text
from app.streams.chunk import MOST_ENVELOPES, Chunk, Envelope
from app.streams.chunk_text import ChunkText, text_for
from app.streams.text import Text
from tests.unit.chunks import CHUNKS, CONTENT, REASONING, SAMPLES, enveloped, raw


def text_of(chunks: list[Chunk]) -> ChunkText:
    text = ChunkText()
    text.add_chunks(chunks, joined(chunks).encode())
    return text


def joined(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def read_all(text: ChunkText, after: int, head: int, max_bytes: int) -> list[Chunk]:
    found: list[Chunk] = []
    while (piece := text.chunks(after, head, max_bytes)) is not None:
        chunks = list(piece.chunks or ())
        assert (piece.sequence, piece.records) == (after + len(chunks), len(chunks))
        assert piece.text == joined(chunks)
        assert chunks, "a piece has at least one record"
        assert len(chunks) == 1 or sum(len(chunk.value) for chunk in chunks) <= max_bytes
        found += chunks
        after = piece.sequence
    return found


class ChunkTexts(RuleBasedStateMachine):
    """Play at the records of one log: added, cut, and packed at last. Blocks are small, so that many are sealed."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ChunkText()
        self.chunks: list[Chunk] = []
        self.is_packed = False
        self.patch = pytest.MonkeyPatch()

    @initialize(records=st.integers(1, 5), held=st.integers(1, 40), largest=st.integers(0, 60))
    def make_small(self, records: int, held: int, largest: int) -> None:
        self.patch.setattr(chunk_text, "BLOCK_RECORDS", records)
        self.patch.setattr(chunk_text, "BLOCK_BYTES", held)
        self.patch.setattr(chunk_text, "LARGEST_PACKED_BYTES", largest)

    def teardown(self) -> None:
        self.patch.undo()

    @rule(chunks=CHUNKS)
    def add(self, chunks: list[Chunk]) -> None:
        if not self.is_packed:
            data = joined(chunks).encode()
            self.text.add_chunks(chunks, data)
            self.chunks += chunks

    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        if not self.is_packed:
            head = data.draw(st.integers(0, len(self.chunks)))
            self.text.cut(head)
            del self.chunks[head:]

    @rule()
    def pack(self) -> None:
        self.text.pack()
        self.is_packed = True

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        head = data.draw(st.integers(0, len(self.chunks)))
        after = data.draw(st.integers(0, len(self.chunks) + 1))
        assert read_all(self.text, after, head, data.draw(st.integers(0, 300))) == self.chunks[after:head]

    @invariant()
    def agrees(self) -> None:
        text = joined(self.chunks)
        assert self.text.totals() == (len(self.chunks), len(text), hashlib.sha256(text.encode()).hexdigest(), text)
        assert read_all(self.text, 0, len(self.chunks), 1 << 30) == self.chunks
        used: list[Envelope] = []
        for number, chunk in enumerate(self.chunks, 1):
            begins = chunk.envelope is not None and chunk.envelope not in used
            if chunk.envelope is not None and begins:
                used.append(chunk.envelope)
            form = None if chunk.envelope is None else used.index(chunk.envelope)
            assert self.text.form_of(chunk, number) == (form, begins)
        assert self.text.envelopes == used

    @invariant()
    def counts_all_that_it_keeps(self) -> None:
        """As if it were counted anew."""
        kept = self.text
        other = sum(map(chunk_text._size_of_kept, kept._blocks))
        other += 0 if kept._open is None else kept._open.size
        other += sum(map(chunk_text._size_of, kept._envelopes or ()))
        assert kept.size == len(joined(self.chunks).encode()) + 4 * len(self.chunks) + other


TestChunkTexts = ChunkTexts.TestCase
TestChunkTexts.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@given(CHUNKS, CHUNKS)
def test_size_is_foretold_and_never_too_small(before: list[Chunk], more: list[Chunk]) -> None:
    text = text_of(before)
    foretold = text.size_with_chunks(more, joined(more).encode())
    text.add_chunks(more, joined(more).encode())
    assert text.size <= foretold


def test_envelopes_beyond_the_limit_become_raw_chunks() -> None:
    chunks = [
        enveloped(Envelope(f'{{"a{number}":"', '"}', number % 2 == 0), "é")
        for number in range(MOST_ENVELOPES + 3)
        for _ in range(2)
    ]
    text = text_of(chunks)
    assert len(text.envelopes) == MOST_ENVELOPES
    found = read_all(text, 0, len(chunks), 1000)
    assert [chunk.data for chunk in found] == [chunk.data for chunk in chunks]
    assert joined(found) == joined(chunks)
    assert [chunk.envelope for chunk in found[-6:]] == [None] * 6


def test_one_huge_chunk_stays_as_it_is_and_others_stand_around_it() -> None:
    chunks = [*SAMPLES, raw(value="x" * chunk_text.LARGEST_PACKED_BYTES), *SAMPLES]
    for is_packed in (False, True):
        text = text_of(chunks)
        if is_packed:
            text.pack()
        assert text.size > chunk_text.LARGEST_PACKED_BYTES, "packed, it would take a thousandth"
        assert read_all(text, 0, len(chunks), 1 << 30) == chunks
        assert read_all(text, 0, len(chunks), 0) == chunks


def test_reading_takes_no_more_than_one_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the log is: a reader that comes must not hold up the others."""
    chunks = [enveloped(REASONING, "because ") for _ in range(20_000)]
    text = text_of(chunks)
    text.pack()
    unpacked: list[int] = []
    unpack = chunk_text._unpacked

    def noting(packed: bytes, start: int = 0) -> tuple[chunk_text._Block, list[Envelope], list[int]]:
        found = unpack(packed, start)
        unpacked.append(len(found[0].data))
        return found

    monkeypatch.setattr(chunk_text, "_unpacked", noting)
    piece = text.chunks(10_000, 20_000, 1 << 30)
    assert piece is not None and 1 <= piece.records <= chunk_text.BLOCK_RECORDS
    assert len(unpacked) <= 2
    assert max(unpacked) <= chunk_text.BLOCK_BYTES + len("because ")


def _memory(chunks: list[Chunk]) -> Iterator[float]:
    tracemalloc.start()
    try:
        texts = []
        for _ in range(200):
            text = text_of([Chunk(*(chunk.text, chunk.value, chunk.envelope)) for chunk in chunks])
            text.pack()
            texts.append(text)
        yield tracemalloc.get_traced_memory()[0] / len(texts)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("envelope", "most"), [(CONTENT, 1900), (REASONING, 2000)])
def test_finished_log_takes_little_and_no_more_than_is_counted(envelope: Envelope, most: int) -> None:
    """100 chunks, without the log around them."""
    chunks = [raw(role="assistant", content=""), raw("Hi", content="Hi")]
    chunks += [enveloped(envelope, f"word{number} ") for number in range(98)]
    for taken in _memory(chunks):
        assert taken < most
    text = text_of(chunks)
    text.pack()
    assert taken < text.size + 700


def test_log_of_text_has_text_alone() -> None:
    assert type(text_for("text")) is Text
    assert {type(text_for(kind)) for kind in ("chunks", "json")} == {ChunkText}
