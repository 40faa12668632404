"""A slow reader: its connection carries less than its model writes, and after a while more again."""

from __future__ import annotations

import contextlib
import socket
import time
from http.client import HTTPConnection, HTTPResponse

from locust import task

from load.users.asking import JSON, Streaming

RECEIVE_BUFFER_BYTES = 4096
TIMES_AS_LONG = 2  # its answers, in tokens
WORD_CHARACTERS = 2000  # of each of its tokens: a connection's buffers hold a thousand short ones
PIECE_BYTES = 1024


class SlowUser(Streaming):
    """Read long answers slowly for a while, then catch up, and miss nothing.

    Its tokens do not count as delayed: they came late by its own doing.
    """

    kind = "answer (slow)"
    slow_until = 0.0

    def request(self) -> tuple[int | None, bytes]:
        """Draw a long answer of long words, so that what it leaves lying is more than the buffers hold."""
        tokens = TIMES_AS_LONG * self.options.tokens
        most = self.random.randint(max(tokens // 2, 1), tokens * 3 // 2)
        return self.request_of(most, f" with words of {WORD_CHARACTERS} characters")

    def connect(self, connection: HTTPConnection) -> None:
        """Connect with a small buffer, which must be so before the connection says how much it takes."""
        connection._create_connection = _connected_narrowly
        connection.connect()

    def read(self, response: HTTPResponse) -> bytes:
        """Read a little, and wait as long as that takes on a slow connection."""
        if time.monotonic() >= self.slow_until:
            return super().read(response)
        data = response.read1(PIECE_BYTES)
        time.sleep(len(data) / self.options.slow_rate)
        return data

    @task
    def chat(self) -> None:
        """Ask, read slowly, and catch up."""
        with self.answered() as (body, answer):
            self.slow_until = time.monotonic() + self.options.slow_seconds
            with self.asked("POST", "/chat/streaming", body, JSON) as response:
                for data, received_at in self.pieces(answer, response):
                    answer.feed(data, received_at)
            if self.is_measured:
                self.measurements.gathered[self.kind] += answer.most_at_once > 1
                self.measurements.most_at_once.append(answer.most_at_once)


def _connected_narrowly(
    address: tuple[str, int], timeout: float, source_address: tuple[str, int] | None = None
) -> socket.socket:
    """Do as socket.create_connection, which has no place for this option."""
    problem = OSError("the name has no address")
    for family, kind, protocol, _, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            sock.settimeout(timeout)
            sock.connect(place)
        except OSError as refused:
            problem = refused
            with contextlib.suppress(OSError):
                sock.close()
        else:
            return sock
    raise problem
