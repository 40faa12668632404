"""Which unit tests run a line of `app/`: measured once for a tree with coverage's contexts, and kept in `.mutants/`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import coverage

__all__ = ["CoverageMap", "measure"]

LONGEST_SECONDS = 1800
SETTINGS = "[run]\nsource = app\ndynamic_context = test_function\nconcurrency = thread\n"


class CoverageMap:
    """`lines`: by file of `app/` and number of line, the tests that run the line. `seconds`: how long each takes."""

    def __init__(self, lines: dict[str, dict[str, list[str]]], seconds: dict[str, float]) -> None:
        self.lines = lines
        self.seconds = seconds

    def tests_of(self, path: str, changed: range) -> list[str]:
        """List the tests that run one of these lines, the quickest first. A line inside a statement counts as its
        first line."""
        known = self.lines.get(path, {})
        found: set[str] = set()
        for number in changed:
            while number > 0 and str(number) not in known:
                number -= 1
            found.update(known.get(str(number), ()))
        return sorted(found, key=lambda test: (self.seconds.get(test, 0.0), test))


def measure(root: Path) -> CoverageMap:
    """Return the map of a tree, measured now unless it was measured before. Takes some minutes."""
    key = hashlib.sha256()
    for file in sorted([*root.glob("app/**/*.py"), *root.glob("tests/unit/*.py"), *root.glob("tests/harness/*.py")]):
        key.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    folder = root / ".mutants"
    kept = folder / f"map-{key.hexdigest()[:16]}.json"
    if not kept.exists():
        folder.mkdir(exist_ok=True)
        print("Measuring which unit tests run which line (once for each tree) ...", flush=True)
        _run(root, folder)
        kept.write_text(json.dumps(_read(root, folder)), encoding="utf-8")
    told = json.loads(kept.read_text(encoding="utf-8"))
    return CoverageMap(told["lines"], told["seconds"])


def _run(root: Path, folder: Path) -> None:
    (folder / "rc").write_text(SETTINGS, encoding="utf-8")
    command = [sys.executable, "-m", "coverage", "run", f"--rcfile={folder / 'rc'}", f"--data-file={folder / 'data'}"]
    options = ["-n", "0", "-q", "-p", "no:cacheprovider", f"--junitxml={folder / 'times.xml'}", "tests/unit"]
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run(
        [*command, "-m", "pytest", *options], cwd=root, env=environ, timeout=LONGEST_SECONDS, stdout=subprocess.DEVNULL
    )


def _read(root: Path, folder: Path) -> dict[str, object]:
    data = coverage.CoverageData(str(folder / "data"))
    data.read()
    lines: dict[str, dict[int, list[str]]] = {}
    for file in data.measured_files():
        found = {
            number: sorted(filter(None, map(_test, contexts)))
            for number, contexts in data.contexts_by_lineno(file).items()
        }
        lines[Path(file).relative_to(root.resolve()).as_posix()] = found
    seconds: defaultdict[str, float] = defaultdict(float)
    for case in ElementTree.parse(folder / "times.xml").iter("testcase"):  # of our own run
        name = f"{case.get('classname')}.{(case.get('name') or '').partition('[')[0]}"
        if test := _test(name):
            seconds[test] += float(case.get("time") or 0)
    return {"lines": lines, "seconds": seconds}


def _test(context: str) -> str | None:
    """Write a context (`tests.unit.test_text.test_cut`) as pytest names the test; None for anything else."""
    parts = context.split(".")
    if parts[:2] != ["tests", "unit"] or len(parts) < 4 or not parts[2].startswith("test_"):
        return None
    return "::".join(["/".join(parts[:3]) + ".py", *parts[3:]])
