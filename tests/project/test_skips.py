"""A skip is told as the last thing of a run, without the log of a service that the test had started."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SKIPS = """
import pytest
from tests.requirements import require_or_skip

class Service:
    def __enter__(self): ...
    def __exit__(self, kind, error, trace):
        error.add_note("the end of the service's output:\\\\n" + '{"event": "started"}\\\\n' * 40)

@pytest.mark.parametrize("time", [1, 2])
def test_in_a_service(time):
    with Service():
        require_or_skip("gizmo (apt-get install gizmo)", present=False)

@pytest.fixture
def gadget():
    require_or_skip("gadget (pip install gadget)", present=False)

def test_of_a_fixture(gadget): ...

@pytest.mark.xfail(strict=True)
def test_of_a_fault(): raise ValueError

def test_good(): ...
"""
WHOLE = 'from tests.requirements import require_or_skip\nrequire_or_skip("a whole module (make it)", present=False)\n'
TOLD = [
    "   1 × missing: a whole module (make it)",
    "   1 × missing: gadget (pip install gadget)",
    "   2 × missing: gizmo (apt-get install gizmo)",
]


def run(folder: Path, *arguments: str, **environ: str) -> tuple[int, str]:
    """Run pytest over tests that lack something, in processes of its own, and give its exit code and output."""
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -ra -p tests.conftest -p no:cacheprovider\n")
    (folder / "test_skips.py").write_text(SKIPS.replace("\\\\", "\\"))
    (folder / "test_whole.py").write_text(WHOLE)
    environ = {name: value for name, value in os.environ.items() if name != "CHATWAIT_REQUIRE"} | environ
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=folder,
        env=environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout


def test_skips_are_the_last_thing_that_a_run_tells_in_red_with_their_counts(tmp_path: Path) -> None:
    code, output = run(tmp_path, "-n", "2", "--color=yes")
    *_, counts, title, one, two, three = output.rstrip("\n").split("\n")
    assert code == pytest.ExitCode.OK
    assert "1 passed, 4 skipped, 1 xfailed" in re.sub(r"\x1b\[\d+m", "", counts)
    assert "= SKIPPED BECAUSE SOMETHING IS MISSING HERE =" in title
    assert [one, two, three] == [f"\x1b[31m{line}\x1b[0m" for line in TOLD]
    assert "started" not in output


def test_skip_of_what_is_required_fails_and_is_no_skip(tmp_path: Path) -> None:
    code, output = run(tmp_path, "-n", "0", "--continue-on-collection-errors", CHATWAIT_REQUIRE="1")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "2 failed, 1 passed, 1 xfailed, 2 errors" in output.rstrip("\n").split("\n")[-1]
    assert "missing: gizmo (apt-get install gizmo)" in output
    assert "SOMETHING IS MISSING" not in output
