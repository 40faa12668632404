"""JSON of ChatWait's own dialect: an end, an error, and the answers to wait and to stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from json.encoder import encode_basestring_ascii
from typing import Any

from app import errors
from app.errors import Failure
from app.streams.interface import End, Origin

__all__ = [
    "answer",
    "around_text",
    "end_data",
    "error_body",
    "failed_answer",
    "failure_of",
    "running",
    "stopped",
    "text_bytes",
]

SHUTDOWN_RETRY_SECONDS = 5


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


def failure_of(end: End) -> Failure | None:
    """Return the failure that wait mode answers with, None for an answer. A generation that a stop of the service
    cancelled becomes a failure, because asking again helps."""
    if end.reason == "shutdown":
        return errors.ShuttingDown(retry_after_seconds=SHUTDOWN_RETRY_SECONDS).failure
    return end.error


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


def failed_answer(failure: Failure, end: End, correlation_id: str, *, text: str) -> dict[str, Any]:
    """Write the wait-mode answer of a generation that failed. Shape: `Error` with `partial` in
    contracts/openapi.yaml."""
    return {**error_body(failure, correlation_id), "partial": {"content": text, "tokens": end.records}}


def running(stream_id: str, head: int) -> dict[str, Any]:
    """Write the answer for a client that waits no longer. Shape: `Running` in contracts/openapi.yaml."""
    return {"stream_id": stream_id, "status": "running", "tokens": head}


def stopped(stream_id: str, end: End | None, records: int) -> dict[str, Any]:
    """Write the answer to a stop. Shape: `Stopped` in contracts/openapi.yaml."""
    return {"stream_id": stream_id, "status": "running" if end is None else end.status, "tokens": records}


_TEXT = "\0text\0"
"""Stands for the text in a body. No other part of a body has a NUL."""


def around_text(body: Callable[[str], dict[str, Any]]) -> tuple[bytes, bytes]:
    """Write a body without its text: the bytes before the text's characters, and the bytes after them."""
    before, _, after = json.dumps(body(_TEXT)).partition(json.dumps(_TEXT)[1:-1])
    return before.encode("ascii"), after.encode("ascii")


def text_bytes(text: str) -> bytes:
    """Write a part of a JSON string's characters."""
    return encode_basestring_ascii(text)[1:-1].encode("ascii")
