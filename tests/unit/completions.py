"""Logs for the dialect of OpenAI's chat completions, without a store, and what their readers get."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from app import errors
from app.dialects.completions.frames import FRAMES_BYTES, CompletionsFrames
from app.dialects.interface import Dialect, Source
from app.streams.chunk import Chunk, Envelope
from app.streams.interface import End, Kind, Origin, Piece, Status
from app.tokens.usage import Usage

__all__ = [
    "CREATED",
    "LOGS",
    "STREAM_ID",
    "TEXTS",
    "Frame",
    "Log",
    "Records",
    "chunk_json",
    "dialect_of",
    "end_of",
    "enveloped",
    "frames_of",
    "piece_of",
    "pieces",
    "raw",
    "read",
]

STREAM_ID = "cwc_S"
CREATED = 1_790_000_000


class Log(NamedTuple):
    """A log as it is stored: its kind, and its records."""

    kind: Kind
    records: Sequence[Chunk | str]

    @property
    def origin(self) -> Origin:
        return Origin("c-1", "m", "2026-09-21T14:13:20.000Z", kind=self.kind)

    @property
    def text(self) -> str:
        return "".join(map(_text_of, self.records))


def piece_of(sequence: int, records: Sequence[Chunk | str]) -> Piece:
    chunks = [record for record in records if isinstance(record, Chunk)]
    text = "".join(map(_text_of, records))
    return Piece(sequence, len(records), text, chunks or None)


class Records:
    """A log's records from a place on, as `Source` gives them."""

    def __init__(self, log: Log, after: int = 0) -> None:
        self.log = log
        self.after = after

    def read(self, max_bytes: int) -> Piece | None:
        piece = self._read(max_bytes, [len(_text_of(record).encode()) for record in self.log.records])
        return None if piece is None else Piece(piece.sequence, piece.records, piece.text)

    def read_chunks(self, max_bytes: int) -> Piece | None:
        assert self.log.kind != "text"
        return self._read(max_bytes, [len(record.data) for record in self.log.records if isinstance(record, Chunk)])

    def _read(self, max_bytes: int, sizes: list[int]) -> Piece | None:
        found: list[Chunk | str] = []
        for record, size in zip(self.log.records[self.after :], sizes[self.after :], strict=True):
            max_bytes -= size
            if found and max_bytes < 0:
                break
            found.append(record)
        return piece_of(self.after + len(found), found) if found else None


def _text_of(record: Chunk | str) -> str:
    return record if isinstance(record, str) else record.text


def pieces(kind: Kind, source: Source) -> Iterator[Piece]:
    """Read the records of a log from a place on, and move the place. Those of a log of text come one by one."""
    while (piece := source.read(0) if kind == "text" else source.read_chunks(FRAMES_BYTES)) is not None:
        source.after = piece.sequence
        yield piece


def end_of(log: Log, status: Status = "complete", **changes: Any) -> End:
    text = log.text
    given: dict[str, Any] = {
        "status": status,
        "records": len(log.records),
        "characters": len(text),
        "sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        "usage": Usage(7, 2, 9, "estimated"),
        "finish_reason": "stop" if status == "complete" else None,
        "first_token_ms": 1,
        "duration_ms": 2,
        "reason": "client" if status == "cancelled" else None,
        "error": errors.UpstreamTimeout().failure if status == "failed" else None,
    }
    return End(**{**given, **changes})


def dialect_of(log: Log) -> CompletionsFrames:
    return CompletionsFrames(STREAM_ID, log.origin, CREATED, lambda last: pieces(log.kind, Records(log)))


def read(log: Log, dialect: Dialect, after: int = 0) -> list[bytes]:
    """Read the frames behind a place, without an opening and an end."""
    source = Records(log, after)
    return list(iter(lambda: dialect.next_frames(source), None))


class Frame(NamedTuple):
    """A frame as it stands on the wire."""

    data: str
    id: str | None
    comment: str | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.data)


_FRAME = re.compile(r"data: (?P<data>[\x20-\x7e]+)\n(?:id: (?P<id>\S+)\n)?(?:: (?P<comment>[^\n]+)\n)?\n")


def frames_of(body: bytes) -> list[Frame]:
    """Divide a body into its frames. Fails where there is anything else."""
    text = body.decode("ascii")
    found = list(_FRAME.finditer(text))
    assert "".join(match[0] for match in found) == text
    return [Frame(**match.groupdict()) for match in found]


# Chunks


def chunk_json(delta: object, index: int = 0, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    """Make a chunk. `choice` has further members of the choice, and anything else stands beside the choices."""
    choice = {"index": index, "delta": delta, **more.pop("choice", {}), "finish_reason": finish_reason}
    return {
        "id": f"chatcmpl-{STREAM_ID}",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": "m-1",
        "choices": [choice],
        **more,
    }


def raw(chunk: object, text: str = "") -> Chunk:
    """Record a chunk as it is."""
    return Chunk(text, json.dumps(chunk, separators=(",", ":")))


def enveloped(chunk: Any, value: str, *, is_text: bool = True) -> Chunk:
    """Record a chunk as its envelope and the one string in its first choice's delta that is `value`."""
    choice, *others = chunk["choices"]
    holes = iter([_HOLE])
    dug = {**chunk, "choices": [{**choice, "delta": _dig(choice["delta"], value, holes)}, *others]}
    before, hole, after = json.dumps(dug, separators=(",", ":")).partition(_HOLE)
    assert hole
    return Chunk(value if is_text else "", value, Envelope(before, after, is_text))


_HOLE = "<the hole>"


def _dig(value: Any, text: str, holes: Iterator[str]) -> Any:
    """Replace the first string in a delta that is a text."""
    if isinstance(value, dict):
        return {name: _dig(inner, text, holes) for name, inner in value.items()}
    if isinstance(value, list):
        return [_dig(inner, text, holes) for inner in value]
    return next(holes, value) if value == text else value


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@st.composite
def _text_records(draw: st.DrawFn) -> Chunk:
    """A record that adds content to choice 0."""
    text = draw(TEXTS)
    chunk = chunk_json({"content": text})
    return enveloped(chunk, text) if draw(st.booleans()) else raw(chunk, text)


@st.composite
def _other_records(draw: st.DrawFn) -> Chunk:
    """A record that adds no text."""
    text = draw(TEXTS)
    call = {"index": draw(st.integers(0, 2)), "function": {"arguments": text}}
    return draw(
        st.sampled_from(
            [
                raw(chunk_json({"role": "assistant", "content": ""})),
                raw(chunk_json({"content": text}, 1)),
                raw(chunk_json({}, finish_reason="stop")),
                raw(chunk_json({"tool_calls": [call]})),
                raw({**chunk_json({}), "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}),
                enveloped(chunk_json({"reasoning_content": text}), text, is_text=False),
                enveloped(chunk_json({"tool_calls": [call]}), text, is_text=False),
            ]
        )
    )


@st.composite
def _json_record(draw: st.DrawFn) -> Chunk:
    text = draw(TEXTS)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return raw({"id": f"chatcmpl-{STREAM_ID}", "object": "chat.completion", "choices": [choice]}, text)


LOGS: st.SearchStrategy[Log] = st.one_of(
    st.builds(Log, st.just("text"), st.lists(TEXTS, max_size=12)),
    st.builds(Log, st.just("chunks"), st.lists(_text_records() | _other_records(), max_size=12)),
    st.builds(Log, st.just("json"), st.lists(_json_record(), max_size=1)),
)
"""Logs of every kind."""
