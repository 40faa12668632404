"""Every answer of Valkey's reaches whoever asked for it, and what goes wrong is told apart, without a secret.

An answer left over on a connection would be the next question's: another stream's text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from app.streams.shared import connection as room
from app.streams.shared import scripts
from app.streams.shared.connection import Connection, Refusal, ValkeyAway, script
from tests.harness.chaos import ChaosProxy, CutAfter
from tests.harness.valkey import Database, Valkey
from tests.unit.shared import wait_until

TIMEOUT_SECONDS = 0.3


@pytest.fixture
def connection(valkey_database: Database) -> Iterator[Connection]:
    made = Connection(valkey_database.url, name="test", timeout_seconds=5.0)
    yield made
    made.close()


def test_answer_that_was_not_waited_for_is_not_the_next_questions(own_valkey: Valkey) -> None:
    connection = Connection(own_valkey.url(), name="test", timeout_seconds=TIMEOUT_SECONDS)
    assert connection.ask([("ECHO", "first")]) == [b"first"]
    own_valkey.freeze()
    with pytest.raises(ValkeyAway):
        connection.ask([("ECHO", "one's"), ("ECHO", "one's too")])
    own_valkey.thaw()

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


def code(answer: Any) -> str:
    assert isinstance(answer, Refusal), answer
    return answer.code


def test_answers_come_in_the_order_of_the_questions_and_of_every_kind(connection: Connection) -> None:
    answers = connection.ask(
        [
            ("SET", "text", b"\x00\xff \r\n"),
            ("GET", "text"),
            ("GET", "none"),
            ("INCRBY", "number", 41),
            ("XADD", "entries", "1-0", "t", "\u00e9"),
            ("XRANGE", "entries", "-", "+"),
            ("HGETALL", "none"),
        ]
    )
    assert answers == [b"OK", b"\x00\xff \r\n", None, 41, b"1-0", [[b"1-0", [b"t", "\u00e9".encode()]]], []]
    assert connection.ask([]) == []


def test_nothing_is_opened_before_the_first_question_and_each_connection_has_its_name(
    valkey_database: Database,
) -> None:
    named = Connection(valkey_database.url, name="named-two", timeout_seconds=5.0)
    assert named.ask([]) == []
    assert valkey_database.valkey.connections("named-two") == []
    for _ in range(3):
        named.ask([("PING",)])
    (first,) = valkey_database.valkey.connections("named-two")
    named.close()
    named.close()
    wait_until(lambda: not valkey_database.valkey.connections("named-two"), "it is let go")
    assert named.ask([("PING",)]) == [b"PONG"], "the next question opens it again"
    (second,) = valkey_database.valkey.connections("named-two")
    assert second["id"] != first["id"]
    named.close()


def test_refusals_are_answers_with_their_kind_and_harm_no_other_question(own_valkey: Valkey) -> None:
    connection = Connection(own_valkey.url(), name="test", timeout_seconds=5.0)
    connection.ask([("SET", "text", "x")])
    told = connection.ask([("ECHO", "a"), ("HGETALL", "text"), ("ECHO", "b"), ("NONSENSE",), ("ECHO", "c")])
    assert (told[0], told[2], told[4]) == (b"a", b"b", b"c")
    assert (code(told[1]), told[1].is_of_a_record, told[1].is_forgotten) == ("WRONGTYPE", True, False)
    assert (code(told[3]), told[3].is_of_a_record, told[3].is_forgotten) == ("unknown", False, False)
    with own_valkey.configured(maxmemory="1"):
        for command in (("SET", "more", "x"), script(scripts.WAKE, ("wake",), "what", "which", 1000)):
            (full,) = connection.ask([command])
            assert (code(full), full.is_of_a_record) == ("OOM", False)
    own_valkey.client().execute_command("REPLICAOF", "127.0.0.1", "1")
    for command in (("SET", "more", "x"), script(scripts.WAKE, ("wake",), "what", "which", 1000)):
        (only_read,) = connection.ask([command])
        assert code(only_read) == "READONLY"
    connection.close()


def test_scripts_that_were_forgotten_are_loaded_and_run_once_each_in_their_places(
    connection: Connection, valkey_database: Database
) -> None:
    wake = [script(scripts.WAKE, (f"wake{number}",), "what", "which", 60_000) for number in range(2)]
    connection.ask([("PING",)])
    for _ in range(2):
        valkey_database.client.script_flush()
        assert connection.ask([("ECHO", "a"), wake[0], ("ECHO", "b"), wake[1], ("ECHO", "c")]) == [
            b"a",
            1,
            b"b",
            1,
            b"c",
        ]
    assert [valkey_database.client.xlen(f"wake{number}") for number in range(2)] == [2, 2]


@pytest.mark.parametrize("text", [scripts.ADOPT, scripts.CANCEL, scripts.COMMIT, scripts.FINISH])
def test_scripts_are_known_from_the_first_question_on(connection: Connection, text: str) -> None:
    connection.ask([("PING",)])
    assert connection.ask([("SCRIPT", "EXISTS", script(text, [])[1])]) == [[1]]


def test_script_command_names_its_keys() -> None:
    name, sha, count, *rest = script(scripts.WAKE, ("a", "b"), 1, "x", b"y")
    assert (name, len(str(sha)), count, rest) == ("EVALSHA", 40, 2, ["a", "b", 1, "x", b"y"])


# What goes wrong


SECRET = "s3cr3t-of-an-operator"


def test_valkey_that_is_not_there_is_away_and_no_secret_is_told(own_valkey: Valkey) -> None:
    url = own_valkey.url().replace("://", f"://someone:{SECRET}@")
    own_valkey.kill()
    connection = Connection(url, name="test", timeout_seconds=5.0)
    with pytest.raises(ValkeyAway, match="Connection") as away:
        connection.ask([("PING",)])
    assert not any(part in str(away.value) for part in (SECRET, "someone", "127.0.0.1", str(own_valkey.port)))
    own_valkey.start()
    with pytest.raises(ValkeyAway) as away:
        connection.ask([("PING",)])
    assert not any(part in str(away.value) for part in (SECRET, "someone", "127.0.0.1", str(own_valkey.port)))


def test_valkey_that_wants_a_password_is_away_until_it_gets_it(own_valkey: Valkey) -> None:
    with own_valkey.configured(requirepass=SECRET):
        own_valkey.client().execute_command("AUTH", SECRET)
        connection = Connection(own_valkey.url(), name="test", timeout_seconds=5.0)
        for _ in range(2):
            with pytest.raises(ValkeyAway):
                connection.ask([("PING",)])
        right = Connection(own_valkey.url().replace("://", f"://:{SECRET}@"), name="test", timeout_seconds=5.0)
        assert right.ask([("PING",)]) == [b"PONG"]
        right.close()


def test_valkey_that_is_too_old_is_said_to_be(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "OLDEST", (99, 0))
    for _ in range(2):
        with pytest.raises(ValkeyAway, match=r"^RedisError: older than Redis 6\.2$"):
            connection.ask([("PING",)])
    monkeypatch.undo()
    assert connection.ask([("PING",)]) == [b"PONG"]


def test_connection_that_is_cut_in_an_answer_is_opened_anew(own_valkey: Valkey) -> None:
    own_valkey.client().set("large", "x" * 100_000)
    with ChaosProxy("127.0.0.1", own_valkey.port) as proxy:
        connection = Connection(own_valkey.url(port=proxy.port), name="test", timeout_seconds=5.0)
        proxy.plan(CutAfter(50_000))
        with pytest.raises(ValkeyAway):
            connection.ask([("GET", "large"), ("ECHO", "one's")])
        assert connection.ask([("ECHO", "another's")]) == [b"another's"]
        connection.close()


def test_answer_is_waited_for_as_long_as_the_question_says(own_valkey: Valkey) -> None:
    """A read that blocks takes longer than what else is asked."""
    connection = Connection(own_valkey.url(), name="test", timeout_seconds=0.2)
    assert connection.ask([("XREAD", "BLOCK", 600, "STREAMS", "none", "0-0")], timeout_seconds=20.0) == [None]
    with pytest.raises(ValkeyAway, match="Timeout"):
        connection.ask([("XREAD", "BLOCK", 20_000, "STREAMS", "none", "0-0")], timeout_seconds=0.1)
    connection.close()


@pytest.mark.parametrize("url", ["", "none", "http://127.0.0.1:1/0", "redis://127.0.0.1:port/0"])
def test_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|Port"):
        Connection(url, name="test", timeout_seconds=1.0)
