"""Run the programs that use a real client (`client.py`, `client.mjs`), each in the environment of its package."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

import playwright

from tests.harness import leaks
from tests.requirements import require_or_skip

__all__ = ["ENVIRONMENTS", "KEY", "KINDS", "Program", "environment", "node"]

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".venv/clients"
OLDEST_NODE = 20
PATIENCE_SECONDS = 60.0
"""How long a scenario may take; the cores may be busy with something else."""

KINDS = {"openai-python 3": "openai-3", "openai-python 2": "openai-2", "openai-node 7": "node"}
"""The clients, and the environments that `make test-clients` has made for them."""

KEY = "sk-client-0123456789abcdefghijklmnop"
"""What the programs authorize themselves with, when a scenario names no other key."""


def environment(name: str) -> Path:
    """Return the directory of an environment. Skips the test where it could not be made."""
    directory = ENVIRONMENTS / name
    require_or_skip(f"the client {name} (make test-clients installs it from PyPI or npm)", _is_made(directory))
    return directory


def _is_made(directory: Path) -> bool:
    return (directory / "installed").exists()


def node() -> str:
    """Return the machine's Node, or playwright's own where that is too old. Skips the test where there is none."""
    own = shutil.which("node")
    if own is None or _major_version(own) < OLDEST_NODE:
        own = shutil.which("node", path=Path(playwright.__file__).parent / "driver")
    require_or_skip(f"Node {OLDEST_NODE} or later (apt-get install nodejs)", own is not None)
    assert own is not None
    return own


def _major_version(program: str) -> int:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    return int(said.strip().lstrip("v").partition(".")[0] or 0)


class Program:
    """A process with one real client. It plays one scenario at a time, and each with a client object of its own.

    `run` plays a scenario and returns what the client saw. `begin`, `wait_reached`, `go_on` and `result` are for
    scenarios in which something else happens meanwhile.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._directory = environment(KINDS[kind])
        self.is_idle = True  # a test that failed may leave a scenario under way
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: IO[str] | None = None

    def run(self, scenario: str, origin: str, **options: Any) -> dict[str, Any]:
        """Play a scenario, and return what the client saw. Raises: AssertionError if the program does not answer."""
        self.begin(scenario, origin, **options)
        return self.result()

    def begin(self, scenario: str, origin: str, **options: Any) -> None:
        """Start a scenario against a server, which `origin` names without `/v1`."""
        _hear(options)
        self.is_idle = False
        self._write({"scenario": scenario, "origin": origin, **options})

    def wait_reached(self, point: str) -> dict[str, Any]:
        """Wait until the program says that it is there, and return what it says.

        Raises: AssertionError if it says anything else.
        """
        line = self._read()
        assert line.get("reached") == point, f"{self.kind} did not come to {point!r}, but saw {line}"
        return line

    def go_on(self) -> None:
        """Let a program go on that waits for it."""
        self._write({})

    def result(self) -> dict[str, Any]:
        """Wait for the end of the scenario, and return what the client saw."""
        line = self._read()
        assert "saw" in line, f"{self.kind} did not end, but came to {line}"
        self.is_idle = True
        saw: dict[str, Any] = line["saw"]
        return saw

    def end(self) -> None:
        """End the process, whatever it does."""
        process, self._process, self.is_idle = self._process, None, True
        if process is None:
            return
        process.kill()
        process.wait(10)
        for pipe in (process.stdin, self._errors):
            if pipe is not None:
                pipe.close()

    def _write(self, order: dict[str, Any]) -> None:
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=PATIENCE_SECONDS)
        except queue.Empty:
            line = None
        if line is None:
            assert self._errors is not None
            self._errors.seek(0)
            complaints = self._errors.read()[-4000:]
            self.end()
            raise AssertionError(f"{self.kind} said nothing for {PATIENCE_SECONDS:g} s, or ended: {complaints}")
        said: dict[str, Any] = json.loads(line)
        return said

    def _start(self) -> subprocess.Popen[str]:
        if self._directory.name == "node":
            command = [node(), str(HERE / "client.mjs")]
        else:
            command = [str(self._directory / "bin/python"), str(HERE / "client.py")]
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (closed by `end`)
        self._process = subprocess.Popen(
            command,
            cwd=self._directory,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},  # no proxy and no key of whoever runs the tests
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )
        self._lines = queue.Queue()
        threading.Thread(target=_pass_on, args=(self._process.stdout, self._lines), daemon=True).start()
        return self._process


def _pass_on(pipe: IO[str], lines: queue.Queue[str | None]) -> None:
    """Read a program's lines as they come; None is the end."""
    with pipe:
        for line in pipe:
            lines.put(line)
    lines.put(None)


def _hear(options: dict[str, Any]) -> None:
    """Note what no log of the service may hold: the client's key, and what is said."""
    headers = {"authorization": options.get("key", KEY)}
    leaks.hear(headers)
    for message in options.get("request", {}).get("messages", []):
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        for part in parts:
            said = part.get("text") or part.get("image_url", {}).get("url")
            leaks.hear({}, json.dumps({"message": said}).encode())
