"""ChatWait: a chat service in front of any OpenAI-compatible model that never loses a token.

This module only wires. Its imports stand inside `create_app` because gunicorn's master reads `app.settings`
through this package before its worker has patched the standard library (DESIGN.md, 3); nothing at import
time here may load flask, ssl or openai.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from app.settings import Settings
    from app.streams.interface import Store
    from app.upstream.interface import Upstream


def create_app(
    settings: Settings | None = None, *, upstream: Upstream | None = None, store: Store | None = None
) -> Flask:
    """Build the application and everything it needs; tests pass parts of their own.

    Raises: `app.settings.BadSettings` naming the variable, when `settings` is read from the environment.
    """
    from flask import Flask

    from app import routes
    from app.observability import events as logs
    from app.settings import read_settings
    from app.worker import Worker

    settings = settings or read_settings()
    logs.configure(settings)
    app = Flask(__name__, static_folder=None)
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False  # it would redirect; a path of another spelling is none
    worker = Worker.build(settings, upstream=upstream, store=store)
    app.extensions["chatwait"] = worker
    routes.register(app, worker)
    worker.clock.start()
    return app
