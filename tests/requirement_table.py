"""Keep the tables of requirements in tests/requirements.md. What each test proves is said at the test, by its marker.

`python -m tests.requirement_table` writes the tests' names into the tables. Ids, sentences and notes are written by
hand. The list of ids below was taken from the specifications, and is whole: a row that is lost fails a test.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

TESTS = Path(__file__).parent
DOCUMENT = TESTS / "requirements.md"
MARKER = "pytest.mark.requirement"
ROW = re.compile(r"^\| (?P<id>(?:core|plan|chatwait|tasks|page) [^|]+?) \|(?P<rest>.*)\|$", re.MULTILINE)

COUNTED = {
    "core US1.": 3, "core US2.": 4, "core US3.": 4, "core edge ": 5, "core FR-": 12, "core SC-": 7, "core UX-": 3,
    "core assumption ": 7, "core scope ": 9, "core dependency ": 2, "core risk ": 5,
    "plan goal ": 2, "plan constraint ": 3, "plan decision ": 5, "plan design ": 5,
    "chatwait scenario ": 5, "chatwait edge ": 4, "chatwait errors ": 3, "chatwait resilience ": 5, "chatwait FR-": 11,
    "chatwait extensibility ": 4, "chatwait clarification ": 5, "chatwait constraint ": 3,
    "tasks T": 31, "tasks checklist ": 11, "tasks avoid ": 5, "tasks stop ": 2, "tasks pattern ": 4,
    "page US1.": 4, "page US2.": 3, "page US3.": 4, "page edge ": 7, "page FR-": 11, "page SC-": 7,
    "page assumption ": 5, "page constraint ": 4, "page dependency ": 6, "page scope ": 6,
}  # fmt: skip
NAMED = {
    "core constitution ": ["I", "III", "IV", "V", "VI", "VII"],
    "core entity ": ["ChatRequest", "ChatResponse", "StreamChunk", "RequestLog"],
    "plan ": [
        "language", "dependencies", "storage", "testing", "platform", "type", "scale",
        "structure", "contract", "quickstart",
    ],
    "plan principle ": ["I", "II", "III", "IV", "V", "VI", "VII"],
    "chatwait ": ["story"],
    "chatwait entity ": ["Chat Message", "Conversation Context", "Stream Connection"],
    "page entity ": ["Streaming Message", "Conversation Session"],
    "core ": ["US1 test", "US2 test", "US3 test"],
    "tasks ": ["US1 test", "US2 test", "US3 test"],
    "page ": ["US1 test", "US2 test", "US3 test"],
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One requirement: the document's sentence, the tests that prove it, and a reason if there is none, or a remark."""

    requirement: str
    sentence: str
    tests: list[str]
    note: str

    def __str__(self) -> str:
        shown = "<br>".join(f"`{test}`" for test in self.tests)
        return f"| {self.requirement} | {self.sentence} | {shown} | {self.note} |"


def required() -> set[str]:
    """List every id that the specifications give."""
    digits = {"-": 3, "T": 3}
    counted = {
        f"{stem}{number:0{digits.get(stem[-1], 1)}}" for stem, last in COUNTED.items() for number in range(1, last + 1)
    }
    return counted | {f"{stem}{name}" for stem, names in NAMED.items() for name in names}


def rows(text: str) -> list[Row]:
    """Read the rows of every table."""
    found = []
    for match in ROW.finditer(text):
        sentence, tests, note = (cell.strip() for cell in match["rest"].split("|"))
        found.append(Row(match["id"], sentence, re.findall(r"`([^`]+)`", tests), note))
    return found


def marked() -> dict[str, list[str]]:
    """Find the tests of each requirement. Shape: keys are ids, values `<file below tests>::<test>`.

    Raises: ValueError for a marker whose ids cannot be read from the source.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for name, ids in _marks(path):
            for requirement in ids:
                found.setdefault(requirement, []).append(f"{path.relative_to(TESTS).as_posix()}::{name}")
    return found


def _marks(path: Path) -> Iterator[tuple[str, list[str]]]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            calls = [mark for mark in node.decorator_list if ast.unparse(mark).startswith(MARKER)]
            yield node.name, [requirement for call in calls for requirement in _ids(call, path)]


def _ids(mark: ast.expr, path: Path) -> list[str]:
    given = mark.args if isinstance(mark, ast.Call) else []
    ids = [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    if not ids or len(ids) != len(given):
        raise ValueError(f"{path.name}, line {mark.lineno}: write out the requirement's id, so that a search finds it")
    return ids


def render(text: str) -> str:
    """Write the tests that are there now into the tables."""
    tests = marked()

    def updated(match: re.Match[str]) -> str:
        (row,) = rows(match[0])
        return str(replace(row, tests=tests.get(row.requirement, [])))

    return ROW.sub(updated, text)


def main() -> None:
    DOCUMENT.write_text(render(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    for row in rows(DOCUMENT.read_text(encoding="utf-8")):
        if not row.tests and not row.note:
            print(f"{row.requirement}: the row has neither a test nor a reason", file=sys.stderr)


if __name__ == "__main__":
    main()
