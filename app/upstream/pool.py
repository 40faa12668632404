"""The connections that are kept between answers. The pool chooses one for a request, and knows origins that are not
trusted."""

from __future__ import annotations

import base64
import ssl
import threading
import time
import urllib.request
from bisect import bisect_right
from operator import attrgetter
from urllib.parse import unquote, urlsplit

import httpx2

from app.observability import facts
from app.observability.observer import tell
from app.upstream.connection import Connection, State

__all__ = ["Origin", "Pool"]

IDLE_SECONDS = 55.0  # Below the 60 s after which many servers close an idle connection.
IDLE_CONNECTIONS = 256
"""How many connections are kept for each origin."""
HOT_CONNECTIONS = 8
"""How many connections of an origin are kept for IDLE_SECONDS."""
SURPLUS_SECONDS = 5.0
"""How long other connections are kept. A burst has left them behind."""
SWEEP_SECONDS = 5.0

REST_SECONDS = 0.1
"""How long a connection rests before it is used again. In this time bytes behind the end of its answer may arrive.

A connection also rests for as long as the slowest head took lately. An answer may still be on its way to a request that
got another answer in its place.
"""
SLOWEST_FADES = 0.98
"""With each answer the slowest head counts for this share of before."""

Origin = tuple[str, str, int]
"""Scheme, host and port."""

_idle_since = attrgetter("idle_since")


class Pool:
    """The kept connections of all origins. Safe to use from many threads."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        """`tls` None: no connection is made for https."""
        self._tls = tls
        self._idle: dict[Origin, list[Connection]] = {}  # each list in the order of last use
        self._slowest: dict[Origin, float] = {}
        self._distrusted: set[Origin] = set()
        self._lock = threading.Lock()
        self._swept = 0.0

    def take(self, origin: Origin) -> Connection:
        """Take the connection that was used last among those that have rested, or a new one."""
        now = time.monotonic()
        with self._lock:
            rest = self._rest_seconds(origin)
            kept = self._idle.get(origin, [])
            at = bisect_right(kept, now - rest, key=_idle_since) - 1
            if at >= 0 and now - kept[at].idle_since <= IDLE_SECONDS:
                return kept.pop(at)
        return self.new(origin)

    def new(self, origin: Origin) -> Connection:
        """Make a connection that is not connected yet. Raises: httpx2.UnsupportedProtocol for https without TLS."""
        scheme, host, port = origin
        tls = self._tls if scheme == "https" else None
        if scheme == "https" and tls is None:
            raise httpx2.UnsupportedProtocol("This transport is not for https.")
        proxy = _proxy_for(scheme, host, port)
        if proxy is None:
            return Connection(host, port, tls=tls)
        parts = urlsplit(proxy if "://" in proxy else f"//{proxy}")
        connection = Connection(parts.hostname or "", parts.port or 80, tls=tls)
        headers = {}
        if parts.username:
            secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            headers["Proxy-Authorization"] = "Basic " + base64.b64encode(secret).decode()
        connection.set_tunnel(host, port, headers)
        return connection

    def keep(self, origin: Origin, connection: Connection) -> None:
        """Keep a connection whose answer has been read to its end."""
        connection.idle_since = time.monotonic()
        connection.used = True
        with self._lock:
            kept = self._idle.setdefault(origin, [])
            if len(kept) < IDLE_CONNECTIONS and origin not in self._distrusted:
                kept.append(connection)
                return
        connection.close()

    def note_head(self, origin: Origin, seconds: float) -> None:
        """Note how long a head took to come. Another answer, for which nobody waits, may be on its way for as long."""
        self._slowest[origin] = max(seconds, SLOWEST_FADES * self._slowest.get(origin, 0.0))

    def _rest_seconds(self, origin: Origin) -> float:
        return max(REST_SECONDS, self._slowest.get(origin, 0.0))

    def distrust(self, origin: Origin, seen: str) -> None:
        """Keep no connection of this origin any more, because the origin has sent bytes that nobody asked for.

        The next such bytes could be another user's answer, a moment after a request was sent. `seen` is for the log:
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
        """Close kept connections that are no longer of use, every SWEEP_SECONDS. Units: monotonic seconds."""
        if now - self._swept < SWEEP_SECONDS:
            return
        self._swept = now
        stale: list[Connection] = []
        spoke: list[Origin] = []
        with self._lock:
            for origin, kept in self._idle.items():
                fresh: list[Connection] = []
                for number, connection in enumerate(reversed(kept)):  # the last used first
                    state = connection.look()
                    if state is State.SPOKE:
                        spoke.append(origin)
                    seconds = IDLE_SECONDS if number < HOT_CONNECTIONS else SURPLUS_SECONDS
                    is_fresh = state is State.QUIET and now - connection.idle_since <= seconds
                    (fresh if is_fresh else stale).append(connection)
                self._idle[origin] = fresh[::-1]
        for connection in stale:
            connection.close()
        for origin in spoke:
            self.distrust(origin, "idle")

    def close(self) -> None:
        """Close all kept connections."""
        with self._lock:
            kept = [connection for connections in self._idle.values() for connection in connections]
            self._idle.clear()
        for connection in kept:
            connection.close()


def _proxy_for(scheme: str, host: str, port: int) -> str | None:
    """Find the proxy that the environment names for this address. None for this machine itself."""
    if host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    return urllib.request.getproxies_environment().get(scheme)
