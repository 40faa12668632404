"""Run the load suite as `make bench` does, in a process of its own: locust changes the one that imports it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.server import CLOCK, ROOT

LENIENT = """
[[threshold]]
name = "first token"
figure = "ttft_p95_ms"
below = 60000
unit = "ms"
samples = 3
source = "test"
meaning = "any"

[[threshold]]
name = "streams"
figure = "streams_at_once"
at_least = 3
unit = ""
samples = 3
source = "test"
meaning = "any"

[[threshold]]
name = "complete"
figure = "complete_percent"
at_least = 99
unit = "%"
samples = 5
source = "test"
meaning = "any"

[[threshold]]
name = "delay"
figure = "delay_p99_ms"
below = 60000
unit = "ms"
samples = 20
source = "test"
meaning = "any"
"""


ROW = """
[[threshold]]
name = "{figure}"
figure = "{figure}"
{bound}
unit = ""
samples = {samples}
source = "test"
meaning = "any"
"""


@dataclass
class Run:
    """What a run left."""

    exit_code: int
    output: str
    directory: Path

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.directory / "result.json").read_text(encoding="utf-8"))

    @property
    def page(self) -> str:
        return (self.directory / "index.html").read_text(encoding="utf-8")


def command(directory: Path, *options: str) -> list[str]:
    """Write the command of a run with bounds that every machine meets."""
    directory.mkdir(parents=True, exist_ok=True)
    table = directory / "thresholds.toml"
    table.write_text(LENIENT, encoding="utf-8")
    return [sys.executable, "-m", "load", "--report", str(directory), "--thresholds", str(table), *options]


def run(directory: Path, *options: str, rows: str = "") -> Run:
    """Run the suite to its end, with more rows than the lenient ones. Raises: subprocess.TimeoutExpired."""
    started = command(directory, *options)
    with (directory / "thresholds.toml").open("a", encoding="utf-8") as table:
        table.write(rows)
    # The suite chooses the environment of what it starts, so that all of it must live by the machine's own clock.
    environment = {name: value for name, value in os.environ.items() if "--host" in options or name not in CLOCK}
    ended = subprocess.run(
        started,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    return Run(ended.returncode, ended.stdout, directory)


@contextmanager
def mock_upstream(*flags: str, **options: float) -> Iterator[str]:
    """Run it as the suite does, in a process of its own that shares no lock with the readers; give its base URL."""
    told = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    started = [sys.executable, "-m", "load.upstream", "--with-parent", *flags, *told]
    with subprocess.Popen(started, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            assert process.stdin is not None
            process.stdin.close()  # which ends it: whoever starts it may be killed
            try:
                assert process.wait(10) == 0
            finally:
                process.kill()


def run_locust(base_url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the users with locust's own command; when its time is over, each has the answer that it waits for."""
    command = [sys.executable, "-m", "locust", "-f", "load/locustfile.py", "--host", base_url, "--headless"]
    command += ["--only-summary", "--stop-timeout", "60"]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
