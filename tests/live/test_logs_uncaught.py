"""Whatever goes wrong outside of any request is a line of the log, bounded and without its words, and never stderr."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.harness.http1 import get
from tests.harness.server import COMMAND, ChatWait
from tests.live.steps import poll

CANARY = "canary-of-an-exception-0123456789"
KEY = "key-without-a-mark-0123456789abcdef"
REMOTE = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "http://model.example/v1"}
WAYS = ("process", "thread", "greenlet", "finalizer")

FAULTY = f"""
import sys, threading, time, warnings
import gevent
from wsgi import app

def fail(*_):
    raise ValueError("{CANARY}")

class Finalized:
    __del__ = fail

def once(environ, start_response):
    way = environ["QUERY_STRING"]
    if way == "thread":
        threading.Thread(target=fail).start()
    elif way == "greenlet":
        gevent.spawn(fail)
    elif way == "loop":
        gevent.get_hub().loop.run_callback(fail)
    elif way == "finalizer":
        Finalized()
    elif way == "many":
        for _ in range(1000):
            gevent.spawn(fail)
    elif way == "process":
        try:
            fail()
        except ValueError:
            sys.excepthook(*sys.exc_info())
    elif way == "warning":
        warnings.warn("a warning")
    elif way == "hang":
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(environ, start_response)

inner, app.wsgi_app = app.wsgi_app, once
"""


@contextmanager
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatWait]:
    """Run the service with faults that queries call; on leaving, stdout holds JSON lines alone, and stderr nothing."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "faulty.py").write_text(FAULTY)
    target, COMMAND[-1] = COMMAND[-1], "faulty:app"
    try:
        with ChatWait(PYTHONPATH=str(folder), **REMOTE) as chatwait:
            yield chatwait
            assert KEY not in chatwait.output
            assert CANARY not in chatwait.output
            chatwait.check()
    finally:
        COMMAND[-1] = target


@pytest.fixture(scope="module")
def chatwait(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatWait]:
    with faulty(tmp_path_factory) as made:
        yield made


@pytest.mark.parametrize("way", [*WAYS, "loop"])
def test_exception_that_nobody_catches_is_a_line_with_its_type_and_place(chatwait: ChatWait, way: str) -> None:
    assert get(f"{chatwait.base_url}/health?{way}").status == 200
    where = "greenlet" if way == "loop" else way

    line = chatwait.wait_for_log(lambda record: f"uncaught exception in a {where}" in record.get("message", ""))

    assert line["level"] == "ERROR"
    assert line["exception"]["types"] == ["ValueError"]
    assert any(place.endswith(" fail") for place in line["exception"]["places"])


def test_warning_is_a_line(chatwait: ChatWait) -> None:
    get(f"{chatwait.base_url}/health?warning")
    assert chatwait.wait_for_log(lambda record: record["logger"] == "py.warnings")


def test_exceptions_without_end_are_told_some_times_and_counted(chatwait: ChatWait) -> None:
    def told() -> int:
        return len(chatwait.log_of(lambda record: "uncaught exception" in record.get("message", "")))

    def left_out() -> int:
        return sum(line["lines"] for line in chatwait.log_of("log_lines_left_out"))

    before, left_out_before = told(), left_out()
    get(f"{chatwait.base_url}/health?many")

    poll(
        lambda: left_out() - left_out_before + told() - before >= 1000 - 40,
        seconds=20,
        what=lambda: f"all are told or counted: {told() - before} and {left_out() - left_out_before}",
    )
    assert 0 < told() - before <= 100


def test_death_of_a_worker_is_a_line(chatwait: ChatWait) -> None:
    (before,) = chatwait.worker_pids()
    os.kill(before, signal.SIGKILL)

    assert chatwait.wait_for_log(lambda record: "SIGKILL" in record.get("message", ""))
    poll(lambda: chatwait.worker_pids() not in ([], [before]), seconds=20, what="another worker")
    poll(lambda: answers(chatwait), seconds=20, what="the other worker answers")


def answers(chatwait: ChatWait) -> bool:
    try:
        return get(f"{chatwait.base_url}/health", timeout=1.0).status == 200
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
def test_service_without_descriptors_says_so_in_lines_and_goes_on(chatwait: ChatWait) -> None:
    (worker,) = chatwait.worker_pids()
    allowed = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{worker}/fd")) + 2, allowed[1]))
    try:
        with ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(socket.create_connection(("127.0.0.1", chatwait.port)))
            line = chatwait.wait_for_log(
                lambda record: (
                    "uncaught exception" in record.get("message", "") and record["exception"]["types"] == ["OSError"]
                )
            )
            assert line["level"] == "ERROR"
            assert line["exception"]["errno"] == "EMFILE"
            assert "ulimit -n" in line["message"]
    finally:
        resource.prlimit(worker, resource.RLIMIT_NOFILE, allowed)
    poll(lambda: answers(chatwait), seconds=10, what="it accepts again")


def test_key_that_goes_elsewhere_over_plain_http_is_warned_of_once(chatwait: ChatWait) -> None:
    (line,) = chatwait.log_of(lambda record: "unencrypted" in record.get("message", ""))

    assert line["level"] == "WARNING"
    assert KEY not in str(line)
