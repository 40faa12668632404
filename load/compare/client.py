"""The client of the comparison: raw sockets, one epoll, and while it reads nothing but reading.

What came and when is noted, and looked at only when a lane is over: tokens tell their numbers (see `upstream.token`),
so each one's arrival is known whatever frames a subject puts it in.
"""

from __future__ import annotations

import gc
import re
import select
import socket
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TypeAlias

__all__ = ["Elsewhere", "Exchange", "Times", "burst", "exchange", "paced", "repeated", "steady", "stream_id"]

RECEIVE_BYTES = 262_144
CONNECT_SECONDS = 5.0
LAST_FRAME_BYTES = 512
"""The frame that says that an answer of OpenAI's is over is within the last so many bytes."""

_TOKEN = re.compile(rb"tk(\d+) ")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LAST_CHUNK = b"0\r\n\r\n"
_FRAME = re.compile(rb"^data: ?", re.MULTILINE)
_DONE = re.compile(rb"^data: ?\[DONE\]\r?\n", re.MULTILINE)
_STREAM_ID = re.compile(rb"\r\nx-stream-id: *(\S+)\r\n", re.IGNORECASE)

Elsewhere: TypeAlias = Callable[[str], tuple[int, bytes]]
"""Given a stream's id: the port where it is to be read, and the request for it."""


@dataclass(slots=True)
class Exchange:
    """One request and all that came back, piece by piece. Units: monotonic seconds."""

    tokens: int  # asked for
    begun: float = 0.0  # before the connection
    times: list[float] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    ended: bool = False
    failure: str = ""

    def judge(self) -> Times:
        """Look at what came."""
        data = b"".join(self.pieces)
        ends = list(accumulate(map(len, self.pieces)))
        body, places = _unchunked(data)
        bodies = [begin for begin, _ in places]
        numbers: list[int] = []
        arrivals: list[float] = []
        for found in _TOKEN.finditer(body):
            numbers.append(int(found[1]))
            begin, place = places[bisect_left(bodies, found.end()) - 1]
            arrivals.append(self.times[bisect_left(ends, place + found.end() - begin)])
        came = sorted(set(arrivals))
        return Times(
            first_seconds=arrivals[0] - self.begun if arrivals else None,
            last_seconds=arrivals[-1] - self.begun if arrivals else None,
            gaps=[after - before for before, after in pairwise(came)],
            missing=self.tokens - len(set(numbers) & set(range(1, self.tokens + 1))),
            in_order=numbers == sorted(set(numbers)),
            status=data[9:12].decode("ascii", "replace"),
            whole=self.ended and not self.failure,
            frames=len(_FRAME.findall(body)),
            done=_DONE.search(body, max(0, len(body) - LAST_FRAME_BYTES)) is not None,
        )


@dataclass(frozen=True, slots=True)
class Times:
    """What a client saw of one answer. Units: seconds; `gaps` lie between two arrivals that brought tokens.

    `frames` counts the events with data, and `done` tells whether OpenAI's last one is there.
    """

    first_seconds: float | None
    last_seconds: float | None
    gaps: Sequence[float]
    missing: int
    in_order: bool
    status: str
    whole: bool
    frames: int
    done: bool


def _unchunked(data: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    """Give the body of a response, and where its chunks begin: in the body, and in the bytes of the connection."""
    head, _, rest = data.partition(b"\r\n\r\n")
    place = len(data) - len(rest)
    if b"transfer-encoding: chunked" not in head.lower():
        return rest, [(0, place)]
    chunks: list[bytes] = []
    places: list[tuple[int, int]] = []
    size = 0
    while (end := data.find(b"\r\n", place)) >= 0 and (length := int(data[place:end], 16)):
        chunks.append(data[end + 2 : end + 2 + length])
        places.append((size, end + 2))
        size += length
        place = end + 2 + length + 2
    return b"".join(chunks), places


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the garbage collector out of what is timed."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Reading:
    """The exchanges under way."""

    def __init__(self, port: int, elsewhere: Elsewhere | None = None) -> None:
        self._port = port
        self._elsewhere = elsewhere
        self._epoll = select.epoll()
        self._open: dict[int, tuple[socket.socket, Exchange]] = {}
        self._leaving: set[int] = set()  # those that go elsewhere when they know their stream's id

    @property
    def open(self) -> int:
        return len(self._open)

    def begin(self, request: bytes, tokens: int) -> Exchange:
        answer = Exchange(tokens, time.monotonic())
        fd = self._ask(answer, self._port, request)
        if fd is not None and self._elsewhere is not None:
            self._leaving.add(fd)
        return answer

    def _ask(self, answer: Exchange, port: int, request: bytes) -> int | None:
        try:
            sock = socket.create_connection(("127.0.0.1", port), CONNECT_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(request)
            sock.setblocking(False)
        except OSError as error:
            answer.failure = type(error).__name__
            return None
        self._open[sock.fileno()] = sock, answer
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return sock.fileno()

    def read(self, seconds: float) -> None:
        """Take what there is, after waiting at most so long for something."""
        for fd, _ in self._epoll.poll(max(seconds, 0.0)):
            sock, answer = self._open[fd]
            try:
                received = sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                answer.failure = type(error).__name__
                received = b""
            if received:
                answer.times.append(time.monotonic())
                answer.pieces.append(received)
                if fd in self._leaving and (found := stream_id(answer.pieces)):
                    self._go_elsewhere(fd, answer, found)
                    continue
            if not received or (received.endswith(_LAST_CHUNK) and _is_over(answer.pieces)):
                answer.ended = not answer.failure
                self._drop(fd)

    def _go_elsewhere(self, fd: int, answer: Exchange, found: str) -> None:
        """Leave, and read the stream from its beginning there."""
        assert self._elsewhere is not None
        self._drop(fd)
        answer.times.clear()
        answer.pieces.clear()
        self._ask(answer, *self._elsewhere(found))

    def _drop(self, fd: int) -> None:
        sock, _ = self._open.pop(fd)
        self._leaving.discard(fd)
        self._epoll.unregister(fd)
        sock.close()

    def close(self) -> None:
        """Give up what is still open."""
        for fd, (_, answer) in list(self._open.items()):
            answer.failure = "not ended in time"
            self._drop(fd)
        self._epoll.close()


def paced(
    port: int,
    request: bytes,
    tokens: int,
    *,
    streams: int,
    starts_per_second: float,
    seconds: float,
    live: Callable[[], None],
    live_after: float,
    elsewhere: Elsewhere | None = None,
) -> list[Exchange]:
    """Start streams one after another and read them all to their ends, for at most `seconds` after the last start.

    `live` is called once, `live_after` seconds after all of them have begun. With `elsewhere` they are left as soon as
    their ids are known, and read there.
    """
    with _quietly():
        reading = _Reading(port, elsewhere)
        answers: list[Exchange] = []
        was_live = False
        begun = time.monotonic()
        last = begun + streams / starts_per_second
        while True:
            now = time.monotonic()
            if len(answers) < streams:
                if now >= begun + len(answers) / starts_per_second:
                    answers.append(reading.begin(request, tokens))
                    reading.read(0.0)
                else:
                    reading.read(begun + len(answers) / starts_per_second - now)
                continue
            if not was_live and now > last + live_after:
                live()
                was_live = True
            if not reading.open or now > last + seconds:
                break
            reading.read(0.1 if was_live else max(0.0, last + live_after - now))
        reading.close()
    return answers


def burst(port: int, request: bytes, tokens: int, *, streams: int, seconds: float) -> list[Exchange]:
    """Start all at once, and read them to their ends."""
    with _quietly():
        reading = _Reading(port)
        answers = [reading.begin(request, tokens) for _ in range(streams)]
        until = time.monotonic() + seconds
        while reading.open and time.monotonic() < until:
            reading.read(0.1)
        reading.close()
    return answers


def exchange(port: int, request: bytes, tokens: int, *, seconds: float) -> Exchange:
    """Ask once."""
    return burst(port, request, tokens, streams=1, seconds=seconds)[0]


def repeated(port: int, request: bytes, tokens: int, *, connections: int, seconds: float) -> tuple[list[float], int]:
    """Ask again as soon as an answer has come, over kept connections; give each answer's seconds, and the failures."""
    address = ("127.0.0.1", port)
    epoll = select.epoll()
    waiting: dict[int, tuple[socket.socket, float, list[bytes]]] = {}
    taken: list[float] = []
    failures = 0
    last = b"tk%d " % tokens

    def ask(sock: socket.socket | None) -> None:
        if sock is None:
            sock = socket.create_connection(address, CONNECT_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            epoll.register(sock.fileno(), select.EPOLLIN)
        waiting[sock.fileno()] = sock, time.monotonic(), []
        sock.sendall(request)

    with _quietly():
        for _ in range(connections):
            ask(None)
        until = time.monotonic() + seconds
        while waiting and time.monotonic() < until + CONNECT_SECONDS:
            for fd, _ in epoll.poll(0.1):
                sock, begun, pieces = waiting[fd]
                received = sock.recv(RECEIVE_BYTES)
                pieces.append(received)
                data = b"".join(pieces) if len(pieces) > 1 else received
                if received and not _is_whole(data):
                    continue
                del waiting[fd]
                if received and last in data:
                    taken.append(time.monotonic() - begun)
                else:
                    failures += 1
                again = time.monotonic() < until
                if again and received and b"connection: close" not in data[:1000].lower():
                    ask(sock)
                    continue
                epoll.unregister(fd)
                sock.close()
                if again:
                    ask(None)
        failures += len(waiting)
        for sock, _, _ in waiting.values():
            sock.close()
        epoll.close()
    return taken, failures


def steady(port: int, request: bytes, tokens: int, *, per_second: float, seconds: float) -> tuple[list[float], int]:
    """Ask so many times a second, whatever becomes of the answers; give each answer's seconds, and the failures.

    An answer's time begins when it was due to be asked for. Connections are kept, and there are as many as it takes.
    """
    epoll = select.epoll()
    idle: list[socket.socket] = []
    waiting: dict[int, tuple[socket.socket, float, list[bytes]]] = {}
    taken: list[float] = []
    failures = asked = 0
    last = b"tk%d " % tokens

    def ask(due: float) -> None:
        if idle:
            sock = idle.pop()
        else:
            sock = socket.create_connection(("127.0.0.1", port), CONNECT_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            epoll.register(sock.fileno(), select.EPOLLIN)
        waiting[sock.fileno()] = sock, due, []
        sock.sendall(request)

    def drop(sock: socket.socket) -> None:
        if sock in idle:
            idle.remove(sock)
        epoll.unregister(sock.fileno())
        sock.close()

    with _quietly():
        begun = time.monotonic()
        until = begun + seconds
        while asked < per_second * seconds or waiting:
            now = time.monotonic()
            if now > until + CONNECT_SECONDS:
                break
            due = begun + asked / per_second
            if asked < per_second * seconds and now >= due:
                try:
                    ask(due)
                except OSError:
                    failures += 1
                asked += 1
                continue
            for fd, _ in epoll.poll(max(0.0, due - now) if asked < per_second * seconds else 0.1):
                if fd not in waiting:  # an idle one that is closed
                    for sock in [each for each in idle if each.fileno() == fd]:
                        drop(sock)
                    continue
                sock, began, pieces = waiting[fd]
                received = sock.recv(RECEIVE_BYTES)
                pieces.append(received)
                data = b"".join(pieces) if len(pieces) > 1 else received
                if received and not _is_whole(data):
                    continue
                del waiting[fd]
                if received and last in data:
                    taken.append(time.monotonic() - began)
                else:
                    failures += 1
                if received and b"connection: close" not in data[:1000].lower():
                    idle.append(sock)
                else:
                    drop(sock)
        failures += len(waiting)
        for sock in (*idle, *(sock for sock, _, _ in waiting.values())):
            sock.close()
        epoll.close()
    return taken, failures


def stream_id(pieces: Sequence[bytes]) -> str | None:
    """Find the stream's id in a response that has begun; None until it is there."""
    found = _STREAM_ID.search(b"".join(pieces))
    return found[1].decode() if found is not None else None


def _is_whole(data: bytes) -> bool:
    head, blank, body = data.partition(b"\r\n\r\n")
    if not blank:
        return False
    found = _LENGTH.search(head)
    return len(body) >= int(found[1]) if found else _is_over([b"\r\n", body])


def _is_over(pieces: Sequence[bytes]) -> bool:
    """Tell whether the last chunk is there. A head may end with the same bytes, after a header that ends with 0."""
    return b"".join(pieces[-2:]).endswith(b"\r\n" + _LAST_CHUNK)
