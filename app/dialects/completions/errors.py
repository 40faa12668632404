"""Errors in OpenAI's shape, and the failures that ends of logs become."""

from __future__ import annotations

from typing import Any

from app import errors
from app.errors import Failure
from app.streams.interface import End

__all__ = ["cancelled_failure", "error_body", "failure_of", "should_retry", "status_of"]

SHUTDOWN_RETRY_SECONDS = 5
"""As in ChatWait's own dialect."""

_WHY_CANCELLED = {
    "client": "A client stopped the answer before its end.",
    "abandoned": "No client read the answer any more, so it was stopped before its end.",
}


def error_body(failure: Failure, correlation_id: str) -> dict[str, Any]:
    """Write an error: OpenAI's four members, and then our own.

    What the upstream said of the request stands in the four members as the upstream said it.
    """
    reported = failure.reported
    error: dict[str, Any]
    if reported is None:
        error = {
            "message": " ".join([failure.message, failure.detail, failure.action, *_faults_of(failure)]),
            "type": _type_of(failure),
            "param": _param_of(failure),
            "code": failure.error_code,
        }
    else:
        error = {
            "message": reported.message,
            "type": reported.type or _type_of(failure),
            "param": reported.param,
            "code": reported.code,
        }
    error |= {
        "error_code": failure.error_code,
        "detail": failure.detail,
        "action": failure.action,
        "correlation_id": correlation_id,
        "origin": failure.origin,
        "retryable": should_retry(failure),
    }
    if failure.retry_after_seconds is not None:
        error["retry_after_seconds"] = failure.retry_after_seconds
    if failure.fields:
        error["fields"] = failure.fields
    return {"error": error}


def status_of(failure: Failure) -> int:
    """Return the HTTP status of an error, which is the upstream's where the upstream said what is wrong."""
    return errors.status_of(failure.error_code) if failure.reported is None else failure.reported.status


def should_retry(failure: Failure) -> bool:
    """Tell whether asking again may help. SDKs ask again after 408, 409, 429 and 5xx unless they are told not to."""
    status = status_of(failure)
    return failure.retryable and (failure.reported is None or status == 429 or status >= 500)


def failure_of(end: End) -> Failure | None:
    """Return the failure that a log's end is for a client. None for an answer that is complete."""
    return cancelled_failure(end) if end.status == "cancelled" else end.error


def cancelled_failure(end: End) -> Failure:
    """Return the failure that a cancelled end is. Asking again helps only where a stop of the service cancelled it."""
    if end.reason == "shutdown":
        return errors.ShuttingDown(retry_after_seconds=SHUTDOWN_RETRY_SECONDS).failure
    return errors.Cancelled(_WHY_CANCELLED.get(end.reason or "")).failure


def _type_of(failure: Failure) -> str:
    status = status_of(failure)
    if status == 429 or failure.error_code == errors.Overloaded.error_code:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def _faults_of(failure: Failure) -> list[str]:
    """Name the wrong fields, because SDKs show the message alone."""
    return [f"{name}: {faults[0]}" for name, faults in (failure.fields or {}).items() if not name.startswith("_")]


def _param_of(failure: Failure) -> str | None:
    """Name the one field that is wrong. None where several are, or none is."""
    names = [name for name in failure.fields or () if not name.startswith("_")]
    return names[0] if len(names) == 1 else None
