"""Exceptions as responses. A dialect writes the body. Status, headers and log line are the same in all dialects."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Flask, Response, g
from werkzeug.exceptions import HTTPException

from app import errors
from app.errors import Failure
from app.observability import facts
from app.observability.exceptions import describe
from app.observability.observer import tell
from app.web.access import allowed_methods

__all__ = ["add_retry_after", "register", "status_of"]

Write = Callable[[Failure, str], dict[str, Any]]
"""Writes a failure and the request's correlation id as a dialect's body."""


def register(routes: Flask | Blueprint, write: Write) -> None:
    """Have every exception of an application, or of a blueprint with a dialect of its own, answered in a dialect."""
    routes.register_error_handler(errors.ChatError, lambda error: _answer(write, error))
    routes.register_error_handler(HTTPException, lambda error: _answer(write, _from_http(error)))
    routes.register_error_handler(Exception, lambda error: _answer(write, errors.InternalError(), error))


def status_of(failure: Failure | None) -> int:
    """Return the HTTP status of an answer, which is 200 without a failure."""
    return 200 if failure is None else errors.status_of(failure.error_code)


def add_retry_after(response: Response, failure: Failure | None) -> None:
    if failure is not None and failure.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(failure.retry_after_seconds)


def _from_http(error: HTTPException) -> errors.ChatError:
    """Map what werkzeug raises. Here werkzeug refuses paths and methods, and little else."""
    error.__traceback__ = error.__context__ = None  # the request keeps the error, whose frames keep the request
    if error.code == 405:
        return errors.MethodNotAllowed(allow=tuple(sorted(allowed_methods())))
    if error.code == 404:
        return errors.NotFound()
    return errors.InvalidRequest("The request could not be read.")


def _answer(write: Write, error: errors.ChatError, cause: BaseException | None = None) -> Response:
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
    failure = error.failure
    body = json.dumps(write(failure, g.correlation_id))
    response = Response(body, error.status, mimetype="application/json")
    add_retry_after(response, failure)
    if error.allow:
        response.headers["Allow"] = ", ".join(error.allow)
    return response
