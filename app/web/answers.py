"""A log as a response in ChatWait's own dialect: the event stream, and the answer that the client waits for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flask import Response, g, request

from app import errors
from app.dialects.native.answer import answer, around_text, failed_answer, failure_of, running, text_bytes
from app.dialects.native.frames import NativeFrames
from app.dialects.native.headers import Cursor, place_after, read_wait_seconds
from app.streams.interface import End, StreamLog
from app.web import failures
from app.web.reading import event_stream, keep_place, wait_for_end, whole_text

__all__ = ["as_json", "events", "waited"]

SHORT_BYTES = 32_768
"""The kernel takes a shorter body at once, even if the client is slow. A longer body is written in pieces, and its
connection counts as a reader until all are written. Units: bytes of JSON, which is ASCII."""


def events(log: StreamLog, cursor: Cursor | None, *, is_admitted: bool = False) -> Response:
    """Answer with the log from the cursor on, live to its end. 204 when the client has seen all of it.

    A client that `is_admitted` has been given its place before. Raises: CursorAhead, Overloaded.
    """
    return event_stream(
        log,
        NativeFrames(log.stream_id, log.origin),
        place_after(cursor, log),
        location=_location("streaming", log),
        is_admitted=is_admitted,
    )


def waited(log: StreamLog, cursor: Cursor | None = None, *, is_admitted: bool = False) -> Response:
    """Answer with the whole of a log when it has ended, or with 202 after the seconds of `Prefer: wait=N`.

    Raises: CursorAhead, Overloaded, ShuttingDown.
    """
    place_after(cursor, log)
    end = log.end
    seconds = read_wait_seconds(request.headers.get("Prefer", ""))
    reads = request.method != "HEAD"
    if end is None and reads:
        if not is_admitted:
            keep_place()
            is_admitted = True
        end = wait_for_end(log, seconds=None if seconds is None else float(seconds))
    if end is None:
        response = as_json(running(log.stream_id, log.head), 202)
        response.headers["Location"] = _location("wait", log)
        if seconds is not None:
            response.headers["Preference-Applied"] = f"wait={seconds}"
    elif log.is_erased:
        raise errors.StreamUnknown
    else:
        response = _ended(log, end, is_admitted=is_admitted)
        response.headers["Location"] = _location("streaming", log)
        log.end_read = log.end_read or reads
    response.headers["X-Stream-Id"] = log.stream_id
    return response


def _ended(log: StreamLog, end: End, *, is_admitted: bool) -> Response:
    """Answer with the text of a log that has ended, or with its failure and the text until then."""
    failure = failure_of(end)

    def body(text: str) -> dict[str, Any]:
        if failure is None:
            return answer(log.stream_id, log.origin, end, g.correlation_id, text=text)
        return failed_answer(failure, end, g.correlation_id, text=text)

    content: str | Iterator[bytes] | None = _short(log, body)
    if content is None:
        if not is_admitted:
            keep_place()
        content = whole_text(log, *around_text(body), write=text_bytes)
    response = Response(content, failures.status_of(failure), mimetype="application/json")
    failures.add_retry_after(response, failure)
    return response


def _short(log: StreamLog, body: Callable[[str], dict[str, Any]]) -> str | None:
    """Write a body with the text of a log, at once. None when the body is longer than SHORT_BYTES."""
    piece = log.reader(0).read(SHORT_BYTES)
    if piece is not None and (piece.sequence < log.head or len(piece.text) > SHORT_BYTES):
        return None
    written = json.dumps(body("" if piece is None else piece.text))
    return written if len(written) <= SHORT_BYTES else None


def as_json(body: Mapping[str, object], status: int = 200) -> Response:
    """Answer with a JSON object."""
    return Response(json.dumps(body), status, mimetype="application/json")


def _location(mode: str, log: StreamLog) -> str:
    return f"/v1/chat/{mode}/{log.stream_id}"
