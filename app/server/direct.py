"""Ways past gunicorn's response object: writing to its connection directly, and closing it after the answer."""

from __future__ import annotations

import os
import socket
import ssl
from typing import Any

from app.platform.gevent_loop import in_loop

__all__ = ["DirectWriter", "close_connection", "direct_writer", "remember_response"]

RESPONSE = "chatwait.response"
"""Where a request's environ keeps gunicorn's response object."""


class DirectWriter:
    """Writes pieces of a response's body past the server that owns the connection. `write` never waits.

    The caller knows that the head is out and that the server writes nothing at the moment.
    """

    def __init__(self, sock: socket.socket, *, chunked: bool) -> None:
        self._sock = sock
        self._descriptor = sock.fileno()
        self._chunked = chunked
        self._rest = b""
        self.is_clear = True
        """The kernel has taken all that was written."""

    def write(self, data: bytes) -> bool:
        """Write one piece. False when the connection took none of it, because it is full or gone."""
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        try:
            sent = os.write(self._descriptor, data)
        except OSError:
            return False
        if sent < len(data):
            self._rest = data[sent:]
            self.is_clear = False
        return True

    def finish(self) -> None:
        """Write the bytes that the kernel had no room for. Waits. Raises: OSError."""
        rest, self._rest, self.is_clear = self._rest, b"", True
        if rest:
            self._sock.sendall(rest)


def remember_response(environ: dict[str, Any], start_response: Any) -> None:
    """Keep gunicorn's response object with its request. `start_response` is a method of that object."""
    environ[RESPONSE] = getattr(start_response, "__self__", None)


def direct_writer(environ: dict[str, Any]) -> DirectWriter | None:
    """Make a writer for a request's connection. It may be used once the head of the answer is out.

    None for a connection that is not plain, and where another thread could write at the same moment.
    """
    chunked, sock = getattr(environ.get(RESPONSE), "chunked", None), environ.get("gunicorn.socket")
    if chunked is None or sock is None or isinstance(sock, ssl.SSLSocket) or not in_loop():
        return None
    return DirectWriter(sock, chunked=chunked)


def close_connection(environ: dict[str, Any]) -> None:
    """Close the connection after this answer. A head that is not out yet announces it.

    gunicorn drops the `Connection: close` of an application, so its response object is told instead.
    """
    if force_close := getattr(environ.get(RESPONSE), "force_close", None):
        force_close()
