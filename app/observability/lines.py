"""Formats a log line: one JSON object, in UTC, without the text of a conversation, a key or a stream id.

The lines of libraries are formatted in the same way. A value that cannot be formatted is replaced by a text that says
so. Otherwise logging would print the raw record to stderr, past every rule here.
"""

from __future__ import annotations

import contextvars
import json
import logging
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from app.observability.exceptions import describe
from app.observability.redaction import MARK, redact
from app.observability.stdout import Event
from app.platform.utc import utc_now

__all__ = ["LONGEST_LINE_BYTES", "LineFormatter", "correlation"]

LONGEST_LINE_BYTES = 4_095
"""Without the line's end: a pipe takes 4,096 bytes whole or not at all."""

LONGEST_TEXT_CHARS = 1_000
SHORT_TEXT_CHARS = 200
FEWEST_SECRET_CHARS = 6
"""A shorter secret is not looked for: it would be found in any word."""

DEEPEST = 6

correlation: contextvars.ContextVar[str | None] = contextvars.ContextVar("correlation", default=None)
"""The id of the request that this thread answers, for lines that name none."""

# These fields are made by the service. They hold nothing from a client or a library, and need no redaction.
_OWN_FIELDS = frozenset({"timestamp", "correlation_id", "stream", "bytes", "ms"})


def _attempt(make: Callable[[], str], otherwise: str) -> str:
    """Return what `make` returns, or `otherwise` if it fails. Logging's own handling of failures prints to stderr."""
    try:
        return make()
    except Exception:  # noqa: BLE001 - any text, argument or object of any library
        return otherwise


def _plain(value: object) -> str:
    return value if type(value) is str else _attempt(lambda: str(value), f"[{type(value).__name__}]")


_encode = json.JSONEncoder().encode


@lru_cache(1024)
def _is_secret(name: str) -> bool:
    return redact(f"{name}=x").endswith(MARK)


class LineFormatter(JsonFormatter):
    """Formats every record as one line, whatever it holds."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        """`secrets`: texts that no line may show."""
        # All values are plain by then (`_clean`), so one encoder serves all lines. It writes ASCII.
        super().__init__(json_serializer=lambda log_data, **_: _encode(log_data))
        self._secrets = tuple(secret for secret in secrets if len(secret) >= FEWEST_SECRET_CHARS)

    def format(self, record: logging.LogRecord) -> str:
        text = _plain(record.msg)
        if record.args:
            text = _attempt(record.getMessage, f"{text:.1000} (its arguments could not be formatted)")
        if text is not record.msg:
            record = logging.makeLogRecord({**record.__dict__, "msg": text, "args": ()})
        return _attempt(lambda: self._line(record), "") or self._last_resort(record)

    def _line(self, record: logging.LogRecord) -> str:
        log_data: dict[str, Any] = {}
        self.add_fields(log_data, record, {})
        return self.jsonify_log_record(self.process_log_record(log_data))

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        log_data["timestamp"] = utc_now(record.created)
        log_data["level"] = record.levelname
        if isinstance(record, Event):
            log_data["event"] = record.msg
            log_data["correlation_id"] = record.fields.get("correlation_id") or correlation.get()
            log_data["logger"] = record.name
            for name, value in record.fields.items():
                log_data.setdefault(name, value)
        else:
            log_data["event"] = "log"
            log_data["correlation_id"] = correlation.get()
            log_data["message"] = record.msg
            log_data["logger"] = record.name  # a library's own fields may hold anything, so they stay out
        if record.exc_info and record.exc_info[0] is not None:
            log_data["exception"] = describe(record.exc_info[1])

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {name: value if name in _OWN_FIELDS else self._named(name, value) for name, value in log_data.items()}

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        line = super().jsonify_log_record(log_data)
        if len(line) <= LONGEST_LINE_BYTES:
            return line
        # The longest values are shortened first. A text keeps its beginning. Other values leave a note of their size.
        sizes = {name: len(json.dumps(value)) for name, value in log_data.items()}
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            value = log_data[name]
            log_data[name] = (
                value[:SHORT_TEXT_CHARS] + "…" if isinstance(value, str) else f"[{sizes[name]} bytes left out]"
            )
            line = super().jsonify_log_record(log_data)
            if len(line) <= LONGEST_LINE_BYTES:
                break
        return line if len(line) <= LONGEST_LINE_BYTES else ""

    def _last_resort(self, record: logging.LogRecord) -> str:
        """Name the logger and the line of a record that could not be formatted even in parts."""
        return json.dumps(
            {
                "timestamp": utc_now(record.created),
                "level": record.levelname,
                "event": "log_line_unformatted",
                "correlation_id": correlation.get(),
                "logger": self._text(record.name)[:100],
                "line": record.lineno,
            }
        )

    def _clean(self, value: Any, depth: int = 0) -> Any:
        """Redact every text in a value, names included. A value without a form in JSON becomes a text."""
        if type(value) is str:
            return self._text(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return int(value) if value.bit_length() < 64 else f"[an integer of {value.bit_length()} bits]"
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(value)
        if isinstance(value, dict | list | tuple) and depth == DEEPEST:
            return "…"
        if isinstance(value, dict):
            return {self._text(name): self._named(name, inner, depth + 1) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._clean(inner, depth + 1) for inner in value[:1000]]
        return self._text(value)

    def _named(self, name: object, value: Any, depth: int = 0) -> Any:
        """Redact a value, also by its name: nothing but its name gives a password away."""
        if isinstance(value, str) and isinstance(name, str) and _is_secret(name):
            return MARK
        return self._clean(value, depth)

    def _text(self, value: object) -> str:
        return redact(_plain(value), secrets=self._secrets, longest=LONGEST_TEXT_CHARS)
