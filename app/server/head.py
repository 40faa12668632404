"""Bound how large a request's head may be and how slowly it may come, and let others run while it is read. And bound
how much of a body is read at a time.

gunicorn takes 800 KB of it, scans all of it again at every read, and waits for it as long as for an idle connection;
and gevent's recv lets nobody else run while there is something to receive, pipelined requests among it. The parser has
no hook for this, so its class is extended: look again when the pinned gunicorn moves (DESIGN.md, 21).
"""

from __future__ import annotations

import time
from typing import Any

__all__ = ["bound"]

HEAD_BYTES = 65_536
HEAD_SECONDS = 20.0
HEAD_READS = 1000
BODY_READ_BYTES = 16_384
"""The most that one read of a body takes: it would be a megabyte, which nobody has counted yet."""


def bound() -> None:
    """Extend gunicorn's parser in this process. Only in a worker: its imports must not come before the patching."""
    from gunicorn.http.parser import RequestParser  # type: ignore[import-untyped]
    from gunicorn.http.unreader import SocketUnreader  # type: ignore[import-untyped]

    class Request(RequestParser.mesg_class):  # type: ignore[misc]
        max_buffer_headers = property(lambda self: HEAD_BYTES, lambda self, value: None)  # of trailers too
        _due: float | None = None
        _reads = 0

        def read_into(self, unreader: Any, buf: Any, stop: bool = False) -> None:
            time.sleep(0)
            if self._due is None:  # before the first byte it is an idle connection, and `keepalive` bounds it
                super().read_into(unreader, buf, stop)
                self._due = time.monotonic() + HEAD_SECONDS
                return
            self._reads += 1  # each scans all that is there: byte by byte, 64 KB cost 7 s
            left = self._due - time.monotonic()
            if left <= 0 or self._reads > HEAD_READS:  # a recv that finds something never times out
                raise StopIteration
            unreader.sock.settimeout(left)
            try:
                super().read_into(unreader, buf, stop)
            except TimeoutError:
                raise StopIteration from None  # gunicorn's way to close a connection without a word
            finally:
                unreader.sock.settimeout(None)

    RequestParser.mesg_class = Request
    SocketUnreader.max_body_chunk = BODY_READ_BYTES
