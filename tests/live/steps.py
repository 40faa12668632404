"""What several live tests do alike: ask about one thing, find what the upstream was asked, do things at once."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.harness.reader import Answer, delete, open_stream
from tests.harness.server import ROOT
from tests.harness.upstream import RequestRecord, Script, ScriptedUpstream

KEY = "sk-harness-0123456789abcdefghijklmnop"


def settings(upstream: ScriptedUpstream, **more: Any) -> dict[str, Any]:
    """Give the settings of a service of a test's own."""
    return {"OPENAI_BASE_URL": upstream.base_url, "OPENAI_API_KEY": KEY, "HEARTBEAT_SECONDS": 1, **more}


def new_key() -> dict[str, str]:
    """Make the header with a new idempotency key."""
    return {"Idempotency-Key": secrets.token_urlsafe(24)}


def cursor(stream_id: str, sequence: int) -> dict[str, str]:
    """Write the header of a client that comes back."""
    return {"Last-Event-ID": f"{stream_id}.{sequence}"}


def log_name(stream_id: str) -> str:
    """Name the stream as the log's lines do."""
    return hashlib.sha256(stream_id.encode()).hexdigest()[:12]


def _is_about(asked: Any, message: str) -> bool:
    return isinstance(asked, dict) and asked["messages"][-1]["content"] == message


def about(upstream: ScriptedUpstream, script: Script, message: str = "") -> dict[str, str]:
    """Answer a message of this test's own so, whatever else is asked meanwhile; give the request's body."""
    message = message or f"message {secrets.token_hex(8)}"
    upstream.when(lambda asked: _is_about(asked, message), script)
    return {"message": message}


def asked(upstream: ScriptedUpstream, body: dict[str, Any]) -> list[RequestRecord]:
    """List the requests for a completion of this body's message."""
    return [record for record in upstream.completions if _is_about(record.json, body["message"])]


def wait_asked(upstream: ScriptedUpstream, body: dict[str, Any], count: int = 1, timeout: float = 5.0) -> RequestRecord:
    """Wait until the upstream was asked so often, and give the last of these requests."""
    upstream.wait_until(lambda: len(asked(upstream, body)) >= count, timeout, f"{count} requests for {body}")
    return asked(upstream, body)[count - 1]


def begin(base_url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> str:
    """Start a generation, leave once its headers are there, and give its id."""
    with open_stream(f"{base_url}/chat/streaming", json=body, headers=headers) as connection:
        assert connection.status == 200, connection.body()
        return connection.headers["x-stream-id"]


@contextmanager
def live(base_url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Iterator[str]:
    """Start a generation, leave, and stop it in the end, so that it disturbs no other test."""
    stream_id = begin(base_url, body, headers)
    try:
        yield stream_id
    finally:
        delete(f"{base_url}/chat/streaming/{stream_id}")


def read_on(answer: Answer, base_url: str, *, via: str | None = None, timeout: float = 10.0) -> Answer:
    """Read one connection more into an answer, from its cursor on. Raises: Dropped, TimeoutError."""
    headers = {"Last-Event-ID": answer.last_event_id} if answer.last_event_id else {}
    url = f"{base_url}/chat/streaming/{answer.stream_id}"
    with open_stream(url, headers=headers, via=via, timeout=timeout) as connection:
        assert connection.status == 200, connection.body()
        answer.begin_connection(connection.headers)
        for event in connection.events():
            answer.add(event)
    return answer


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Make all calls at the same moment, each in a thread, and give their results in order."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait(10.0)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(run, call) for call in calls]]


def poll(fact: Callable[[], bool], *, seconds: float, what: str | Callable[[], str]) -> None:
    """Wait for what nothing announces. Raises: AssertionError."""
    until = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < until, f"not within {seconds:g} s: {what() if callable(what) else what}"
        time.sleep(0.05)


def copy_of_service(directory: Path, patch: str) -> Path:
    """Copy the service there with a few lines at the end of its wsgi.py, which change it in its worker."""
    for name in ("app", "contracts"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "gunicorn.conf.py", directory)
    wsgi = (ROOT / "wsgi.py").read_text(encoding="utf-8")
    (directory / "wsgi.py").write_text(f"{wsgi}\n\n{patch}", encoding="utf-8")
    return directory
