"""What the task list asks of the files beside the code."""

from __future__ import annotations

import ast
import fnmatch
import re
from pathlib import Path

import pytest

from app.settings import table

ROOT = Path(__file__).parents[2]


@pytest.mark.requirement("tasks T002")
@pytest.mark.parametrize("name", ["requirements.txt", "requirements-local.txt", "requirements-dev.txt"])
def test_requirement_is_pinned_to_one_version(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line.strip() and not line.startswith(("#", "-r "))]
    assert wanted
    assert [
        line for line in wanted if not re.match(r"[A-Za-z0-9_.-]+(\[[a-z,]+\])?==[0-9][A-Za-z0-9.+!]*( *;.*)?$", line)
    ] == []


@pytest.mark.requirement("tasks T003", "tasks T005", "core dependency 2", "core assumption 2")
@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "OPENAI_MODEL", "MAX_TOKENS", "TIMEOUT_SECONDS", "LOG_LEVEL"])
def test_variable_of_the_specification_is_a_setting_and_in_the_example(variable: str) -> None:
    assert variable in [name for name, _, _, _ in table()]
    assert re.search(rf"^#?{variable}=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.requirement("tasks T004")
@pytest.mark.parametrize("name", ["venv/", ".env", "__pycache__/", "app.pyc", ".pytest_cache/", "htmlcov/"])
def test_file_that_is_nobodys_work_is_ignored(name: str) -> None:
    patterns = (ROOT / ".gitignore").read_text(encoding="utf-8").split("\n")
    assert [pattern for pattern in patterns if pattern and fnmatch.fnmatch(name, pattern)]
    assert not [pattern for pattern in patterns if pattern.startswith("!")]  # it would take one back


@pytest.mark.requirement("plan language", "tasks T001")
def test_python_of_the_specification_is_the_one_that_is_checked_for() -> None:
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'target-version = "py311"' in settings
    assert 'python_version = "3.11"' in settings


@pytest.mark.requirement("tasks T007", "tasks T008", "tasks T009", "plan design 1")
def test_module_says_in_all_what_it_gives_to_others() -> None:
    """The rooms' own `__init__` may have nothing to give."""
    modules = [path for path in sorted((ROOT / "app").rglob("*.py")) if path.name != "__init__.py"]
    assert len(modules) > 15
    for path in modules:
        body = ast.parse(path.read_text(encoding="utf-8")).body
        values = [
            ast.literal_eval(node.value)
            for node in body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        assert len(values) == 1, path
        names = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for node in body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
            if isinstance(node, ast.ImportFrom):
                names |= {alias.asname or alias.name for alias in node.names}
        assert set(values[0]) <= names, path
