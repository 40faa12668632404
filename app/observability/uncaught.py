"""Logs exceptions that nothing caught. Python would print them to stderr, with their texts."""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
import threading

__all__ = ["catch_uncaught"]

_log = logging.getLogger("app")


def catch_uncaught() -> None:
    """Log exceptions that nothing caught, in every kind of thread of this process.

    gunicorn's master calls this, and so does each worker: its greenlets, threads and event loop have hooks of their
    own.
    """

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
    if hub := sys.modules.get("gevent.hub"):  # gevent calls this also when accept finds no descriptor left
        hub.Hub.print_exception = of_greenlet


def _uncaught(where: str, error: BaseException | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        return
    kind = (type(error), error, error.__traceback__) if error is not None else None
    # At the very end of a process logging may be gone. stderr stays clear even then.
    with contextlib.suppress(Exception):
        _log.error(f"an uncaught exception in a {where}{_advice(error)}", exc_info=kind)


def _advice(error: BaseException | None) -> str:
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return ": no file descriptor is left. Allow more (ulimit -n), or lower MAX_READERS and MAX_ACTIVE_STREAMS"
    return ""
