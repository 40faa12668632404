"""Test that every answer of the engine's reaches whoever asked for it, and none that was not read anybody else.

An answer left over on a connection would be the next question's: another stream's text.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app import errors
from app.streams.shared.committer import Committer
from app.streams.shared.connection import Connection, ValkeyAway
from tests.harness.engine import Database, Engine

TIMEOUT_SECONDS = 0.3


@pytest.fixture
def connection(engine_database: Database) -> Iterator[Connection]:
    made = Connection(engine_database.url, name="test", timeout_seconds=5.0)
    yield made
    made.close()


def test_answer_that_was_not_waited_for_is_not_the_next_questions(own_engine: Engine) -> None:
    connection = Connection(own_engine.url(), name="test", timeout_seconds=TIMEOUT_SECONDS)
    assert connection.ask([("ECHO", "first")]) == [b"first"]
    own_engine.freeze()
    with pytest.raises(ValkeyAway):
        connection.ask([("ECHO", "one's"), ("ECHO", "one's too")])
    own_engine.thaw()

    for _ in range(3):
        assert connection.ask([("ECHO", "another's")]) == [b"another's"]
    connection.close()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, GeneratorExit, ValueError, TimeoutError, OSError])
@pytest.mark.parametrize("read", [0, 1, 2])
def test_answers_after_one_whose_reading_failed_are_nobodys(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException], read: int
) -> None:
    """Whatever ends it: a thread that is killed ends in the middle of a read."""
    inner = connection._connection
    reads = inner.read_response
    left = read

    def fail(*arguments: Any, **more: Any) -> Any:
        nonlocal left
        if left == 0:
            raise failure
        left -= 1
        return reads(*arguments, **more)

    connection.ask([("PING",)])
    monkeypatch.setattr(inner, "read_response", fail)
    with pytest.raises((failure, ValkeyAway)):
        connection.ask([("ECHO", "one's"), ("ECHO", "two's"), ("ECHO", "three's")])
    monkeypatch.setattr(inner, "read_response", reads)

    assert connection.ask([("ECHO", "another's"), ("ECHO", "and more")]) == [b"another's", b"and more"]


def test_questions_asked_at_once_get_their_own_answers_though_the_connection_is_killed_again_and_again(
    engine_database: Database,
) -> None:
    committer = Committer(
        Connection(engine_database.url, name="asking", timeout_seconds=5.0), live_ms=1000, back=lambda: None
    )
    committer.start()
    stop = threading.Event()
    wrong: list[object] = []
    counts = {"answered": 0, "refused": 0}

    def ask(asker: int) -> None:
        for number in range(40):
            mine = [f"{asker} {number} {place}".encode() for place in range(asker % 3 + 1)]
            try:
                answers = committer.ask(*(("ECHO", text) for text in mine))
            except errors.StoreUnavailable:
                counts["refused"] += 1
                continue
            counts["answered"] += 1
            if answers != mine:
                wrong.append((mine, answers))

    def kill() -> None:
        while not stop.wait(0.02):
            for client in engine_database.engine.connections("asking"):
                engine_database.client.client_kill_filter(_id=client["id"])

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with ThreadPoolExecutor(24) as threads:
            list(threads.map(ask, range(24)))
    finally:
        stop.set()
        killer.join()
        committer.stop()
        committer.join()

    assert wrong == []
    assert counts["answered"] > 100, counts
    assert counts["refused"] > 0, "and some questions were lost on the way"


def test_answer_that_comes_after_its_asker_left_is_nobody_elses(
    own_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An asker that has waited for too long is told so, and what comes then is thrown away."""
    monkeypatch.setattr("app.streams.shared.committer.ASK_SECONDS", TIMEOUT_SECONDS)
    committer = Committer(Connection(own_engine.url(), name="asking", timeout_seconds=20.0), live_ms=1, back=bool)
    committer.start()
    assert committer.ask(("ECHO", "first")) == [b"first"]
    own_engine.freeze()
    with ThreadPoolExecutor(1) as threads:
        late = threads.submit(committer.ask, ("ECHO", "one's"))
        with pytest.raises(errors.StoreUnavailable):
            late.result(20)
        own_engine.thaw()

    until = time.monotonic() + 20
    while not committer.is_answered:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert committer.ask(("ECHO", "another's")) == [b"another's"]
    committer.stop()
    committer.join()
