"""ChatWait: a chat service in front of any OpenAI-compatible model that never loses a token.

This module only wires. gunicorn's master imports `app.settings` through this package before a worker has patched the
standard library (DESIGN.md, 3). So the imports are inside `create_app`: an import of this module must not load flask,
ssl or openai.
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
    """Build the application and everything that it needs. Tests pass parts of their own.

    Raises: `app.settings.BadSettings`, which names the variable, when the settings are read from the environment.
    """
    from flask import Flask

    from app import routes
    from app.observability import events, libraries, observer
    from app.settings import read_settings
    from app.worker import Worker

    settings = settings or read_settings()
    libraries.configure(level=settings.log_level, secrets=[settings.openai_api_key])
    observer.listen(events.write)
    app = Flask(__name__, static_folder=None)
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False  # merging would redirect, and another spelling of a path is no route
    worker = Worker.build(settings, upstream=upstream, store=store)
    app.extensions["chatwait"] = worker
    routes.register(app)
    worker.clock.start()
    return app
