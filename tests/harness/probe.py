"""Look into the worker from a test: gunicorn loads `tests.harness.probe:probed()` instead of `wsgi:app`.

The service is the same, with one path more, answered before anything of the service sees the request. It counts what
`psutil` cannot see from outside: greenlets, what the service itself says that it holds, and which texts still live.
Must never change what the service does, nor be loaded by anything but a test.
"""

from __future__ import annotations

import gc
import io
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

PATH = "/__probe__"
UNCOLLECTED = "uncollected"
TARGET = "tests.harness.probe:probed()"
HOLDING = (str, bytes, bytearray, io.BytesIO)
KEPT = ("Generation", "MemoryLog", "LogReader")


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
        asked = environ["QUERY_STRING"]
        told: Any = _uncollected() if asked == UNCOLLECTED else _holders(asked) if asked else self._look()
        body = json.dumps(told).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def _look(self) -> dict[str, int]:
        """Count; it takes the worker a fifth of a second, in which nothing else moves."""
        from greenlet import getcurrent, greenlet

        collects = gc.isenabled()
        if collects:
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
            "collects": int(collects),
            "greenlets": greenlets,
            "python_threads": threading.active_count(),
            "objects": len(found),
            "generations": kept["Generation"],
            "logs": kept["MemoryLog"],
            "log_readers": kept["LogReader"],
            "readers": self._runtime.readers.count,
            "live": self._runtime.store.live,
            "store_bytes": self._runtime.store.used_bytes,
        }


def _uncollected() -> dict[str, int]:
    """Switch the collector off for good, the first time; then count what it would have had to collect, by its type.

    What lives in spite of being held by nobody holds itself: a cycle.
    """
    if gc.isenabled():
        gc.disable()
        gc.collect()
        return {}
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    counts = Counter(type(item).__name__ for item in gc.garbage)
    gc.set_debug(0)
    gc.garbage.clear()
    gc.collect()
    return counts


def _holders(reversed_text: str) -> dict[str, list[str]]:
    """Name the type of each live object that holds a text, which comes reversed: the question must not hold it."""
    text = reversed_text[::-1]
    data = text.encode()
    gc.collect()
    held: list[str] = []
    for item in _living():
        if not isinstance(item, HOLDING) or item is text or item is data:
            continue
        if isinstance(item, str):
            found = text in item
        elif isinstance(item, io.BytesIO):
            found = not item.closed and data in item.getvalue()
        else:
            found = data in item
        if found:
            held.append(type(item).__name__)
    return {"holders": held}


def _living() -> Iterator[Any]:
    """Give each object that anything refers to, once: also what the collector does not watch, and all local names."""
    found = [*gc.get_objects(), *_local_names()]
    seen: dict[int, Any] = {}  # it holds them, so that no id is given twice
    while found:  # all at once: one after another, a million of them take seconds
        fresh = dict(zip(map(id, found), found, strict=True))
        for known in fresh.keys() & seen.keys():
            del fresh[known]
        seen |= fresh
        yield from fresh.values()
        found = gc.get_referents(*fresh.values())


def _local_names() -> Iterator[dict[str, Any]]:
    """Give the local names of every frame of each greenlet and thread, which the collector does not see."""
    from greenlet import greenlet

    tops = [item.gr_frame for item in gc.get_objects() if isinstance(item, greenlet)]
    for top in (*tops, *sys._current_frames().values()):
        frame: FrameType | None = top
        while frame is not None:
            yield frame.f_locals
            frame = frame.f_back
