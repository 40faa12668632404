"""The command and each worker tell the version. `project/test_version_copies.py` holds its copies."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.observability import observer
from app.observability.facts import Fact
from app.server import head
from app.server.connections import Connections
from app.version import VERSION

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m app` without any installed package, beside settings that no start would accept."""
    return subprocess.run(
        [sys.executable, "-S", "-m", "app", *arguments],
        cwd=ROOT,
        env=os.environ | {"PORT": "none", "LOG_LEVEL": "LOUD"},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_command_asked_for_the_version_tells_it_and_needs_neither_settings_nor_packages() -> None:
    told = command("--version")

    assert (told.returncode, told.stdout, told.stderr) == (0, f"ChatWait {VERSION}\n", "")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version", "now"]])
def test_command_asked_for_anything_else_says_how_the_service_is_started(arguments: list[str]) -> None:
    told = command(*arguments)

    assert (told.returncode, told.stdout) == (2, "")
    message, detail, *actions = told.stderr.splitlines()
    assert "was not started" in message
    assert "docs/settings.md" in detail
    for action in ("make run", "gunicorn wsgi:app", "python -m app --version"):
        assert action in "\n".join(actions)


def test_worker_that_is_ready_tells_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Fact] = []
    monkeypatch.setenv("ENV_FILE", os.devnull)
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    monkeypatch.setattr(observer, "_listeners", (told.append,))
    monkeypatch.setattr(head, "bound", lambda: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("gc.freeze", lambda: None)
    worker = SimpleNamespace(
        wsgi=SimpleNamespace(extensions={"chatwait": SimpleNamespace(connections=Connections(most=1))}),
        handle=told.append,
        handle_request=told.append,
    )
    runpy.run_path(str(ROOT / "gunicorn.conf.py"))["post_worker_init"](worker)

    assert [(fact.event, fact.fields()) for fact in told] == [("worker_started", {"version": VERSION})]
