"""A server that says, byte by byte, what a test's own function says; and answers written by hand."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.unit.fakes import PATIENCE_SECONDS


class RawServer:
    """Serve each connection by a function of the test's own, in a thread."""

    def __init__(self, serve: Callable[[socket.socket, int], None]) -> None:
        self._serve = serve
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        self.connections = 0
        self._accepted: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections += 1
                self._accepted.append(connection)
                thread = threading.Thread(target=self._run, args=(connection, self.connections), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _run(self, connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError), connection:
            self._serve(connection, number)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._threads[0].join(PATIENCE_SECONDS)
        for connection in self._accepted:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)


def read_request(connection: socket.socket) -> bytes:
    """Read one request; empty when there is none any more."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(65_536)
        if not received:
            return b""
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
    )
    while len(body) < length:
        received = connection.recv(65_536)
        if not received:
            return b""
        body += received
        data += received
    return data


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
MINE = CHUNKED + chunk(b"mine") + LAST
STRANGER = CHUNKED + chunk(b"a stranger's") + LAST
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nLink: </b.css>\r\n\r\n"
TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 2\r\n\r\nok"

Step = bytes | Callable[[socket.socket], Any]
Serve = Callable[[Callable[[socket.socket, int], None]], RawServer]


@contextlib.contextmanager
def serving() -> Iterator[Serve]:
    """Give what starts such servers; end them all afterwards."""
    servers: list[RawServer] = []

    def start(function: Callable[[socket.socket, int], None]) -> RawServer:
        servers.append(RawServer(function))
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.close()


def counted(body: bytes, *, length: int | None = None) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


def saying(*answers: Sequence[Step], tls: ssl.SSLContext | None = None) -> Callable[[socket.socket, int], None]:
    """Answer the requests of each connection in turn: send bytes, call functions between; then close."""

    def serve(connection: socket.socket, _: int) -> None:
        if tls is not None:
            connection = tls.wrap_socket(connection, server_side=True)
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for steps in answers:
                if not read_request(connection):
                    return
                for step in steps:
                    if callable(step):
                        step(connection)
                    else:
                        connection.sendall(step)

    return serve


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
