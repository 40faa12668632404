"""Bounds the size of a request's head and the time that it takes, and lets other threads run during the read.

gunicorn alone takes 800 KB of a head, and scans all of them again at every read. It waits for the rest as long as for
an idle connection. gevent's recv lets no other thread run while there are bytes to receive, such as pipelined requests.
The parser has no hook for this, so its class is extended: look again when the pinned gunicorn moves (DESIGN.md, 21).
"""

from __future__ import annotations

import time
from typing import Any

__all__ = ["bound"]

HEAD_BYTES = 65_536
HEAD_SECONDS = 20.0
HEAD_READS = 1000
BODY_READ_BYTES = 16_384
"""The most bytes that one read of a body takes. gunicorn's own figure is a megabyte, which would come in uncounted."""


def bound() -> None:
    """Extend gunicorn's parser in this process. Call it in a worker alone: gevent must patch before these imports."""
    from gunicorn.http.parser import RequestParser  # type: ignore[import-untyped]
    from gunicorn.http.unreader import SocketUnreader  # type: ignore[import-untyped]

    class Request(RequestParser.mesg_class):  # type: ignore[misc]
        max_buffer_headers = property(lambda self: HEAD_BYTES, lambda self, value: None)  # bounds trailers too
        _due: float | None = None
        _reads = 0

        def read_into(self, unreader: Any, buf: Any, stop: bool = False) -> None:
            time.sleep(0)
            if self._due is None:  # the connection is idle until the first byte: `keepalive` bounds that
                super().read_into(unreader, buf, stop)
                self._due = time.monotonic() + HEAD_SECONDS
                return
            self._reads += 1  # each read scans all bytes again: 64 KB that come byte by byte take 7 s
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
