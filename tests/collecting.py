"""Collect the tests of a run for less: a plugin of pytest. Each of six workers collects every test for itself."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

LONG = re.compile(r"\bmark\.long\b|\bEACH_KIND\b")
"""What stands in each file that has a long test. Nobody must know it: a run that reads all files fails without it."""


@functools.cache
def tells_long(path: Path) -> bool:
    """Tell whether a file may have long tests, by a look at its text."""
    return LONG.search(path.read_text(encoding="utf-8")) is not None


def _files(config: pytest.Config) -> Iterator[Path]:
    """List the files of tests that a run was asked for, in one order for all workers."""
    for argument in config.args:
        path = (config.invocation_params.dir / argument.partition("::")[0]).resolve()
        yield from sorted(path.rglob("test_*.py")) if path.is_dir() else [path]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let no collector of garbage search what stays: neither while it is made, nor later in each of its rounds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Read a share of the files before all others, in a worker: each has another share.

    Pytest rewrites the assertions of a file that is new, and keeps what it made of it. Six workers that read the same
    files in the same order would each rewrite all of them. Whatever is wrong with a file, its collection will tell.
    """
    config = collector.config
    if not isinstance(collector, pytest.Session) or "PYTEST_XDIST_WORKER" not in os.environ:
        return
    place, workers = int(os.environ["PYTEST_XDIST_WORKER"][2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    files = [path for path in dict.fromkeys(_files(config)) if not pytest_ignore_collect(path, config)]
    for path in files[place::workers]:
        with contextlib.suppress(Exception, pytest.skip.Exception, pytest.fail.Exception):
            importlib.import_module(".".join(path.relative_to(config.rootpath).with_suffix("").parts))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files without a long test where only the long ones are wanted."""
    is_test = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    return True if is_test and config.option.markexpr == "long" and not tells_long(collection_path) else None


@pytest.hookimpl(tryfirst=True)  # before any is deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fail the whole run for a long test that `pytest_ignore_collect` would leave out."""
    if lost := {str(item.path) for item in items if item.get_closest_marker("long") and not tells_long(item.path)}:
        raise AssertionError(  # a UsageError of a worker is told nowhere
            f"make test-long would not find the long tests of {', '.join(sorted(lost))}: {LONG.pattern}"
        )
