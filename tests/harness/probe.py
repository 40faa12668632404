"""Look into the worker from a test: gunicorn loads `tests.harness.probe:probed()` instead of `wsgi:app`.

The service is the same, with one path more, answered before anything of the service sees the request. It counts what
`psutil` cannot see from outside: greenlets, and what the service itself says that it holds.
Must never change what the service does, nor be loaded by anything but a test.
"""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Iterable
from typing import Any

PATH = "/__probe__"
TARGET = "tests.harness.probe:probed()"
KEPT = ("Generation", "MemoryLog", "MemoryReader")


def probed() -> Any:
    """Build the service, and let the probe answer at its path; called in the worker, after gevent has patched."""
    from wsgi import app

    app.wsgi_app = _Probe(app.wsgi_app, app.extensions["chatwait"])
    return app


class _Probe:
    """Answer one path, and pass every other request on untouched."""

    def __init__(self, inner: Callable[..., Iterable[bytes]], runtime: Any) -> None:
        self._inner = inner
        self._runtime = runtime

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != PATH:
            return self._inner(environ, start_response)
        body = json.dumps(self._look()).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def _look(self) -> dict[str, int]:
        """Count; it takes the worker a fifth of a second, in which nothing else moves."""
        from greenlet import getcurrent, greenlet

        gc.collect()  # what only waits to be collected is not held
        found = gc.get_objects()
        kept = dict.fromkeys(KEPT, 0)
        greenlets = 0
        here = getcurrent()
        for item in found:
            if isinstance(item, greenlet):
                greenlets += item is not here and not item.dead
            elif type(item).__name__ in kept and type(item).__module__.startswith("app."):
                kept[type(item).__name__] += 1
        return {
            "greenlets": greenlets,
            "python_threads": threading.active_count(),
            "objects": len(found),
            "generations": kept["Generation"],
            "logs": kept["MemoryLog"],
            "log_readers": kept["MemoryReader"],
            "readers": self._runtime.readers.count,
            "live": self._runtime.store.live,
            "store_bytes": self._runtime.store.used_bytes,
        }
