"""Connections that end after their answers, and requests that are being answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flask import Flask, Response, request

from app.server.direct import close_connection, remember_response
from app.web.current import worker, worker_of
from app.worker import Worker

__all__ = ["finish_connection", "to_its_end", "wrap"]

CLOSES = "chatwait.closes"


def wrap(app: Flask) -> None:
    """Wrap the application: count the requests in a view, and keep gunicorn's response object for them."""
    wsgi_app: Callable[..., Iterable[bytes]] = app.wsgi_app
    parts = worker_of(app)

    def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        remember_response(environ, start_response)
        environ["PATH_INFO"] = environ.get("PATH_INFO") or "/"  # http://host has no path; werkzeug would redirect
        environ.pop("HTTP_UPGRADE", None)  # nothing here upgrades; werkzeug would look for routes of web sockets
        parts.answering += 1
        try:
            return wsgi_app(environ, start_response)
        finally:
            parts.answering -= 1

    app.wsgi_app = call  # type: ignore[method-assign]


def finish_connection(response: Response) -> None:
    """Take the rest of the request's body. Close the connection after the answer where that is due."""
    parts = worker()
    if parts.bodies.discard(request.environ):
        must_close = _is_closing(parts)
    else:
        must_close = True
        if connection := request.environ.get("gunicorn.socket"):
            parts.connections.linger(connection)
    # A body in pieces is not announced to be the last: behind a `Connection: close` some clients take a cut for the
    # end (DESIGN.md, 13).
    if must_close and (not response.is_streamed or request.method == "HEAD"):
        close_connection(request.environ)
    request.environ[CLOSES] = must_close


def to_its_end(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Return the pieces of an answer. After the last one the connection is closed where that is due, unannounced."""
    parts, environ = worker(), request.environ

    def written() -> Iterator[bytes]:
        yield from pieces
        if environ.get(CLOSES) or _is_closing(parts):
            close_connection(environ)

    return written()


def _is_closing(parts: Worker) -> bool:
    """Tell whether connections end after their answers. They do when the worker is stopping, because the client's next
    request belongs to another worker, and when no more connections are allowed."""
    return parts.drain.begun or parts.connections.is_crowded
