"""Sends the lines of every library to stdout, in the same form as our own."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence

from app.observability.lines import LineFormatter
from app.observability.stdout import LineHandler

__all__ = ["configure", "flush"]


def configure(*, level: str, secrets: Sequence[str]) -> None:
    """Send every logger's lines to stdout as JSON. May be called again.

    `level` is a name that logging knows. `secrets` are texts that no line may show.
    """
    handler = LineHandler()
    handler.setFormatter(LineFormatter(secrets))
    root = logging.getLogger()
    for former in root.handlers:
        if isinstance(former, LineHandler):
            former.close()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # No line shows these values, so logging need not look them up for each record (logging's HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # A closed stdout must not make logging print records to stderr.
    logging.raiseExceptions = False
    logging.captureWarnings(True)
    for name in ("gunicorn", "gunicorn.error", "gunicorn.access", "gunicorn.http", "werkzeug", "flask.app"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
    logging.getLogger("gunicorn.error").addFilter(_gunicorn_line)
    # At DEBUG these libraries write whole requests, conversations included. gunicorn writes the addresses asked for.
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in ("gunicorn.error", "gunicorn.http"):
        logging.getLogger(name).setLevel(max(logging.INFO, root.level))


def flush(_now: float = 0.0) -> None:
    """Send the lines that stdout had no room for, as far as it has room now."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def _gunicorn_line(record: logging.LogRecord) -> bool:
    """Drop or shorten gunicorn's lines about clients. They hold addresses, and headers that gunicorn could not read."""
    error = record.exc_info[1] if record.exc_info else None
    # A reader vanished, or was dropped because it took nothing (EBADF, from gevent). `reader_left` tells of it.
    left = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EBADF)
    if isinstance(error, OSError) and error.errno in left:
        return False
    if str(record.msg).startswith("Invalid request from ip="):
        record.msg, record.args = "a request was refused before it could be read", ()
    elif str(record.msg).startswith("Error handling request"):
        record.msg, record.args = "a request failed", ()  # the arguments hold the address asked for
    return True
