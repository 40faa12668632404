"""Try `make run` as a new user does, without a key: the page is there, the embedded model answers, Ctrl-C ends it.

    python3 tests/first_run.py

Standard library only: this runs before anything is installed. Ends with 0 when all of it was so.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALL_SECONDS = 600.0  # the packages and the model, where nothing is installed yet
ANSWER_SECONDS = 120.0
END_SECONDS = 40.0
KEPT = ("PATH", "HOME", "LANG", "PYTHONPATH", "CHATWAIT_TEST_CLOCK_AHEAD")
SETTINGS = ("PIP_", "TMPDIR", "SSL_CERT")
"""Variables that begin so are passed on too: how packages are had is the machine's affair."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def asked(url: str, body: object = None) -> bytes:
    """Ask, and give what is answered with 200. Raises: OSError."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=ANSWER_SECONDS) as answer:
        told: bytes = answer.read()
        return told


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + INSTALL_SECONDS
    while True:
        try:
            asked(f"{url}/ready")
            return
        except OSError as error:
            if process.poll() is not None:
                raise SystemExit(f"`make run` ended with {process.returncode} before it was ready") from error
            if time.monotonic() > until:
                raise SystemExit(f"`make run` was not ready after {INSTALL_SECONDS:g} s: {error}") from error
        time.sleep(0.2)


def main() -> int:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(SETTINGS)}
    environment = {**kept, "PORT": str(port), "ENV_FILE": os.devnull}
    begun = time.monotonic()
    process = subprocess.Popen(["make", "run"], cwd=ROOT, env=environment, start_new_session=True)
    try:
        wait_until_ready(url, process)
        ready = time.monotonic()
        assert b"<title>" in asked(url), "the page is not there"
        answer = json.loads(asked(f"{url}/chat/wait", {"message": "What is the capital of France?"}))
        assert answer["status"] == "complete", answer
        assert answer["content"].strip(), "an empty answer"
        os.killpg(process.pid, signal.SIGINT)
        ended = process.wait(END_SECONDS)
        assert ended in (0, 2, 130, -signal.SIGINT), f"`make run` ended with {ended}"  # make's own word for Ctrl-C is 2
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    print(f"`make run` was ready after {ready - begun:.1f} s, answered with {answer['tokens']} tokens, and ended.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
