"""The tables of tests/requirements.md are whole, and true."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests import requirement_table as table

TEXT = table.DOCUMENT.read_text(encoding="utf-8")
ROWS = table.rows(TEXT)


def test_table_has_every_requirement_of_the_specifications_once() -> None:
    assert len(table.required()) > 250
    assert Counter(row.requirement for row in ROWS) == Counter(table.required())


def test_table_names_exactly_the_tests_that_are_marked() -> None:
    marked = table.marked()
    assert len(marked) > 150
    update = "run `python -m tests.requirement_table`, and look at what it changed in tests/requirements.md"
    assert {row.requirement: row.tests for row in ROWS if row.tests} == marked, update
    assert table.render(TEXT) == TEXT, update


def test_requirement_has_a_sentence_and_a_test_or_a_reason() -> None:
    """A sentence is quoted, so it has three words at least and none of the emphasis."""
    assert [row.requirement for row in ROWS if len(row.sentence.split()) < 3 or "**" in row.sentence] == []
    assert [row.requirement for row in ROWS if not (row.tests or row.note)] == []


def test_requirement_stands_verbatim_in_the_files_of_its_tests() -> None:
    """A search for the id finds them."""
    for row in ROWS:
        for test in row.tests:
            file, _, name = test.partition("::")
            source = (table.TESTS / file).read_text(encoding="utf-8")
            assert f'"{row.requirement}"' in source
            assert f"def {name}(" in source


def test_note_leads_to_a_row_of_what_was_reinterpreted() -> None:
    there = {int(number) for number in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)}
    led = {
        int(number)
        for row in ROWS
        for numbers in re.findall(r"Reinterpreted (\d+(?:, \d+)*)", row.note)
        for number in numbers.split(", ")
    }
    assert there == set(range(1, len(there) + 1))
    assert len(there) >= 4
    assert led <= there


@pytest.mark.parametrize(
    "mark",
    [
        "pytest.mark.requirement",
        "pytest.mark.requirement()",
        "pytest.mark.requirement(CORE)",
        "pytest.mark.requirement(5)",
    ],
)
def test_marker_whose_ids_cannot_be_read_is_refused(mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_it.py").write_text(f"@{mark}\ndef test_it() -> None: ...\n", encoding="utf-8")
    monkeypatch.setattr(table, "TESTS", tmp_path)
    with pytest.raises(ValueError, match=r"test_it\.py, line 1"):
        table.marked()
