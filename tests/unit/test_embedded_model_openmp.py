"""Test how the embedded model's process gets OpenMP where the system has none, with a library of another name."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.embedded_model import openmp
from tests.requirements import require_or_skip

SCRIPT = """
import ctypes, json, os, sys
from pathlib import Path
from app.embedded_model import openmp

openmp.NAME, library = "libnobody-has-this.so.7", {library!r}
openmp.carried = lambda: None if library is None else Path(library)
runs = os.environ.setdefault("RUNS", "")
os.environ["RUNS"] += "x"
openmp.provide("-c", sys.orig_argv[-1])
folder, *others = (os.environ.get("LD_LIBRARY_PATH") or "").split(os.pathsep)
print(json.dumps([os.getpid(), len(os.environ["RUNS"]), openmp._loads(), openmp.FOLDER in os.environ,
                  folder, bool(folder) and os.path.exists(folder), others]))
"""


def run(library: str | None, **more: str) -> tuple[int, int, bool, bool, str, bool, list[str]]:
    """Provide this library; tell the process, how often it began, whether it loads, and what is left behind."""
    script = SCRIPT.format(library=library)
    environment = {**os.environ, **more}
    environment.pop("RUNS", None)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        pid, *told = json.loads(process.stdout.read())
    assert process.returncode == 0
    assert pid == process.pid, "it is the same process: whoever started it still knows it"
    return pid, *told


def test_library_that_a_package_carries_is_loaded_after_one_start_anew_and_nothing_is_left() -> None:
    import _ctypes

    _, runs, loads, is_told, folder, is_left, others = run(_ctypes.__file__, LD_LIBRARY_PATH="/elsewhere:/there")

    assert (runs, loads, is_told, is_left) == (2, True, False, False)
    assert others == ["/elsewhere", "/there"]
    assert Path(folder).name.startswith("chatwait-openmp-")


@pytest.mark.parametrize("library", [None, "/nowhere/libgomp.so.1", __file__], ids=["none", "gone", "no library"])
def test_process_without_the_library_goes_on_to_say_so_and_is_not_started_for_ever(library: str | None) -> None:
    _, runs, loads, is_told, _, is_left, _ = run(library, LD_LIBRARY_PATH="")

    assert (runs, loads, is_told, is_left) == (1 if library is None else 2, False, False, False)


def test_process_that_has_the_library_is_not_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openmp, "_loads", lambda: True)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started anew"))

    openmp.provide("-c", "")


@pytest.mark.parametrize(
    ("platform", "is_carried", "loads", "expected"),
    [
        ("linux", True, False, True),
        ("linux", False, True, True),
        ("linux", False, False, False),
        ("darwin", False, False, True),
    ],
)
def test_openmp_is_available_where_the_system_or_a_package_has_it_or_none_is_needed(
    monkeypatch: pytest.MonkeyPatch, platform: str, is_carried: bool, loads: bool, expected: bool
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(openmp, "carried", lambda: Path(__file__) if is_carried else None)
    monkeypatch.setattr(openmp, "_loads", lambda: loads)

    assert openmp.available() is expected


def test_package_of_the_requirements_carries_the_library() -> None:
    installed = sys.platform == "linux" and importlib.util.find_spec("xllamacpp") is not None
    require_or_skip("the embedded model (requirements-local.txt)", installed)
    library = openmp.carried()

    assert library is not None, "another version of pykdtree carries it elsewhere"
    assert ctypes.CDLL(str(library)).GOMP_parallel
