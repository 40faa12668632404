"""What the documents say is what the code does."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

from app.settings import Settings, read_settings, table

ROOT = Path(__file__).parents[2]


@pytest.mark.requirement("tasks T030")
def test_readme_settings_are_the_codes_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*?) \| (.*) \|$", readme, re.MULTILINE)

    assert [tuple(cell.replace("\\|", "|") for cell in row) for row in rows] == table()


@pytest.mark.requirement("tasks T003")
def test_env_example_names_every_setting_with_its_default(tmp_path: Path) -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    lines = dict(re.findall(r"^#([A-Z_]+)=(.*)$", example, re.MULTILINE))

    assert lines == {variable: default for variable, default, _, _ in table()}
    ranges = re.findall(r"\((\d+ to \S+)\)\n#([A-Z_]+)=", example)
    assert {variable: bounds for bounds, variable in ranges} == {
        variable: bounds for variable, _, bounds, _ in table() if bounds
    }
    uncommented = tmp_path / "env"
    uncommented.write_text(re.sub(r"^#([A-Z_]+=)", r"\1", example, flags=re.MULTILINE), encoding="utf-8")
    assert read_settings({"ENV_FILE": str(uncommented)}) == read_settings({"ENV_FILE": str(tmp_path / "none")})


def test_decisions_cited_in_comments_exist() -> None:
    numbers = set(re.findall(r"^(\d+)\. \*\*", (ROOT / "DESIGN.md").read_text(encoding="utf-8"), re.MULTILINE))
    cited = {
        number
        for path in [*ROOT.glob("app/**/*.py"), ROOT / "gunicorn.conf.py"]
        for number in re.findall(r"DESIGN\.md, (\d+)", path.read_text(encoding="utf-8"))
    }

    assert cited
    assert cited <= numbers


def test_settings_are_all_documented_with_help() -> None:
    assert len(table()) == len(Settings.__dataclass_fields__)
    assert all(help_text.endswith(".") for _, _, _, help_text in table())


@pytest.mark.parametrize(
    ("document", "begin", "end", "at_least"),
    [("tests/README.md", "## Several processes", "\n## ", 18), ("DESIGN.md", "what could join them", "\n\n", 16)],
)
def test_tests_that_a_table_of_faults_names_exist(document: str, begin: str, end: str, at_least: int) -> None:
    section = (ROOT / document).read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    file, named = "", 0
    for path, test in re.findall(r"`((?:unit|project|live)/\w+\.py)?(?:::(test_\w+))?`", section):
        file = path or file
        if test or path:
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert not test or f"def {test}(" in text, (file, test)
            named += 1
    assert named >= at_least


def test_files_that_documents_name_exist() -> None:
    named = set()
    for document in ("DESIGN.md", "README.md", "load/PROFILE.md", "load/README.md", "tests/README.md"):
        for line in (ROOT / document).read_text(encoding="utf-8").splitlines():
            ours = re.sub(r"^\| \d+ \|[^|]*\|", "", line)  # the column before says what other documents ask for
            named |= set(re.findall(r"`(\w[\w.-]*/[\w./-]+\.(?:py|lua|js))(?:::\w+)?`", ours))

    assert len(named) > 100
    assert {name for name in named if not any((ROOT / base / name).exists() for base in ("", "app", "tests"))} == set()


def test_unit_files_stand_in_the_table_once_and_each_name_there_has_one() -> None:
    text = (ROOT / "tests/README.md").read_text(encoding="utf-8").partition("### Where a unit test lies")[2]
    rows = re.findall(r"^\| (.*) \| (`.*`) \|$", text.partition("\n## ")[0], re.MULTILINE)
    patterns = [name for _, names in rows for name in re.findall(r"`([^`]+)`", names)]
    files = {path.stem.removeprefix("test_") for path in (ROOT / "tests/unit").glob("test_*.py")}

    assert {pattern for pattern in patterns if not fnmatch.filter(files, pattern)} == set()
    for file in files:
        assert len([pattern for pattern in patterns if fnmatch.fnmatch(file, pattern)]) == 1, file
    rooms = [name for places, _ in rows for name in re.findall(r"`([^`]+)`", places)]
    assert [room for room in rooms if not (ROOT / "app" / room).exists()] == ["gunicorn.conf.py"]
