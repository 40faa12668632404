"""The reader of the load suite takes what is whole, however it comes, and nothing else."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load import events
from load.answer import Answer, Incomplete, Text
from tests.load.streams import FAULTS, ID, Frame, encode, frames, ping, texts


def read(events: list[Frame], *, wanted: int | None = 10, stamped: bool = True) -> Answer:
    answer = Answer(wanted=wanted, stamped=stamped)
    answer.begin_connection({"X-Stream-Id": ID})
    for frame in encode(events):
        answer.feed(frame, 2.0)
    answer.end_connection()
    return answer


@given(st.lists(st.integers(1, 200), max_size=20), st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_stream_in_any_pieces_and_with_any_counts_is_read_whole(cuts: list[int], counts: list[int]) -> None:
    data = b"".join(encode(frames(texts(sum(counts)), counts=counts)))
    answer = Answer(wanted=sum(counts), stamped=True)
    answer.begin_connection({"X-Stream-Id": ID})
    for cut in cuts:
        answer.feed(data[:cut], 2.0)
        data = data[cut:]
    answer.feed(data, 2.0)
    answer.end_connection()
    assert answer.taken.tokens == sum(counts)
    assert answer.most_at_once == max(counts)
    assert answer.taken.delays_ms == [2000.0 - 1000 - index for index in range(sum(counts))]
    assert set(answer.taken.lates_ms) == {0.25}


def test_stream_that_is_cut_at_any_byte_and_resumed_is_read_whole() -> None:
    """At every byte: the frame that the cut took away comes again, the one before it does not."""
    whole = encode(frames(texts(3)))
    data = b"".join(whole)
    for cut in range(len(data)):
        answer = Answer(wanted=3, stamped=True)
        answer.begin_connection({"X-Stream-Id": ID})
        answer.feed(data[:cut], 2.0)
        if answer.is_complete:
            continue
        last = int(answer.last_event_id.rpartition(".")[2] or 0)
        answer.begin_connection({"X-Stream-Id": ID})
        answer.feed(b"".join([encode([ping(last)])[0], *whole[last + 1 :]] if last else whole), 2.0)
        answer.end_connection()
        assert answer.taken.tokens == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_stream_with_a_fault_is_incomplete_and_says_why(fault: str) -> None:
    said, spoil = FAULTS[fault]
    assert read(frames(texts(10))).is_complete  # premise: only the fault makes the difference
    with pytest.raises(Incomplete, match=said):
        read(spoil(frames(texts(10))), stamped=False, wanted=None)


def test_half_an_event_after_the_end_is_something_that_follows() -> None:
    answer = Answer(wanted=None, stamped=False)
    answer.begin_connection({"X-Stream-Id": ID})
    with pytest.raises(Incomplete, match="something follows"):
        answer.feed(b"".join(encode(frames(texts(3)))) + b"event: tok", 2.0)


def test_line_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_LINE_BYTES", 100)
    with pytest.raises(Incomplete, match="a line is too long"):
        Answer().feed(b"x" * 101, 2.0)


def test_resume_that_begins_anew_is_refused() -> None:
    answer = Answer()
    for _ in range(2):
        answer.begin_connection({"X-Stream-Id": ID})
        with pytest.raises(Incomplete, match="a sequence number") if answer.tokens else nullcontext():
            answer.feed(b"".join(encode(frames(texts(3)))[:3]), 2.0)


def test_loss_that_the_service_hides_consistently_is_seen_by_the_stamps() -> None:
    tokens = texts(10)
    lossy = frames([*tokens[:4], *tokens[5:]])
    assert read(lossy, wanted=None, stamped=False).is_complete  # premise: its numbers and its hash agree
    with pytest.raises(Incomplete, match="missing, repeated or out of order"):
        read(lossy)


def test_loss_at_the_end_that_the_service_hides_is_seen_by_the_number_that_was_asked_for() -> None:
    with pytest.raises(Incomplete, match="more or fewer tokens"):
        read(frames(texts(9)), wanted=10)


def test_stream_of_another_id_on_a_resume_is_refused() -> None:
    answer = Answer(wanted=None, stamped=False)
    answer.begin_connection({"X-Stream-Id": ID})
    with pytest.raises(Incomplete, match="another id"):
        answer.begin_connection({"X-Stream-Id": "cw_another"})


@pytest.mark.parametrize(
    "frame",
    [
        f"event: token\ndata: {{}}\nid: {ID}.1\n\n",
        'event: token\ndata: {"sequence": 1, "count": 1, "content": "a"}\n\n',
        f"event: token\ndata: no JSON\nid: {ID}.1\n\n",
        f'event: token\ndata: {{"sequence": 1, "content": "a"}}\nid: {ID}.1\n\n',
        'event: token\ndata: {"sequence": 1, "count": 1, "content": "a"}\nid: cw_another.1\n\n',
    ],
)
def test_frame_that_is_not_as_promised_is_refused(frame: str) -> None:
    answer = Answer(wanted=None, stamped=False)
    answer.begin_connection({"X-Stream-Id": ID})
    with pytest.raises(Incomplete, match=r"id of a frame|another id|JSON object|no count"):
        answer.feed(frame.encode(), 1.0)


def test_text_of_a_waiting_reader_is_proved_like_a_stream() -> None:
    content = "".join(texts(5))
    good = {"tokens": 5, "characters": len(content), "sha256": hashlib.sha256(content.encode()).hexdigest()}
    text = Text(stamped=True)
    text.add(content, 5, 2.0)
    text.prove(good)
    text.prove_count(5)
    assert (text.first_sent_ms, text.last_sent_ms) == (1000.0, 1004.0)
    for lie in ({"tokens": 6}, {"characters": 1}, {"sha256": "0"}):
        with pytest.raises(Incomplete, match="is wrong"):
            text.prove(good | lie)
    with pytest.raises(Incomplete, match="more or fewer"):
        text.prove_count(6)
