"""The faults of tests/mutants still fit the code, every room has some, and their runner tells what it should tell."""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants import __main__ as command
from tests.mutants.coverage_map import CoverageMap
from tests.mutants.faults import ROOT, Fault, load, room_of, sample
from tests.mutants.runner import Outcome, Runner
from tests.requirements import require_or_skip

FEWEST = 5
FEWEST_OF_THE_PAGE = 16
FEWEST_IN_ALL = 96

FAULTS = load()
README = (ROOT / "tests/README.md").read_text(encoding="utf-8")
KINDS = {".py", ".js", ".lua"}
CODE = [file for file in (ROOT / "app").rglob("*") if file.suffix in KINDS and file.stat().st_size > 200]


def test_names_of_faults_are_all_different() -> None:
    assert [name for name, count in Counter(fault.name for fault in FAULTS).items() if count > 1] == []


def test_every_room_of_the_code_has_enough_faults() -> None:
    faults = Counter(fault.room for fault in FAULTS)
    rooms = {room_of(file.relative_to(ROOT).as_posix()) for file in CODE}
    assert {room: faults[room] for room in rooms if faults[room] < FEWEST} == {}
    assert faults["page"] >= FEWEST_OF_THE_PAGE
    assert faults.total() >= FEWEST_IN_ALL
    assert set(faults) == rooms  # a file of faults is named after a room


def test_sample_has_eighty_faults_and_four_of_each_room_spread_over_all_of_them() -> None:
    chosen = sample(FAULTS)
    counts = Counter(fault.room for fault in chosen)
    assert len(chosen) == len(set(chosen)) >= 80
    assert f"in {len(chosen)} ways" in README
    assert f"--all: {len(FAULTS)} ways" in README
    assert set(counts) == {fault.room for fault in FAULTS}
    assert min(counts.values()) >= 4
    assert len(chosen) <= len(FAULTS) / 3
    files = {fault.path for fault in FAULTS if fault.room == "streams_shared"}
    assert len({fault.path for fault in chosen if fault.room == "streams_shared"}) >= len(files) / 2


@pytest.mark.parametrize(
    ("path", "room"),
    [
        ("app/__init__.py", "worker"),
        ("app/settings.py", "errors"),
        ("app/dialects/native/frames.py", "dialects"),
        ("app/streams/text.py", "streams"),
        ("app/streams/shared/lua/commit.lua", "streams_shared"),
        ("app/static/assets/view.js", "page"),
        ("app/metrics.py", "metrics"),
        ("app/metrics/counters.py", "metrics"),
    ],
)
def test_room_of_a_file_is_its_folder_or_itself(path: str, room: str) -> None:
    assert room_of(path) == room


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_fits_the_code_once_and_changes_what_it_does(fault: Fault) -> None:
    text = (ROOT / fault.path).read_text(encoding="utf-8")
    broken = fault.broken(text)
    assert room_of(fault.path) == fault.room
    assert set(fault.lines(text)) <= set(range(1, text.count("\n") + 2))
    if fault.path.endswith(".py"):
        assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(text))  # neither a comment nor a space


@pytest.mark.parametrize("path", sorted({file for fault in FAULTS for file in fault.tests}))
def test_tests_that_a_fault_names_are_there(path: str) -> None:
    assert (ROOT / path).is_file()


def test_fault_of_the_page_leaves_a_script_that_can_be_read(tmp_path: Path) -> None:
    require_or_skip("node", shutil.which("node") is not None)
    scripts = [fault for fault in FAULTS if fault.path.endswith(".js")]
    for fault in scripts:
        is_module = "/assets/" in fault.path
        file = tmp_path / f"{fault.name}.{'mjs' if is_module else 'js'}"
        file.write_text(fault.broken((ROOT / fault.path).read_text(encoding="utf-8")), encoding="utf-8")
    # One process checks them all: `vm` reads scripts, and `--check` one file alone.
    check = (
        "const vm = require('vm'), fs = require('fs'), path = require('path');"
        "for (const name of fs.readdirSync(process.argv[1])) { const text = fs.readFileSync(path.join(process.argv[1],"
        " name), 'utf8'); name.endsWith('.mjs') ? new vm.SourceTextModule(text) : new vm.Script(text); }"
    )
    node = ["node", "--experimental-vm-modules", "--no-warnings", "-e", check, str(tmp_path)]
    ended = subprocess.run(node, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    (tmp_path / "broken.mjs").write_text("export {;", encoding="utf-8")  # premise: it would see one
    assert subprocess.run(node, capture_output=True, timeout=60).returncode != 0


def test_fault_that_no_longer_fits_is_told() -> None:
    fault = Fault("gone", "x", "app/x.py", "one", "two", (), 0)
    for text in ("nothing", "one and one"):
        with pytest.raises(ValueError, match="gone"):
            fault.broken(text)


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [("b", "x", [2]), ("b\n", "", [2]), ("a\nb", "a\nx", [2]), ("a\nb\nc\n", "a\nx\n", [2, 3]), ("c", "x", [3])],
)
def test_lines_of_a_fault_are_those_it_changes(old: str, new: str, lines: list[int]) -> None:
    assert list(Fault("f", "x", "app/x.py", old, new, (), 0).lines("a\nb\nc\n")) == lines


def test_tests_of_a_line_inside_a_statement_are_those_of_its_beginning_quickest_first() -> None:
    covered = CoverageMap({"app/x.py": {"3": ["slow", "quick"], "7": ["other"]}}, {"slow": 2.0, "quick": 0.1})
    assert covered.tests_of("app/x.py", range(4, 6)) == ["quick", "slow"]
    assert covered.tests_of("app/y.py", range(4, 6)) == []


ADDING = "def add(left: int, right: int) -> int:\n    return left + right\n\n\ndef spare() -> int:\n    return 1\n"
TESTS = """\
from pathlib import Path
from app.adding import add

def test_add_two_numbers_gives_their_sum():
    assert add(2, 3) == 5

def test_that_fails_once_by_chance():
    if "return 2" in Path("app/adding.py").read_text() and not Path("tried").exists():
        Path("tried").touch()
        raise AssertionError

def test_that_fails_without_a_fault_too():
    assert not Path("app/adding.py").exists()
"""


def tiny(root: Path) -> Path:
    """Make a repository of one module with its tests. One of them fails, and one fails only once."""
    files = {"app/__init__.py": "", "app/adding.py": ADDING, "tests/test_adding.py": TESTS, "conftest.py": ""}
    for name, text in (files | {"pytest.ini": "[pytest]\n"}).items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "tiny"]):
        subprocess.run([*git, *arguments], check=True)
    return root


def planted(name: str, old: str, new: str) -> Fault:
    return Fault(name, "adding", "app/adding.py", old, new, ("tests/test_adding.py",), 1)


def test_runner_given_a_fault_names_its_test_and_given_a_harmless_one_says_that_it_survived(tmp_path: Path) -> None:
    root = tiny(tmp_path)
    (root / "app/adding.py").write_text(ADDING + "\n", encoding="utf-8")  # what is not committed counts
    test = "tests/test_adding.py::test_add_two_numbers_gives_their_sum"
    covered = CoverageMap({"app/adding.py": {"2": [test]}}, {test: 0.01})
    runner = Runner(root, covered, jobs=2, whole=False)
    told: list[Outcome] = []
    faults = [
        planted("subtracts", "left + right", "left - right"),
        planted("harmless", "return 1\n", "return 2\n"),
        planted("unreadable", "def spare() -> int:", "def spare( -> int:"),
    ]
    outcomes = runner.run(faults, told.append)
    assert [outcome.killed_by for outcome in outcomes] == [test, None, "tests/test_adding.py"]
    assert {outcome.fault.name for outcome in told} == {"subtracts", "harmless", "unreadable"}
    assert runner.unsound == {
        "tests/test_adding.py::test_that_fails_without_a_fault_too",
        "tests/test_adding.py::test_that_fails_once_by_chance",
    }
    assert (root / "app/adding.py").read_text(encoding="utf-8") == ADDING + "\n"  # only copies are broken


@pytest.mark.long  # waits for its limit of time, which a busy machine needs
def test_runner_given_a_fault_that_hangs_believes_it_because_the_same_tests_end_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = "tests/test_adding.py::test_add_two_numbers_gives_their_sum"
    runner = Runner(tiny(tmp_path), CoverageMap({"app/adding.py": {"2": [test]}}, {}), jobs=1, whole=False)
    monkeypatch.setattr("tests.mutants.runner.LEAST_SECONDS", 10)
    (outcome,) = runner.run([planted("hangs", "    return left + right", "    while True:\n        pass")], print)
    assert outcome.killed_by == "a hang"


@pytest.mark.parametrize(("killed", "status"), [(19, 0), (18, 1)])
def test_command_fails_below_its_share_and_names_survivors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, killed: int, status: int
) -> None:
    class Judged(Runner):
        def run(self, faults, told):  # type: ignore[no-untyped-def]
            return [Outcome(fault, "a test" if at < killed else None, 1.0) for at, fault in enumerate(faults)]

    monkeypatch.setattr(command, "Runner", Judged)
    monkeypatch.setattr(command, "load", lambda: FAULTS[:20])
    monkeypatch.setattr(command, "measure", lambda root: CoverageMap({}, {}))
    report = tmp_path / "report.md"
    assert command.main(["--all", "--report", str(report)]) == status
    said, written = capsys.readouterr().out, report.read_text(encoding="utf-8")
    assert f"SURVIVED <- {FAULTS[19].room}: {FAULTS[19].name}" in said
    assert f"{killed} of 20 faults were noticed ({killed / 20:.1%})" in said
    assert f"| {FAULTS[19].name} | {FAULTS[19].room} | **SURVIVED** | 1 |" in written


@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        ([], sample(FAULTS)),
        (["--all"], FAULTS),
        (["--room", "web"], [fault for fault in FAULTS if fault.room == "web"]),
        (["--fault", FAULTS[1].name], [FAULTS[1]]),
    ],
    ids=["nothing said", "all", "a room", "a fault"],
)
def test_command_runs_a_sample_unless_it_is_told_which_faults(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], run: list[Fault]
) -> None:
    asked: list[Fault] = []

    class Noting(Runner):
        def run(self, faults, told):  # type: ignore[no-untyped-def]
            asked.extend(faults)
            return [Outcome(fault, "a test", 1.0) for fault in faults]

    monkeypatch.setattr(command, "Runner", Noting)
    monkeypatch.setattr(command, "measure", lambda root: CoverageMap({}, {}))
    assert command.main(arguments) == 0
    assert asked == run
