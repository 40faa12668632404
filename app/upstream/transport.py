"""The way of bytes between us and the upstream: http.client's connections behind httpx's transport interface.

Why not the SDK's own transport: its layers cost as much per token as all the rest of a token's way
(DESIGN.md, 5). Connections are kept for the next answer; a call can be cancelled at any moment, while it looks
up, connects, shakes hands, waits or reads, and its socket is closed then.
"""

from __future__ import annotations

import base64
import contextlib
import contextvars
import enum
import http.client
import os
import socket
import ssl
import threading
import time
import urllib.request
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2

from app.observability import facts
from app.observability.observer import tell
from app.platform.gevent_loop import each_arrival
from app.platform.sockets import is_connected, is_quiet, unacknowledged
from app.upstream.framing import BadFraming, UntilClose
from app.upstream.head import Head

__all__ = ["BODY", "Body", "Call", "Transport", "current_call"]

BODY = "chatwait.body"
"""The extension of a response under which its `Body` is found."""

RECEIVE_BYTES = 16_384
"""What is received at once; others run in between."""
IDLE_SECONDS = 55.0  # below the 60 s after which many servers close an idle connection
IDLE_CONNECTIONS = 256
HOT_CONNECTIONS = 8
SURPLUS_SECONDS = 5.0  # what a burst left behind
ERROR_BODY_BYTES = 65_536
ERROR_BODY_SECONDS = 2.0
"""So long are an error's words waited for; its status says enough."""
NEXT_ADDRESS_SECONDS = 5.0
STALE_SECONDS = 1.0
SWEEP_SECONDS = 5.0
REST_SECONDS = 0.1
"""A kept connection is not used before this: what its upstream sends behind the end of an answer shows itself first.
Nor before the time that the slowest head took lately: an answer to a request that got another one in its place."""
SLOWEST_FADES = 0.98
"""With each answer."""

TIMED_OUT = (b"HTTP/1.1 408", b"HTTP/1.0 408")
"""With this some servers close an idle connection. Source: Go's net/http, `is408Message`."""

REFUSED = tuple(b"HTTP/1.%d %d" % (minor, kind) for minor in (0, 1) for kind in (4, 5))
"""How an error begins that is told before the whole request is there."""

Origin = tuple[str, str, int]
"""Scheme, host and port."""

_idle_since = attrgetter("idle_since")

current_call: contextvars.ContextVar[Call | None] = contextvars.ContextVar("current_call", default=None)


class Call:
    """One request on its way, and the means to cancel it from another thread."""

    def __init__(self) -> None:
        self.cancelled = False
        self.tried = False
        self.asked_again = 0
        """Requests that were sent on a kept connection to their last byte, and then once more on a new one."""
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
        self._socket = None

    def cancel(self) -> None:
        """Shut the socket down: whoever waits on it wakes up, and then closes it. Never waits."""
        self.cancelled = True
        sock = self._socket
        if sock is None:
            return
        try:
            # The plain socket's method: an SSLSocket's own takes the TLS layer away from under its reader.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            pass  # not connected yet, or gone already
        if self._connecting:
            # A connect that is under way has no other end yet; closing is what wakes it.
            sock.close()


class _State(enum.Enum):
    """What a kept connection is fit for."""

    QUIET = enum.auto()
    CLOSED = enum.auto()
    """The upstream has closed it, or may be about to."""
    SPOKE = enum.auto()
    """Bytes came that nobody asked for: whoever asks next would take them for the answer."""


class _Unfit(ConnectionError):
    """The connection cannot be used; the upstream has not got a whole request on it."""


class _Spoken(_Unfit):
    """The upstream has sent something that nobody asked for."""


class _Connection(http.client.HTTPConnection):
    """A connection whose every blocking step is known to the call it serves."""

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None) -> None:
        super().__init__(host, port)
        self.call = Call()
        self.tls = tls
        self.idle_since = 0.0
        self.used = False
        self.asked = False
        """The upstream may have got the whole request."""
        self._head: Head | None = None
        self._gathering: bytearray | None = None
        self.default_port = 443 if tls else 80

    def connect(self) -> None:
        self.sock = self._dial()
        if getattr(self, "_tunnel_host", None):
            self._tunnel()  # type: ignore[attr-defined]
            assert self._head is not None
            self._head.close()  # not every version of http.client does
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
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # else urgent bytes hide what follows them
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
        """Make the reader of an answer's head; http.client calls this."""
        self._head = Head(sock, debuglevel, method)
        return self._head

    def gathered(self, content: bytes) -> memoryview:
        """End the request's head and give all of its bytes, which `send` sends."""
        self._gathering = bytearray()
        try:
            self.endheaders(content)
            return memoryview(self._gathering)
        finally:
            self._gathering = None

    def send(self, data: Any) -> None:
        """Send bytes, or keep them for `gathered`; http.client calls this for head and body."""
        if self._gathering is None:
            super().send(data)
        else:
            self._gathering += data

    def abandon(self) -> None:
        """Close the connection, also where http.client has left it to an answer that nobody will read."""
        self.close()
        if self._head is not None:
            self._head.close()

    def look(self, *, begun: bool = False) -> _State:
        """Look whether a request may be sent, or completed that has `begun`. Never waits."""
        sock = self.sock
        try:
            if isinstance(sock, ssl.SSLSocket):
                return self._look_into(sock, begun=begun)
            if not is_quiet(sock):
                return _spoken(sock.recv(len(TIMED_OUT[0]), socket.MSG_PEEK), begun=begun)
            return _State.QUIET if is_connected(sock) else _State.CLOSED
        except (OSError, ValueError, AttributeError):  # closed, by whatever
            return _State.CLOSED

    def _look_into(self, sock: ssl.SSLSocket, *, begun: bool) -> _State:
        """Tell what TLS sends for itself from what its user sends.

        A session ticket comes right behind the handshake. Later, when what came is neither, it may be half a record of
        something else: the connection is not used again.
        """
        if not sock.pending() and is_quiet(sock):
            return _State.QUIET if is_connected(sock) else _State.CLOSED
        sock.setblocking(False)
        try:
            return _spoken(sock.recv(len(TIMED_OUT[0])), begun=begun)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return _State.CLOSED if self.used else _State.QUIET
        finally:
            sock.setblocking(True)

    def check(self, *, begun: bool = False) -> None:
        """Raises: _Unfit where a request must not be sent, or one that has `begun` not be completed."""
        state = self.look(begun=begun)
        if state is not _State.QUIET:
            raise _Spoken if state is _State.SPOKE else _Unfit


def _spoken(received: bytes, *, begun: bool) -> _State:
    """Judge what came on a kept connection; empty is its end.

    A request that has begun may be refused before its end, as too large for one: nothing is wrong with who does so.
    """
    is_end = not received or received.startswith(TIMED_OUT) or (begun and received.startswith(REFUSED))
    return _State.CLOSED if is_end else _State.SPOKE


class Transport(httpx2.BaseTransport):
    """Sends requests over kept connections; safe to use from many threads."""

    def __init__(self, *, verify: ssl.SSLContext | None = None, secure: bool = True) -> None:
        """Not `secure`: it is never asked for https, and need not load the machine's certificates (0.1 s)."""
        self._tls = verify or (ssl.create_default_context() if secure else None)
        self._idle: dict[Origin, list[_Connection]] = {}
        self._slowest: dict[Origin, float] = {}
        self._distrusted: set[Origin] = set()
        self._lock = threading.Lock()
        self._swept = 0.0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and read the head of its answer.

        Raises: httpx2.TransportError.
        """
        call = current_call.get() or Call()
        origin = (
            request.url.scheme,
            request.url.host,
            request.url.port or (443 if request.url.scheme == "https" else 80),
        )
        # Only the first try of a call uses a kept connection: those that fail for being stale must not multiply the
        # tries at a server that dies over each of them.
        connection = self._new(*origin) if call.tried else self._take(origin)
        call.tried = True
        while True:
            connection.call = call
            begun = time.monotonic()
            try:
                head, sock = self._exchange(connection, request)
                self._note_head(origin, time.monotonic() - begun)
                body = Body(self, origin, connection, head, sock)
                return httpx2.Response(
                    head.status,
                    headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in head.getheaders()],
                    stream=body,
                    extensions={BODY: body},
                )
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.abandon()
                call.release()
                if isinstance(error, _Spoken):
                    self.distrust(origin, "idle")
                elif _is_nonsense(error):
                    self.distrust(origin, "nonsense")
                if connection.used and not call.cancelled and _may_ask_again(error, time.monotonic() - begun):
                    call.asked_again += connection.asked
                    connection = self._new(*origin)
                    continue
                raise _transport_error(error, request) from error

    def _exchange(self, connection: _Connection, request: httpx2.Request) -> tuple[Head, socket.socket]:
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
            # Until the last byte is there, nothing is an answer to this request; to send all of it may take a while.
            connection.send(data[:-1])
            connection.check(begun=True)
            data = data[-1:]
        connection.asked = True
        connection.send(data)
        del data  # the request's bytes, which may be megabytes
        if connection.used and hasattr(socket, "TCP_QUICKACK"):
            # A server without TCP_NODELAY holds its second packet until the first is acknowledged, which the
            # kernel puts off by 40 ms on a connection that has been in use.
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        sock = connection.sock  # which http.client lets go of where the connection ends with the body
        head = connection.getresponse()
        assert isinstance(head, Head)
        if head.status < 300 and unacknowledged(sock):  # an error may come early
            raise http.client.HTTPException("an answer that was sent before the request had arrived")
        return head, sock

    def _take(self, origin: Origin) -> _Connection:
        """Take the kept connection that was used last, of those that have rested, or a new one."""
        now = time.monotonic()
        with self._lock:
            rest = self._rest_seconds(origin)
            kept = self._idle.get(origin, [])  # in the order of their last use
            at = bisect_right(kept, now - rest, key=_idle_since) - 1
            if at >= 0 and now - kept[at].idle_since <= IDLE_SECONDS:
                return kept.pop(at)
        return self._new(*origin)

    def _rest_seconds(self, origin: Origin) -> float:
        return max(REST_SECONDS, self._slowest.get(origin, 0.0))

    def _note_head(self, origin: Origin, seconds: float) -> None:
        """Note how long a head took to come: so long may an answer be on its way that nobody waits for any more."""
        self._slowest[origin] = max(seconds, SLOWEST_FADES * self._slowest.get(origin, 0.0))

    def _new(self, scheme: str, host: str, port: int) -> _Connection:
        tls = self._tls if scheme == "https" else None
        if scheme == "https" and tls is None:
            raise httpx2.UnsupportedProtocol("This transport is not for https.")
        proxy = _proxy_for(scheme, host, port)
        if proxy is None:
            return _Connection(host, port, tls=tls)
        parts = urlsplit(proxy if "://" in proxy else f"//{proxy}")
        connection = _Connection(parts.hostname or "", parts.port or 80, tls=tls)
        headers = {}
        if parts.username:
            secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            headers["Proxy-Authorization"] = "Basic " + base64.b64encode(secret).decode()
        connection.set_tunnel(host, port, headers)
        return connection

    def keep(self, origin: Origin, connection: _Connection) -> None:
        """Keep a connection whose answer has been read to its end."""
        connection.idle_since = time.monotonic()
        connection.used = True
        with self._lock:
            kept = self._idle.setdefault(origin, [])
            if len(kept) < IDLE_CONNECTIONS and origin not in self._distrusted:
                kept.append(connection)
                return
        connection.close()

    def distrust(self, origin: Origin, seen: str) -> None:
        """Keep no connection of this origin any more: it has sent what nobody asked for.

        The next time that could be another user's answer, a moment after a request was sent. `seen` is for the log:
        `surplus` behind an answer, bytes on an `idle` connection, or `nonsense` in an answer's place.
        """
        with self._lock:
            if origin in self._distrusted:
                return
            self._distrusted.add(origin)
            kept = self._idle.pop(origin, [])
        for connection in kept:
            connection.close()
        tell(facts.UpstreamDistrusted(seen=seen))

    def sweep(self, now: float) -> None:
        """Close kept connections that are of no more use; looks every SWEEP_SECONDS. Units: monotonic seconds."""
        if now - self._swept < SWEEP_SECONDS:
            return
        self._swept = now
        stale: list[_Connection] = []
        spoke: list[Origin] = []
        with self._lock:
            for origin, kept in self._idle.items():
                fresh: list[_Connection] = []
                for number, connection in enumerate(reversed(kept)):  # the last used first
                    state = connection.look()
                    if state is _State.SPOKE:
                        spoke.append(origin)
                    seconds = IDLE_SECONDS if number < HOT_CONNECTIONS else SURPLUS_SECONDS
                    is_fresh = state is _State.QUIET and now - connection.idle_since <= seconds
                    (fresh if is_fresh else stale).append(connection)
                self._idle[origin] = fresh[::-1]
        for connection in stale:
            connection.close()
        for origin in spoke:
            self.distrust(origin, "idle")

    def close(self) -> None:
        with self._lock:
            kept = [connection for connections in self._idle.values() for connection in connections]
            self._idle.clear()
        for connection in kept:
            connection.close()


def _proxy_for(scheme: str, host: str, port: int) -> str | None:
    """Find the proxy that the environment names for this address, as other programs do; never for ourselves."""
    if host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    return urllib.request.getproxies_environment().get(scheme)


def _is_nonsense(error: Exception) -> bool:
    """Tell whether something came that is no answer, where a connection that is closed gives nothing."""
    return isinstance(error, http.client.HTTPException) and not isinstance(error, OSError)


def _may_ask_again(error: Exception, seconds: float) -> bool:
    """Tell whether a request that failed on a kept connection may be sent on a new one.

    A connection that the upstream had closed fails at once, and nothing was asked. One that fails later may have been
    asked: asking again could cost twice. So it could with an answer that is there and is refused. What is no answer at
    all is most likely the end of the one before.
    """
    if isinstance(error, _Unfit):
        return True
    return seconds < STALE_SECONDS and isinstance(error, OSError | http.client.BadStatusLine)


def _transport_error(error: Exception, request: httpx2.Request) -> httpx2.TransportError:
    kind = type(error).__name__
    if isinstance(error, TimeoutError):
        return httpx2.ConnectTimeout(kind, request=request)
    if isinstance(error, OSError):
        return httpx2.ConnectError(kind, request=request)
    return httpx2.RemoteProtocolError(kind, request=request)


class Body(httpx2.SyncByteStream):
    """The body of one answer, in the pieces the kernel has."""

    def __init__(
        self,
        transport: Transport,
        origin: Origin,
        connection: _Connection,
        head: Head,
        sock: socket.socket,
    ) -> None:
        """Raises: BadFraming, where the end of an answer is unclear; not of an error, which its status tells."""
        self._transport = transport
        self._origin = origin
        self._connection: _Connection | None = connection
        self._head = head
        self._sock = sock
        self._is_clear = True
        try:
            self._framing = head.framing()
        except BadFraming:
            if head.status < 300:
                raise
            self._is_clear = False
            self._framing = UntilClose()
        self._rest = head.rest()  # what came with the head, until it is given
        self._has_surplus = self._framing.ended and bool(self._rest)
        self._bytes_left = ERROR_BODY_BYTES if head.status >= 300 else None

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body as it arrives.

        Raises: httpx2.ReadError when the connection broke, httpx2.RemoteProtocolError when the body ended
        before its announced end.
        """
        framing = self._framing
        received, self._rest = self._rest, b""
        due = time.monotonic() + ERROR_BODY_SECONDS
        while not framing.ended and self._is_clear:
            try:
                if self._bytes_left is not None:
                    if (left := due - time.monotonic()) <= 0:
                        return
                    self._sock.settimeout(left)
                received = received or self._sock.recv(RECEIVE_BYTES)
            except (OSError, ValueError, AttributeError) as error:
                # ValueError and AttributeError are what a socket says that was closed under its reader.
                raise httpx2.ReadError(type(error).__name__) from error
            if self._bytes_left is not None:
                self._bytes_left -= len(received)  # with its framing, of which there may be far more than of it
                if self._bytes_left < 0:
                    return  # enough to tell an error by; `close` discards the rest
            if data := self._unframed(received):
                yield data
            received = b""
            time.sleep(0)  # what is there is read without a wait, and may never end

    def receive(self, take: Callable[[bytes], bool]) -> bool:
        """Give the body to `take` as it arrives, empty where nothing of it came, until it returns False.

        `take` must not wait (see `each_arrival`). False when the body has ended; True when more may follow.
        Raises: as `__iter__`, and what `take` raises.
        """
        framing, sock = self._framing, self._sock
        with contextlib.suppress(OSError):  # closed: what is there can be read all the same
            sock.setblocking(False)
        here, self._rest = self._rest, b""
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            here += self._received(sock.recv) or b""
        if here and not take(self._unframed(here)):
            return not framing.ended

        descriptor = sock.fileno()
        # Of a plain socket without the layers that it has in Python.
        receive = sock.recv if isinstance(sock, ssl.SSLSocket) else partial(os.read, descriptor)

        def arrived() -> bool:
            received = self._received(receive)
            return received is None or (take(self._unframed(received)) and not framing.ended)

        if not framing.ended:
            if descriptor < 0:
                raise httpx2.ReadError("closed")
            each_arrival(sock, arrived)
        return not framing.ended

    def _received(self, receive: Callable[[int], bytes | None]) -> bytes | None:
        """Take what is there without a wait; None when nothing is, empty at the end. Raises: httpx2.ReadError."""
        try:
            received = receive(RECEIVE_BYTES)
            # What TLS has decrypted already makes no socket readable any more.
            while received and isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
                received += self._sock.recv(RECEIVE_BYTES)
            return received
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except (OSError, ValueError, AttributeError) as error:
            raise httpx2.ReadError(type(error).__name__) from error

    def _unframed(self, received: bytes) -> bytes:
        """Raises: httpx2.RemoteProtocolError."""
        try:
            return self._framing.feed(received) if received else self._framing.end()
        except BadFraming as error:
            raise httpx2.RemoteProtocolError(str(error)) from None

    def close(self) -> None:
        """Keep the connection if the answer was read to its end and nothing came behind it, else close it."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        framing, head = self._framing, self._head
        has_surplus = framing.surplus or self._has_surplus
        is_whole = framing.ended and self._is_clear and not has_surplus
        reusable = is_whole and head.leaves_connection_usable and not connection.call.cancelled
        connection.call.release()
        head.close()
        if reusable:
            connection.sock.setblocking(True)
            self._transport.keep(self._origin, connection)
        else:
            connection.close()
        if has_surplus:
            self._transport.distrust(self._origin, "surplus")
