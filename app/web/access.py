"""What happens to every request before its view and after it: correlation, who may ask, bodies, CORS."""

from __future__ import annotations

import re
import ssl
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from app import errors
from app.observability.events import correlation, event
from app.platform.gevent_loop import in_loop
from app.platform.sockets import DirectWriter
from app.worker import Worker

__all__ = ["direct_writer", "register", "to_its_end"]

ALLOWED_METHODS = "GET, POST, DELETE"
ALLOWED_HEADERS = "Content-Type, Last-Event-ID, Idempotency-Key, Prefer, X-Request-ID"
EXPOSED_HEADERS = "X-Stream-Id, Location, X-Correlation-Id, Retry-After, Preference-Applied"

RESPONSE = "chatwait.response"
CLOSES = "chatwait.closes"

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


def register(app: Flask, runtime: Worker) -> None:
    settings = runtime.settings
    app.wsgi_app = _closable(app.wsgi_app, runtime)  # type: ignore[method-assign]

    @app.before_request
    def admit() -> Response | None:
        g.correlation_id = str(uuid.uuid4())
        correlation.set(g.correlation_id)
        request_id = request.headers.get("X-Request-ID", "")
        event(
            "request_received",
            correlation_id=g.correlation_id,
            method=request.method if request.method in _METHODS else "other",
            route=request.url_rule.rule if request.url_rule is not None else None,
            request_id=request_id if _REQUEST_ID.fullmatch(request_id) else None,
        )
        _check_host(settings.allowed_hosts)
        _check_origin(settings.cors_origins)
        path = request.environ["PATH_INFO"]
        if path.startswith("//") or not path.startswith("/"):
            raise errors.NotFound  # werkzeug takes none, or any number, at the beginning for one slash
        if request.method == "OPTIONS":
            return _options()
        return None

    @app.after_request
    def complete(response: Response) -> Response:
        if not runtime.bodies.discard(request.environ):
            must_close = True
            if connection := request.environ.get("gunicorn.socket"):
                runtime.connections.linger(connection)
        else:
            must_close = closes(runtime)
        # What is written in pieces does not say so: behind a `Connection: close` there are clients who take a cut for
        # the end (DESIGN.md, 13).
        if must_close and (not response.is_streamed or request.method == "HEAD"):
            close_connection(request.environ)
        request.environ[CLOSES] = must_close
        if response.status_code == 204:
            response.headers.remove("Content-Type")  # of nothing
        response.headers["X-Correlation-Id"] = g.get("correlation_id") or str(uuid.uuid4())
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        if "Content-Security-Policy" not in response.headers:
            response.headers["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"
        _add_cors(response, settings.cors_origins)
        g.pop("place", None)  # who reads begins now, and is counted from there on: nobody runs in between
        return response


_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")


def _closable(wsgi_app: Callable[..., Iterable[bytes]], runtime: Worker) -> Callable[..., Iterable[bytes]]:
    """Count who is in a view, and give views gunicorn's response object, whose method `start_response` is.

    It can end the connection after the answer, where gunicorn drops an application's `Connection: close`, and knows
    whether the body is chunked.
    """

    def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[RESPONSE] = getattr(start_response, "__self__", None)
        environ["PATH_INFO"] = environ.get("PATH_INFO") or "/"  # of http://host: werkzeug would redirect
        environ.pop("HTTP_UPGRADE", None)  # there is nothing to upgrade to; werkzeug would look for web sockets' routes
        runtime.answering += 1
        try:
            return wsgi_app(environ, start_response)
        finally:
            runtime.answering -= 1

    return call


def closes(runtime: Worker) -> bool:
    """Tell whether connections end after their answers: the client's next request belongs to another worker, or there
    are more connections than may be."""
    return runtime.drain.begun or runtime.connections.is_crowded


def to_its_end(runtime: Worker, environ: dict[str, Any], pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces of an answer, and after them close the connection where it must, without having said so."""
    yield from pieces
    if environ.get(CLOSES) or closes(runtime):
        close_connection(environ)


def close_connection(environ: dict[str, Any]) -> None:
    """End the connection after this answer; where its head is out, without a word."""
    if force_close := getattr(environ.get(RESPONSE), "force_close", None):
        force_close()


def direct_writer(environ: dict[str, Any]) -> DirectWriter | None:
    """Give the way to a request's connection past gunicorn's response object, once that has begun its answer.

    None where there is no plain connection, or where others than its thread might write at the same moment.
    """
    chunked, sock = getattr(environ.get(RESPONSE), "chunked", None), environ.get("gunicorn.socket")
    if chunked is None or sock is None or isinstance(sock, ssl.SSLSocket) or not in_loop():
        return None
    return DirectWriter(sock, chunked=chunked)


def _host() -> str:
    """Tell which host is asked, by the target where it names one, else by the header."""
    target = request.environ.get("RAW_URI", "/")
    if "://" in target and not target.startswith("/"):
        return str(target).split("://", 1)[1].split("/", 1)[0].split("?", 1)[0].lower()
    return str(request.environ.get("HTTP_HOST", "")).lower()


def _check_host(allowed: tuple[str, ...]) -> None:
    host = _host()
    name = re.sub(r":[0-9]*$", "", host)
    if host not in allowed and name not in allowed:
        raise errors.HostNotAllowed


def _own_origin(origin: str) -> bool:
    """Compare hosts only: in front of us a proxy may speak https."""
    try:
        there = urlsplit(origin)
        here = urlsplit(f"//{_host()}")
        default = {"http": 80, "https": 443}.get(there.scheme)
        return (
            default is not None
            and there.hostname == here.hostname
            and (there.port or default) == (here.port or default)
        )
    except ValueError:
        return False


def _check_origin(listed: tuple[str, ...]) -> None:
    """Pages of others must not start or stop anything; reading needs a stream id, which they have not."""
    if request.method not in ("POST", "DELETE"):
        return
    origin = request.headers.get("Origin", "").lower()
    if origin:
        if origin not in listed and not _own_origin(origin):
            raise errors.OriginNotAllowed
    elif request.headers.get("Sec-Fetch-Site", "").lower() == "cross-site":
        raise errors.OriginNotAllowed


def _options() -> Response:
    """Answer OPTIONS, a browser's preflight among them, for paths that exist."""
    adapter = request.routing_exception
    if isinstance(adapter, HTTPException) and not isinstance(adapter, MethodNotAllowed):
        raise adapter
    response = Response(status=204)
    response.headers["Allow"] = ", ".join(sorted(allowed_methods()))
    return response


def allowed_methods() -> set[str]:
    from flask import current_app

    adapter = current_app.create_url_adapter(request)
    return set(adapter.allowed_methods()) if adapter is not None else set()


def _add_cors(response: Response, listed: tuple[str, ...]) -> None:
    if not listed:
        return
    response.vary.add("Origin")
    origin = request.headers.get("Origin", "").lower()
    if origin not in listed:
        return
    response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
    response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
    if request.method == "OPTIONS":
        response.headers["Access-Control-Allow-Methods"] = ALLOWED_METHODS
        response.headers["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
        response.headers["Access-Control-Max-Age"] = "600"
