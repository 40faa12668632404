"""What the tests with a real proxy in front share: the four, and those of two instances; reading what they compress."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from load.events import Event, EventParser
from tests.harness.proxies import HAProxy, Nginx, Proxy, installed
from tests.harness.reader import Answer, Connection, open_stream
from tests.requirements import require_or_skip

NAMES = ("nginx", "haproxy")
KINDS = ("nginx plain", "nginx shipped", "haproxy plain", "haproxy shipped")
"""Plain: the proxy's own defaults, and gzip for everything. Shipped: what deploy/ recommends."""

HTTP_1_0 = {"proxy_http_version 1.1;": "proxy_http_version 1.0;"}
"""A change to what deploy/ recommends for nginx, after which it asks the service as an nginx with its defaults does."""


def need(*names: str) -> None:
    """Skip the test where one of these proxies is not installed. Before anything has a port: it would stay open."""
    for name in names:
        require_or_skip(f"{name} (apt-get install {name})", installed(name) is not None)


def front(kind: str, directory: Path, port: int, *options: str, changes: Mapping[str, str] | None = None) -> Proxy:
    """Put such a proxy in front of this port; it is started by entering its context."""
    name, _, config = kind.partition(" ")
    need(name)
    proxy: Nginx | HAProxy = {"nginx": Nginx, "haproxy": HAProxy}[name](directory, port)
    proxy.kind = kind
    return proxy.plain() if config == "plain" else proxy.shipped(*options, changes=changes)


def front_of_two(name: str, directory: Path, one: int, two: int, *, changes: Mapping[str, str] | None = None) -> Proxy:
    """Put what deploy/ recommends for two instances with one Valkey in front of these ports."""
    other = {"127.0.0.1:8001": f"127.0.0.1:{two}"}
    return front(f"{name} shipped", directory, one, "shared", changes={**other, **(changes or {})})


@contextmanager
def both(directory: Path, port: int) -> Iterator[tuple[Proxy, Proxy]]:
    """Run what deploy/ recommends, nginx and haproxy, in front of this port."""
    need(*NAMES)
    for name in NAMES:
        (directory / name).mkdir()
    nginx, haproxy = (front(f"{name} shipped", directory / name, port) for name in NAMES)
    with nginx, haproxy:
        yield nginx, haproxy


def decoded(connection: Connection) -> Iterator[Event]:
    """Give the events as they come, also of an answer that a proxy compressed."""
    if connection.headers.get("content-encoding") != "gzip":
        yield from connection.events()
        return
    unzip, parser = zlib.decompressobj(wbits=31), EventParser("")
    for piece in connection.pieces():
        received_at = monotonic()
        for event in parser.feed(unzip.decompress(piece)):
            yield replace(event, received_at=received_at)


def read_through(url: str, body: dict[str, Any], headers: Mapping[str, str]) -> Answer:
    """Read one stream to its end, every token and the hash checked."""
    answer = Answer()
    with open_stream(url, json=body, headers=headers) as connection:
        assert connection.status == 200, connection.body()
        answer.begin_connection(connection.headers)
        for event in decoded(connection):
            answer.add(event)
    return answer.verify()
