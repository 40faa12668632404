"""Test the frames of OpenAI's chat completions byte by byte, and by the rules of the SDK that reads them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import app.upstream.sdk  # loads the SDK as the service has it
from app.dialects.completions.answer import completion
from app.dialects.completions.frames import DIRECT_BYTES, FRAMES_BYTES, CompletionsFrames
from app.dialects.interface import Dialect
from app.dialects.native.answer import SHUTDOWN_RETRY_SECONDS
from app.dialects.native.frames import NativeFrames
from app.reading import loop
from app.reading.readers import Readers
from app.streams.chunk import Chunk
from app.streams.interface import Origin, Piece, Status
from app.streams.memory.store import MemoryStore
from tests.unit.completions import (
    CREATED,
    LOGS,
    STREAM_ID,
    Log,
    Records,
    chunk_json,
    dialect_of,
    end_of,
    enveloped,
    frames_of,
    piece_of,
    pieces,
    raw,
    read,
)
from tests.unit.ends import end_with
from tests.unit.readings import ignore, log_of
from tests.unit.test_native_frames import NASTY

ENDS = st.sampled_from(["complete", "failed", "cancelled"])

HELLO = Log(
    "chunks",
    [
        raw(chunk_json({"role": "assistant", "content": ""})),
        enveloped(chunk_json({"content": "Hé"}), "Hé"),
        raw(chunk_json({}, finish_reason="stop")),
    ],
)
HEAD = (
    b'{"id":"chatcmpl-cwc_S","object":"chat.completion.chunk","created":1790000000,"model":"%s","choices":[{"index":0,'
)


def whole(
    log: Log, status: Status = "complete", after: int = 0, dialect: Dialect | None = None, **changes: Any
) -> bytes:
    dialect = dialect or dialect_of(log)
    return b"".join(read(log, dialect, after)) + dialect.end(end_of(log, status, **changes))


def content_of(chunk: Any) -> str:
    """Return what a chunk adds to the content of choice 0."""
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"] if choice["index"] == 0)


def test_stream_of_chunks_is_one_frame_a_chunk_byte_by_byte() -> None:
    head = HEAD % b"m-1"
    data = [
        head + b'"delta":{"role":"assistant","content":""},"finish_reason":null}]}',
        head + b'"delta":{"content":"H\\u00e9"},"finish_reason":null}]}',
        head + b'"delta":{},"finish_reason":"stop"}]}',
    ]
    sha256 = hashlib.sha256(b"".join(line + b"\n" for line in data)).hexdigest().encode()

    assert whole(HELLO) == (
        b"data: %s\nid: cwc_S.1\n\ndata: %s\nid: cwc_S.2\n\ndata: %s\nid: cwc_S.3\n\n" % tuple(data)
        + b"data: [DONE]\nid: cwc_S.4\n: records=3 sha256=%s\n\n" % sha256
    )


def test_stream_of_text_is_one_chunk_a_record_and_its_finish_has_no_number_byte_by_byte() -> None:
    head = HEAD % b"m"
    data = [
        head + b'"delta":{"role":"assistant","content":"He"},"finish_reason":null}]}',
        head + b'"delta":{"content":"llo"},"finish_reason":null}]}',
    ]
    sha256 = hashlib.sha256(b"".join(line + b"\n" for line in data)).hexdigest().encode()

    assert whole(Log("text", ["He", "llo"]), finish_reason="length") == (
        b"data: %s\nid: cwc_S.1\n\ndata: %s\nid: cwc_S.2\n\n" % tuple(data)
        + b'data: %s"delta":{},"finish_reason":"length"}]}\n\n' % head
        + b"data: [DONE]\nid: cwc_S.3\n: records=2 sha256=%s\n\n" % sha256
    )


def test_stream_of_no_text_has_a_role_and_a_finish() -> None:
    finish, done = frames_of(whole(Log("text", []), finish_reason=None))

    assert finish.json["choices"] == [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": "stop"}]
    assert (finish.id, done.data, done.id) == (None, "[DONE]", "cwc_S.1")
    assert done.comment == f"records=0 sha256={hashlib.sha256().hexdigest()}"


@pytest.mark.parametrize("model", ["\0", 'm"\0\\u0000'])
def test_model_of_any_name_leaves_the_text_in_its_place(model: str) -> None:
    log = Log("text", ["\0", "b"])
    origin = Origin("c", model, "2026-09-21T14:13:20.000Z")
    dialect = CompletionsFrames(STREAM_ID, origin, CREATED, lambda last: pieces(log.kind, Records(log)))

    chunks = [frame.json for frame in frames_of(b"".join(read(log, dialect)))]

    assert [content_of(chunk) for chunk in chunks] == ["\0", "b"]
    assert {chunk["model"] for chunk in chunks} == {model}


def test_answer_that_was_not_streamed_is_one_chunk() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = {
        "id": "chatcmpl-cwc_S",
        "object": "chat.completion",
        "created": 5,
        "model": "m-1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi", "tool_calls": [call, {**call, "index": 7}]},
                "logprobs": {"content": [{"token": "Hi", "logprob": -1e-05}]},
                "finish_reason": "tool_calls",
            },
            {"index": 1, "message": {"role": "assistant", "content": None}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "details": {"a": 0.1}},
        "unknown": [1.50, None],
    }
    log = Log("json", [raw(answer, "Hi")])

    chunk, done = frames_of(whole(log))

    first = {
        "index": 0,
        "delta": {"role": "assistant", "content": "Hi", "tool_calls": [{"index": 0, **call}, {**call, "index": 7}]},
        "logprobs": {"content": [{"token": "Hi", "logprob": -1e-05}]},
        "finish_reason": "tool_calls",
    }
    second = {"index": 1, "delta": {"role": "assistant", "content": None}, "finish_reason": "stop"}
    assert chunk.json == {**answer, "object": "chat.completion.chunk", "choices": [first, second]}
    assert (chunk.id, done.id) == ("cwc_S.1", "cwc_S.2")


@pytest.mark.parametrize(
    "answer",
    [
        "{}",
        '{"choices":null}',
        '{"choices":[1,{}]}',
        '{"choices":[{"message":3}]}',
        '{"choices":[{"message":{"tool_calls":[null,{}]}}],"number":1e400}',
    ],
)
def test_answer_of_any_shape_is_a_chunk(answer: str) -> None:
    chunk, _ = frames_of(whole(Log("json", [Chunk("", answer)])))

    assert chunk.json["object"] == "chat.completion.chunk"


@pytest.mark.parametrize("answer", ["[1]", '{"a":' + "[" * 5000 + "]" * 5000 + "}"])
def test_answer_that_is_not_read_stays_as_it_is(answer: str) -> None:
    chunk, _ = frames_of(whole(Log("json", [Chunk("", answer)])))

    assert chunk.data == answer


def test_stream_that_failed_tells_its_error_without_a_number_before_its_end() -> None:
    frames = frames_of(whole(HELLO, "failed"))

    assert [frame.id for frame in frames] == ["cwc_S.1", "cwc_S.2", "cwc_S.3", None, "cwc_S.4"]
    error = frames[3].json["error"]
    assert (error["type"], error["code"], error["correlation_id"]) == ("server_error", "upstream_timeout", "c-1")
    assert frames[4] == frames_of(whole(HELLO))[3], "the error is not a record"


@pytest.mark.parametrize(
    ("reason", "code", "retryable", "after"),
    [
        ("client", "cancelled", False, None),
        ("abandoned", "cancelled", False, None),
        ("shutdown", "shutting_down", True, SHUTDOWN_RETRY_SECONDS),
    ],
)
@pytest.mark.parametrize("log", [HELLO, Log("text", ["a"])])
def test_stream_that_was_cancelled_tells_an_error(
    log: Log, reason: str, code: str, retryable: bool, after: int | None
) -> None:
    *_, told, done = frames_of(whole(log, "cancelled", reason=reason))

    error = told.json["error"]
    assert list(told.json) == ["error"]
    assert (error["code"], error["retryable"], error.get("retry_after_seconds")) == (code, retryable, after)
    assert (told.id, done.data) == (None, "[DONE]")


def test_heartbeat_and_notices_are_one_line_without_a_blank_one() -> None:
    dialect = dialect_of(HELLO)

    assert dialect.opening(after=0, head=0, heartbeat_seconds=10.0) == b": keepalive\n"
    assert dialect.opening(after=2, head=3, heartbeat_seconds=10.0) == b": keepalive\n"
    assert dialect.heartbeat(head=3) == b": keepalive\n"
    assert dialect.notice(is_unresumable=True, stored=1) == b": unresumable\n"
    assert dialect.notice(is_unresumable=False, stored=1) == b": resumable\n"


def sdk_events(body: bytes) -> Iterator[Any]:
    """Read a body as openai-python does, to its `[DONE]`. Raises what a client would get."""
    for event in app.upstream.sdk.OpenAI(api_key="k")._make_sse_decoder().iter_bytes(iter([body])):
        if event.data.startswith("[DONE]"):
            return
        yield event.json()
    raise EOFError


@given(LOGS, ENDS, st.data())
def test_sdk_reads_a_stream_with_comments_between_any_two_frames(log: Log, status: Status, data: st.DataObject) -> None:
    dialect = dialect_of(log)
    comments = st.lists(
        st.sampled_from(
            [
                dialect.heartbeat(head=0),
                dialect.notice(is_unresumable=True, stored=0),
                dialect.notice(is_unresumable=False, stored=0),
            ]
        ),
        max_size=2,
    )
    body = dialect.opening(after=0, head=0, heartbeat_seconds=10.0)
    for frame in re.split(rb"(?<=\n\n)(?=data)", whole(log, status, dialect=dialect)):
        body += b"".join(data.draw(comments)) + frame

    events = list(sdk_events(body))

    expected = [frame.json for frame in frames_of(whole(log, status))[:-1]]
    assert events == expected
    assert ("error" in events[-1] if events else False) is (status != "complete")


def test_sdk_breaks_at_a_blank_line_behind_a_comment() -> None:
    """The premise of the test above."""
    frame, *_ = read(HELLO, dialect_of(HELLO))
    with pytest.raises(json.JSONDecodeError):
        list(sdk_events(frame + b": keepalive\n\ndata: [DONE]\n\n"))


@given(LOGS, ENDS)
def test_stream_resumed_at_any_record_goes_on_as_if_it_had_not_been_cut(log: Log, status: Status) -> None:
    body = whole(log, status)
    starts = [match.start() for match in re.finditer(rb"(?:^|(?<=\n\n))data: ", body)]

    for after in range(len(log.records) + 1):
        assert whole(log, status, after) == body[starts[after] :], after


@given(LOGS, ENDS)
def test_end_tells_the_number_and_the_sha256_of_the_records_that_were_sent(log: Log, status: Status) -> None:
    *frames, done = frames_of(whole(log, status))

    records = [frame for frame in frames if frame.id]
    assert [frame.id for frame in records] == [f"{STREAM_ID}.{number + 1}" for number in range(len(log.records))]
    sha256 = hashlib.sha256("".join(f"{frame.data}\n" for frame in records).encode()).hexdigest()
    assert done.comment == f"records={len(records)} sha256={sha256}"
    assert done.id == f"{STREAM_ID}.{len(records) + 1}"


@given(LOGS, st.data())
def test_stream_is_the_same_however_its_records_are_written(log: Log, data: st.DataObject) -> None:
    """Records come one by one or together, through the loop or past it, and some are written but not taken."""
    dialect, source, body = dialect_of(log), Records(log), b""
    while source.after < len(log.records):
        many = data.draw(st.integers(1, len(log.records) - source.after))
        piece = piece_of(source.after + many, log.records[source.after : source.after + many])
        direct = dialect.frame_of(piece) if data.draw(st.booleans()) else None
        if direct is not None and data.draw(st.booleans()):
            source.after = piece.sequence
            body += direct
        elif direct is None or data.draw(st.booleans()):
            body += dialect.next_frames(source) or b""

    assert body + dialect.end(end_of(log)) == whole(log)


@given(LOGS)
def test_every_dialect_has_the_same_text(log: Log) -> None:
    native = NativeFrames(STREAM_ID, log.origin)
    tokens = [json.loads(re.search(rb"data: (.*)\n", frame)[1])["content"] for frame in read(log, native)]  # type: ignore[index]
    chunks = [frame.json for frame in frames_of(whole(log)) if frame.data != "[DONE]"]
    answer = json.loads(completion(STREAM_ID, log.origin, end_of(log), pieces(log.kind, Records(log)), CREATED))

    assert "".join(tokens) == log.text
    assert "".join(content_of(chunk) for chunk in chunks) == log.text
    contents = [choice["message"]["content"] for choice in answer["choices"] if choice["index"] == 0]
    assert "".join(content or "" for content in contents) == log.text


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("kind", ["text", "raw", "enveloped"])
def test_frame_of_any_text_is_one_line_of_ascii_data(text: str, kind: str) -> None:
    chunk = chunk_json({"content": text})
    log = {
        "text": Log("text", [text]),
        "raw": Log("chunks", [raw(chunk, text)]),
        "enveloped": Log("chunks", [enveloped(chunk, text)]),
    }[kind]

    first, *_ = frames_of(whole(log))

    assert content_of(first.json) == text


def test_frames_of_a_long_log_come_together_within_a_bound() -> None:
    for log in (
        Log(
            "chunks",
            [enveloped(chunk_json({"content": f"word {number} "}), f"word {number} ") for number in range(2000)],
        ),
        Log("chunks", [raw(chunk_json({"role": "assistant"}))] * 2000),
        Log("text", ["word "] * 2000),
    ):
        together = read(log, dialect_of(log))

        assert len(together) > 5, "the premise: more than one part"
        assert all(FRAMES_BYTES * 0.9 < len(frames) < FRAMES_BYTES * 1.3 for frames in together[:-1])
        assert b"".join(together) + dialect_of(log).end(end_of(log)) == whole(log)


def test_one_record_of_any_size_is_one_frame() -> None:
    text = "a" * 200_000
    log = Log("chunks", [raw(chunk_json({"content": text}), text)])

    assert [len(frames_of(frames)) for frames in read(log, dialect_of(log))] == [1]
    direct = dialect_of(log).frame_of(piece_of(1, log.records))
    assert direct == b"".join(read(log, dialect_of(log)))


def test_records_that_are_too_much_to_write_at_once_are_left_to_the_loop() -> None:
    text = "a" * (DIRECT_BYTES // 2)
    records = [raw(chunk_json({"content": text}), text)] * 2
    dialect = dialect_of(Log("chunks", records))

    assert dialect.frame_of(piece_of(2, records)) is None
    assert dialect.frame_of(piece_of(1, records[:1])) is not None
    assert dialect_of(Log("text", ["a", "b"])).frame_of(Piece(2, 2, "ab")) is None, "where does the second begin?"


def test_log_is_read_again_only_at_the_end_of_a_reader_that_resumed() -> None:
    calls: list[int] = []

    def from_start(last: int) -> Iterator[Piece]:
        calls.append(last)
        return pieces(HELLO.kind, Records(HELLO))

    for after, expected in ((0, []), (1, [3]), (3, [3])):
        calls.clear()
        dialect = CompletionsFrames(STREAM_ID, HELLO.origin, CREATED, from_start)
        read(HELLO, dialect, after)
        assert calls == []
        ended = dialect.end(end_of(HELLO))
        assert calls == expected
        assert whole(HELLO).endswith(ended)


def test_end_is_not_written_over_records_that_were_not_all_given() -> None:
    for log, given_log in ((HELLO, HELLO._replace(records=HELLO.records[:2])), (Log("text", ["a", "b"]), None)):
        given = [Piece(2, 2, "ab")] if given_log is None else list(pieces("chunks", Records(given_log)))
        dialect = CompletionsFrames(STREAM_ID, log.origin, CREATED, lambda last, given=given: iter(given))  # type: ignore[misc]
        with pytest.raises(ValueError, match="from_start"):
            whole(log, after=1, dialect=dialect)


def body_of(log: Any, after: int = 0) -> bytes:
    """Read a log through the loop, without the opening."""
    dialect = CompletionsFrames(log.stream_id, log.origin, CREATED, lambda last: pieces(log.origin.kind, log.reader(0)))
    readers = Readers(limit=10, heartbeat_seconds=10.0)
    opening, body = b"".join(loop.frames(log, after, dialect, readers, left=ignore, drop=ignore)).split(b"\n", 1)
    assert opening == b": keepalive"
    return body


def test_loop_writes_a_log_that_a_native_route_began() -> None:
    log = log_of("He", "llo")

    frames = frames_of(body_of(log))

    assert [content_of(frame.json) for frame in frames[:-1]] == ["He", "llo", ""]
    numbers = [f"{log.stream_id}.{number}" for number in (1, 2, 3)]
    assert [frame.id for frame in frames] == [*numbers[:2], None, numbers[2]]
    assert body_of(log).endswith(body_of(log, 1))


@pytest.mark.parametrize("many", [1, 7, 100])
def test_loop_writes_a_log_of_chunks_that_came_one_by_one_or_together(many: int) -> None:
    store = MemoryStore(max_active=1, budget_bytes=10_000_000, retention_seconds=60)
    log, _ = store.create(Log("chunks", []).origin)
    chunks = [enveloped(chunk_json({"content": f"\u00e9{number}"}), f"\u00e9{number}") for number in range(200)]
    chunks[3:3] = [
        raw(chunk_json({"role": "assistant"})),
        enveloped(chunk_json({"reasoning": "x"}), "x", is_text=False),
    ]
    for at in range(0, len(chunks), many):
        log.append_chunks(chunks[at : at + many])
    log.finish(end_with())

    frames = frames_of(body_of(log))

    assert [frame.data for frame in frames[:-1]] == [chunk.data for chunk in chunks]
    assert [frame.id for frame in frames] == [f"{log.stream_id}.{number + 1}" for number in range(len(chunks) + 1)]
    for after in (1, 5, 150, len(chunks)):
        assert frames_of(body_of(log, after)) == frames[after:]


def test_body_may_not_end_early() -> None:
    assert CompletionsFrames.may_end_early is False
