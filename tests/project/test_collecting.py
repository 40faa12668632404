"""Test that a run of the long tests alone reads fewer files and loses no test."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import collecting

ALIAS = "SLOW = getattr(pytest.mark, 'lo' + 'ng')\n\n\n@SLOW\ndef test_told_otherwise(): ...\n"
TOLD = "@pytest.mark.long\ndef test_told(): ...\n"
KINDS = "@pytest.fixture(params=EACH_KIND)\ndef kind(): ...\n"


def item(path: Path, *marks: str) -> Any:
    return SimpleNamespace(path=path, get_closest_marker=lambda name: name in marks or None)


def run(marks: str) -> Any:
    return SimpleNamespace(option=SimpleNamespace(markexpr=marks))


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def put(text: str) -> Path:
        path = tmp_path / "test_some.py"
        path.write_text(text, encoding="utf-8")
        return path

    return put


def test_long_test_whose_file_does_not_tell_fails_the_run_that_reads_all_files(write: Any) -> None:
    path = write(ALIAS)
    collecting.pytest_collection_modifyitems([item(path, "browser")])
    with pytest.raises(AssertionError, match=r"would not find the long tests of .*test_some\.py"):
        collecting.pytest_collection_modifyitems([item(path, "browser"), item(path, "browser", "long")])


@pytest.mark.parametrize("text", [TOLD, KINDS], ids=["mark", "kinds"])
def test_file_that_tells_of_long_tests_is_read_where_only_they_are_wanted(write: Any, text: str) -> None:
    path = write(text)
    assert collecting.pytest_ignore_collect(path, run("long")) is None
    collecting.pytest_collection_modifyitems([item(path, "long"), item(path)])


@pytest.mark.parametrize("marks", ["not long", "", "long or not long", "long and browser"])
def test_only_a_run_of_nothing_but_long_tests_leaves_files_out(write: Any, marks: str) -> None:
    path = write(ALIAS)
    assert collecting.pytest_ignore_collect(path, run("long")) is True
    assert collecting.pytest_ignore_collect(path, run(marks)) is None
    assert collecting.pytest_ignore_collect(path.parent, run("long")) is None
    assert collecting.pytest_ignore_collect(path.with_name("conftest.py"), run("long")) is None
