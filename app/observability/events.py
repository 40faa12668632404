"""JSON lines on stdout: one event a line, UTC, never the text of a conversation, a key or a stream id.

Every library's lines go the same way. What cannot be formatted is replaced, value by value, by what tells so: left to
itself, logging would print the raw record to stderr, past every rule here.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import json
import logging
import math
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from app.observability.redaction import MARK, redact
from app.observability.stdout import Event, LineHandler
from app.settings import Settings, read_settings

__all__ = ["ChunkLog", "catch_uncaught", "configure", "correlation", "event", "flush", "utc_now"]

LONGEST_LINE_BYTES = 4_095  # and its end: what a pipe takes whole or not at all
LONGEST_TEXT_CHARS = 1_000
SHORT_TEXT_CHARS = 200
DEEPEST = 6

correlation: contextvars.ContextVar[str | None] = contextvars.ContextVar("correlation", default=None)

_log = logging.getLogger("app")

# Made here: nothing that a client or a library said is in them, and every line has them.
_OWN_FIELDS = frozenset({"timestamp", "correlation_id", "stream", "bytes", "ms"})


def utc_now(at: float | None = None) -> str:
    """Format a time (now by default; Units: seconds since 1970) as UTC ISO 8601 with milliseconds and Z."""
    second, fraction = divmod(time.time() if at is None else at, 1)
    return f"{_second(int(second))}.{int(fraction * 1000):03d}Z"


@lru_cache(4)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _attempt(make: Callable[[], str], otherwise: str) -> str:
    """Return what `make` returns, or say otherwise: nothing may reach logging's own handling of a failure."""
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


class _Formatter(JsonFormatter):
    def __init__(self, key: str) -> None:
        # What is written is plain by then (`_clean`), so one encoder will do for all lines. ASCII, as is its default.
        super().__init__(json_serializer=lambda log_data, **_: _encode(log_data))
        self._key = key if len(key) >= 6 else ""

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
            log_data["logger"] = record.name  # a library's own fields may hold anything, and stay out
        if record.exc_info and record.exc_info[0] is not None:
            log_data["exception"] = _describe(record.exc_info[1])

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {name: value if name in _OWN_FIELDS else self._named(name, value) for name, value in log_data.items()}

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        line = super().jsonify_log_record(log_data)
        if len(line) <= LONGEST_LINE_BYTES:
            return line
        # The longest go first; of a text its beginning stays, of the rest what tells that it was there.
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
        """Say that something was said, and where, when even its parts could not be."""
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
        """Redact every text in a value, names included; what JSON has no form for becomes its text first."""
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
        """Redact a value, also by its name: of a password nothing but that gives it away."""
        if isinstance(value, str) and isinstance(name, str) and _is_secret(name):
            return MARK
        return self._clean(value, depth)

    def _text(self, value: object) -> str:
        return redact(_plain(value), secret=self._key, longest=LONGEST_TEXT_CHARS)


def _describe(error: BaseException | None) -> dict[str, Any]:
    """Tell an exception's type and where it came from; its text may quote a conversation, so it stays out."""
    places = [
        f"{frame.filename.rsplit('/site-packages/', 1)[-1].rsplit('/app/', 1)[-1]}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__ if error else None)[-12:]
    ]
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < 5:
        chain.append(type(cause).__name__)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    described: dict[str, Any] = {"types": chain, "places": places}
    if isinstance(error, OSError) and (name := errno.errorcode.get(error.errno or 0)):
        described["errno"] = name
    return described


def _gunicorn_line(record: logging.LogRecord) -> bool:
    """Drop or shorten what gunicorn says of its clients: addresses, and headers that it could not read."""
    error = record.exc_info[1] if record.exc_info else None
    # A reader that vanished, or (EBADF, from gevent) that took nothing and was dropped: `reader_left` tells of it.
    left = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EBADF)
    if isinstance(error, OSError) and error.errno in left:
        return False
    if str(record.msg).startswith("Invalid request from ip="):
        record.msg, record.args = "a request was refused before it could be read", ()
    elif str(record.msg).startswith("Error handling request"):
        record.msg, record.args = "a request failed", ()  # the address asked for stands there
    return True


def configure(settings: Settings) -> None:
    """Send every logger's lines to stdout as JSON. May be called again."""
    handler = LineHandler()
    handler.setFormatter(_Formatter(settings.openai_api_key))
    root = logging.getLogger()
    for former in root.handlers:
        if isinstance(former, LineHandler):
            former.close()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    # What no line tells need not be found out for each (logging's HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # A stream that is gone (a closed pipe) must not make logging print records to stderr.
    logging.raiseExceptions = False
    logging.captureWarnings(True)
    for name in ("gunicorn", "gunicorn.error", "gunicorn.access", "gunicorn.http", "werkzeug", "flask.app"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
    logging.getLogger("gunicorn.error").addFilter(_gunicorn_line)
    # At DEBUG these write whole requests, conversations included, and gunicorn the addresses asked for.
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in ("gunicorn.error", "gunicorn.http"):
        logging.getLogger(name).setLevel(max(logging.INFO, root.level))


def catch_uncaught() -> None:
    """Have exceptions that nobody catches told as lines, and not printed with their texts to stderr.

    Called in gunicorn's master, and in each worker, whose greenlets, threads and event loop have ways of their own.
    """
    import sys
    import threading

    def of_process(_kind: type[BaseException], error: BaseException, _trace: object) -> None:
        _uncaught("process", error)

    def of_thread(told: threading.ExceptHookArgs) -> None:
        if told.exc_type is not SystemExit:
            _uncaught("thread", told.exc_value)

    def unraisable(told: sys.UnraisableHookArgs) -> None:
        _uncaught("finalizer", told.exc_value)

    def of_greenlet(_hub: object, _context: object, _kind: object, error: object, _trace: object) -> None:
        _uncaught("greenlet", error if isinstance(error, BaseException) else None)

    sys.excepthook = of_process
    threading.excepthook = of_thread
    sys.unraisablehook = unraisable
    if hub := sys.modules.get("gevent.hub"):  # also where accept finds no descriptor left
        hub.Hub.print_exception = of_greenlet


def _uncaught(where: str, error: BaseException | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        return
    kind = (type(error), error, error.__traceback__) if error is not None else None
    # At the very end of a process there may be no logging left, and stderr stays clear even then.
    with contextlib.suppress(Exception):
        _log.error(f"an exception that nobody caught, in a {where}{_advice(error)}", exc_info=kind)


def _advice(error: BaseException | None) -> str:
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return ": no descriptor is left; allow more (ulimit -n), or lower MAX_READERS and MAX_ACTIVE_STREAMS"
    return ""


def event(name: str, *, level: int = logging.INFO, failure: BaseException | None = None, **fields: Any) -> None:
    """Write one line: the event's name and its fields. `failure` adds an exception's types and places."""
    if _log.isEnabledFor(level):
        _log.handle(Event(name, level, fields, failure))


def flush(_now: float = 0.0) -> None:
    """Send the lines that stdout had no room for, as far as it has now."""
    for handler in logging.getLogger().handlers:
        handler.flush()


class ChunkLog:
    """Every chunk's sequence, size and time, many chunks a line: at most a line a second and one at the end,
    more only where a line would grow over its limit.

    Units: `bytes` of UTF-8; `ms` since the generation began.
    """

    LINE_CHUNKS = 240

    __slots__ = ("_correlation_id", "_due", "_first", "_sizes", "_started", "_stream", "_times", "debug")

    def __init__(
        self, *, stream: str, correlation_id: str, started: float, sizes: Callable[[int, int], list[int]]
    ) -> None:
        """`sizes` is asked for the sizes of the chunks from one sequence number to another, both included."""
        self._stream = stream
        self._correlation_id = correlation_id
        self._started = started
        self._sizes = sizes
        self._due = started + 1.0
        self._first = 1
        self._times: list[float] = []
        self.debug = _log.isEnabledFor(logging.DEBUG)

    def add(self, count: int, at: float) -> None:
        """Note chunks that came together. Units: monotonic seconds."""
        for _ in range(count):
            self._times.append(at)
            if self.debug:
                self._tell_last()
            if len(self._times) >= self.LINE_CHUNKS:
                self.flush(at)
        if at >= self._due:
            self.flush(at)

    def flush(self, at: float) -> None:
        """Write what has been noted since the last line, if anything."""
        times, self._times = self._times, []
        if not times:
            return
        first, self._first = self._first, self._first + len(times)
        self._due = at + 1.0
        event(
            "chunks_sent",
            stream=self._stream,
            correlation_id=self._correlation_id,
            first=first,
            last=self._first - 1,
            bytes=self._sizes(first, self._first - 1),
            ms=[self._ms(sent) for sent in times],
        )

    def _tell_last(self) -> None:
        sequence = self._first + len(self._times) - 1
        event(
            "chunk_sent",
            level=logging.DEBUG,
            stream=self._stream,
            correlation_id=self._correlation_id,
            sequence=sequence,
            bytes=self._sizes(sequence, sequence)[0],
            ms=self._ms(self._times[-1]),
        )

    def _ms(self, at: float) -> int:
        return int((at - self._started) * 1000)


def early_formatter() -> logging.Formatter:
    """Build the formatter for gunicorn's own configuration, before the application's logging stands."""
    return _Formatter(read_settings().openai_api_key)
