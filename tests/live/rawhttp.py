"""Write requests byte by byte, wrong ones too, and see what becomes of their connection."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.harness.http1 import RECV_BYTES
from tests.harness.reader import Reply

HOST = "127.0.0.1"
JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"


def raw(line: str, *fields: str, body: bytes = b"", host: str | None = "localhost") -> bytes:
    """Write a request; its body gets no length of its own."""
    lines = [line, *([] if host is None else [f"Host: {host}"]), *fields]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def sized(line: str, *fields: str, body: bytes) -> bytes:
    """Write a request whose body has the length it says."""
    return raw(line, *fields, f"Content-Length: {len(body)}", body=body)


def chunks(*pieces: bytes) -> bytes:
    """Write a chunked body to its end."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


def connect(port: int, *, timeout: float = 10.0) -> socket.socket:
    """Open a connection that sends every byte at once."""
    sock = socket.create_connection((HOST, port), timeout=timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def is_read(port: int, socks: Sequence[socket.socket]) -> bool:
    """Tell whether the process behind `port` has read all that was sent to it through these connections."""
    ours = {f"{sock.getsockname()[1]:04X}" for sock in socks}
    served = f"{port:04X}"
    for row in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        _, local, remote, _, queues, *_ = row.split()
        near, far = local.partition(":")[2], remote.partition(":")[2]
        unacknowledged, unread = (int(size, 16) for size in queues.split(":"))
        if (near in ours and far == served and unacknowledged) or (near == served and far in ours and unread):
            return False
    return True


def talk(port: int, data: bytes, *, timeout: float = 10.0) -> bytes:
    """Send bytes, say that no more will come, and give all that is answered. Raises: TimeoutError."""
    with connect(port, timeout=timeout) as sock:
        received = b""
        with contextlib.suppress(ConnectionError):  # it may have answered, and closed, before it took everything
            sock.sendall(data)
            with contextlib.suppress(OSError):  # after a reset it is "not connected", which is no ConnectionError
                sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while piece := sock.recv(RECV_BYTES):
                received += piece
    return received


def send_anything(port: int, data: bytes) -> None:
    """Send bytes that may be no request, and wait until they were answered or refused, or three seconds."""
    with contextlib.suppress(OSError), connect(port, timeout=3) as sock:
        sock.sendall(data)
        while sock.recv(RECV_BYTES):
            pass


def statuses(received: bytes) -> list[int]:
    """List the statuses of the answers in what was received."""
    return [int(status) for status in re.findall(rb"(?:^|[}\n])HTTP/1\.[01] ([0-9]{3}) ", received)]


def assert_ours(reply: Reply) -> Reply:
    """Check what every response carries."""
    assert len(reply.headers.get_all("x-correlation-id")) == 1
    assert uuid.UUID(reply.headers["x-correlation-id"]).version == 4
    assert "no-store" in reply.headers["cache-control"] or reply.headers["cache-control"] == "no-cache"
    return reply


def assert_refused(reply: Reply, status: int, code: str) -> Reply:
    """Check the one error shape, its three parts and its bound."""
    assert_ours(reply)
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json"), reply.body
    told = json.loads(reply.body)
    told = told.get("error", told)  # OpenAI's routes have ours inside
    assert told["error_code"] == code, told
    assert all(isinstance(told[name], str) and told[name] for name in ("message", "detail", "action"))
    assert len({told["message"], told["detail"], told["action"]}) == 3
    assert told["correlation_id"] == reply.headers["x-correlation-id"]
    assert len(reply.body) < 4096
    return reply
