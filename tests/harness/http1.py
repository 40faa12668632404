"""Speak just enough HTTP/1.1 as a client, and take nothing that was cut for something whole.

`http.client` takes an end of file inside the headers for their end; tests that cut at every byte need a client that
does not.
"""

from __future__ import annotations

import contextlib
import json as jsons
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.harness.net import LINGER_ZERO, narrow

MAX_HEAD_BYTES = 1 << 20
MAX_BODY_BYTES = 256 << 20
RECV_BYTES = 64 << 10
DEADLINE_SECONDS = 120.0


class Dropped(ConnectionError):
    """State that the connection ended before the answer did."""

    def __init__(self, message: str, *, by_reset: bool = False) -> None:
        super().__init__(message)
        self.by_reset = by_reset


class Headers(Mapping[str, str]):
    """Look headers up without regard to case; of several with one name the first one counts."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs
        self._first: dict[str, str] = {}
        for name, value in pairs:
            self._first.setdefault(name.lower(), value)

    def __getitem__(self, name: str) -> str:
        return self._first[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._first

    def __iter__(self) -> Iterator[str]:
        return iter(self._first)

    def __len__(self) -> int:
        return len(self._first)

    def get_all(self, name: str) -> list[str]:
        """List the values of every header with this name."""
        return [value for key, value in self.pairs if key.lower() == name.lower()]

    def __repr__(self) -> str:
        return f"Headers({self.pairs!r})"


def write_request(method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    """Write one request; a body gets its length."""
    fields = dict(headers)
    if body is not None:
        fields["Content-Length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def parse_head(head: bytes) -> tuple[str, Headers]:
    """Take a head apart, which ends before its empty line: the first line, and the headers."""
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first, Headers([(name.strip(), value.strip()) for name, _, value in pairs])


@dataclass(frozen=True)
class Reply:
    """Hold a complete answer."""

    status: int
    headers: Headers
    body: bytes

    @property
    def json(self) -> Any:
        """Parse the body. Raises: AssertionError when it is not JSON."""
        try:
            return jsons.loads(self.body)
        except ValueError:
            raise AssertionError(f"the answer {self.status} is not JSON: {self.body[:500]!r}") from None


@dataclass(frozen=True)
class Target:
    """Hold where a URL leads."""

    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> Target:
        """Take a URL apart."""
        parts = urlsplit(url)
        path = parts.path or "/"
        return cls(parts.hostname or "", parts.port or 80, f"{path}?{parts.query}" if parts.query else path)


class Wire:
    """Hold one client connection and read whole things from it.

    Units: `timeout` is the longest silence, `deadline` the longest life of the connection; both in seconds.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        timeout: float = 10.0,
        deadline: float = DEADLINE_SECONDS,
        rcvbuf: int | None = None,
    ) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._timeout = timeout
        self._ends_at = time.monotonic() + deadline
        self._buffer = bytearray()
        try:
            if rcvbuf is not None:  # only before the connection is made does it bound the window
                narrow(self.socket, rcvbuf)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.settimeout(timeout)
            self.socket.connect((host, port))
        except ConnectionResetError as reset:
            # Accepted and reset before connect() had returned: for a test the same as a reset a moment later.
            self.socket.close()
            raise Dropped("reset by the peer", by_reset=True) from reset
        except BaseException:
            self.socket.close()
            raise

    def send(self, data: bytes) -> None:
        """Send bytes. A peer that closed is no error here: it may have answered before."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def send_request(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> None:
        """Send one request, in one piece."""
        self.send(write_request(method, path, headers, body))

    def read_head(self) -> tuple[int, Headers]:
        """Read status and headers, past any 1xx. Raises: Dropped, TimeoutError."""
        while True:
            first, headers = parse_head(self._read_until(b"\r\n\r\n"))
            parts = first.split(" ", 2)
            if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
                raise AssertionError(f"not an HTTP answer: {first[:200]!r}")
            status = int(parts[1])
            if status >= 200:
                return status, headers

    def read_body(self, method: str, status: int, headers: Headers) -> Iterator[bytes]:
        """Give the body's bytes as they come. Raises: Dropped, TimeoutError."""
        if method == "HEAD" or status in (204, 304):
            return
        if headers.get("transfer-encoding", "").lower() == "chunked":
            yield from self._read_chunks()
        elif "content-length" in headers:
            yield from self._read_exactly(int(headers["content-length"]))
        else:
            while self._buffer or self._fill():
                yield self._take(len(self._buffer))

    def read_reply(self, method: str) -> Reply:
        """Read one whole answer. Raises: Dropped, TimeoutError."""
        status, headers = self.read_head()
        body = bytearray()
        for piece in self.read_body(method, status, headers):
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise AssertionError(f"the answer has more than {MAX_BODY_BYTES} bytes")
        return Reply(status, headers, bytes(body))

    def at_end(self) -> bool:
        """Wait for the peer's end of the connection; False when it sends something instead. Raises: TimeoutError."""
        try:
            return not self._buffer and not self._fill()
        except Dropped:
            return True

    def close(self) -> None:
        """Close with FIN."""
        self.socket.close()

    def reset(self) -> None:
        """Close with RST."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        self.socket.close()

    def _read_chunks(self) -> Iterator[bytes]:
        while True:
            line = self._read_until(b"\r\n")
            try:
                size = int(line.partition(b";")[0], 16)
            except ValueError:
                raise AssertionError(f"not the size of a chunk: {line[:100]!r}") from None
            if size == 0:
                while self._read_until(b"\r\n"):
                    pass  # trailers
                return
            yield from self._read_exactly(size)
            if ending := self._read_until(b"\r\n"):
                raise AssertionError(f"a chunk is longer than its size by {ending[:100]!r}")

    def _read_exactly(self, size: int) -> Iterator[bytes]:
        left = size
        while left:
            if not self._buffer and not self._fill():
                raise Dropped(f"closed {left} bytes before the end")
            piece = self._take(min(left, len(self._buffer)))
            left -= len(piece)
            yield piece

    def _read_until(self, mark: bytes) -> bytes:
        """Read up to the mark, and leave the mark out."""
        searched = 0
        while (at := self._buffer.find(mark, searched)) < 0:
            searched = max(0, len(self._buffer) - len(mark) + 1)
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise AssertionError(f"no {mark!r} in {MAX_HEAD_BYTES} bytes")
            if not self._fill():
                raise Dropped(f"closed before {mark!r}")
        found = self._take(at)
        self._take(len(mark))
        return found

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _fill(self) -> bool:
        """Receive some more, and tell whether there was more."""
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the connection was still open at its deadline")
        self.socket.settimeout(min(self._timeout, left))
        try:
            received = self.socket.recv(RECV_BYTES)
        except TimeoutError:
            raise TimeoutError(f"no byte arrived for {min(self._timeout, left):g} s") from None
        except ConnectionError as reset:
            raise Dropped("reset by the peer", by_reset=True) from reset
        self._buffer += received
        return bool(received)


def encode_body(
    json: Any, data: bytes | None, headers: Mapping[str, str] | None
) -> tuple[bytes | None, dict[str, str]]:
    """Make body and headers of what a caller gave: `json` with its content type, or `data` as it is."""
    fields = dict(headers or {})
    if json is None:
        return data, fields
    if "content-type" not in {name.lower() for name in fields}:
        fields["Content-Type"] = "application/json"
    return jsons.dumps(json).encode(), fields


class KeptAlive:
    """Send several requests over one connection, well-formed ones or raw bytes."""

    def __init__(self, host: str, port: int, *, timeout: float = 10.0) -> None:
        self._host = f"{host}:{port}"
        self._wire = Wire(host, port, timeout=timeout)

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one request and read its answer. Raises: Dropped, TimeoutError."""
        body, fields = encode_body(json, data, headers)
        self._wire.send_request(method, path, {"Host": self._host, **fields}, body)
        return self._wire.read_reply(method)

    def send(self, data: bytes) -> None:
        """Send bytes as they are, a part of a request for instance."""
        self._wire.send(data)

    def read_reply(self, method: str = "GET") -> Reply:
        """Read one answer to what `send` has sent. Raises: Dropped, TimeoutError."""
        return self._wire.read_reply(method)

    def closed_by_server(self) -> bool:
        """Wait for the server's end of the connection; False when it sends something instead. Raises: TimeoutError."""
        return self._wire.at_end()

    def close(self) -> None:
        """Close with FIN."""
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def request(
    method: str,
    url: str,
    *,
    json: Any = None,
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
) -> Reply:
    """Send one request on a connection of its own. Raises: OSError (Dropped and TimeoutError among them)."""
    target = Target.of(url)
    wire = Wire(target.host, target.port, timeout=timeout)
    try:
        body, fields = encode_body(json, data, headers)
        fields = {"Host": f"{target.host}:{target.port}", "Connection": "close", **fields}
        wire.send_request(method, target.path, fields, body)
        return wire.read_reply(method)
    finally:
        wire.close()


def get(url: str, headers: Mapping[str, str] | None = None, *, timeout: float = 10.0) -> Reply:
    """GET. Raises: OSError."""
    return request("GET", url, headers=headers, timeout=timeout)


def post(
    url: str,
    json: Any = None,
    *,
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
) -> Reply:
    """POST JSON, or bytes as they are. Raises: OSError."""
    return request("POST", url, json=json, data=data, headers=headers, timeout=timeout)


def delete(url: str, headers: Mapping[str, str] | None = None, *, timeout: float = 10.0) -> Reply:
    """DELETE. Raises: OSError."""
    return request("DELETE", url, headers=headers, timeout=timeout)
