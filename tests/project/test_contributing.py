"""CONTRIBUTING.md: its picture is the code's, and its recipes name every file that a new name must go into."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from app import errors
from app.settings import table
from tests import rooms

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CONTRACT = yaml.safe_load((ROOT / "contracts/openapi.yaml").read_text(encoding="utf-8"))

NAMES = {
    "A setting": [variable for variable, _, _, _ in table()],
    "An error code": sorted({kind.error_code for kind in errors.walk()}),
    "An event of the stream": list(CONTRACT["components"]["schemas"]["EventStream"]["x-event-data"]),
    "A route": list(CONTRACT["paths"]),
}
IN_ANOTHER_FORM = {
    "app/dialects/interface.py", "app/dialects/native/frames.py", "app/reading/loop.py", "app/routes/",
    "deploy/haproxy.cfg", "deploy/nginx.conf", "tests/contract/situations.py",
}  # fmt: skip
"""Files that hold calls, patterns or situations instead of the names: other tests look at them."""
SKIPPED = {"report", "__pycache__", "pictures"}


def rows(recipe: str) -> list[list[str]]:
    """Return the rows of a recipe: the file, what to write, and the test that fails without it."""
    text = GUIDE.partition(f"\n### {recipe}\n")[2].partition("\n#")[0]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in re.findall(r"^\| `.*\|$", text, re.MULTILINE)]


def text_of(name: str) -> str:
    """Return a file's text, or that of all files of a folder."""
    path = ROOT / name
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file.suffix != ".pyc")


def lacks(text: str, names: list[str]) -> list[str]:
    """List the names that a text has nowhere as a word of its own; a setting may be there as its field."""
    words = set(re.findall(r"[\w{}./]+", text))
    words |= {word.removeprefix("/v1") for word in words} | {word.rstrip(".") for word in words}
    return [name for name in names if not words & {name, name.lower()}]


def test_picture_of_the_rooms_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert rooms.main(["--check"]) == 0

    copy = tmp_path / "CONTRIBUTING.md"
    copy.write_text(GUIDE.replace("  routes --> web\n", ""), encoding="utf-8")
    monkeypatch.setattr(rooms, "GUIDE", copy)
    assert rooms.main(["--check"]) == 1
    assert rooms.main([]) == 0
    assert copy.read_text(encoding="utf-8") == GUIDE


def test_picture_has_every_room_and_each_import_in_some_way() -> None:
    below = dict.fromkeys(re.findall(r"^  (\w+)\[", rooms.drawn(), re.MULTILINE), "")
    arrows: dict[str, set[str]] = {room: set() for room in below}
    for room, imported in re.findall(r"^  (\w+) --> (\w+)$", rooms.drawn(), re.MULTILINE):
        arrows[room].add(imported)

    def reached(room: str) -> set[str]:
        return arrows[room].union(*(reached(other) for other in arrows[room]))

    assert {
        room: imported - reached(room) for room, imported in rooms.imports().items() if imported - reached(room)
    } == {}
    assert below.keys() == {
        path.stem for path in (ROOT / "app").iterdir() if path.name[0] not in "_." and path.name != "static"
    }


@pytest.mark.parametrize("recipe", NAMES)
def test_files_of_a_recipe_have_every_name_of_its_kind(recipe: str) -> None:
    files = [file.strip("`") for file, _, _ in rows(recipe)]
    if recipe == "A route":
        files.remove("contracts/examples/")  # its folders have the names of operations

    assert len(files) >= 4
    assert {file: lacks(text_of(file), NAMES[recipe]) for file in files if file not in IN_ANOTHER_FORM} == {
        file: [] for file in files if file not in IN_ANOTHER_FORM
    }


@pytest.mark.parametrize("recipe", NAMES)
def test_recipe_names_each_file_that_has_every_name_of_its_kind(recipe: str) -> None:
    """But for tests: each of those that need a new name fails, and says so."""
    named = [file.strip("`") for file, _, _ in rows(recipe)]
    found = []
    for where, below, names in os.walk(ROOT):
        below[:] = [name for name in below if name[0] != "." and name not in SKIPPED and name != "tests"]
        for name in names:
            path = Path(where, name)
            if path.suffix in {".py", ".md", ".yaml", ".html", ".js", ".conf", ".cfg", ".example", ".toml"}:
                found += [path] if not lacks(path.read_text(encoding="utf-8"), NAMES[recipe]) else []
    files = {str(path.relative_to(ROOT)) for path in found} - {"DESIGN.md", "CHANGELOG.md"}

    assert len(files) >= 2, "premise: some have them all"
    assert [file for file in files if not file.startswith(tuple(named))] == []


def test_tests_that_recipes_name_exist() -> None:
    named = [test.strip("`") for recipe in NAMES for _, _, test in rows(recipe) if test]

    assert len(named) > 15
    for name in named:
        file, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name
