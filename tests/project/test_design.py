"""What DESIGN.md says of the rooms, their words and their ways is what the code has."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
APP = ROOT / "app"
DESIGN = (ROOT / "DESIGN.md").read_text(encoding="utf-8")

LONG_LINES = 250
MOST_LINES = 400


def section(title: str) -> str:
    """Return the text behind a heading, up to the next heading of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", DESIGN, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def table(title: str, number: int = 0) -> list[list[str]]:
    """Return the rows of a section's table, without its head."""
    block = re.findall(r"(?:^\|.*\n)+", section(title), re.MULTILINE)[number]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()[2:]]
    assert len({len(row) for row in rows}) == 1, title
    return rows


def bare(cell: str) -> str:
    """Take a name out of its backticks."""
    found = re.fullmatch(r"`([^`]+)`", cell)
    assert found is not None, cell
    return found[1]


@functools.cache
def parsed(file: str) -> ast.Module:
    return ast.parse((APP / file).read_text(encoding="utf-8"))


@functools.cache
def defined(file: str) -> frozenset[str]:
    """List what a file defines: classes, functions, constants, and `Class.member`."""
    return frozenset(_defined(parsed(file).body, ""))


def _defined(body: list[ast.stmt], owner: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield owner + node.name
            yield from _defined(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield owner + node.name
        elif isinstance(node, ast.Assign):
            yield from (owner + target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield owner + node.target.id


@functools.cache
def imported(file: str) -> frozenset[str]:
    """List the files of `app/` that a file imports."""
    names: set[str] = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    paths = {name.removeprefix("app.").replace(".", "/") + ".py" for name in names if name.startswith("app.")}
    return frozenset(path for path in paths if (APP / path).exists())


def room_of(file: str) -> str:
    """Return the room of a file, as import-linter calls it."""
    return file.partition("/")[0].removesuffix(".py")


@functools.cache
def levels() -> dict[str, int]:
    """Return how far down each room lies, from import-linter's layers."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = (contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    return {name.strip().removeprefix("app."): level for level, layer in enumerate(layers) for name in layer.split("|")}


def code() -> list[str]:
    """List the files of the service, by their paths in `app/`."""
    files = [*APP.rglob("*.py"), *APP.rglob("*.lua")]
    return sorted(str(path.relative_to(APP)) for path in files)


# Words


def test_words_are_explained_once_and_what_stands_for_them_exists() -> None:
    rows = table("Words")
    for _, _, where in rows:
        named = re.findall(r"`([^`]+)`", where)
        file = ""
        for name in named:
            if name.endswith(".py"):
                file = name
                assert (APP / file).exists(), file
            else:
                assert name in defined(file), (file, name)
        assert any(not name.endswith(".py") for name in named), where

    assert len(rows) > 30
    assert len({word for word, _, _ in rows}) == len(rows)


def words_in(file: str) -> set[str]:
    """List the words of every name in a file: `ChunkLog` has `Chunk` and `Log`, `_chunks` has `chunks`."""
    words: set[str] = set()
    for node in ast.walk(parsed(file)):
        for field in ("id", "attr", "arg", "name", "asname"):
            name = getattr(node, field, None)
            if isinstance(name, str) and not (field == "id" and name.endswith("Error")):
                words |= set(re.split(r"_|\.|(?<=[a-z])(?=[A-Z])", name))
    return words


@pytest.mark.parametrize("row", table("Words", 1), ids=lambda row: row[0])
def test_word_with_one_meaning_stays_in_its_rooms(row: list[str]) -> None:
    word, places = row[0], re.findall(r"`([^`]+)`", row[1])
    forms = {word} if word[0].isupper() else {word, word.upper(), word.capitalize()}
    holding = [file for file in code() if file.endswith(".py") and forms & words_in(file)]

    assert [file for file in holding if not file.startswith(tuple(places) or "-")] == []
    assert [place for place in places if not any(file.startswith(place) for file in holding)] == []


# Rooms


def test_rooms_stand_in_the_order_in_which_imports_go_down() -> None:
    named = [bare(room) for room, _ in table("Rooms")]
    rooms = [room_of(name) for name in named]
    lying = {room_of(str(path.relative_to(APP))) for path in APP.iterdir() if path.name[0] not in "_."}

    assert all((APP / name).exists() for name in named)
    assert [levels()[room] for room in rooms] == sorted(levels().values())
    assert set(rooms) == levels().keys() == lying - {"static"}
    for room, words in table("Rooms"):
        inside = bare(room) if room.endswith("/`") else ""
        assert all((APP / inside / name).exists() for name in re.findall(r"`([^`]+)`", words))


@pytest.mark.parametrize("row", table("Where to look"), ids=lambda row: row[0])
def test_question_is_answered_by_a_file_that_has_the_function(row: list[str]) -> None:
    _, file, function = row

    assert bare(function) in defined(bare(file))


def test_long_files_are_those_that_say_why_and_none_is_too_long() -> None:
    lines = {file: len((APP / file).read_text(encoding="utf-8").splitlines()) for file in code()}

    assert {bare(file) for file, _ in table("Long files")} == {
        file for file, count in lines.items() if count > LONG_LINES
    }
    assert {file: count for file, count in lines.items() if count > MOST_LINES} == {}


# Ways


class Step(NamedTuple):
    """A line of a way. `giver` and `words`: the file that hands this one to the line before, and how it says so."""

    number: str
    file: str
    function: str
    reached: str
    giver: str
    words: str


def way(title: str, number: int = 0) -> list[Step]:
    steps = []
    for place, file, function, _, reached in table(title, number):
        handed = re.fullmatch(r"handed by `([^`]+)`: `([^`]+)`", reached)
        kind, giver, words = ("handed", handed[1], handed[2]) if handed else (reached, "", "")
        steps.append(Step(place, bare(file), bare(function), kind, giver, words))
    return steps


WAYS = [("The way of a message", 0), ("The way of a token", 0), ("The way of a token", 1), ("The way of a token", 2)]


@pytest.mark.parametrize(("title", "number"), WAYS)
def test_way_goes_through_files_that_call_the_next_one_or_are_handed_it(title: str, number: int) -> None:
    steps = way(title, number)
    assert len(steps) >= 5
    assert [step.number for step in steps if step.number] == [
        str(index + 1) for index in range(sum(bool(step.number) for step in steps))
    ]
    before, caller = steps[0], steps[0]
    for step in steps:
        assert step.function in defined(step.file), step
        if step is steps[0]:
            assert step.reached == "", step
        elif step.reached == "handed":
            text = (APP / step.giver).read_text(encoding="utf-8")
            assert step.words in text, step
            nearby = {room_of(file) for file in imported(step.giver)}
            assert step.giver == step.file or room_of(step.file) in nearby | {room_of(step.giver)}, step
        elif step.reached == "called":
            assert step.number, step
            assert step.file in imported(caller.file), step
        else:
            assert (step.reached, step.number) == ("asked", ""), step
            assert step.file in imported(caller.file) | imported(before.file), step
        before = step
        if step.number:
            caller = step


@pytest.mark.parametrize(("title", "number"), WAYS)
def test_way_enters_no_room_twice(title: str, number: int) -> None:
    rooms = [room_of(step.file) for step in way(title, number)]
    entered = [room for index, room in enumerate(rooms) if index == 0 or rooms[index - 1] != room]

    assert len(entered) == len(set(entered)), entered


def test_way_of_a_message_goes_down_through_the_rooms_in_their_order() -> None:
    steps = way("The way of a message")
    down = [levels()[room_of(step.file)] for step in steps if step.number]

    assert down == sorted(down)
    caller = steps[0]
    for step in steps:
        assert levels()[room_of(step.file)] >= levels()[room_of(caller.file)], step
        caller = step if step.number else caller


def test_way_of_a_token_goes_up_only_where_a_function_was_handed_down() -> None:
    """What lies above is not imported from below, so whoever lies above hands itself down."""
    for title, number in WAYS[1:]:
        caller = way(title, number)[0]
        for step in way(title, number):
            if levels()[room_of(step.file)] < levels()[room_of(caller.file)]:
                assert step.reached == "handed", step
                assert levels()[room_of(step.giver)] <= levels()[room_of(step.file)], step
            caller = step if step.number else caller


# Decisions


def test_classes_that_decisions_name_exist() -> None:
    named = set(re.findall(r"`(_?[A-Z][a-z]\w+(?:\.\w+)?)`", DESIGN.partition("\n# Decisions\n")[2]))

    assert len(named) > 10
    assert named <= frozenset().union(*(defined(file) for file in code() if file.endswith(".py")))
