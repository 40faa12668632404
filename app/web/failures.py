"""Exceptions as responses. The manner of the path writes the body. The log line is the same everywhere."""

from __future__ import annotations

import json

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from app import errors
from app.errors import Failure
from app.observability import facts
from app.observability.exceptions import describe
from app.observability.observer import tell
from app.web.access import allowed_methods
from app.web.manners import SERVED, is_openai, manner_of

__all__ = ["add_retry_after", "register", "status_of"]


def register(app: Flask) -> None:
    """Have every exception answered."""
    app.register_error_handler(errors.ChatError, _answer)
    app.register_error_handler(HTTPException, lambda error: _answer(_from_http(error)))
    app.register_error_handler(Exception, lambda error: _answer(errors.InternalError(), error))


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
        return errors.NotFound(SERVED if is_openai(request.path) else None)
    return errors.InvalidRequest("The request could not be read.")


def _answer(error: errors.ChatError, cause: BaseException | None = None) -> Response:
    manner, failure = manner_of(request.path), error.failure
    status = manner.status(failure)
    tell(
        facts.RequestFailed(
            correlation_id=g.correlation_id,
            error_type=error.error_code,
            error_message=error.message,
            detail=error.detail,
            recovery_action=error.action,
            status=status,
            origin=error.origin,
            exception=describe(cause) if cause is not None else None,
        )
    )
    body = json.dumps(manner.body(failure, g.correlation_id))
    response = Response(body, status, mimetype="application/json")
    response.headers.update(manner.headers(failure))
    add_retry_after(response, failure)
    if error.allow:
        response.headers["Allow"] = ", ".join(error.allow)
    return response
