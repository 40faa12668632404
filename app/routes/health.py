"""Liveness and readiness."""

from __future__ import annotations

from flask import Blueprint, Response

from app.platform.utc import utc_now
from app.version import VERSION
from app.web.answers import as_json
from app.web.current import worker

__all__ = ["blueprint"]

blueprint = Blueprint("health", __name__)


@blueprint.get("/health")
def show_health() -> Response:
    """Liveness, and which version answers. Touches nothing."""
    return as_json({"status": "healthy", "timestamp": utc_now(), "version": VERSION})


@blueprint.get("/ready")
def show_ready() -> Response:
    """Readiness, part by part."""
    parts = _parts()
    is_ready = not {"unavailable", "stopping"} & set(parts.values())
    body = {"status": "ready" if is_ready else "unavailable", "timestamp": utc_now(), "parts": parts}
    return as_json(body, 200 if is_ready else 503)


def _parts() -> dict[str, str]:
    """Look at each part. A remote upstream is not asked, because its outage must not take resumes down."""
    this_worker = worker()
    is_local = this_worker.settings.local_model
    return {
        "store": "ready" if this_worker.store.ready() else "unavailable",
        "upstream": "remote" if not is_local else "ready" if this_worker.upstream.ready() else "unavailable",
        "worker": "stopping" if this_worker.drain.begun else "ready",
    }
