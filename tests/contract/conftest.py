"""The application with an upstream that says what a test tells it, and without a network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from app.platform import clock
from app.settings import Settings
from tests.unit.conftest import no_network, page_read_once, restored_logging  # noqa: F401 - fixtures
from tests.unit.fakes import FakeUpstream, Gate, whole

SETTINGS = Settings(
    openai_base_url="http://model.test/v1",
    allowed_models=("gpt-4o-mini",),
    allowed_hosts=("localhost",),
    log_level="CRITICAL",
)
ASKED = {"message": "What is the capital of Italy?"}
TEXTS = ("Rome", ".")


@pytest.fixture(autouse=True)
def quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "TICK_SECONDS", 0.01)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.close()


@pytest.fixture
def upstream() -> FakeUpstream:
    return FakeUpstream(whole(*TEXTS))


@pytest.fixture
def app(upstream: FakeUpstream) -> Iterator[Flask]:
    made = create_app(SETTINGS, upstream=upstream)
    yield made
    made.extensions["chatwait"].close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()
