"""How a request is sent and the head of its answer read: http.client's connections behind httpx's interface.

The SDK's own transport has layers that cost as much per token as all the rest of a token's way (DESIGN.md, 5).
Connections are kept for the next answer. A call can be cancelled at any moment, and its socket is closed then.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time

import httpx2

from app.platform.sockets import unacknowledged
from app.upstream.body import BODY, Body
from app.upstream.call import Call, current_call
from app.upstream.connection import Connection, Spoken, Unfit
from app.upstream.head import Head
from app.upstream.pool import Origin, Pool

__all__ = ["Transport"]

STALE_SECONDS = 1.0
"""A kept connection that the upstream had closed fails faster than this."""


class Transport(httpx2.BaseTransport):
    """Sends requests over kept connections. Safe to use from many threads."""

    def __init__(self, *, verify: ssl.SSLContext | None = None, secure: bool = True) -> None:
        """`secure` False: the transport is never asked for https. So it loads no certificates, which takes 0.1 s."""
        self._pool = Pool(verify or (ssl.create_default_context() if secure else None))

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and read the head of its answer.

        Raises: httpx2.TransportError.
        """
        call = current_call.get() or Call()
        origin = _origin(request.url)
        # Only the first try of a call uses a kept connection. Connections that fail for being stale must not multiply
        # the tries at a server that dies over each of them.
        connection = self._pool.new(origin) if call.tried else self._pool.take(origin)
        call.tried = True
        while True:
            connection.call = call
            begun = time.monotonic()
            try:
                head, sock = self._exchange(connection, request)
                self._pool.note_head(origin, time.monotonic() - begun)
                body = Body(self._pool, origin, connection, head, sock)
                return httpx2.Response(
                    head.status,
                    headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in head.getheaders()],
                    stream=body,
                    extensions={BODY: body},
                )
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.abandon()
                call.release()
                if isinstance(error, Spoken):
                    self._pool.distrust(origin, "idle")
                elif _is_nonsense(error):
                    self._pool.distrust(origin, "nonsense")
                if connection.used and not call.cancelled and _may_ask_again(error, time.monotonic() - begun):
                    call.asked_again += connection.asked
                    connection = self._pool.new(origin)
                    continue
                raise _transport_error(error, request) from error

    def _exchange(self, connection: Connection, request: httpx2.Request) -> tuple[Head, socket.socket]:
        """Send the request, and return the head of its answer with the socket that has the body."""
        if connection.sock is None:
            connection.connect()
        else:
            connection.call.adopt(connection.sock)
        connection.putrequest(
            request.method, request.url.raw_path.decode("ascii"), skip_host=True, skip_accept_encoding=True
        )
        for name, value in request.headers.raw:
            connection.putheader(name, value)
        connection.asked = False
        data = connection.gathered(request.read())
        connection.check()
        if connection.used:
            # Until the last byte has been sent, nothing is an answer to this request. Sending may take a while.
            connection.send(data[:-1])
            connection.check(begun=True)
            data = data[-1:]
        connection.asked = True
        try:
            connection.send(data)
        except ConnectionError:
            sock = connection.sock
            refusal = None if connection.used else _early_refusal(connection)
            if refusal is None:
                raise
            return refusal, sock
        del data  # The request's bytes may be megabytes.
        if connection.used and hasattr(socket, "TCP_QUICKACK"):
            # A server without TCP_NODELAY holds its second packet until the first is acknowledged. The kernel puts
            # that off by 40 ms on a connection that has been in use.
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        sock = connection.sock  # http.client lets go of the socket when the connection ends with the body.
        head = connection.getresponse()
        assert isinstance(head, Head)
        if head.status < 300 and unacknowledged(sock):  # Only an error may come early.
            raise http.client.HTTPException("an answer that was sent before the request had arrived")
        return head, sock

    def sweep(self, now: float) -> None:
        """Close kept connections that are no longer of use. Units: monotonic seconds."""
        self._pool.sweep(now)

    def close(self) -> None:
        """Close all kept connections."""
        self._pool.close()


def _origin(url: httpx2.URL) -> Origin:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _early_refusal(connection: Connection) -> Head | None:
    """Return the error that a server sent before it closed the connection without reading the whole request.

    Servers do so when a request is too large for them. None when nothing came, or something else. Never waits.
    """
    try:
        head = connection.getresponse()
    except (OSError, http.client.HTTPException, ValueError):
        return None
    assert isinstance(head, Head)
    return head if head.status >= 400 else None


def _is_nonsense(error: Exception) -> bool:
    """Tell whether bytes came that are no answer. A closed connection gives none."""
    return isinstance(error, http.client.HTTPException) and not isinstance(error, OSError)


def _may_ask_again(error: Exception, seconds: float) -> bool:
    """Tell whether a request that failed on a kept connection may be sent on a new one.

    A connection that the upstream had closed fails at once, and nothing was asked. A connection that fails later may
    have carried the question, and a second question could cost twice. An answer that is here and is refused has cost
    already. Bytes that are no answer at all are most likely the end of the answer before.
    """
    if isinstance(error, Unfit):
        return True
    return seconds < STALE_SECONDS and isinstance(error, OSError | http.client.BadStatusLine)


def _transport_error(error: Exception, request: httpx2.Request) -> httpx2.TransportError:
    kind = type(error).__name__
    if isinstance(error, TimeoutError):
        return httpx2.ConnectTimeout(kind, request=request)
    if isinstance(error, OSError):
        return httpx2.ConnectError(kind, request=request)
    return httpx2.RemoteProtocolError(kind, request=request)
