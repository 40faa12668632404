"""Test the loader that shortens a built-in wait, with a small package in place of the service's."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.pace import paced, target

WAITS = """
PATIENCE_SECONDS = 20.0
HALF_SECONDS = PATIENCE_SECONDS / 2

def waits(seconds=PATIENCE_SECONDS):
    return seconds
"""


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a service where it runs: in its own folder. What was loaded of it is forgotten in the end."""
    (tmp_path / "paced_room").mkdir()
    (tmp_path / "paced_room" / "__init__.py").touch()
    (tmp_path / "paced_room" / "waits.py").write_text(WAITS)
    (tmp_path / "wsgi.py").write_text("from paced_room import waits as app\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    others = set(sys.modules)
    monkeypatch.delitem(sys.modules, "wsgi", raising=False)
    yield tmp_path
    for name in [*sys.modules.keys() - others, "wsgi"]:
        sys.modules.pop(name, None)


def test_constant_that_is_paced_counts_wherever_its_module_uses_it_and_nowhere_after(service: Path) -> None:
    app = paced({"paced_room.waits.PATIENCE_SECONDS": 0.5}, probe=False)
    assert (app.PATIENCE_SECONDS, app.HALF_SECONDS, app.waits()) == (0.5, 0.25, 0.5)
    assert not list(service.rglob("waits.*.pyc")), "what was changed is kept nowhere"


@pytest.mark.parametrize("name", ["paced_room.waits.NO_SECONDS", "paced_room.nowhere.PATIENCE_SECONDS"])
def test_constant_that_is_not_there_fails_the_start(service: Path, name: str) -> None:
    with pytest.raises((LookupError, OSError), match=r"NO_SECONDS|nowhere"):
        paced({name: 0.5}, probe=False)


def test_module_that_was_loaded_before_fails_the_start(service: Path) -> None:
    assert paced({}, probe=False).waits() == 20.0
    with pytest.raises(LookupError, match="loaded already"):
        paced({"paced_room.waits.PATIENCE_SECONDS": 0.5}, probe=False)


def test_target_is_what_gunicorn_can_read() -> None:
    assert target({"a.B": 1.5}, probe=True) == "tests.harness.pace:paced({'a.B': 1.5}, probe=True)"
