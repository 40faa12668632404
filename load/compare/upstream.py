"""The mock model of the comparison: prepared bytes, sent by an absolute schedule, at a fraction of a core.

What to send stands in the question, which every subject passes on: `tokens=400 gap_ms=20`. With a gap, each token is
an HTTP chunk and a send of its own; without, the answer is sent as fast as the connection takes it. `GET /figures`
tells how late its tokens were and what CPU it used since it was last asked.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import re
import select
import socket
import time
from array import array

__all__ = ["MODEL", "token"]

MODEL = "mock"
MOST_TOKENS = 10_000

_WANTED = re.compile(rb"tokens=(\d+) gap_ms=(\d+)")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": ?true')


def token(number: int) -> str:
    """Write the text of one token, which tells its number from 1."""
    return f"tk{number} "


def _chunk(data: str) -> bytes:
    event = f"data: {data}\n\n".encode()
    return f"{len(event):x}\r\n".encode() + event + b"\r\n"


def _completion(delta: dict[str, str], finish_reason: str | None = None, **more: object) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    begin = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return json.dumps({**begin, "system_fingerprint": "fp_0", "choices": [choice], **more}, separators=(",", ":"))


HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
FIRST = _chunk(_completion({"role": "assistant", "content": ""}))
TOKENS = [_chunk(_completion({"content": token(number)})) for number in range(1, MOST_TOKENS + 1)]


def _end(tokens: int) -> bytes:
    usage = {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": tokens + 9}
    whole = json.loads(_completion({}, usage=usage)) | {"choices": []}
    return _chunk(_completion({}, "stop")) + _chunk(json.dumps(whole)) + _chunk("[DONE]") + b"0\r\n\r\n"


def _whole(tokens: int) -> bytes:
    message = {"role": "assistant", "content": "".join(map(token, range(1, tokens + 1)))}
    body = json.dumps(
        {
            "id": "chatcmpl-0123456789abcdef",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": tokens + 9},
        }
    ).encode()
    return _plain(body)


def _plain(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


class _Connection:
    """One client, which may ask again and again."""

    __slots__ = ("due", "gap", "left", "received", "sent", "sock", "tokens")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.left = b""  # what the kernel had no room for
        self.tokens = 0
        self.sent = 0
        self.due = 0.0
        self.gap = 0.0


class Upstream:
    """Serve until the process is killed; one thread, one epoll."""

    def __init__(self, port: int) -> None:
        self._epoll = select.epoll()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._connections: dict[int, _Connection] = {}
        self._schedule: list[tuple[float, int, _Connection]] = []
        self._late = array("d")
        self._cpu = time.process_time()
        self._since = time.monotonic()
        self.port = self._listener.getsockname()[1]

    def run(self) -> None:
        listener = self._listener.fileno()
        while True:
            seconds = -1.0
            if self._schedule:
                seconds = max(0.0, self._schedule[0][0] - time.monotonic())
            for fd, events in self._epoll.poll(seconds):
                if fd == listener:
                    self._accept()
                elif (connection := self._connections.get(fd)) is not None:
                    self._serve(connection, events)
            self._send_due()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[sock.fileno()] = _Connection(sock)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _serve(self, connection: _Connection, events: int) -> None:
        if events & select.EPOLLOUT:
            self._write(connection, b"")
        if not events & ~select.EPOLLOUT:
            return
        try:
            received = connection.sock.recv(262_144)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._close(connection)
            return
        connection.received += received
        head, blank, body = connection.received.partition(b"\r\n\r\n")
        if not blank:
            return
        found = _LENGTH.search(head)
        length = int(found[1]) if found else 0
        if len(body) >= length:
            connection.received = body[length:]
            self._answer(connection, head, body[:length])

    def _answer(self, connection: _Connection, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET /figures"):
            self._write(connection, _plain(json.dumps(self._figures()).encode()))
            return
        wanted = _WANTED.search(body)
        tokens, gap_ms = (int(wanted[1]), int(wanted[2])) if wanted else (1, 0)
        if not _STREAM.search(body):
            self._write(connection, _whole(tokens))
        elif not gap_ms:
            self._write(connection, HEAD + FIRST + b"".join(TOKENS[:tokens]) + _end(tokens))
        else:
            connection.tokens, connection.sent, connection.gap = tokens, 0, gap_ms / 1000
            connection.due = time.monotonic()
            self._write(connection, HEAD + FIRST)
            heapq.heappush(self._schedule, (connection.due, connection.sock.fileno(), connection))

    def _send_due(self) -> None:
        schedule = self._schedule
        now = time.monotonic()
        while schedule and schedule[0][0] <= now:
            due, fd, connection = schedule[0]
            if fd not in self._connections or self._connections[fd] is not connection:
                heapq.heappop(schedule)
                continue
            data = TOKENS[connection.sent]
            connection.sent += 1
            if connection.sent == connection.tokens:
                heapq.heappop(schedule)
                data += _end(connection.tokens)
            else:
                heapq.heapreplace(schedule, (due + connection.gap, fd, connection))
            self._write(connection, data)
            now = time.monotonic()
            self._late.append(now - due)

    def _write(self, connection: _Connection, data: bytes) -> None:
        if connection.left:
            data = connection.left + data
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        waited, connection.left = bool(connection.left), data[sent:]
        if waited != bool(connection.left):
            mask = select.EPOLLIN | (select.EPOLLOUT if connection.left else 0)
            self._epoll.modify(connection.sock.fileno(), mask)

    def _close(self, connection: _Connection) -> None:
        self._connections.pop(connection.sock.fileno(), None)
        connection.sock.close()

    def _figures(self) -> dict[str, float]:
        """Units: milliseconds, and a share of one core. Begins anew."""
        late = sorted(self._late)
        cpu, now = time.process_time(), time.monotonic()
        figures = {
            "tokens": len(late),
            "late_p50_ms": late[len(late) // 2] * 1000 if late else 0.0,
            "late_p99_ms": late[len(late) * 99 // 100] * 1000 if late else 0.0,
            "core_share": (cpu - self._cpu) / max(now - self._since, 1e-9),
        }
        self._late = array("d")
        self._cpu, self._since = cpu, now
        return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m load.compare.upstream", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    upstream = Upstream(parser.parse_args().port)
    print(upstream.port, flush=True)
    gc.disable()  # nothing here is cyclic, and a collection would be late tokens
    upstream.run()


if __name__ == "__main__":
    main()
