"""What the documents say is what the code does."""

from __future__ import annotations

import fnmatch
import functools
import importlib.util
import itertools
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app import errors
from app.settings import Settings, read_settings, table
from app.shutdown import RAMP_SECONDS

ROOT = Path(__file__).parents[2]


def documents() -> Iterator[Path]:
    """Give every document of the project, but for what runs and installations leave."""
    for where, below, names in os.walk(ROOT):
        below[:] = [name for name in below if not name.startswith(".") and name != "report"]
        yield from (Path(where, name).relative_to(ROOT) for name in names if name.endswith(".md"))


DOCUMENTS = sorted(documents())
MOST_WORDS = {"README.md": 1000, "tests/README.md": 1500, "CONTRIBUTING.md": 1200, "SECURITY.md": 600}
"""How many words a document may have, as `wc -w` counts them: code, tables and addresses count too."""


@functools.cache
def read(document: str | Path) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def flowing(document: str | Path) -> str:
    """Give a document with a space for each line break."""
    return " ".join(read(document).split())


@functools.cache
def prose(document: str | Path) -> str:
    """Give a document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", read(document), flags=re.MULTILINE | re.DOTALL)


def blocks(document: str | Path, language: str) -> list[str]:
    """List the blocks of code of a language; "" are those that name none."""
    every = re.findall(r"^```(\w*)\n(.*?)^```$", read(document), re.MULTILINE | re.DOTALL)
    return [block for named, block in every if named == language]


@functools.cache
def anchors(document: Path) -> set[str]:
    """Name the headings as GitHub does: in lower case, without punctuation, later ones of a name numbered."""
    names: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        names.append(name if name not in names else f"{name}-{names.count(name)}")
    return set(names)


@pytest.mark.parametrize("document", MOST_WORDS)
def test_document_with_a_limit_has_no_more_words(document: str) -> None:
    assert len(read(document).split()) <= MOST_WORDS[document]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_of_a_document_lead_to_files_and_headings_that_exist(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.resolve().relative_to(ROOT)), target


def test_documents_of_docs_are_all_in_its_index() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", read("docs/README.md")))
    assert listed == {path.name for path in DOCUMENTS if path.parent == Path("docs")} - {"README.md"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_commands_that_a_document_names_exist(document: Path) -> None:
    text = read(document)
    goals = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    code = "\n".join(
        re.findall(r"`[^`\n]+`", prose(document)) + re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)
    )
    for goal in re.findall(r"(?<![\w./-])make ([a-z][a-z-]*)", code):
        assert goal in goals, goal
    for module in re.findall(r"python3? -m ([\w.]+)", code):
        assert importlib.util.find_spec(module), module
    for script in re.findall(r"python3? ((?:tests|load|deploy|app)/[\w/]+\.py)", code):
        assert (ROOT / script).exists(), script


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_code_of_a_document_can_be_read_by_its_language(document: Path) -> None:
    for block in itertools.chain(blocks(document, "sh"), blocks(document, "console")):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    for block in blocks(document, "python"):
        compile(block, str(document), "exec")
    for block in blocks(document, "json"):
        json.loads(block)


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_defaults_that_a_document_tells_are_the_codes(document: Path) -> None:
    defaults = {variable: default for variable, default, _, _ in table()}
    for variable, told in re.findall(r"`([A-Z_]+)` \(([\d,]+)\)", prose(document)):
        assert told.replace(",", "") == defaults[variable], variable


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_statuses_that_a_document_tells_with_an_error_are_the_codes(document: Path) -> None:
    def below(kind: type[errors.ChatError]) -> set[type[errors.ChatError]]:
        return {kind}.union(*(below(one) for one in kind.__subclasses__()))

    pairs = {(kind.error_code, str(kind.status)) for kind in below(errors.ChatError) if "error_code" in vars(kind)}
    statuses = dict(pairs)
    assert len(statuses) == len(pairs), "a code has two statuses"
    for status, code in re.findall(r"\b([45]\d\d) `([a-z_]+)`", prose(document)):
        assert statuses.get(code) == status, code


def test_figures_that_documents_tell_in_words_are_the_codes() -> None:
    settings, embedded = Settings(), read_settings({"ENV_FILE": os.devnull})

    assert (settings.abandoned_seconds, settings.retention_seconds) == (300, 3600)
    assert "after five minutes without any reader" in (readme := flowing("README.md"))
    assert "keeps the answer for an hour" in readme
    assert f"{settings.max_active_streams:,} live answers (`MAX_ACTIVE_STREAMS`)" in flowing("docs/operating.md")
    assert f"spread over up to {RAMP_SECONDS:g} s" in flowing("docs/operating.md")
    (grace,) = re.findall(r"^    stop_grace_period: (\d+)s", read("deploy/compose.yaml"), re.MULTILINE)
    more = round(int(grace) - settings.drain_seconds)
    for document in ("docs/operating.md", "docs/container.md", "deploy/README.md"):
        assert set(re.findall(r"`DRAIN_SECONDS`(?: \(25\))? \+ (\d+)", flowing(document))) == {str(more)}, document
    assert (
        f"`MAX_TOKENS` is at most {embedded.max_tokens}, `DEFAULT_MAX_TOKENS` {embedded.default_max_tokens}, "
        f"`MAX_INPUT_TOKENS` {embedded.max_input_tokens} and `MAX_ACTIVE_STREAMS` {embedded.max_active_streams}."
    ) in flowing("docs/settings.md")
    assert f"reads {embedded.max_input_tokens:,} tokens" in flowing("docs/troubleshooting.md")


def test_table_of_speed_is_that_of_the_whole_run() -> None:
    run = read("load/SPEED.md").partition("\n\n")[2]
    table_of_speed = read("docs/speed.md").partition("compare.md -->\n")[2].partition("\n<!-- end of speed -->")[0]

    assert table_of_speed.count("\n| ") >= 20
    assert run.startswith(table_of_speed)


def test_sentence_about_speed_says_what_was_measured() -> None:
    measured = dict(
        re.findall(r"^\| CPU per token, 50 streams: of (\w+)'s \| ([\d.]+) × ", read("docs/speed.md"), re.MULTILINE)
    )
    assert "At 50 streams, one worker uses a fifth of the CPU per token" in flowing("README.md")
    assert "a fourteenth of LiteLLM's, and 1.8 times that of nginx" in flowing("README.md")

    assert {name: float(value) for name, value in measured.items()} == {
        "FastAPI": pytest.approx(1 / 5, rel=0.1),
        "LiteLLM": pytest.approx(1 / 14, rel=0.1),
        "nginx": pytest.approx(1.8, rel=0.1),
    }


@pytest.mark.requirement("tasks T030")
def test_settings_of_the_documents_are_the_codes_table() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*?) \| (.*) \|$", read("docs/settings.md"), re.MULTILINE)

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
    given, left_out = read_settings({"ENV_FILE": str(uncommented)}), read_settings({"ENV_FILE": os.devnull})
    assert replace(given, named=left_out.named) == left_out


@functools.cache
def decisions() -> list[str]:
    """List the numbers of the decisions, in the order of DESIGN.md."""
    return re.findall(r"^### (\d+)\. ", read("DESIGN.md"), re.MULTILINE)


def cited() -> dict[str, set[str]]:
    """Give the numbers of the decisions that each file cites, also where a line breaks within."""
    suffixes = {".cfg", ".conf", ".css", ".html", ".js", ".lua", ".md", ".py", ".sh", ".toml", ".yaml"}
    found = {}
    for where, below, names in os.walk(ROOT):
        below[:] = [name for name in below if not name.startswith(".") and name not in ("report", "__pycache__")]
        for path in (Path(where, name) for name in names if Path(name).suffix in suffixes):
            text = re.sub(r"\n[\s#*/-]*", " ", path.read_text(encoding="utf-8"))
            told = re.findall(r"DESIGN(?:\.md)?(?:\]\([^)]*\))?,? (?:decisions? )?(\d+(?:(?:, | and )\d+)*)", text)
            if path == ROOT / "DESIGN.md":
                told += re.findall(r"\bdecisions? (\d+(?:(?:, | and )\d+)*)", text)
            if told:
                found[str(path.relative_to(ROOT))] = set(re.findall(r"\d+", " ".join(told)))
    return found


def test_decisions_each_have_a_number_of_their_own_and_none_is_lost() -> None:
    """A number is a decision's name. It stays, also when the decision moves to another room."""
    assert sorted(map(int, decisions())) == list(range(1, len(decisions()) + 1))
    assert len(decisions()) >= 68


def test_decisions_that_files_cite_exist() -> None:
    named = cited()

    for file in ("DESIGN.md", "app/__init__.py", "docs/api.md", "gunicorn.conf.py", "load/PROFILE.md"):
        assert file in named, "premise: it cites one"
    assert "51" in named["tests/live/test_own_answers.py"], "premise: the line breaks within"
    assert {file: numbers - set(decisions()) for file, numbers in named.items() if numbers - set(decisions())} == {}


def test_decisions_stand_in_rooms_that_exist() -> None:
    rooms = re.findall(
        r"^## (.*)$", read("DESIGN.md").partition("\n# Decisions\n")[2].partition("\n# ")[0], re.MULTILINE
    )
    named = [name for room in rooms for name in re.findall(r"`([^`]+)`", room)]

    assert [name for name in named if not (ROOT / "app" / name).exists()] == []
    assert {path.name + "/" for path in (ROOT / "app").iterdir() if path.is_dir() and path.name[0] != "_"} <= {
        name if name.endswith("/") else "" for name in named
    }


def test_settings_are_all_documented_with_help() -> None:
    assert len(table()) == len(Settings.__dataclass_fields__.keys() - {"named"})
    assert all(help_text.endswith(".") for _, _, _, help_text in table())


@pytest.mark.parametrize(
    ("document", "begin", "end", "at_least"),
    [("tests/faults.md", "| what breaks |", "\n\n", 24), ("DESIGN.md", "what could join them", "\n\n", 16)],
)
def test_tests_that_a_table_of_faults_names_exist(document: str, begin: str, end: str, at_least: int) -> None:
    section = (ROOT / document).read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    file, named = "", 0
    for path, test in re.findall(r"`((?:unit|project|live|browser)/\w+\.py)?(?:::(test_\w+))?`", section):
        file = path or file
        if test or path:
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert not test or f"def {test}(" in text, (file, test)
            named += 1
    assert named >= at_least


def test_files_that_documents_name_exist() -> None:
    named = set()
    for document in DOCUMENTS:
        for line in read(document).splitlines():
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
