"""The engine as fixtures: one server for all tests of a process, a database for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.engine import KINDS, Database, Engine, program
from tests.requirements import require_or_skip

VALKEY = "a Valkey server (requirements-dev.txt has one for Linux and macOS)"
EACH_KIND = [KINDS[0], *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS[1:])]
"""For `params`: `make test` has the first, `make test-long` the others, where the same things are said again."""


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """Run a Valkey for whoever does it no harm."""
    require_or_skip(VALKEY, program("valkey") is not None)
    with Engine() as engine:
        yield engine


@pytest.fixture
def own_engine() -> Iterator[Engine]:
    """Run a Valkey that a test may harm."""
    require_or_skip(VALKEY, program("valkey") is not None)
    with Engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def redis_engine() -> Iterator[Engine]:
    """Run the machine's own Redis."""
    require_or_skip("redis-server (apt-get install redis-server)", program("redis") is not None)
    with Engine(kind="redis") as engine:
        yield engine


@pytest.fixture
def engine_database(engine: Engine) -> Database:
    return engine.database()


@pytest.fixture
def valkey_database(engine_database: Database) -> Database:
    return engine_database


@pytest.fixture
def redis_database(redis_engine: Engine) -> Database:
    return redis_engine.database()
