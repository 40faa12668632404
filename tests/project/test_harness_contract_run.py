"""A breach of the contract fails the test that met it, and a promise that nothing has shown fails the whole run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INI = """
[pytest]
testpaths = .
addopts = -m "not long" -p tests.harness.contract_run -p no:cacheprovider -n 2 --dist loadfile
"""
GOOD = "from tests.harness.tap import RUN\n\ndef test_good():\n    RUN.seen['GET /health', '200'] += 2\n"
OTHER = "from tests.harness.tap import RUN\n\ndef test_other():\n    RUN.seen['GET /models', '200'] += 3\n"
BREACH = (
    "from tests.harness.tap import RUN\n\ndef test_breach():\n    RUN.complain('no id')\n\ndef test_next():\n    pass\n"
)
LATE = """
import pytest
from tests.harness.tap import RUN

@pytest.fixture(scope="session", autouse=True)
def at_the_end():
    yield
    RUN.complain("too late")

@pytest.fixture
def broken():
    yield
    RUN.complain("no id")

def test_breach(broken):
    pass
"""


def run(folder: Path, *arguments: str, **files: str) -> tuple[int, str]:
    """Run pytest over these files, in processes of its own, and give its exit code and output."""
    (folder / "pytest.ini").write_text(INI, encoding="utf-8")
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", *arguments]
    done = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_breach_fails_the_test_that_met_it_and_no_other(tmp_path: Path) -> None:
    code, output = run(tmp_path, "-n", "0", breach=BREACH, good=GOOD)

    assert code == pytest.ExitCode.TESTS_FAILED
    assert "against the contract: no id" in output
    assert "FAILED test_breach.py::test_breach" in output
    assert "1 failed, 2 passed" in output


def test_breach_in_the_end_of_a_fixture_fails_its_test(tmp_path: Path) -> None:
    code, output = run(tmp_path, "-n", "0", late=LATE)

    assert code == pytest.ExitCode.TESTS_FAILED
    assert "ERROR test_late.py::test_breach - AssertionError: against the contract: no id" in output
    assert "too late" in output


def test_whole_run_adds_up_and_fails_for_what_it_has_not_seen(tmp_path: Path) -> None:
    code, output = run(tmp_path, good=GOOD, other=OTHER)

    assert code == pytest.ExitCode.TESTS_FAILED
    assert "2 passed" in output
    assert "contract: 5 answers" in output
    never = next(line for line in output.splitlines() if "promised, but never seen" in line)
    assert "POST /chat/wait 504" in never
    assert "GET /health 200" not in never and "GET /models 200" not in never


def test_selection_does_not_fail_for_what_it_has_not_seen(tmp_path: Path) -> None:
    code, output = run(tmp_path, "-n", "0", "-k", "good", good=GOOD, other=OTHER)

    assert code == pytest.ExitCode.OK
    assert "were not seen in this selection" in output
