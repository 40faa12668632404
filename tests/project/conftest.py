"""Fixtures of the tests of the project: a service in this process may change the logging of all."""

from tests.unit.conftest import restored_logging  # noqa: F401 - a fixture
