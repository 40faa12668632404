"""What clients see: one blueprint a resource, every route under /v1 and, as its alias, without it."""

from __future__ import annotations

from flask import Flask

from app.routes import chat, health, pages, streams
from app.web import access as gate
from app.web import failures
from app.worker import Worker

__all__ = ["register"]


def register(app: Flask, runtime: Worker) -> None:
    """Put every route, the gate before them and the one error shape behind them on the application."""
    app.json.sort_keys = False  # type: ignore[attr-defined]
    gate.register(app, runtime)
    failures.register(app)
    for blueprint in (chat.blueprint, streams.blueprint, health.blueprint):
        app.register_blueprint(blueprint)
        app.register_blueprint(blueprint, url_prefix="/v1", name=f"v1_{blueprint.name}")
    pages.register(app, runtime.store)
