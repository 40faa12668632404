"""Test what `gunicorn.conf.py` does beyond its settings."""

from __future__ import annotations

import gc
import os
import resource
import runpy
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger

from app.server import head as heads
from app.server.connections import Connections

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def configuration(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("ENV_FILE", os.devnull)
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    return runpy.run_path(str(ROOT / "gunicorn.conf.py"))


def test_requests_are_not_logged_by_gunicorn_nor_prepared_for_its_log(
    configuration: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    kind = configuration["logger_class"]
    config = Config()
    config.set("accesslog", "-")  # also where somebody asks for it
    logger = kind(config)

    assert issubclass(kind, Logger)
    logger.access(None, None, None, None)  # looks at none of them
    for handler in logger.access_log.handlers:
        handler.flush()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("allowed", "most"),
    [
        (resource.RLIM_INFINITY, 3400),
        (100_000, 3400),
        (7000, 3400),
        (6999, 3399),
        (5000, 1400),
        (1024, 256),
        (256, 64),
    ],
)
def test_worker_has_room_for_no_more_connections_than_its_descriptors_allow(
    configuration: dict[str, Any], monkeypatch: pytest.MonkeyPatch, allowed: int, most: int
) -> None:
    """2,000 readers and 200 beside them, 1,000 generations and 200: 3,400; and 3,600 descriptors for the rest."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, allowed))
    assert configuration["most_connections"]() == most


def test_worker_sets_aside_what_its_start_left_behind(
    configuration: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[int] = []
    monkeypatch.setattr(signal, "signal", lambda number, _: installed.append(number))
    monkeypatch.setattr(heads, "bound", lambda: None)
    runtime = SimpleNamespace(connections=Connections(most=1))
    worker = SimpleNamespace(
        wsgi=SimpleNamespace(extensions={"chatwait": runtime}), handle=installed.append, handle_request=installed.append
    )
    try:
        configuration["post_worker_init"](worker)
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
    assert signal.SIGTERM in installed
