"""OpenAI's chat completions over the log: ask, read by id, and erase."""

from __future__ import annotations

from flask import Blueprint, Response

from app.dialects.completions.answer import deleted
from app.dialects.completions.models import stream_id_of
from app.web import completions
from app.web.answers import as_json

__all__ = ["blueprint"]

blueprint = Blueprint("completions", __name__)


@blueprint.post("/chat/completions")
def create_completion() -> Response:
    """The answer as chunks, or as one JSON object where the client asks for no stream."""
    return completions.create()


@blueprint.get("/chat/completions/<name>")
def show_completion(name: str) -> Response:
    """The answer, whoever asked for it: as JSON when it is complete, or as chunks from a cursor on."""
    return completions.show(stream_id_of(name))


@blueprint.delete("/chat/completions/<name>")
def delete_completion(name: str) -> Response:
    """Stop a generation, and erase all that is kept of it."""
    stream_id = stream_id_of(name)
    completions.erase(stream_id)
    return as_json(deleted(stream_id))
