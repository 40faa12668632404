"""What happens to every request before its view and after it: correlation, host, origin, CORS."""

from __future__ import annotations

import re
import uuid
from urllib.parse import urlsplit

from flask import Flask, Response, current_app, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from app import errors
from app.observability import facts
from app.observability.lines import correlation
from app.observability.observer import tell
from app.web.closing import finish_connection
from app.web.current import worker
from app.web.manners import is_openai

__all__ = ["allowed_methods", "register"]

ALLOWED_METHODS = "GET, POST, DELETE"
ALLOWED_HEADERS = "Content-Type, Last-Event-ID, Idempotency-Key, Prefer, X-Request-ID"
EXPOSED_HEADERS = "X-Stream-Id, Location, X-Correlation-Id, Retry-After, Preference-Applied"

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
LONGEST_WANTED = 4000
_OPENAI_HEADER = re.compile(r"authorization|(openai|x-stainless)-[a-z0-9-]{1,60}", re.IGNORECASE)
"""What OpenAI's clients send in a browser."""
_TOLD = re.compile(r"x-request-id|x-should-retry|x-ratelimit-[a-z0-9-]{1,60}", re.IGNORECASE)
"""What they read."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


def register(app: Flask) -> None:
    """Put the checks before every view, and the common headers behind it."""
    app.before_request(_admit)
    app.after_request(_complete)


def _admit() -> Response | None:
    _correlate()
    settings = worker().settings
    _check_host(settings.allowed_hosts)
    _check_origin(settings.cors_origins)
    path = request.environ["PATH_INFO"]
    if path.startswith("//") or not path.startswith("/"):
        raise errors.NotFound  # werkzeug takes any number of slashes at the beginning for one
    return _options() if request.method == "OPTIONS" else None


def _complete(response: Response) -> Response:
    finish_connection(response)
    if response.status_code == 204:
        response.headers.remove("Content-Type")  # there is no content
    response.headers["X-Correlation-Id"] = g.get("correlation_id") or str(uuid.uuid4())
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    if "Content-Security-Policy" not in response.headers:
        response.headers["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"
    if is_openai(request.path):
        response.headers["x-request-id"] = response.headers["X-Correlation-Id"]  # the one that SDKs show
    _add_cors(response, worker().settings.cors_origins)
    g.pop("place", None)  # a reader begins now and counts itself; nothing else runs in between
    return response


def _correlate() -> None:
    """Give the request its correlation id, and log that it came."""
    g.correlation_id = str(uuid.uuid4())
    correlation.set(g.correlation_id)
    request_id = request.headers.get("X-Request-ID", "")
    tell(
        facts.RequestReceived(
            correlation_id=g.correlation_id,
            method=request.method if request.method in _METHODS else "other",
            route=request.url_rule.rule if request.url_rule is not None else None,
            request_id=request_id if _REQUEST_ID.fullmatch(request_id) else None,
        )
    )


def _host() -> str:
    """Return the host that the client asks, by the target where it names one, else by the header."""
    target = request.environ.get("RAW_URI", "/")
    if "://" in target and not target.startswith("/"):
        return str(target).split("://", 1)[1].split("/", 1)[0].split("?", 1)[0].lower()
    return str(request.environ.get("HTTP_HOST", "")).lower()


def _check_host(allowed: tuple[str, ...]) -> None:
    host = _host()
    name = re.sub(r":[0-9]*$", "", host)
    if host not in allowed and name not in allowed:
        raise errors.HostNotAllowed


def _is_own(origin: str) -> bool:
    """Tell whether an origin is this server's. Only hosts are compared: a proxy in front of us may speak https."""
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
    """Let no page of another origin start or stop anything. Reading needs a stream id, and such a page has none."""
    if request.method not in ("POST", "DELETE"):
        return
    origin = request.headers.get("Origin", "").lower()
    if origin:
        if origin not in listed and not _is_own(origin):
            raise errors.OriginNotAllowed
    elif request.headers.get("Sec-Fetch-Site", "").lower() == "cross-site":
        raise errors.OriginNotAllowed


def _options() -> Response:
    """Answer OPTIONS for paths that exist. A browser's preflight is such a request."""
    failure = request.routing_exception
    if isinstance(failure, HTTPException) and not isinstance(failure, MethodNotAllowed):
        raise failure
    response = Response(status=204)
    response.headers["Allow"] = ", ".join(sorted(allowed_methods()))
    return response


def allowed_methods() -> set[str]:
    """Return the methods that the request's path answers."""
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
    told = (name for name, _ in response.headers if _TOLD.fullmatch(name))
    response.headers["Access-Control-Expose-Headers"] = ", ".join([EXPOSED_HEADERS, *told])
    if request.method == "OPTIONS":
        response.headers["Access-Control-Allow-Methods"] = ALLOWED_METHODS
        wanted = request.headers.get("Access-Control-Request-Headers", "")[:LONGEST_WANTED].split(",")
        echoed = (name.strip() for name in wanted if _OPENAI_HEADER.fullmatch(name.strip()))
        response.headers["Access-Control-Allow-Headers"] = ", ".join([ALLOWED_HEADERS, *echoed])
        response.headers["Access-Control-Max-Age"] = "600"
