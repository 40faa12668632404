"""Start what is measured, the service and the mock upstream, and tell what they use."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import psutil

ROOT = Path(__file__).resolve().parents[1]
PASSED_ON = ("PATH", "HOME", "LANG", "VIRTUAL_ENV")
START_SECONDS = 30.0
EXIT_SECONDS = 10.0


class NotRunning(Exception):
    """What should be measured does not run; the text says so in a sentence."""


@dataclass(frozen=True)
class Usage:
    """Hold what a process and its children had used at a moment, and for how long they had waited for a core."""

    cpu_seconds: float = 0.0
    rss_bytes: int = 0
    descriptors: int = 0
    core_wait_seconds: float = 0.0


class Child:
    """Run a program until the context is left; what it prints goes into a file."""

    def __init__(self, name: str, command: list[str], log: Path, **environment: str) -> None:
        self.name = name
        self.log = log
        self._known: list[psutil.Process] = []
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={name: os.environ[name] for name in PASSED_ON if name in os.environ} | environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for us, who end it in order
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            self._process.send_signal(signal.SIGINT)
            self._process.wait(EXIT_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait_until(self, fact: Callable[[], bool], pause: Callable[[float], None]) -> None:
        """Wait until it serves. Raises: NotRunning, with the end of its output."""
        until = time.monotonic() + START_SECONDS
        while not fact():
            if self._process.poll() is not None or time.monotonic() > until:
                output = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise NotRunning(f"The {self.name} did not start. The end of its output:\n{output}")
            pause(0.05)

    def usage(self) -> Usage:
        """Add up the process and its children."""
        total = Usage()
        with contextlib.suppress(psutil.Error):
            first = psutil.Process(self._process.pid)
            self._known = [first, *first.children(recursive=True)]
            for process in self._known:
                times = process.cpu_times()
                total = Usage(
                    total.cpu_seconds + times.user + times.system,
                    total.rss_bytes + process.memory_info().rss,
                    total.descriptors + process.num_fds(),
                    total.core_wait_seconds + _core_wait_seconds(process.pid),
                )
        return total

    def glance(self) -> Usage:
        """Add up only processor time and memory of those that there were at the last `usage`: it costs little."""
        cpu_seconds, rss_bytes = 0.0, 0
        with contextlib.suppress(psutil.Error):
            for process in self._known:
                times = process.cpu_times()
                cpu_seconds += times.user + times.system
                rss_bytes += process.memory_info().rss
        return Usage(cpu_seconds, rss_bytes)


def _core_wait_seconds(pid: int) -> float:
    """Tell for how long a process was ready to run and had no core, with all its threads; 0 where nothing tells."""
    waited = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            waited += int(path.read_text(encoding="ascii").split()[1])
    return waited / 1e9


def start_upstream(
    directory: Path, *, tokens: int, gap_ms: float, ttft_ms: float, error_rate: float, seed: int
) -> Child:
    """Start the mock upstream; its port is the first line of its output."""
    command = ["-m", "load.upstream", "--with-parent", "--tokens", str(tokens), "--gap-ms", str(gap_ms)]
    command += ["--ttft-ms", str(ttft_ms), "--error-rate", str(error_rate), "--seed", str(seed)]
    return Child("mock upstream", command, directory / "upstream.log")


def upstream_port(upstream: Child, pause: Callable[[float], None]) -> int:
    """Wait for its port."""
    upstream.wait_until(lambda: upstream.log.read_bytes().endswith(b"\n"), pause)
    return int(upstream.log.read_text(encoding="ascii").split()[0])


def start_service(directory: Path, *, port: int, base_url: str) -> Child:
    """Start the service as it is in production: gunicorn with the project's own file, and every setting's default."""
    return Child(
        "service",
        ["-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app"],
        directory / "service.log",
        HOST="127.0.0.1",
        PORT=str(port),
        OPENAI_BASE_URL=base_url,
        OPENAI_API_KEY="sk-load-0123456789",
        ENV_FILE=os.devnull,  # a developer's own .env is not what is measured
    )


def machine_cpu_seconds() -> float:
    """Add up what all programs of the machine have used."""
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0))  # Linux counts a guest's time in user already


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def problem_of(host: str) -> str:
    """Tell in a sentence why a service cannot be measured; empty when it can."""
    try:
        with urlopen(f"{host}/health", timeout=5.0):
            return ""
    except HTTPError as answer:
        return f"{host}/health answers with status {answer.code}: this is not the service, or it refuses this address."
    except (URLError, OSError, ValueError) as problem:
        reason = getattr(problem, "reason", problem)
        return f"Nothing answers at {host}: {reason}. Is the service running, and is this its address?"
