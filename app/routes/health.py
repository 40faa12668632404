"""Whether the service lives, whether it can work, and what it offers."""

from __future__ import annotations

import json
from collections.abc import Mapping

from flask import Blueprint, Response, current_app

from app.observability.events import utc_now
from app.worker import Worker

__all__ = ["blueprint"]

blueprint = Blueprint("health", __name__)


@blueprint.get("/health")
def show_health() -> Response:
    """Liveness: touches nothing."""
    return _json({"status": "healthy", "timestamp": utc_now()})


@blueprint.get("/ready")
def show_ready() -> Response:
    """Readiness, part by part. A remote upstream is only reported: its outage must not take resumes down."""
    runtime: Worker = current_app.extensions["chatwait"]
    local = runtime.settings.local_model
    parts: dict[str, str] = {
        "store": "ready" if runtime.store.ready() else "unavailable",
        "upstream": "remote" if not local else "ready" if runtime.upstream.ready() else "unavailable",
        "worker": "stopping" if runtime.drain.begun else "ready",
    }
    ready = not {"unavailable", "stopping"} & set(parts.values())
    body = {"status": "ready" if ready else "unavailable", "timestamp": utc_now(), "parts": parts}
    return _json(body, 200 if ready else 503)


@blueprint.get("/models")
def show_models() -> Response:
    """The models a request may name, and the limits a client should know."""
    runtime: Worker = current_app.extensions["chatwait"]
    settings = runtime.settings
    models = [{"id": model, "object": "model"} for model in settings.allowed_models]
    return _json({"object": "list", "data": models, "default": settings.openai_model, "limits": settings.limits})


def _json(body: Mapping[str, object], status: int = 200) -> Response:
    return Response(json.dumps(body), status, mimetype="application/json")
