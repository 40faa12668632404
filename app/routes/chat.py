"""POST: start a generation, or attach to the one that the same key started, or resume at a cursor."""

from __future__ import annotations

import hashlib
import re

from flask import Blueprint, Response, current_app, g, request
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from app import errors
from app.dialects.native import request as schemas
from app.observability.events import utc_now
from app.reading.loop import Place
from app.streams.interface import Binding, Origin, StreamLog
from app.upstream.interface import Question
from app.web import answers as reading
from app.worker import Worker

__all__ = ["blueprint"]

blueprint = Blueprint("chat", __name__)

LONGEST_ACCEPT = 2000
"""How much of Accept is read: a type costs 10 µs, and a head has room for thousands."""

_KEY = re.compile(r"[\x21-\x7e]{16,255}")
FEWEST_SIGNS = 4
"""Different ones in a key: with fewer it was typed, not drawn, and another's question may have the same."""


@blueprint.post("/chat/streaming")
def create_streaming() -> Response:
    """The answer as events."""
    runtime: Worker = current_app.extensions["chatwait"]
    log, cursor = _log(runtime)
    return reading.event_stream(runtime, log, cursor, is_admitted=cursor is None)


@blueprint.post("/chat/wait")
def create_wait() -> Response:
    """The answer as one JSON object, when it is complete."""
    runtime: Worker = current_app.extensions["chatwait"]
    log, cursor = _log(runtime)
    return reading.waited(runtime, log, cursor, is_admitted=cursor is None)


@blueprint.post("/chat")
def create() -> Response:
    """Events, or JSON where the client prefers it."""
    accepted = parse_accept_header(request.headers.get("Accept", "")[:LONGEST_ACCEPT], MIMEAccept)
    prefers_json = accepted.quality("application/json") > accepted.quality("text/event-stream")
    response = create_wait() if prefers_json else create_streaming()
    response.vary.add("Accept")
    return response


def _log(runtime: Worker) -> tuple[StreamLog, reading.Cursor | None]:
    """Find the log to read: of the cursor if there is one (which never starts anything), else a new one's."""
    cursor = reading.cursor_of_request()
    if cursor is not None:
        with runtime.bodies.read(request.environ, at_most=runtime.settings.max_body_bytes):
            pass
        return runtime.store.find(cursor[0], reach=cursor[1]), cursor
    if request.mimetype != "application/json":
        raise errors.UnsupportedMediaType
    if request.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity"):
        raise errors.UnsupportedMediaType("The body is compressed, which this server does not read.")
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _KEY.fullmatch(key):
        raise errors.InvalidRequest(
            "The idempotency key is not usable.",
            fields={"Idempotency-Key": ["Must be 16 to 255 visible ASCII characters."]},
        )
    if key is not None and len(set(key)) < FEWEST_SIGNS:
        raise errors.InvalidRequest(
            f"The idempotency key has fewer than {FEWEST_SIGNS} different characters: anybody may have the same, and "
            "whoever has it reads this answer.",
            fields={"Idempotency-Key": [f"Must be random, with {FEWEST_SIGNS} different characters or more: a UUID4."]},
        )
    hashed = hashlib.sha256(key.encode()).hexdigest() if key else None
    # Before the body: whoever is refused has not been read, parsed and counted.
    _admit(runtime, hashed)
    with runtime.bodies.read(request.environ, at_most=runtime.settings.max_body_bytes) as body:
        asked = schemas.read_request(body, runtime.settings)
    g.place = _admit(runtime, hashed)
    binding = Binding(hashed, asked.fingerprint) if hashed else None
    origin = Origin(g.correlation_id, asked.model, utc_now(), asked.prompt_tokens)
    question = Question(asked.messages, asked.model, asked.max_tokens, asked.temperature)
    log, created = runtime.store.create(origin, binding, prompt_bytes=question.held_bytes)
    if created:
        runtime.generations.start(log, question)
    return log, None


def _admit(runtime: Worker, key: str | None) -> Place:
    """Judge whether there is room for another generation, and keep the place of its reader. Who attaches by a key,
    hashed, starts nothing, and has room beside them.

    Raises: Overloaded, ShuttingDown, StoreUnavailable.
    """
    try:
        runtime.store.admit()
        return runtime.readers.admit()
    except (errors.Overloaded, errors.ShuttingDown):
        if key is None or not runtime.store.knows(key):
            raise
        return runtime.readers.admit(attaching=True)
