"""A request to the upstream that another thread can stop at any moment."""

from __future__ import annotations

import contextvars
import socket

__all__ = ["Call", "current_call"]

current_call: contextvars.ContextVar[Call | None] = contextvars.ContextVar("current_call", default=None)
"""The call that the transport serves. The interface of httpx has no place for a call."""


class Call:
    """One request on its way, with all of its attempts.

    Another thread can cancel a call while it looks up a name, connects, shakes hands, waits or reads.
    """

    def __init__(self) -> None:
        self.cancelled = False
        self.tried = False
        """At least one attempt has been made."""
        self.asked_again = 0
        """How many requests were sent on a kept connection to their last byte, and then once more on a new one."""
        self._socket: socket.socket | None = None
        self._connecting = False

    def adopt(self, sock: socket.socket, *, connecting: bool = False) -> None:
        """Note the socket that the call waits on from here on.

        Raises: OSError when the call was cancelled meanwhile.
        """
        self._socket = sock
        self._connecting = connecting
        if self.cancelled:
            raise ConnectionAbortedError("the call was cancelled")

    def release(self) -> None:
        """Forget the socket: a later cancel must not touch it."""
        self._socket = None

    def cancel(self) -> None:
        """Shut the socket down. The thread that waits on the socket wakes up and closes the socket. Never waits."""
        self.cancelled = True
        sock = self._socket
        if sock is None:
            return
        try:
            # The plain socket's method: an SSLSocket's own takes the TLS layer away from under its reader.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            pass  # The socket is not connected yet, or is gone already.
        if self._connecting:
            # A connection attempt that is under way has no other end yet. Only a close wakes its thread.
            sock.close()
