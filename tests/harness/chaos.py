"""Stand between a client and a server, and break the connection at an exact byte.

Must never know HTTP beyond where a request ends (for canned answers).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import re
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeAlias

from tests.harness.net import HOST, Listener, LoopThread, Watch, flush, narrow, reset_transport

PIECE_BYTES = 64 << 10
CONTENT_LENGTH = re.compile(rb"(?im)^content-length:\s*(\d+)")


@dataclass(frozen=True)
class Pass:
    """Pass everything on."""


@dataclass(frozen=True)
class CutAfter:
    """Close both sides hard when n bytes have come down; the client gets exactly these, then RST.

    With 0 the request still goes up, and the cut comes when the server begins to answer.
    """

    bytes_down: int


@dataclass(frozen=True)
class CleanCloseAfter:
    """Close both sides with FIN when n bytes have come down."""

    bytes_down: int


@dataclass(frozen=True)
class BlackholeAfter:
    """Pass nothing more in either direction, no FIN and no RST either, when n bytes have come down.

    The proxy stops reading, so both peers see a connection that is open and takes nothing.
    """

    bytes_down: int


@dataclass(frozen=True)
class Slow:
    """Pass the server's answers at a limited pace."""

    bytes_per_second: float


@dataclass(frozen=True)
class Late:
    """Pass the server's answers on so much later, as over a long way: in order, and however many are on it."""

    seconds: float


@dataclass(frozen=True)
class OneQueue:
    """Pass the answers of all who have this policy on in one queue: whoever reads slowly makes the others late."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class Answer:
    """Answer the first request with these bytes and close, without a connection to the target."""

    data: bytes


Policy: TypeAlias = Pass | CutAfter | CleanCloseAfter | BlackholeAfter | Slow | Late | OneQueue | Answer


class _End(enum.Enum):
    """Say how a link goes on when one of its directions is at its end."""

    CLOSE = enum.auto()
    CUT = enum.auto()
    HOLE = enum.auto()


class ChaosProxy:
    """Proxy TCP connections from a free port of 127.0.0.1 to the target, each by its policy.

    Policies of `plan` are taken by the next connections, one each, in order; then `default` holds.
    With a `marker`, only requests that hold these bytes in their head take a policy, when they come by, and only their
    connections are counted: what else a browser asks for passes, on whatever connection it chooses.
    """

    def __init__(
        self,
        target_host: str,
        target_port: int,
        *,
        default: Policy | None = None,
        server_rcvbuf: int | None = None,
        marker: bytes = b"",
        in_turns: Sequence[int] = (),
    ) -> None:
        """`in_turns` are more ports of the target host's: each connection goes to the next one."""
        self.default: Policy = default or Pass()
        self.connections = 0
        self.bytes_down = 0
        self._host = target_host
        self._targets = itertools.cycle([(target_host, port) for port in (target_port, *in_turns)])
        self._marker = marker
        self._server_rcvbuf = server_rcvbuf  # small: a blackholed server's send buffer fills soon
        self._plan: deque[Policy] = deque()
        self._links: set[_Link] = set()
        self._watch = Watch()
        self._loop = LoopThread("chaos-proxy")
        self._listener = Listener(self._protocol)

    def start(self) -> Self:
        """Listen."""
        self.accept()
        return self

    def stop(self) -> None:
        """Cut every connection and end the thread."""
        with contextlib.suppress(RuntimeError):
            self.refuse()
            self.cut_all()
        self._loop.stop()
        self._listener.release()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def lead_to(self, port: int) -> None:
        """Send connections to another port of the target host from now on; those that are open stay."""
        self._targets = itertools.cycle([(self._host, port)])

    @property
    def port(self) -> int:
        """Tell the port, which is the same before, while and after it is refused."""
        return self._listener.port

    @property
    def base_url(self) -> str:
        """Tell the URL that leads through the proxy."""
        return f"http://{HOST}:{self.port}"

    @property
    def live(self) -> int:
        """Count the links that are open now."""
        return sum(link.is_counted for link in list(self._links))

    def plan(self, *policies: Policy) -> None:
        """Set what happens to the next connections, one policy each (with a marker: to the next requests with it)."""
        self._loop.call(lambda: self._plan.extend(policies))

    def refuse(self) -> None:
        """Refuse new connections; those that are open stay so."""
        self._loop.run(self._listener.close())

    def accept(self) -> None:
        """Accept connections (again), on the same port."""
        self._loop.run(self._listener.open())

    def cut_all(self) -> None:
        """Close all live connections hard, both sides; done when it returns."""
        self._loop.run(self._order_all(_End.CUT))

    def cut_all_after(self, bytes_down: int) -> None:
        """Close each live connection hard when so many more bytes have come down on it."""

        def order() -> None:
            for link in self._links:
                link.cut_after(bytes_down)

        self._loop.call(order)

    def blackhole_all(self, *, counted: bool = False) -> None:
        """Let nothing more pass on any live connection, or on any that is counted; done when it returns."""
        self._loop.run(self._order_all(_End.HOLE, counted))

    def wait_until(self, predicate: Callable[[], Any], timeout: float = 5.0, what: str = "the predicate") -> None:
        """Wait until something holds; judged whenever bytes have passed, and connections come and go."""
        self._watch.wait_until(
            predicate,
            timeout=timeout,
            what=lambda: f"{what}; {self.connections} connections, {self.live} live, {self.bytes_down} bytes down",
        )

    def _protocol(self) -> asyncio.BaseProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=PIECE_BYTES), self._serve)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(reader, writer, self._count, self._next_policy, self._marker)
        self._links.add(link)
        if not self._marker:
            link.take_policy()
        try:
            await link.run(next(self._targets), self._server_rcvbuf)
        except (asyncio.CancelledError, OSError, EOFError, asyncio.LimitOverrunError):
            pass  # the proxy stops, or both peers have left already
        finally:
            link.abort()
            link.settled.set()
            self._links.discard(link)
            self._watch.changed()

    def _next_policy(self) -> Policy:
        self.connections += 1
        self._watch.changed()
        return self._plan.popleft() if self._plan else self.default

    def _count(self, size: int) -> None:
        self.bytes_down += size
        self._watch.changed()

    async def _order_all(self, end: _End, counted: bool = False) -> None:
        links = [link for link in self._links if link.is_counted or not counted]
        for link in links:
            link.give_order(end)
        await asyncio.gather(*(link.settled.wait() for link in links))


class _Link:
    """Join one client's connection to one of the target's."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        count: Callable[[int], None],
        next_policy: Callable[[], Policy],
        marker: bytes,
    ) -> None:
        self.settled = asyncio.Event()  # the last order is carried out
        self.is_counted = False
        self._policy: Policy = Pass()
        self._next_policy = next_policy
        self._marker = marker
        self._client = (reader, writer)
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._count = count
        self._left: int | None = None  # bytes that may still come down
        self._at_limit = _End.CLOSE
        self._order: asyncio.Future[_End] = asyncio.get_running_loop().create_future()

    def give_order(self, end: _End) -> None:
        """End the link so, whatever its policy says; a cut also ends a blackhole."""
        if not self._order.done():
            self.settled.clear()
            self._order.set_result(end)

    def take_policy(self) -> None:
        """Take the next policy, which holds from here on."""
        self.is_counted = True
        self._policy = self._next_policy()
        self._left, self._at_limit = self._limit()

    def cut_after(self, bytes_down: int) -> None:
        """Cut the link when so many more bytes have come down."""
        self._left, self._at_limit = bytes_down, _End.CUT

    async def run(self, target: tuple[str, int], server_rcvbuf: int | None) -> None:
        """Pass bytes until the policy, a peer or an order ends it.

        Raises: OSError.
        """
        if isinstance(self._policy, Answer):
            end = await self._race(self._answer(self._policy.data))
        elif await self._connect(target, server_rcvbuf):
            end = await self._race(self._pump_up(), self._pump_down())
        else:
            end = _End.CUT
        if end is _End.HOLE:
            end = await self._stay_dark()
        if end is _End.CUT:
            self.abort()
        else:
            await self._close()

    def abort(self) -> None:
        """Reset both sides; do nothing to a side that is closed already."""
        for _, writer in filter(None, (self._client, self._server)):
            reset_transport(writer.transport)

    async def _connect(self, target: tuple[str, int], rcvbuf: int | None) -> bool:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        if rcvbuf is not None:  # only before the connection is made does it bound the window
            narrow(sock, rcvbuf)
        try:
            await asyncio.get_running_loop().sock_connect(sock, target)
        except OSError:
            sock.close()
            return False
        self._server = await asyncio.open_connection(sock=sock, limit=rcvbuf or PIECE_BYTES)
        return True

    async def _race(self, *ways: Coroutine[Any, Any, _End]) -> _End:
        """Run the directions until the first of them, or an order, says how the link ends."""
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait([*tasks, self._order], return_when=asyncio.FIRST_COMPLETED)
            if self._order.done():
                return self._order.result()
            return next(task for task in tasks if task.done()).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump_up(self) -> _End:
        assert self._server is not None
        reader, writer = self._client[0], self._server[1]
        try:
            while piece := await reader.read(PIECE_BYTES):
                if self._marker and self._marker in piece.partition(b"\r\n\r\n")[0]:
                    self.take_policy()
                    if isinstance(self._policy, Answer):
                        return await self._answer(self._policy.data, piece)
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            return _End.CUT
        return _End.CLOSE

    async def _pump_down(self) -> _End:
        assert self._server is not None
        reader, writer = self._server[0], self._client[1]
        clock = asyncio.get_running_loop()
        piece_bytes, due = PIECE_BYTES, clock.time()
        if isinstance(self._policy, Slow):
            piece_bytes = max(1, int(self._policy.bytes_per_second / 20))
        try:
            while piece := await reader.read(piece_bytes):
                if isinstance(self._policy, Late):
                    clock.call_later(self._policy.seconds, writer.write, piece)
                    continue
                if isinstance(self._policy, OneQueue):
                    async with self._policy.turn:
                        writer.write(piece)
                        await flush(writer)
                    continue
                passed = piece[: self._left]
                if self._left is not None:
                    self._left -= len(passed)
                if passed:
                    if self.is_counted:
                        self._count(len(passed))
                    writer.write(passed)
                    await writer.drain()
                if self._left == 0:
                    await flush(writer)
                    return self._at_limit
                if isinstance(self._policy, Slow):
                    due = max(due, clock.time()) + len(passed) / self._policy.bytes_per_second
                    await asyncio.sleep(due - clock.time())
        except ConnectionError:
            return _End.CUT
        return _End.CLOSE

    def _limit(self) -> tuple[int | None, _End]:
        match self._policy:
            case CutAfter(count):
                return count, _End.CUT
            case CleanCloseAfter(count):
                return count, _End.CLOSE
            case BlackholeAfter(count):
                return count, _End.HOLE
        return None, _End.CLOSE

    async def _answer(self, data: bytes, request: bytes = b"") -> _End:
        """Answer a request, of which this much has been read."""
        reader, writer = self._client
        while b"\r\n\r\n" not in request:
            request += await reader.readexactly(1)
        head, _, body = request.partition(b"\r\n\r\n")
        if length := CONTENT_LENGTH.search(head):
            await reader.readexactly(int(length[1]) - len(body))
        self._count(len(data))
        writer.write(data)
        await flush(writer)
        return _End.CLOSE

    async def _stay_dark(self) -> _End:
        """Read nothing more, so that no FIN is seen either, until an order comes to cut."""
        for _, writer in filter(None, (self._client, self._server)):
            if isinstance(writer.transport, asyncio.Transport) and not writer.is_closing():
                writer.transport.pause_reading()
        while True:
            if self._order.done():
                if self._order.result() is not _End.HOLE:
                    return self._order.result()
                self._order = asyncio.get_running_loop().create_future()
            self.settled.set()
            await asyncio.wait([self._order])

    async def _close(self) -> None:
        """Close both sides with FIN, once what was written has left, however slowly it is read."""
        writers = [side[1] for side in (self._client, self._server) if side is not None]
        for writer in writers:
            writer.close()
        closed: asyncio.Future[Any] = asyncio.gather(
            *(writer.wait_closed() for writer in writers), return_exceptions=True
        )
        try:
            await asyncio.wait([closed, self._order], return_when=asyncio.FIRST_COMPLETED)
        finally:
            closed.cancel()
