"""A generation by its id, which is the capability to read it and to stop it."""

from __future__ import annotations

from flask import Blueprint, Response

from app.dialects.native.answer import stopped
from app.web.answers import as_json, events, waited
from app.web.asking import find
from app.web.stopping import stop_by_id

__all__ = ["blueprint"]

blueprint = Blueprint("streams", __name__)


@blueprint.get("/chat/streaming/<stream_id>")
def show_streaming(stream_id: str) -> Response:
    """(Re)attach to the event stream."""
    return events(*find(stream_id))


@blueprint.get("/chat/wait/<stream_id>")
def show_wait(stream_id: str) -> Response:
    """Wait for the whole answer."""
    return waited(*find(stream_id))


@blueprint.delete("/chat/streaming/<stream_id>")
@blueprint.delete("/chat/wait/<stream_id>")
def cancel(stream_id: str) -> Response:
    """Stop a generation, and say how it ended or that it is running."""
    return as_json(stopped(stream_id, *stop_by_id(stream_id)))
