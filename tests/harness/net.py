"""Share what the scripted upstream and the chaos proxy have in common: a loop in a thread, a listener, a hard close.

Must never know HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

HOST = "127.0.0.1"
LINGER_ZERO = struct.pack("ii", 1, 0)
ETHERNET_MSS = 1448
SIOCOUTQNSD = 0x894B  # Linux: bytes that are in the socket's queue and were not sent yet


def narrow(sock: socket.socket, rcvbuf: int) -> None:
    """Let a connection that is not made yet hold little on its side. Units: bytes.

    Its segments become those of a real network: on loopback they are of 64 KiB, none of which fits into a small
    window, so that the sender's kernel probes instead of sending, and in the end takes the reader for gone.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, ETHERNET_MSS)


class Watch:
    """Wake the test's threads when the harness's own thread has changed something."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting = 0

    def changed(self) -> None:
        """Let every waiting thread judge its predicate again."""
        if self._waiting:  # who waits is counted before its predicate is judged: whoever comes now sees the change
            with self._condition:
                self._condition.notify_all()

    def wait_until(self, predicate: Callable[[], Any], *, timeout: float, what: Callable[[], str]) -> None:
        """Block until the predicate holds.

        Raises: TimeoutError, with `what()` (evaluated then, so that it can tell how far things got).
        """
        with self._condition:
            self._waiting += 1
            try:
                held = self._condition.wait_for(predicate, timeout)
            finally:
                self._waiting -= 1
        if not held:
            raise TimeoutError(f"waited {timeout:g} s for {what()}")


class LoopThread:
    """Run an event loop in a daemon thread of its own."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T], *, timeout: float = 15.0) -> T:
        """Run a coroutine in the loop and give back what it returns.

        Raises: TimeoutError, and whatever the coroutine raises.
        """
        if not self._thread.is_alive():
            coroutine.close()
            raise RuntimeError("the harness's loop has ended")
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the loop's thread, where no lock is needed, and give back what it returns."""

        async def wrapped() -> T:
            return function()

        return self.run(wrapped())

    def stop(self) -> None:
        """Cancel every task, end the loop, and join the thread."""
        if not self._thread.is_alive():
            return
        self.run(self._cancel_tasks())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(15.0)

    def _run(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    async def _cancel_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Transports close their sockets in callbacks of the next rounds; a loop that ended before would leak them.
        for _ in range(3):
            await asyncio.sleep(0)


def reserve_port(host: str = HOST, port: int = 0, *, shared: bool = True) -> socket.socket:
    """Bind a socket that never listens, so that its port stays ours while the listener is closed.

    Without it, the kernel may give the port to some outgoing connection, and "listen again" fails now and then.
    """
    reservation = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared and hasattr(socket, "SO_REUSEPORT"):  # BSDs want it for a second socket on the same address
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reservation.bind((host, port))
    return reservation


class Listener:
    """Listen on one port of 127.0.0.1 that can be closed and opened again."""

    def __init__(
        self, factory: Callable[[], asyncio.BaseProtocol], *, port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self._factory = factory
        self._tls = tls
        self._reservation = reserve_port(port=port)
        self._server: asyncio.Server | None = None
        self.port: int = self._reservation.getsockname()[1]

    async def open(self) -> None:
        """Accept connections; do nothing when they are accepted already."""
        if self._server is None:
            listening = reserve_port(port=self.port)
            # asyncio sets it only on sockets whose protocol number is not 0; ours are made without one.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listening.listen(1024)
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._factory, sock=listening, ssl=self._tls, backlog=1024)

    async def close(self) -> None:
        """Refuse connections from now on; those that are open stay so."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def release(self) -> None:
        """Give the port back."""
        self._reservation.close()


def now() -> float:
    """Tell the time of the ledgers. Units: seconds of the monotonic clock, which all processes share."""
    return time.monotonic()


def reset_transport(transport: asyncio.BaseTransport) -> None:
    """Close with RST; what was not sent is lost."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() != -1:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()


async def flush(writer: asyncio.StreamWriter, *, timeout: float = 5.0) -> None:
    """Wait until the kernel has sent all that was written, at most for the timeout.

    A reset throws away what is queued on this side, but not what the peer's kernel has already; so flushing first
    makes "RST after exactly n bytes" exact.
    """
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(timeout):
            writer.transport.set_write_buffer_limits(0)
            await writer.drain()
            sock = writer.get_extra_info("socket")
            while _unsent_bytes(sock) > 0:
                await asyncio.sleep(0.001)  # the kernel has no event for an empty queue


def _unsent_bytes(sock: Any) -> int:
    """Count the bytes that the kernel holds back; 0 where it cannot tell."""
    if sys.platform != "linux" or sock is None or sock.fileno() == -1:
        return 0
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), SIOCOUTQNSD, bytes(4)))[0])
    except OSError:
        return 0
