"""JSON of ChatWait's own dialect: how an end, an error and a whole answer look on the wire."""

from __future__ import annotations

from typing import Any

from app.errors import Failure
from app.streams.interface import End, Origin

__all__ = ["answer", "end_data", "error_body"]


def error_body(failure: Failure, correlation_id: str) -> dict[str, Any]:
    """Write an error. Shape: `Error` in contracts/openapi.yaml, its keys in that order."""
    body: dict[str, Any] = {
        "error_code": failure.error_code,
        "message": failure.message,
        "detail": failure.detail,
        "action": failure.action,
        "correlation_id": correlation_id,
        "origin": failure.origin,
        "retryable": failure.retryable,
    }
    if failure.retry_after_seconds is not None:
        body["retry_after_seconds"] = failure.retry_after_seconds
    if failure.fields:
        body["fields"] = failure.fields
    return body


def end_data(origin: Origin, end: End) -> dict[str, Any]:
    """Write the data of the terminal event. Shape: contracts/events.md, its keys in that order."""
    data: dict[str, Any] = {
        "sequence": end.records + 1,
        "is_final": True,
        "status": end.status,
        "finish_reason": end.finish_reason,
        "model": origin.model,
        "tokens": end.records,
        "usage": end.usage._asdict(),
        "first_token_ms": end.first_token_ms,
        "duration_ms": end.duration_ms,
        "characters": end.characters,
        "sha256": end.sha256,
        "correlation_id": origin.correlation_id,
    }
    if end.reason:
        data["reason"] = end.reason
    if end.error:
        data["error"] = error_body(end.error, origin.correlation_id)
    return data


def answer(stream_id: str, origin: Origin, end: End, correlation_id: str, *, text: str) -> dict[str, Any]:
    """Write the wait-mode answer of a generation that has ended. Shape: `Answer` in contracts/openapi.yaml."""
    body = {
        "stream_id": stream_id,
        "correlation_id": correlation_id,
        "status": end.status,
        "model": origin.model,
        "content": text,
        "finish_reason": end.finish_reason,
        "tokens": end.records,
        "usage": end.usage._asdict(),
        "created": origin.created,
        "first_token_ms": end.first_token_ms,
        "duration_ms": end.duration_ms,
        "characters": end.characters,
        "sha256": end.sha256,
    }
    if end.reason:
        body["reason"] = end.reason
    return body
