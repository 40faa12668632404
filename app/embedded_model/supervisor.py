"""The supervisor: a process that keeps the embedded model's server alive.

    gunicorn's master ── start_supervisor ──▶ supervisor ── app.embedded_model.server ──▶ llama.cpp's server

The supervisor starts the server, starts it again when it dies or hangs, and ends with its parent. gunicorn's master
cannot do that: the master reaps every child with `waitpid(-1)`, and so cannot watch one.

Standard library only, and no import of the service. So the supervisor stays a tiny process, and gunicorn.conf.py can
import this before anything is patched.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from app.embedded_model.log_line import LEVELS, write_line, write_missing
from app.embedded_model.model import KEY, MODEL_ID, installed

__all__ = ["Backoff", "Supervisor", "free_port", "main", "ready", "start_supervisor"]

LOOK_SECONDS = 0.25
HEALTH_TIMEOUT_SECONDS = 1.0
LOAD_SECONDS = 120.0  # longest wait for the first /health
HANG_SECONDS = 20.0  # longest silence of /health after that
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 10.0
SETTLED_SECONDS = 30.0  # a life of this length forgets the earlier deaths

_PROJECT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """Pick a loopback port that no process listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def ready(url: str, timeout: float = HEALTH_TIMEOUT_SECONDS) -> bool:
    """Tell whether the model's server at this URL (its root, or its /v1) has loaded the model.

    Units: timeout in seconds.
    """
    # urllib would go through a proxy that the environment names. That is not the way to 127.0.0.1.
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=timeout)
    try:
        # The server keeps a thread for each idle connection.
        connection.request("GET", "/health", headers={"Connection": "close"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def start_supervisor(port: int, *, log_level: str, key: str) -> subprocess.Popen[bytes]:
    """Start the supervisor. It keeps the model served on this loopback port until the calling process ends.

    `key` goes by the environment, because other users can read a command line.
    """
    arguments = ["--port", str(port), "--parent", str(os.getpid()), "--log-level", log_level]
    # The supervisor has a session of its own, so that Ctrl-C does not end it. It ends with its parent, after the drain.
    return subprocess.Popen(
        [sys.executable, "-m", "app.embedded_model.supervisor", *arguments],
        cwd=_PROJECT,
        env={**os.environ, KEY: key},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


@dataclass(kw_only=True)
class Backoff:
    """How long to wait before the next start. The wait doubles after each early death. Units: seconds."""

    next_seconds: float = FIRST_WAIT_SECONDS

    def after(self, *, lived_seconds: float) -> float:
        """Return the wait after a life of this length. A settled life forgets the earlier deaths."""
        if lived_seconds >= SETTLED_SECONDS:
            self.next_seconds = FIRST_WAIT_SECONDS
        wait = self.next_seconds
        self.next_seconds = min(2 * wait, LONGEST_WAIT_SECONDS)
        return wait


class Supervisor:
    """Keeps one model server running on one port for as long as its parent lives."""

    def __init__(self, *, port: int, parent: int, log_level: str) -> None:
        self._port = port
        self._parent = parent
        self._log_level = log_level
        self._asked_to_stop = False
        self._backoff = Backoff()

    def run(self) -> None:
        """Keep a server running until the parent is gone or a signal asks for the end."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask_to_stop)
        try:
            while not self._must_stop():
                self._live_once()
        finally:
            self._log("INFO", "local_model_stopped", model=MODEL_ID)

    def _live_once(self) -> None:
        """Run one server until it dies, hangs or is no longer wanted. Then wait before the next one."""
        started_at = time.monotonic()
        server = self._start_server()
        try:
            was_ready, hung = self._watch(server, started_at)
        finally:
            # The server has no state to save, and a hung one ends by SIGKILL alone.
            server.kill()
            exit_code = server.wait()
        if self._must_stop():
            return
        wait = self._backoff.after(lived_seconds=time.monotonic() - started_at)
        fields: dict[str, object] = {"model": MODEL_ID, "exit_code": exit_code, "hung": hung}
        if not was_ready:
            fields["detail"] = (
                "The model's server never became ready. To see why: python -m app.embedded_model.server serve --port 0"
            )
        self._log("ERROR", "local_model_died", **fields, restart_in_seconds=wait)
        self._sleep(wait)

    def _watch(self, server: subprocess.Popen[bytes], started_at: float) -> tuple[bool, bool]:
        """Look at the server until it ends or hangs. Return whether it was ever ready, and whether it hangs."""
        was_ready = False
        heard_at = started_at
        while server.poll() is None and not self._must_stop():
            if ready(f"http://127.0.0.1:{self._port}"):
                heard_at = time.monotonic()
                if not was_ready:
                    was_ready = True
                    self._log(
                        "INFO",
                        "local_model_started",
                        model=MODEL_ID,
                        load_ms=round(1000 * (heard_at - started_at)),
                    )
            elif time.monotonic() - heard_at > (HANG_SECONDS if was_ready else LOAD_SECONDS):
                return was_ready, True
            time.sleep(LOOK_SECONDS)
        return was_ready, False

    def _start_server(self) -> subprocess.Popen[bytes]:
        # llama.cpp prints text, and the service's output is JSON: both outputs of the server are dropped.
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "app.embedded_model.server",
                "serve",
                "--port",
                str(self._port),
                "--parent",
                str(os.getpid()),
            ],
            cwd=_PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _ask_to_stop(self, number: int, frame: object) -> None:
        self._asked_to_stop = True

    def _must_stop(self) -> bool:
        return self._asked_to_stop or os.getppid() != self._parent

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._must_stop():
            time.sleep(min(LOOK_SECONDS, seconds))

    def _log(self, level: str, event: str, **fields: object) -> None:
        if LEVELS.index(level) >= LEVELS.index(self._log_level):
            write_line(level, event, **fields)


def main(argv: list[str]) -> int:
    """Be the supervisor. Returns the exit status: 1 where the model is not installed."""
    parser = argparse.ArgumentParser(
        prog="python -m app.embedded_model.supervisor", description="Keep the embedded model's server alive."
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parent", type=int, default=os.getppid(), help="end when the parent process has another id")
    parser.add_argument("--log-level", choices=LEVELS, default="INFO", type=str.upper)
    options = parser.parse_args(argv)
    if not installed():
        write_missing()
        return 1
    Supervisor(port=options.port, parent=options.parent, log_level=options.log_level).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
