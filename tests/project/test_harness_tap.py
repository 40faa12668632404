"""What a service answers is heard whoever asks; what others answer is not."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator

import httpx
import pytest
import requests

from tests.harness import tap
from tests.harness.reader import KeptAlive, get, open_stream
from tests.harness.upstream import Close, Raw, Script, ScriptedUpstream
from tests.live import many

BROKEN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


@pytest.fixture
def port() -> Iterator[int]:
    """Answer every connection once, against the contract."""
    with ScriptedUpstream().by(lambda _: Script(before=[Raw(BROKEN), Close()])) as service:
        yield service.port


@pytest.fixture
def watched(port: int) -> Iterator[int]:
    tap.watch(port)
    yield port
    tap.unwatch(port)


def ask_raw(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        assert sock.send(b"GET /health HTTP/1.1\r\n") > 0
        assert sock.sendmsg([b"Host: a\r\n", b"\r\n"]) > 0
        buffer = bytearray(1000)
        while sock.recv_into(buffer):
            pass


def ask_standard(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/health")
    assert connection.getresponse().read() == b"{}"
    connection.close()


def ask_stream(port: int) -> None:
    with open_stream(f"http://127.0.0.1:{port}/health") as connection:
        assert connection.body() == b"{}"


def ask_kept_alive(port: int) -> None:
    with KeptAlive("127.0.0.1", port) as connection:
        assert connection.request("GET", "/health").body == b"{}"


def ask_httpx(port: int) -> None:
    assert httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).text == "{}"


def ask_requests(port: int) -> None:
    with requests.Session() as session:
        assert session.get(f"http://127.0.0.1:{port}/health").text == "{}"


ASKERS: dict[str, Callable[[int], object]] = {
    "raw socket": ask_raw,
    "http.client": ask_standard,
    "httpx": ask_httpx,
    "requests": ask_requests,
    "reader": lambda port: get(f"http://127.0.0.1:{port}/health"),
    "reader's stream": ask_stream,
    "kept alive": ask_kept_alive,
    "asyncio": lambda port: many.run(many.read_one(f"http://127.0.0.1:{port}/health")),
}


@pytest.mark.parametrize("asker", ASKERS)
def test_breach_is_heard_whoever_asks(watched: int, asker: str) -> None:
    ASKERS[asker](watched)

    problems = tap.RUN.take_problems()
    assert len(problems) == 1
    assert "GET /health was answered 200: X-Correlation-Id is not one UUID4" in problems[0]


def test_other_ports_are_not_heard(port: int) -> None:
    ASKERS["reader"](port)

    assert tap.RUN.take_problems() == []


def test_port_that_is_watched_twice_is_heard_until_both_have_ended(watched: int) -> None:
    tap.watch(watched)
    tap.unwatch(watched)
    ASKERS["reader"](watched)

    assert len(tap.RUN.take_problems()) == 1
