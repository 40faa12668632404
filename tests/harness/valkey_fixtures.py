"""Valkey as fixtures: one server for all tests of a process, a database for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.valkey import KINDS, Database, Valkey, program
from tests.requirements import require_or_skip

VALKEY = "a Valkey server (requirements-dev.txt has one for Linux and macOS)"
EACH_KIND = [KINDS[0], *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS[1:])]
"""For `params`: `make test` has the first, `make test-long` the others, where the same things are said again."""


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """Run a Valkey for whoever does it no harm."""
    require_or_skip(VALKEY, program("valkey") is not None)
    with Valkey() as valkey:
        yield valkey


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    """Run a Valkey that a test may harm."""
    require_or_skip(VALKEY, program("valkey") is not None)
    with Valkey() as valkey:
        yield valkey


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Valkey]:
    """Run the machine's own Redis."""
    require_or_skip("redis-server (apt-get install redis-server)", program("redis") is not None)
    with Valkey(kind="redis") as valkey:
        yield valkey


@pytest.fixture
def valkey_database(valkey: Valkey) -> Database:
    return valkey.database()


@pytest.fixture
def redis_database(redis_server: Valkey) -> Database:
    return redis_server.database()
