"""A log as a response in OpenAI's dialect: the stream of chunks, and the answer that the client waits for."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext

from flask import Response, g, request

from app import errors
from app.dialects.completions.answer import completion, failed_answer, running
from app.dialects.completions.errors import failure_of
from app.dialects.completions.frames import CompletionsFrames
from app.dialects.completions.models import completion_id
from app.dialects.native.headers import Cursor, place_after, read_wait_seconds
from app.platform.utc import unix_seconds
from app.streams.interface import End, ErasedMeanwhile, Piece, StreamLog
from app.web.answers import SHORT_BYTES, as_json
from app.web.current import worker
from app.web.failures import add_retry_after
from app.web.manners import COMPLETIONS
from app.web.reading import event_stream, keep_place, wait_for_end, whole_body

__all__ = ["refused", "stream", "whole"]

PIECE_BYTES = 16_384

MANY_RECORDS = 300
"""Joining fewer records takes a moment, and little memory."""


def stream(log: StreamLog, cursor: Cursor | None, *, is_admitted: bool = False) -> Response:
    """Answer with the log from the cursor on, live to its end. 204 when the client has seen all of it."""

    def from_start(last: int) -> Iterator[Piece]:
        return _pieces(log, last)

    return event_stream(
        log,
        CompletionsFrames(log.stream_id, log.origin, unix_seconds(log.origin.created), from_start),
        place_after(cursor, log),
        location=_location(log, is_streamed=True),
        is_admitted=is_admitted,
    )


def _pieces(log: StreamLog, last: int) -> Iterator[Piece]:
    """Read the records up to a number, and let others run in between."""
    reader = log.reader(0)
    read_at = time.monotonic()
    while reader.after < last:
        piece = reader.read(0) if log.origin.kind == "text" else reader.read_chunks(PIECE_BYTES)
        if piece is None:
            raise ErasedMeanwhile
        reader.after = piece.sequence
        yield piece
        if time.monotonic() - read_at > 0.001:
            time.sleep(0)
            read_at = time.monotonic()


def whole(log: StreamLog, *, is_admitted: bool = False) -> Response:
    """Answer with the whole of a log when it has ended, or with 202 after the seconds of `Prefer: wait=N`."""
    end = log.end
    seconds = read_wait_seconds(request.headers.get("Prefer", ""))
    reads = request.method != "HEAD"
    if end is None and reads:
        if not is_admitted:
            keep_place()
            is_admitted = True
        end = wait_for_end(log, seconds=None if seconds is None else float(seconds))
    if end is None:
        response = as_json(running(log.stream_id, log.origin, unix_seconds(log.origin.created)), 202)
        if seconds is not None:
            response.headers["Preference-Applied"] = f"wait={seconds}"
    else:
        if end.records > MANY_RECORDS and reads and not is_admitted:
            keep_place()
        if end.records > MANY_RECORDS and not reads:
            response = _unread(end)
        elif failure_of(end) is not None:
            response = refused(log, end, is_streamed=False)
        else:
            response = _written(log, _completion(log, end))
    response.headers["Location"] = _location(log, is_streamed=False)
    response.headers["X-Stream-Id"] = log.stream_id
    log.end_read = log.end_read or (reads and end is not None)
    return response


def _completion(log: StreamLog, end: End) -> bytes:
    """Write the completion of a log that has ended. Raises: StreamUnknown when the log was erased meanwhile."""
    created = unix_seconds(log.origin.created)
    alone = worker().joining if end.records > MANY_RECORDS else nullcontext()
    try:
        with alone:
            return completion(log.stream_id, log.origin, end, _pieces(log, end.records), created)
    except ErasedMeanwhile:
        raise errors.StreamUnknown from None


def _unread(end: End) -> Response:
    """Answer to HEAD without joining what nobody reads."""
    failure = failure_of(end)
    response = Response(iter(()), 200 if failure is None else COMPLETIONS.status(failure), mimetype="application/json")
    response.headers.update({} if failure is None else COMPLETIONS.headers(failure))
    add_retry_after(response, failure)
    return response


def refused(log: StreamLog, end: End, *, is_streamed: bool) -> Response:
    """Answer with the failure of a log that has ended, and with what there was until then."""
    failure = failure_of(end)
    assert failure is not None
    if end.records:
        response = _written(log, failed_answer(failure, g.correlation_id, _completion(log, end)))
    else:
        response = Response(json.dumps(COMPLETIONS.body(failure, g.correlation_id)), mimetype="application/json")
    response.status_code = COMPLETIONS.status(failure)
    response.headers.update(COMPLETIONS.headers(failure))
    response.headers["Location"] = _location(log, is_streamed=is_streamed)
    response.headers["X-Stream-Id"] = log.stream_id
    add_retry_after(response, failure)
    return response


def _written(log: StreamLog, body: bytes) -> Response:
    """Answer with a JSON body. A long one counts in memory, and its connection as a reader, until it is written."""
    if len(body) <= SHORT_BYTES:
        return Response(body, mimetype="application/json")
    with ExitStack() as stack:
        stack.enter_context(worker().bodies.held(len(body)))
        response = Response(whole_body(log, body, stack.pop_all()), mimetype="application/json")
    response.headers["Content-Length"] = str(len(body))
    return response


def _location(log: StreamLog, *, is_streamed: bool) -> str:
    query = "?stream=true" if is_streamed else ""
    return f"/v1/chat/completions/{completion_id(log.stream_id)}{query}"
