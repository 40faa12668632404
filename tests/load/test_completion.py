"""The check of chunk streams: a good one passes however it is cut, and every fault is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import pytest

from load.answer import Broken, Incomplete
from load.completion import Completion, whole_text
from tests.load.streams import texts

ID = "cwc_0123456789abcdefghijkl"
COUNT = 5


def chunk(content: str = "", reason: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": content} if content else {}, "finish_reason": reason}
    return json.dumps({"id": f"chatcmpl-{ID}", "object": "chat.completion.chunk", "choices": [choice]})


def stream(*, records: int | None = None, digest: str | None = None, finished: bool = True) -> list[bytes]:
    """Write the frames of an answer. What is given stands in the proof instead of the truth."""
    told = [*map(chunk, texts(COUNT)), *([chunk(reason="stop")] if finished else [])]
    proof = hashlib.sha256("".join(f"{one}\n" for one in told).encode()).hexdigest()
    frames = [f"data: {one}\nid: {ID}.{number}\n\n".encode() for number, one in enumerate(told, 1)]
    end = f"id: {ID}.{len(told) + 1}\n: records={records or len(told)} sha256={digest or proof}"
    return [b": keepalive\n", *frames, f"data: [DONE]\n{end}\n\n".encode()]


def read(*connections: bytes, wanted: int | None = COUNT) -> Completion:
    answer = Completion(wanted=wanted, stamped=True)
    for data in connections:
        answer.begin_connection({"X-Stream-Id": ID})
        answer.feed(data, 10.0)
    answer.end_connection()
    return answer


def test_stream_that_is_whole_passes_in_any_cuts() -> None:
    data = b"".join(stream())
    for size in (1, 7, len(data)):
        answer = Completion(wanted=COUNT, stamped=True)
        answer.begin_connection({"X-Stream-Id": ID})
        for begin in range(0, len(data), size):
            answer.feed(data[begin : begin + size], 10.0)
        answer.end_connection()
        assert (answer.is_complete, answer.tokens, answer.records) == (True, COUNT, COUNT + 1)


def test_stream_that_was_cut_anywhere_and_resumed_passes() -> None:
    frames = stream()
    data = b"".join(frames)
    for cut in range(len(data)):
        first = Completion(wanted=COUNT, stamped=True)
        first.begin_connection({"X-Stream-Id": ID})
        first.feed(data[:cut], 10.0)
        first.begin_connection({"X-Stream-Id": ID})
        first.feed(b"".join([b": keepalive\n", *frames[first.records + 1 :]]), 11.0)
        assert first.is_complete


FAULTS: dict[str, tuple[str, Callable[[list[bytes]], list[bytes]]]] = {
    "repeats a chunk": ("a sequence number is missing", lambda frames: [*frames[:3], frames[2], *frames[3:]]),
    "skips a chunk": ("a sequence number is missing", lambda frames: [*frames[:2], *frames[3:]]),
    "lies in the hash": ("the SHA-256 is wrong", lambda frames: stream(digest="0" * 64)),
    "lies in the records": ("the number of records is wrong", lambda frames: stream(records=9)),
    "changes a text": ("the SHA-256 is wrong", lambda frames: [one.replace(b'"stop"', b'"halt"') for one in frames]),
    "does not finish": ("no chunk says why", lambda frames: stream(finished=False)),
    "goes on after the end": ("something follows", lambda frames: [*frames, frames[1]]),
    "has an event without data": ("has no data", lambda frames: [b": ping\n\n", *frames[1:]]),
    "has a chunk without an id": ("the id of a frame", lambda frames: [frames[0], frames[1].split(b"\n")[0] + b"\n\n"]),
    "has another stream's chunk": (
        "another id",
        lambda frames: [frame.replace(b"chatcmpl-cwc_0", b"chatcmpl-cwc_1") for frame in frames],
    ),
    "ends with an error": (
        "it ended with an error: producer_lost",
        lambda frames: [*frames[:-1], b'data: {"error":{"error_code":"producer_lost"}}\n\n', frames[-1]],
    ),
    "has no proof": ("no proof", lambda frames: [*frames[:-1], frames[-1].split(b"\n: ")[0] + b"\n\n"]),
    "is no JSON": ("not a JSON object", lambda frames: [frames[0], b"data: {\nid: " + ID.encode() + b".1\n\n"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_stream_with_a_fault_is_named_by_it(fault: str) -> None:
    reason, spoil = FAULTS[fault]
    with pytest.raises(Incomplete, match=reason):
        read(b"".join(spoil(stream())))


def test_proper_end_before_done_is_a_broken_connection() -> None:
    with pytest.raises(Broken, match=r"\[DONE\]"):
        read(b"".join(stream()[:-1]))


def test_answer_with_fewer_tokens_than_the_model_sent_is_named() -> None:
    with pytest.raises(Incomplete, match="more or fewer tokens"):
        read(b"".join(stream()), wanted=COUNT + 1)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[{"message":{}}],"usage":{}}'])
def test_whole_answer_that_is_none_is_named(body: bytes) -> None:
    with pytest.raises(Incomplete):
        whole_text(body)
