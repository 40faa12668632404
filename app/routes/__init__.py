"""The routes: one blueprint for each resource. Every route stands under /v1, and without it as an alias."""

from __future__ import annotations

from flask import Flask

from app.routes import chat, completions, health, models, pages, streams
from app.web import access, closing, failures

__all__ = ["register"]


def register(app: Flask) -> None:
    """Put every route on the application, the checks before them, and the answers to their failures behind them."""
    app.json.sort_keys = False  # type: ignore[attr-defined]
    closing.wrap(app)
    access.register(app)
    failures.register(app)
    for blueprint in (chat.blueprint, streams.blueprint, completions.blueprint, models.blueprint, health.blueprint):
        app.register_blueprint(blueprint)
        app.register_blueprint(blueprint, url_prefix="/v1", name=f"v1_{blueprint.name}")
    pages.register(app)
