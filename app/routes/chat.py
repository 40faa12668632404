"""POST: start a generation, or attach to the one that the same key started, or resume at a cursor."""

from __future__ import annotations

from flask import Blueprint, Response, request
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from app.web.answers import events, waited
from app.web.asking import find_or_begin

__all__ = ["blueprint"]

blueprint = Blueprint("chat", __name__)

LONGEST_ACCEPT = 2000
"""How much of Accept is read. Each type takes 10 µs, and a head has room for thousands. Units: characters."""


@blueprint.post("/chat/streaming")
def create_streaming() -> Response:
    """The answer as events."""
    log, cursor = find_or_begin()
    return events(log, cursor, is_admitted=cursor is None)


@blueprint.post("/chat/wait")
def create_wait() -> Response:
    """The answer as one JSON object, when it is complete."""
    log, cursor = find_or_begin()
    return waited(log, cursor, is_admitted=cursor is None)


@blueprint.post("/chat")
def create() -> Response:
    """Events, or JSON where the client prefers it."""
    response = create_wait() if _prefers_json() else create_streaming()
    response.vary.add("Accept")
    return response


def _prefers_json() -> bool:
    accepted = parse_accept_header(request.headers.get("Accept", "")[:LONGEST_ACCEPT], MIMEAccept)
    return accepted.quality("application/json") > accepted.quality("text/event-stream")
