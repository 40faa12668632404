"""Answers that read a log: the event stream and the waited-for JSON, whoever started the generation."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Response, g, request

from app import errors
from app.dialects.native.answer import answer, error_body
from app.observability.events import event
from app.platform.sockets import is_connected, is_dead, shut
from app.reading import loop as sse
from app.streams.interface import End, StreamLog, log_name
from app.web import failures
from app.web.access import direct_writer, to_its_end
from app.worker import Worker

__all__ = ["Cursor", "after", "cursor_of_request", "event_stream", "waited"]

LONGEST_CURSOR_BYTES = 128
LARGEST_SEQUENCE = 2**53

_CURSOR = re.compile(r"([A-Za-z0-9_-]+)\.(0|[1-9][0-9]{0,15})")
SHORT_BYTES = 32_768
"""A longer answer, as it is written, is written in pieces, and its connection counts as a reader until it has them all.
The kernel takes a shorter one at once, whoever reads it."""

_TEXT = "\0text\0"
"""Where the text belongs in an answer: no other part of one has a NUL."""

_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,6})\"?\s*(?:$|[,;])", re.IGNORECASE)

STREAM_HEADERS = {
    "Cache-Control": "no-cache, no-store, no-transform",
    "X-Accel-Buffering": "no",
}

Cursor = tuple[str, int]
"""A stream id and the sequence number of the last event received."""


def cursor_of_request() -> Cursor | None:
    """Read the cursor: the header before the query, which is older on a reconnect; empty is absent.

    Raises: CursorMalformed.
    """
    raw = request.headers.get("Last-Event-ID") or request.args.get("last_event_id") or request.args.get("lastEventId")
    if not raw:
        return None
    found = _CURSOR.fullmatch(raw) if len(raw) <= LONGEST_CURSOR_BYTES else None
    if found is None or int(found[2]) > LARGEST_SEQUENCE:
        raise errors.CursorMalformed
    return found[1], int(found[2])


def after(log: StreamLog, cursor: Cursor | None) -> int | None:
    """Judge a cursor against its log: the sequence number to go on after, or None when all has been seen.

    Raises: CursorAhead.
    """
    if cursor is None:
        return 0
    _, sequence = cursor
    end = log.end  # before the head: a log that ends in between only grows
    if sequence <= log.head:
        return sequence
    if end is not None and sequence == log.head + 1:
        return None
    raise errors.CursorAhead


def event_stream(runtime: Worker, log: StreamLog, cursor: Cursor | None, *, is_admitted: bool = False) -> Response:
    """Answer with the log from the cursor on, live to its end; 204 when all of it has been seen.

    Who `is_admitted` has been counted on before the generation began, and is not refused now.
    """
    begin = after(log, cursor)
    if begin is None:
        log.end_read = True
        response = Response(status=204)
    else:
        if request.method != "HEAD" and not is_admitted:
            g.place = runtime.readers.admit()
        response = Response(_frames(runtime, log, begin), content_type="text/event-stream; charset=utf-8")
    response.headers.update(STREAM_HEADERS)
    response.headers["X-Stream-Id"] = log.stream_id
    response.headers["Location"] = f"/v1/chat/streaming/{log.stream_id}"
    return response


def _frames(runtime: Worker, log: StreamLog, begin: int) -> Iterator[bytes]:
    name, correlation_id = log_name(log.stream_id), g.correlation_id
    environ = request.environ
    client: socket.socket | None = environ.get("gunicorn.socket")

    def left(sequence: int) -> None:
        event("reader_left", stream=name, correlation_id=correlation_id, mode="streaming", sequence=sequence)

    def begun() -> Iterator[bytes]:
        event("reader_attached", stream=name, correlation_id=correlation_id, mode="streaming", after=begin)
        with _reading(runtime, client):
            yield from sse.frames(
                log,
                begin,
                runtime.readers,
                left=left,
                drop=lambda: _drop(client),
                departed=lambda: client is not None and not is_connected(client),
                connection=direct_writer(environ),
            )

    return to_its_end(runtime, environ, begun())


@contextmanager
def _reading(runtime: Worker, client: socket.socket | None) -> Iterator[None]:
    """Have a connection be a reader's for as long as it is counted as one, and no longer."""
    if client is not None:
        runtime.connections.reads(client)
    try:
        yield
    finally:
        if client is not None:
            runtime.connections.has_read(client)


def _drop(client: socket.socket | None) -> None:
    if client is not None:
        shut(client)


def waited(runtime: Worker, log: StreamLog, cursor: Cursor | None = None, *, is_admitted: bool = False) -> Response:
    """Answer with the whole of a log as JSON when it has ended, or with 202 after `Prefer: wait=N`."""
    after(log, cursor)
    end = log.end
    prefer = _WAIT.search(request.headers.get("Prefer", ""))
    if end is None and request.method != "HEAD":
        if not is_admitted:
            g.place = runtime.readers.admit()
            is_admitted = True
        end = _wait(runtime, log, seconds=float(prefer[1]) if prefer else None)
    if end is None:
        response = _running(log)
    else:
        response = _ended(runtime, log, end, is_admitted=is_admitted or request.method == "HEAD")
        log.end_read = log.end_read or request.method != "HEAD"
    if prefer and end is None:
        response.headers["Preference-Applied"] = f"wait={prefer[1]}"
    response.headers["X-Stream-Id"] = log.stream_id
    return response


def _wait(runtime: Worker, log: StreamLog, *, seconds: float | None) -> End | None:
    name, correlation_id = log_name(log.stream_id), g.correlation_id
    client: socket.socket | None = request.environ.get("gunicorn.socket")
    has_left = False

    def leave() -> None:
        nonlocal has_left
        if not has_left:
            event("reader_left", stream=name, correlation_id=correlation_id, mode="wait", sequence=log.head)
        has_left = True

    def departed() -> bool:
        if client is None or is_connected(client):
            return False
        leave()
        return True

    event("reader_attached", stream=name, correlation_id=correlation_id, mode="wait", after=0)
    g.pop("place", None)  # it is counted from here on
    try:
        with _reading(runtime, client):
            return sse.wait(
                log,
                runtime.readers,
                seconds=seconds,
                gone=lambda: client is not None and is_dead(client),
                departed=departed,
            )
    finally:
        leave()


def _running(log: StreamLog) -> Response:
    body = {"stream_id": log.stream_id, "status": "running", "tokens": log.head}
    response = Response(json.dumps(body), 202, mimetype="application/json")
    response.headers["Location"] = f"/v1/chat/wait/{log.stream_id}"
    return response


def _ended(runtime: Worker, log: StreamLog, end: End, *, is_admitted: bool) -> Response:
    failure = errors.ShuttingDown(retry_after_seconds=5).failure if end.reason == "shutdown" else end.error
    error = None if failure is None else error_body(failure, g.correlation_id)
    if failure is None or error is None:
        response = Response(status=200, mimetype="application/json")
    else:
        response = failures.respond(errors.status_of(failure.error_code), error)

    def body(text: str) -> str:
        if error is None:
            return json.dumps(answer(log.stream_id, log.origin, end, g.correlation_id, text=text))
        return json.dumps({**error, "partial": {"content": text, "tokens": end.records}})

    piece = log.reader(0).read(SHORT_BYTES)
    is_all = piece is None or (piece.sequence == log.head and len(piece.text) <= SHORT_BYTES)
    whole = body("" if piece is None else piece.text) if is_all else ""
    if is_all and len(whole) <= SHORT_BYTES:  # it is ASCII
        response.set_data(whole)
    else:
        if not is_admitted:
            g.place = runtime.readers.admit()
        before, _, after = body(_TEXT).partition(json.dumps(_TEXT)[1:-1])
        response.headers.pop("Content-Length", None)
        response.response = _whole(runtime, log, before, after)
    response.headers["Location"] = f"/v1/chat/streaming/{log.stream_id}"
    return response


def _whole(runtime: Worker, log: StreamLog, before: str, after: str) -> Iterator[bytes]:
    environ = request.environ
    client: socket.socket | None = environ.get("gunicorn.socket")

    def begun() -> Iterator[bytes]:
        with _reading(runtime, client):
            yield from sse.whole(log, before, after, runtime.readers, drop=lambda: _drop(client))

    return to_its_end(runtime, environ, begun())
