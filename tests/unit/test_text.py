"""The text of a log agrees with a list of its records, whatever they are, wherever it is cut."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from app.streams.interface import Piece
from app.streams.text import Text

RECORDS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=12)


def text_of(records: list[str]) -> Text:
    text = Text()
    text.add(records, "".join(records).encode())
    return text


def piece_of(records: list[str], after: int, head: int, max_bytes: int) -> Piece | None:
    """Say what a piece is, in a list's words."""
    if after >= head:
        return None
    taken = records[after : after + 1]
    for record in records[after + 1 : head]:
        if len("".join([*taken, record]).encode()) > max_bytes:
            break
        taken.append(record)
    return Piece(after + len(taken), len(taken), "".join(taken))


@given(RECORDS, st.data())
def test_pieces_agree_with_a_list(records: list[str], data: st.DataObject) -> None:
    text = text_of(records)
    head = data.draw(st.integers(0, len(records)))
    after = data.draw(st.integers(0, len(records) + 2))
    max_bytes = data.draw(st.integers(0, 60))
    assert text.piece(after, head, max_bytes) == piece_of(records, after, head, max_bytes)


@given(RECORDS, st.data())
def test_sizes_records_and_text_agree_with_a_list(records: list[str], data: st.DataObject) -> None:
    text = text_of(records)
    assert len(text) == len(records)
    for head in range(len(records) + 1):
        assert text.until(head) == "".join(records[:head])
    first = data.draw(st.integers(1, len(records) + 1))
    last = data.draw(st.integers(first - 1, len(records)))
    want = [record.encode() for record in records[first - 1 : last]]
    assert text.records(first, last) == want
    assert text.sizes(first, last) == [len(record) for record in want]


class Texts(RuleBasedStateMachine):
    """Play at one text: what is added, cut and packed, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.text = Text()
        self.records: list[str] = []

    @rule(records=RECORDS)
    def add(self, records: list[str]) -> None:
        data = "".join(records).encode()
        size = self.text.size_with(data, len(records))
        self.text.add(records, data)
        self.records += records
        assert self.text.size == size

    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        head = data.draw(st.integers(0, len(self.records)))
        self.text.cut(head)
        del self.records[head:]

    @rule()
    def pack(self) -> None:
        size = self.text.size
        self.text.pack()
        assert self.text.size == size

    @invariant()
    def agrees(self) -> None:
        joined = "".join(self.records)
        totals = self.text.totals()
        assert totals == (len(self.records), len(joined), hashlib.sha256(joined.encode()).hexdigest(), joined)
        assert self.text.size == len(joined.encode()) + 4 * len(self.records)
        assert self.text.records(1, len(self.records)) == [record.encode() for record in self.records]


TestTexts = Texts.TestCase


@given(RECORDS, RECORDS)
def test_text_with_more_behind_it_is_measured_without_being_added(records: list[str], rest: list[str]) -> None:
    text, joined = text_of(records), "".join([*records, *rest])
    assert text.measured_with("".join(rest).encode()) == (len(joined), hashlib.sha256(joined.encode()).hexdigest())
    assert text.until(len(text)) == "".join(records)


def test_rest_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(UnicodeDecodeError):
        text_of(["a"]).measured_with(b"\xff")


def test_text_that_is_packed_gives_back_what_its_buffers_reserve() -> None:
    text = Text()
    for _ in range(1000):
        text.add(["x" * 10], b"x" * 10)
    reserved = text._data.__alloc__()
    text.pack()
    assert reserved > text._data.__alloc__() == 10_001
