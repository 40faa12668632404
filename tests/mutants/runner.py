"""Breaks a copy of the tree with one fault after the other, and runs the tests that should notice.

The tests that run the fault's line come first, then the fault's own files, the room's, and at last the whole quick
suite. The first failure ends it. A test counts only if it fails again when it runs alone, and passes on the unbroken
tree. A hang counts only if the same tests end there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.coverage_map import CoverageMap
from tests.mutants.faults import Fault

__all__ = ["ITSELF", "Outcome", "Runner"]

ITSELF = "tests/project/test_mutants.py"
"""The tests of the faults themselves: each fault fails them."""

LEAST_SECONDS = 90
"""How long the tests of a line may take, beside four times what they took when they were measured."""

MOST_UNSOUND = 5
"""How many tests that fail on the unbroken tree one tier passes over."""

_FAILED = re.compile(r"^(?:FAILED|ERROR) ([^\s\[]+?\.py(?:::\w+)*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a fault. `killed_by`: a test, or how else it was noticed; None when it survived."""

    fault: Fault
    killed_by: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class _Tier:
    tests: Sequence[str]
    processes: int
    most_seconds: float
    is_whole: bool = False


class Runner:
    """Runs faults over copies of `root`, `jobs` at a time."""

    def __init__(self, root: Path, covered: CoverageMap, *, jobs: int, whole: bool = True) -> None:
        """`whole`: run the whole quick suite for what survives everything else."""
        self._root = root
        self._covered = covered
        self._jobs = jobs
        self._whole = whole
        self._sound_lock = threading.Lock()
        self._whole_lock = threading.Lock()  # the whole suite has six processes of its own
        self._sound: dict[str, bool] = {}
        self.unsound: set[str] = set()
        """Tests that failed on the unbroken tree, or not a second time on the broken one, and so were not believed."""

    def run(self, faults: Sequence[Fault], told: Callable[[Outcome], None]) -> list[Outcome]:
        """Run the faults and return their outcomes in the same order. `told` hears each as soon as it is known."""
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            self._unbroken = copied(self._root, Path(folder, "unbroken"))
            trees: SimpleQueue[Path] = SimpleQueue()
            for number in range(self._jobs):
                trees.put(copied(self._root, Path(folder, f"broken-{number}")))

            def one(fault: Fault) -> Outcome:
                tree = trees.get()
                try:
                    outcome = self._outcome(fault, tree)
                finally:
                    trees.put(tree)
                told(outcome)
                return outcome

            with ThreadPoolExecutor(self._jobs) as pool:
                return list(pool.map(one, faults))

    def _outcome(self, fault: Fault, tree: Path) -> Outcome:
        began = time.monotonic()
        killed_by: str | None = None
        with _broken(fault, tree):
            for tier in self._tiers(fault):
                with self._whole_lock if tier.is_whole else contextlib.nullcontext():
                    killed_by = self._killed_by(tier, tree)
                if killed_by is not None:
                    break
        return Outcome(fault, killed_by, time.monotonic() - began)

    def _tiers(self, fault: Fault) -> Iterator[_Tier]:
        covering = self._covered.tests_of(fault.path, fault.lines((self._root / fault.path).read_text("utf-8")))
        if covering:
            known = sum(self._covered.seconds.get(test, 0.0) for test in covering)
            yield _Tier(covering, 0, LEAST_SECONDS + 4 * known)
        own, rest = fault.tests[: fault.first], fault.tests[fault.first :]
        for files in (own, rest):
            if files:
                yield _Tier(files, min(len(files), 3), 600)
        if self._whole:
            yield _Tier([], 6, 1500, is_whole=True)  # no path: what `make test` runs

    def _killed_by(self, tier: _Tier, tree: Path) -> str | None:
        """Say what noticed the fault in one tier, and would not have noticed the unbroken tree."""
        while True:
            passed_over = [f"--deselect={test}" for test in sorted(self.unsound)]
            output = _pytest(tree, [*tier.tests, *passed_over], tier)
            if output == "":
                return None
            if output is None or not (failed := _FAILED.search(output)):
                how = "a hang" if output is None else "a start that fails"
                return how if self._is_sound(" ".join(tier.tests), tier) else None
            # A file that cannot be read names no test of its own.
            alone = failed[1] if "::" in failed[1] else f"--collect-only {failed[1]}"
            if self._is_sound(alone, tier) and _pytest(tree, alone.split(), tier) != "":
                return failed[1]
            self.unsound.add(failed[1])
            if len(self.unsound) > MOST_UNSOUND * self._jobs:
                raise RuntimeError(f"the unbroken tree is not sound: {sorted(self.unsound)}")

    def _is_sound(self, tests: str, tier: _Tier) -> bool:
        """Tell whether tests, separated by spaces, pass on the unbroken tree. They are run there once."""
        with self._sound_lock:
            if tests not in self._sound:
                self._sound[tests] = _pytest(self._unbroken, tests.split(), tier) == ""
            return self._sound[tests]


def copied(root: Path, into: Path) -> Path:
    """Copy a repository with its history, and every file that git knows as it is now. Return the copy."""
    subprocess.run(["git", "clone", "--quiet", "--shared", str(root), str(into)], check=True)
    known = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
    )
    for name in filter(None, known.stdout.decode().split("\0")):
        if (root / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, into / name)
        else:
            (into / name).unlink(missing_ok=True)
    return into


@contextlib.contextmanager
def _broken(fault: Fault, tree: Path) -> Iterator[None]:
    file = tree / fault.path
    whole = file.read_text(encoding="utf-8")
    _write(file, fault.broken(whole))
    try:
        yield
    finally:
        _write(file, whole)


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    for compiled in file.parent.glob(f"__pycache__/{file.stem}.*.pyc"):  # it may have the same time and size
        compiled.unlink()


def _pytest(tree: Path, arguments: Sequence[str], tier: _Tier) -> str | None:
    """Run tests up to the first failure. Return "" when all pass, else the output; None when they do not end."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    command += ["-n", str(tier.processes), f"--ignore={ITSELF}", *arguments]
    environ = {name: value for name, value in os.environ.items() if name != "CHATWAIT_REQUIRE"}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=tree,
            env=environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": ""},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(tier.most_seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what the tests have left, too
            process.wait()
        output.seek(0)
        return "" if status in (0, 5) else output.read().decode("utf-8", "replace") or "?"
