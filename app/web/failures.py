"""Every failure → the one error shape."""

from __future__ import annotations

import json

from flask import Flask, Response, g
from werkzeug.exceptions import HTTPException

from app import errors
from app.dialects.native.answer import error_body
from app.observability import facts
from app.observability.exceptions import describe
from app.observability.observer import tell
from app.web.access import allowed_methods

__all__ = ["register", "respond"]


def register(app: Flask) -> None:
    app.register_error_handler(errors.ChatError, lambda error: _answer(error))
    app.register_error_handler(HTTPException, lambda error: _answer(_from_http(error)))
    app.register_error_handler(Exception, lambda error: _answer(errors.InternalError(), error))


def _from_http(error: HTTPException) -> errors.ChatError:
    """Map what werkzeug raises: it refuses paths, methods and little else here."""
    error.__traceback__ = error.__context__ = None  # the request keeps the error, whose frames keep the request
    if error.code == 405:
        return errors.MethodNotAllowed(allow=tuple(sorted(allowed_methods())))
    if error.code == 404:
        return errors.NotFound()
    return errors.InvalidRequest("The request could not be read.")


def _answer(error: errors.ChatError, cause: BaseException | None = None) -> Response:
    tell(
        facts.RequestFailed(
            correlation_id=g.correlation_id,
            error_type=error.error_code,
            error_message=error.message,
            detail=error.detail,
            recovery_action=error.action,
            status=error.status,
            origin=error.origin,
            exception=describe(cause) if cause is not None else None,
        )
    )
    return respond(error.status, error_body(error.failure, g.correlation_id), allow=error.allow)


def respond(status: int, body: dict[str, object], *, allow: tuple[str, ...] = ()) -> Response:
    """Write an error body as an answer, with the headers that go with it."""
    response = Response(json.dumps(body), status, mimetype="application/json")
    if body.get("retry_after_seconds") is not None:
        response.headers["Retry-After"] = str(body["retry_after_seconds"])
    if allow:
        response.headers["Allow"] = ", ".join(allow)
    return response
