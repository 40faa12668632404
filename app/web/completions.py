"""OpenAI's chat completions: the log that a request begins or names, and the log as a response."""

from __future__ import annotations

import hashlib
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
from app.dialects.completions.request import ForwardedRequest, read_forwarded
from app.dialects.native.headers import Cursor, place_after, read_cursor, read_key, read_wait_seconds
from app.platform.utc import unix_seconds, utc_now
from app.streams.interface import Binding, End, ErasedMeanwhile, Kind, Origin, Piece, StreamLog
from app.upstream.interface import Forwarded
from app.web.admission import admit, body_of, check_type, credential, cursor_of, key_header
from app.web.answers import SHORT_BYTES, as_json
from app.web.current import worker
from app.web.failures import add_retry_after
from app.web.manners import COMPLETIONS
from app.web.reading import event_stream, hold, keep_place, wait_for_end, whole_body
from app.web.stopping import stop

__all__ = ["create", "erase", "show"]

HOLD_SECONDS = 10.0
"""How long the head of a stream waits for the upstream's first event, so that an error has a status of its own."""

PIECE_BYTES = 16_384

MANY_RECORDS = 300
"""Joining fewer records takes a moment, and little memory."""


def create() -> Response:
    """Begin a generation, or attach to the one that the same key began, or resume at a cursor."""
    cursor = cursor_of()
    if cursor is not None:
        with body_of(at_most=worker().settings.openai_max_body_bytes):
            pass
        return _stream(worker().store.find(cursor.stream_id, reach=cursor.sequence, credential=credential()), cursor)
    log, rate_limits = _begin()
    if log.origin.kind == "chunks":
        hold(log, seconds=HOLD_SECONDS)
        end = log.end
        response = (
            _refused(log, end, is_streamed=True)
            if end is not None and not end.records and failure_of(end) is not None
            else _stream(log, None, is_admitted=True)
        )
    else:
        response = _whole(log, is_admitted=True)
    response.headers.update(rate_limits)
    return response


def show(stream_id: str) -> Response:
    """Answer with a log that has begun: as chunks, or as one JSON object when it has ended."""
    cursor = cursor_of() or _starting_after(stream_id)
    if cursor is not None and cursor.stream_id != stream_id:
        raise errors.CursorForeign
    log = worker().store.find(stream_id, reach=0 if cursor is None else cursor.sequence, credential=credential())
    if request.args.get("stream") == "true" or _prefers_events():
        return _stream(log, cursor)
    place_after(cursor, log)
    return _whole(log)


def erase(stream_id: str) -> None:
    """Stop a generation, and forget all of it. Its readers are cut off.

    Raises: StreamUnknown, StreamExpired, StoreUnavailable.
    """
    parts = worker()
    try:
        log = parts.store.find(stream_id, credential=credential())
    except errors.Overloaded:  # there is no room for its records here, and to erase them needs none
        if parts.store.elsewhere is None:
            raise
        parts.store.elsewhere.cancel(stream_id)
        parts.store.elsewhere.erase_unread(stream_id)
        return
    parts.readers.cut(log)  # before the stop, whose end they would get
    stop(log)
    parts.store.erase(log)
    parts.readers.cut(log)


def _starting_after(stream_id: str) -> Cursor | None:
    raw = request.args.get("starting_after")
    return read_cursor(f"{stream_id}.{raw}") if raw else None


def _prefers_events() -> bool:
    accepted = request.headers.get("Accept", "").lower()
    return "text/event-stream" in accepted and "application/json" not in accepted


def _begin() -> tuple[StreamLog, dict[str, str]]:
    """Begin the log of a new generation, or attach to the one that the same idempotency key began.

    Also return where the upstream's headers about rate limits come, once it has answered. Nothing here keeps the body.
    """
    parts = worker()
    check_type()
    key = _key()
    admit(key)  # before the body, so that the body of a refused request is not read
    with body_of(at_most=parts.settings.openai_max_body_bytes) as body:
        asked = read_forwarded(body, parts.settings)
    g.place = admit(key)
    return _create(asked, key)


def _key() -> str | None:
    """Read the idempotency key, hashed with what the client shows: other clients may have the same one."""
    header = key_header()
    key = read_key(request.headers.get(header), header)
    return None if key is None else hashlib.sha256(f"completions {key} {credential()}".encode()).hexdigest()


def _create(asked: ForwardedRequest, key: str | None) -> tuple[StreamLog, dict[str, str]]:
    """Create the log and start its generation, unless the key has begun one before."""
    parts = worker()
    binding = Binding(key, asked.fingerprint) if key else None
    kind: Kind = "chunks" if asked.is_streamed else "json"
    origin = Origin(g.correlation_id, asked.model, utc_now(), asked.prompt_tokens, kind)
    log, is_new = parts.store.create(origin, binding, prompt_bytes=asked.held_bytes, credential=credential())
    question = Forwarded(
        model=asked.model,
        write=asked.write,
        completion_id=completion_id(log.stream_id),
        choices=asked.choices,
        is_streamed=asked.is_streamed,
        keeps_usage=asked.keeps_usage,
        asked_once="X-Stainless-Retry-Count" in request.headers,
        max_tokens=asked.max_tokens,
        messages_count=asked.messages_count,
        held_bytes=asked.held_bytes,
    )
    if is_new:
        parts.generations.start(log, question)
    return log, question.rate_limits


def _stream(log: StreamLog, cursor: Cursor | None, *, is_admitted: bool = False) -> Response:
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


def _whole(log: StreamLog, *, is_admitted: bool = False) -> Response:
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
            response = _refused(log, end, is_streamed=False)
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


def _refused(log: StreamLog, end: End, *, is_streamed: bool) -> Response:
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
