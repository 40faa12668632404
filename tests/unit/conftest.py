"""Fixtures of the unit tests: the log's records, a network of the test's own or none, nothing left behind."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from app.observability import events as lines
from app.observability import observer
from app.observability.stdout import Event
from app.routes import pages
from app.upstream.pool import Pool
from app.upstream.transport import Transport
from app.web.assets import Asset
from tests.unit.rawserver import Serve, serving

settings.register_profile("a busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("a busy machine")


@pytest.fixture(scope="session", autouse=True)
def page_read_once() -> Iterator[None]:
    """Read and pack the page's files once, and not again for each application of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "read", functools.cache(pages.read))
        patch.setattr(pages, "Asset", SimpleNamespace(of=functools.cache(Asset.of)))
        yield


@contextlib.contextmanager
def as_it_was() -> Iterator[None]:
    """Put back what `libraries.configure` changes in the logging of the whole process."""
    loggers_of = ("", "app", "openai", "httpx", "httpx2", "gunicorn.error", "werkzeug")
    loggers = [logging.getLogger(name) for name in loggers_of]
    before = [(logger, logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    names = ("raiseExceptions", "_srcfile", "logThreads", "logProcesses", "logMultiprocessing")
    switches = {name: getattr(logging, name) for name in names}
    yield
    logging.captureWarnings(False)
    for name, value in switches.items():
        setattr(logging, name, value)
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    with as_it_was():
        yield


class Events:
    """Keep the records of the facts that were told."""

    def __init__(self) -> None:
        self.records: list[logging.LogRecord] = []

    def of(self, name: str) -> list[dict[str, Any]]:
        return [
            {**record.__dict__, **record.fields}
            for record in list(self.records)
            if isinstance(record, Event) and record.event == name
        ]


@pytest.fixture
def events() -> Iterator[Events]:
    """Record the events of a test, those of DEBUG left out."""
    observer.listen(lines.write)
    kept = Events()
    handler = logging.Handler()
    handler.emit = kept.records.append  # type: ignore[method-assign]
    logger = logging.getLogger("app")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield kept
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every connection fail loudly: a mock that does not bite must not reach the world."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a test that must not use the network connects")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the proxies of the machine."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kept connections be used again at once."""
    monkeypatch.setattr(Pool, "_rest_seconds", lambda *_: 0.0)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start raw servers, and end them with the test."""
    with serving() as start:
        yield start


@pytest.fixture
def transport(no_proxies: None, no_rest: None) -> Iterator[Transport]:
    """A transport whose connections need no rest. It loads no certificates: that takes more than most tests do."""
    made = Transport(secure=False)
    yield made
    made.close()
