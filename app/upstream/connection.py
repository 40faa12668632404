"""One connection to the upstream: it dials, sends, and tells whether a kept connection may still be used."""

from __future__ import annotations

import enum
import http.client
import socket
import ssl
from typing import Any

from app.platform.sockets import is_connected, is_quiet
from app.upstream.call import Call
from app.upstream.head import Head

__all__ = ["Connection", "Spoken", "State", "Unfit"]

NEXT_ADDRESS_SECONDS = 5.0
"""How long each address of a host is tried. The last one has no limit."""

TIMED_OUT = (b"HTTP/1.1 408", b"HTTP/1.0 408")
"""Some servers close an idle connection with these bytes. Source: Go's net/http, `is408Message`."""

REFUSED = tuple(b"HTTP/1.%d %d" % (minor, kind) for minor in (0, 1) for kind in (4, 5))
"""How an error begins that is sent before the whole request has arrived."""


class State(enum.Enum):
    """What a kept connection is fit for."""

    QUIET = enum.auto()
    """A request may be sent."""
    CLOSED = enum.auto()
    """The upstream has closed the connection, or may be about to."""
    SPOKE = enum.auto()
    """Bytes came that nobody asked for. The next request would take them for its answer."""


class Unfit(ConnectionError):
    """The connection cannot be used. The upstream has not received a whole request on it."""


class Spoken(Unfit):
    """The upstream has sent something that nobody asked for."""


class Connection(http.client.HTTPConnection):
    """A connection that tells its call about every socket that it waits on."""

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None) -> None:
        super().__init__(host, port)
        self.call = Call()
        self.tls = tls
        self.idle_since = 0.0
        """Units: monotonic seconds."""
        self.used = False
        """An answer has been read on this connection before."""
        self.asked = False
        """The upstream may have received the whole request."""
        self._head: Head | None = None
        self._gathering: bytearray | None = None
        self.default_port = 443 if tls else 80

    def connect(self) -> None:
        """Dial, pass through the proxy if there is one, and shake hands. Raises: OSError, HTTPException."""
        self.sock = self._dial()
        if getattr(self, "_tunnel_host", None):
            self._tunnel()  # type: ignore[attr-defined]
            assert self._head is not None
            self._head.close()  # Not every version of http.client closes it.
            if self._head.has_surplus:
                raise http.client.HTTPException("the proxy sent more than an answer to CONNECT")
        if self.tls is not None:
            name = getattr(self, "_tunnel_host", None) or self.host
            self.sock = self.tls.wrap_socket(self.sock, server_hostname=name, do_handshake_on_connect=False)
            self.call.adopt(self.sock)
            self.sock.do_handshake()

    def _dial(self) -> socket.socket:
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        for number, (family, kind, protocol, _, address) in enumerate(found, 1):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # Urgent bytes would hide what follows them.
                self.call.adopt(sock, connecting=True)
                # An address that swallows packets (IPv6 that goes nowhere) must not use up the others' time.
                sock.settimeout(None if number == len(found) else NEXT_ADDRESS_SECONDS)
                sock.connect(address)
                sock.settimeout(None)
                self.call.adopt(sock)
                return sock
            except OSError:
                sock.close()
                if self.call.cancelled or number == len(found):
                    raise
        raise OSError("the host name has no address")

    def response_class(  # type: ignore[override]
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None
    ) -> Head:
        """Make the reader of an answer's head. http.client calls this."""
        self._head = Head(sock, debuglevel, method)
        return self._head

    def gathered(self, content: bytes) -> memoryview:
        """End the request's head and return all of the request's bytes, for `send`."""
        self._gathering = bytearray()
        try:
            self.endheaders(content)
            return memoryview(self._gathering)
        finally:
            self._gathering = None

    def send(self, data: Any) -> None:
        """Send bytes, or keep them for `gathered`. http.client calls this for head and body."""
        if self._gathering is None:
            super().send(data)
        else:
            self._gathering += data

    def abandon(self) -> None:
        """Close the connection, even if http.client has left it to an answer that nobody will read."""
        self.close()
        if self._head is not None:
            self._head.close()

    def look(self, *, begun: bool = False) -> State:
        """Look whether a request may be sent, or completed if it has `begun`. Never waits."""
        sock = self.sock
        try:
            if isinstance(sock, ssl.SSLSocket):
                return self._look_into(sock, begun=begun)
            if not is_quiet(sock):
                return _judged(sock.recv(len(TIMED_OUT[0]), socket.MSG_PEEK), begun=begun)
            return State.QUIET if is_connected(sock) else State.CLOSED
        except (OSError, ValueError, AttributeError):  # The socket was closed meanwhile.
            return State.CLOSED

    def _look_into(self, sock: ssl.SSLSocket, *, begun: bool) -> State:
        """Tell bytes of TLS itself from bytes of the upstream.

        A session ticket comes right behind the handshake. Bytes that come later and decrypt to nothing may be half a
        record of something else: the connection is not used again.
        """
        if not sock.pending() and is_quiet(sock):
            return State.QUIET if is_connected(sock) else State.CLOSED
        sock.setblocking(False)
        try:
            return _judged(sock.recv(len(TIMED_OUT[0])), begun=begun)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return State.CLOSED if self.used else State.QUIET
        finally:
            sock.setblocking(True)

    def check(self, *, begun: bool = False) -> None:
        """Raises: Unfit when a request must not be sent, or must not be completed if it has `begun`."""
        state = self.look(begun=begun)
        if state is not State.QUIET:
            raise Spoken if state is State.SPOKE else Unfit


def _judged(received: bytes, *, begun: bool) -> State:
    """Judge what came on a kept connection. Empty bytes are its end.

    An upstream may refuse a request that has begun before its end, for example as too large. That is no fault.
    """
    is_end = not received or received.startswith(TIMED_OUT) or (begun and received.startswith(REFUSED))
    return State.CLOSED if is_end else State.SPOKE
