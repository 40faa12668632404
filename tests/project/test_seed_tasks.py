"""What the task list asks of the files beside the code."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from app.settings import table
from tests.requirements import require_or_skip

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
def test_git_given_what_is_nobodys_work_ignores_that_and_nothing_else(tmp_path: Path) -> None:
    """Git itself is asked, in a repository that has nothing but our list."""
    git = shutil.which("git")
    require_or_skip("git (apt-get install git)", git is not None)
    left = ["venv/bin/python", ".venv/bin/python", ".env", "app/__pycache__/x", "app/settings.pyc", ".pytest_cache/x"]
    left += ["htmlcov/index.html", "load/report/x"]
    kept = [".env.example", ".gitignore", ".ci/run", "app/settings.py", "app/static/index.html", "load/thresholds.toml"]
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run([str(git), "init", "--quiet"], cwd=tmp_path, env=environ, check=True)
    (tmp_path / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    asked = "".join(f"{name}\n" for name in [*kept, *left])
    command = [str(git), "check-ignore", "--stdin"]
    told = subprocess.run(command, cwd=tmp_path, env=environ, input=asked, capture_output=True, text=True, check=True)
    assert told.stdout.splitlines() == left


@pytest.mark.requirement("plan language", "tasks T001")
def test_python_of_the_specification_reads_every_file_and_none_before_it_is_taken() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert (tools["ruff"]["target-version"], tools["mypy"]["python_version"]) == ("py311", "3.11")
    for path in [*(ROOT / "app").rglob("*.py"), ROOT / "gunicorn.conf.py", ROOT / "wsgi.py"]:
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 11))

    (check,) = re.findall(r"-c '(import sys; .*?)'", (ROOT / "Makefile").read_text(encoding="utf-8"))
    taken = {}
    for version in ((3, 10, 14), (3, 11, 0), (3, 14, 1)):
        with pytest.raises(SystemExit) as left, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "version_info", version)
            exec(check, {})
        taken[version] = not left.value.code
    assert taken == {(3, 10, 14): False, (3, 11, 0): True, (3, 14, 1): True}


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
