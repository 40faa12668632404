"""Listen on every connection of the tests to a service, whoever speaks: our readers, raw sockets, real clients.

It only copies bytes: what a test sends, receives and meets stays as it is. Connections to other ports are left alone.
"""

from __future__ import annotations

import re
import socket
from collections import deque
from typing import Any

from tests.harness import leaks
from tests.harness.contract import Contract
from tests.harness.contract_check import Asked, Check, Run
from tests.harness.http1 import Headers, parse_head

LARGEST_HEAD = 1 << 20
LARGEST_HEARD = 1 << 16
FIRST_LINE = re.compile(rb"([!-~]+) ([!-~]+)(?: HTTP/1\.[01])?")
SIZE = re.compile(rb"([0-9a-fA-F]{1,16})[ \t]*(?:;.*)?", re.DOTALL)

RUN = Run()
_ports: dict[int, int] = {}
_contract: list[Contract] = []


def contract() -> Contract:
    """Give the contract, read once."""
    if not _contract:
        _contract.append(Contract.read())
    return _contract[0]


def watch(port: int) -> None:
    """Listen on the connections to this port that are made from now on."""
    contract()  # a contract that cannot be read fails here, not in the middle of an answer
    _ports[port] = _ports.get(port, 0) + 1


def unwatch(port: int) -> None:
    """Undo one `watch`."""
    _ports[port] -= 1
    if not _ports[port]:
        del _ports[port]


class _Side:
    """Split one direction of a connection into messages: a head, and a body of a known end."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._state = "head"
        self._left = 0

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while self._step():
            pass

    def _step(self) -> bool:
        """Take the next part, and tell whether there was one."""
        match self._state:
            case "head":
                return self._take_head()
            case "sized" | "chunk":
                return self._take_some()
            case "size":
                return self._take_size()
            case "trailer":
                return self._take_trailer()
            case "rest":
                self._body(self._take(len(self._buffer)))
            case _:  # lost: what a message's end is cannot be told any more
                self._buffer.clear()
        return False

    def _take_head(self) -> bool:
        at = self._buffer.find(b"\r\n\r\n")
        if at < 0:
            if len(self._buffer) > LARGEST_HEAD:
                self._state = "lost"
            return False
        first, headers = parse_head(self._take(at + 4)[:-4])
        self._begin(first.encode("latin-1"), headers)
        return True

    def _framed(self, headers: Headers, otherwise: str) -> None:
        """Note how the body ends."""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            self._state = "size"
        elif (length := headers.get("content-length", "")).isascii() and length.isdigit():
            self._state, self._left = "sized", int(length)
        else:
            self._state = otherwise
        if self._state == "head" or (self._state == "sized" and not self._left):
            self._finish()

    def _take_some(self) -> bool:
        piece = self._take(min(self._left, len(self._buffer)))
        self._left -= len(piece)
        if piece:
            self._body(piece)
        if self._left:
            return False
        if self._state == "sized":
            self._finish()
            return True
        if len(self._buffer) < 2:
            return False
        self._state = "size" if self._take(2) == b"\r\n" else "lost"
        return True

    def _take_size(self) -> bool:
        at = self._buffer.find(b"\r\n")
        if at < 0:
            return False
        found = SIZE.fullmatch(self._take(at + 2)[:-2])
        if found is None:
            self._state = "lost"
        else:
            self._left = int(found[1], 16)
            self._state = "chunk" if self._left else "trailer"
        return True

    def _take_trailer(self) -> bool:
        at = self._buffer.find(b"\r\n")
        if at < 0:
            return False
        if not self._take(at + 2)[:-2]:
            self._finish()
        return True

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _begin(self, first: bytes, headers: Headers) -> None:
        raise NotImplementedError

    def _body(self, piece: bytes) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        self._state = "head"


class _Requests(_Side):
    """Tell what is asked; of something that is no request, that it is none."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: deque[Asked] = deque()
        self._headers = Headers([])
        self._said = bytearray()

    def next(self) -> Asked:
        """Give the request that the next answer belongs to."""
        if self.waiting:
            return self.waiting.popleft()
        # The answer to a part of a request: its first line may be there.
        found = FIRST_LINE.match(bytes(self._buffer[:LARGEST_HEAD])) if self._state == "head" else None
        return Asked(*(part.decode("latin-1") for part in found.groups()), Headers([])) if found else _NOTHING

    def _begin(self, first: bytes, headers: Headers) -> None:
        found = FIRST_LINE.fullmatch(first)
        asked = Asked(*(part.decode("latin-1") for part in found.groups()), headers) if found else _NOTHING
        self.waiting.append(asked)
        self._headers = headers
        self._said.clear()
        self._framed(headers, "head")

    def _body(self, piece: bytes) -> None:
        if len(self._said) < LARGEST_HEARD:
            self._said += piece

    def _finish(self) -> None:
        super()._finish()
        leaks.hear(self._headers, bytes(self._said))


_NOTHING = Asked("", "/no/request", Headers([]))


class _Answers(_Side):
    """Have every answer checked while it comes."""

    def __init__(self, requests: _Requests, run: Run) -> None:
        super().__init__()
        self._requests = requests
        self._run = run
        self._check: Check | None = None

    def cut(self) -> None:
        """Note that no more comes."""
        if self._check is not None:
            self._check.end(whole=None if self._state == "rest" else False)
            self._check = None

    def _begin(self, first: bytes, headers: Headers) -> None:
        parts = first.split(b" ", 2)
        if not parts[0].startswith(b"HTTP/1.") or len(parts) < 2 or not parts[1].isdigit():
            self._run.complain(f"not an HTTP answer: {first[:200]!r}")
            self._state = "lost"
            return
        status = int(parts[1])
        if status < 200:
            return  # the answer is still to come
        asked = self._requests.next()
        self._check = Check(contract(), self._run, asked, status, headers)
        if asked.method == "HEAD" or status in (204, 304):
            self._finish()
        else:
            self._framed(headers, "rest")

    def _body(self, piece: bytes) -> None:
        if self._check is not None:
            self._check.feed(piece)

    def _finish(self) -> None:
        super()._finish()
        if self._check is not None:
            self._check.end(whole=True)
            self._check = None


class Tap:
    """Listen on one connection."""

    def __init__(self, run: Run) -> None:
        self._requests = _Requests()
        self._answers = _Answers(self._requests, run)

    def sent(self, data: Any) -> None:
        self._requests.feed(bytes(data))

    def received(self, data: bytes) -> None:
        """Take what came; nothing is the end."""
        if data:
            self._answers.feed(data)
        else:
            self._answers.cut()

    def closed(self) -> None:
        self._answers.cut()


class TappedSocket(socket.socket):
    """A socket that lets a tap hear what goes to a watched port, and comes from there."""

    tap: Tap | None = None

    def connect(self, address: Any) -> None:
        self._listen(address)
        super().connect(address)

    def connect_ex(self, address: Any) -> int:
        self._listen(address)
        return super().connect_ex(address)

    def send(self, data: Any, *flags: int) -> int:
        size = super().send(data, *flags)
        if self.tap is not None:
            self.tap.sent(memoryview(data)[:size])
        return size

    def sendall(self, data: Any, *flags: int) -> None:
        if self.tap is not None:  # before: another thread may read the answer at once
            self.tap.sent(data)
        super().sendall(data, *flags)

    def sendmsg(self, buffers: Any, *more: Any) -> int:
        buffers = [bytes(buffer) for buffer in buffers]
        size = super().sendmsg(buffers, *more)
        if self.tap is not None:
            self.tap.sent(b"".join(buffers)[:size])
        return size

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = super().recv(size, flags)
        if self.tap is not None and not flags & socket.MSG_PEEK:
            self.tap.received(data)
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        size = super().recv_into(buffer, nbytes, flags)
        if self.tap is not None and not flags & socket.MSG_PEEK:
            self.tap.received(bytes(memoryview(buffer).cast("B")[:size]))
        return size

    def _real_close(self, *arguments: Any) -> None:
        if self.tap is not None:
            self.tap.closed()
        super()._real_close(*arguments)  # type: ignore[misc]

    def _listen(self, address: Any) -> None:
        if _ports and isinstance(address, tuple) and address[1] in _ports:
            self.tap = Tap(RUN)


def install() -> None:
    """Make every socket of this process one that can be tapped."""
    socket.socket = TappedSocket  # type: ignore[misc]
