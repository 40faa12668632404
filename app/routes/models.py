"""The models that a request may name, for clients of both dialects."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response

from app import errors
from app.dialects.completions.models import model
from app.web.answers import as_json
from app.web.current import worker

__all__ = ["blueprint"]

blueprint = Blueprint("models", __name__)


@blueprint.get("/models")
def show_models() -> Response:
    """The models a request may name, and the limits a client should know."""
    settings = worker().settings
    return as_json({"object": "list", "data": _models(), "default": settings.openai_model, "limits": settings.limits})


@blueprint.get("/models/<path:name>")
def show_model(name: str) -> Response:
    """One of them. SDKs send a slash in a name as %2F."""
    for found in _models():
        if found["id"] == name:
            return as_json(found)
    raise errors.NotFound("This server does not offer a model of that name. GET /v1/models lists those that it offers.")


def _models() -> list[dict[str, Any]]:
    """List the models. Where any may be named, the upstream is asked for those that it has.

    Raises: errors.UpstreamError.
    """
    settings = worker().settings
    if not settings.allows_any:
        return [model(name) for name in settings.listed_models]
    return [model(*found) for found in worker().upstream.models()]
