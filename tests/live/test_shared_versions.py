"""Version 0.1 beside this version over one Valkey, as in a rolling upgrade: each serves what the other generates.

Every test runs in both directions: `here` is the instance that generates, `there` the instance of the other version.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import pytest

from tests.harness.answer import Answer
from tests.harness.reader import Connection, Event, Reply, delete, get, open_stream, post, read_answer
from tests.harness.server import ChatWait
from tests.harness.upstream import (
    Delta,
    Done,
    EndBody,
    Finish,
    Gate,
    Reset,
    Script,
    ScriptedUpstream,
    Stall,
    Token,
    Usage,
    answer,
    error,
)
from tests.harness.upstream import Event as Chunk
from tests.harness.valkey import Database, Valkey
from tests.live.shared import is_ready, read_at
from tests.live.steps import about, asked, begin, cursor, new_key, poll, settings, wait_asked
from tests.live.versions import version_0_1
from tests.requirements import require_or_skip

TEXTS = ["one ", "zwei é\n", '"<3>" \u2028', "\U0001f642 ", "five"]
TEXT = "".join(TEXTS)
USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}

NEVER_THE_SAME = re.compile(
    rb"cw_[A-Za-z0-9_-]{22}"
    rb"|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    rb'|(?<="first_token_ms": )[0-9]+'
    rb'|(?<="duration_ms": )[0-9]+'
    rb'|(?<="message": ")[^"]*|(?<="detail": ")[^"]*|(?<="action": ")[^"]*'  # each version has words of its own
)
"""The parts of a record that differ between any two answers: ids and durations."""
LEASE_SECONDS = 3.0
"""A worker that gives no sign of life for so long is taken for dead, by either version."""
OWN_FIELDS = (b"owner", b"created", b"key")
"""The fields of a stream's hash that differ between any two answers."""


class Pair(NamedTuple):
    """Two instances that share a database of one Valkey."""

    old: ChatWait
    new: ChatWait
    database: Database


@pytest.fixture(scope="module")
def both(shared_upstream: ScriptedUpstream, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    root = version_0_1(tmp_path_factory.mktemp("version"))
    require_or_skip("the commit of version 0.1 (git fetch --unshallow)", root is not None)
    assert root is not None
    database = valkey.database()
    told = settings(shared_upstream, REDIS_URL=database.url)
    with ChatWait(root=root, **told) as old, ChatWait(**told) as new:
        yield Pair(old, new, database)


@pytest.fixture
def pair(both: Pair, upstream: ScriptedUpstream) -> Pair:
    for service in (both.old, both.new):
        if not service.is_running:  # an earlier test has killed it
            service.start()
        poll(partial(is_ready, service), seconds=20, what="it is ready")
    return both


@pytest.fixture(params=["0.1 generates", "0.2 generates"])
def sides(request: pytest.FixtureRequest, pair: Pair) -> tuple[ChatWait, ChatWait]:
    """Give `here` and `there`."""
    return (pair.old, pair.new) if request.param == "0.1 generates" else (pair.new, pair.old)


def attached(service: ChatWait) -> int:
    return len(service.log_of("reader_attached"))


def wait_attached(service: ChatWait, count: int) -> None:
    poll(lambda: attached(service) >= count, seconds=10, what=f"{count} readers")


def read_until(connection: Connection, answer: Answer, tokens: int) -> Iterator[Event]:
    """Read until the answer has so many tokens, and give the events that are still to come."""
    assert connection.status == 200, connection.body()
    answer.begin_connection(connection.headers)
    events = connection.events()
    while answer.tokens < tokens:
        answer.add(next(events))
    return events


def end_of(answer: Answer) -> tuple[str | None, str, str]:
    """Give the terminal event as it came: id, name and data."""
    end = answer.verify().terminal
    assert end is not None
    return end.id, end.event, end.data


def as_written(reply: Reply) -> tuple[int, bytes]:
    """Give status and body of an answer in wait mode, but for the correlation id of the request."""
    return reply.status, reply.body.replace(reply.headers["x-correlation-id"].encode(), b"<this request>")


def waited(service: ChatWait, stream_id: str) -> tuple[int, bytes]:
    return as_written(get(f"{service.base_url}/chat/wait/{stream_id}", timeout=30.0))


def entries(database: Database, stream_id: str) -> list[tuple[bytes, list[tuple[bytes, bytes]]]]:
    """List the entries of a stream: their ids, and their fields in order."""
    found: Any = database.client.xrange(f"{{chatwait}}:{stream_id}:log")
    return [(entry_id, list(fields.items())) for entry_id, fields in found]


def field(database: Database, stream_id: str, name: str) -> str:
    """Read a field of a stream's hash."""
    value: Any = database.client.hget(f"{{chatwait}}:{stream_id}", name)
    return value.decode()


def wait_stored(database: Database, stream_id: str, count: int) -> None:
    poll(lambda: len(entries(database, stream_id)) == count, seconds=10, what=f"{count} records are stored")


def wait_ended(database: Database, stream_id: str) -> None:
    name = f"{{chatwait}}:{stream_id}"
    poll(lambda: bool(database.client.hexists(name, "end")), seconds=10, what="its end is stored")


def alike(value: bytes) -> bytes:
    return NEVER_THE_SAME.sub(b"*", value)


def stored(database: Database, stream_id: str) -> dict[str, Any]:
    """Give all that is stored about a stream, without what differs between any two answers.

    The hash has `attached` only where this version has generated: 0.1 counts no readers.
    """
    name = f"{{chatwait}}:{stream_id}"
    fields: Any = database.client.hgetall(name)
    bound = "{chatwait}:key:" + fields[b"key"].decode()
    fields.pop(b"attached", None)
    binding: Any = database.client.get(bound)
    kept = [name, f"{name}:log", *([bound] if binding else [])]
    lives: list[Any] = [database.client.pttl(key) for key in kept]
    return {
        "hash": [(name, b"*" if name in OWN_FIELDS else alike(value)) for name, value in fields.items()],
        "entries": [
            (at, [(name, alike(value)) for name, value in pairs]) for at, pairs in entries(database, stream_id)
        ],
        "key": binding and alike(binding),
        "minutes to live": [
            milliseconds if milliseconds < 0 else round(milliseconds / 60_000) for milliseconds in lives
        ],
    }


def test_stream_of_one_version_is_read_live_resumed_and_waited_for_at_the_other(
    upstream: ScriptedUpstream, sides: tuple[ChatWait, ChatWait]
) -> None:
    here, there = sides
    script = Script(
        steps=[*map(Token, TEXTS[:3]), Gate("rest"), *map(Token, TEXTS[3:]), Finish(), Usage(USAGE), Done()]
    )
    body = about(upstream, script)
    before = attached(there)
    stream_id = begin(here.base_url, body)
    url_here, url_there = (f"{service.base_url}/chat/streaming/{stream_id}" for service in sides)
    answers = [Answer(), Answer(), Answer(after=2, prefix="".join(TEXTS[:2]))]
    with (
        contextlib.ExitStack() as reading,
        ThreadPoolExecutor(2) as pool,
        open_stream(url_here) as own,
        open_stream(url_there) as live,
    ):
        waiting = [pool.submit(waited, service, stream_id) for service in sides]
        rests = [read_until(*each, 3) for each in zip((own, live), answers[:2], strict=True)]
        # Nobody has a cursor before the stream has got there.
        resumed = reading.enter_context(open_stream(url_there, headers=cursor(stream_id, 2)))
        rests.append(read_until(resumed, answers[2], 3))
        wait_attached(there, before + 3)
        upstream.open("rest")
        for got, rest in zip(answers, rests, strict=True):
            for event in rest:
                got.add(event)
        at_once = {future.result() for future in waiting}
    answers += [read_answer(url) for url in (url_here, url_there)]
    assert {got.text for got in answers} == {TEXT}
    assert len({end_of(got) for got in answers}) == 1
    assert len({got.events[0].data for got in answers if got.events[0].event == "start"}) == 1
    assert len(at_once) == 1
    assert {waited(service, stream_id) for service in sides} == at_once
    assert len(asked(upstream, body)) == 1


def test_stream_of_one_version_is_stopped_at_the_other(
    upstream: ScriptedUpstream, sides: tuple[ChatWait, ChatWait]
) -> None:
    here, there = sides
    for script, tokens in ((Script(steps=[Stall()]), 0), (Script(steps=[Token("a"), Gate("never")]), 1)):
        body = about(upstream, script)
        stream_id = begin(here.base_url, body)
        before = [attached(service) for service in sides]
        record = wait_asked(upstream, body)
        with ThreadPoolExecutor(2) as pool:
            reading = [pool.submit(read_at, [service.base_url], stream_id) for service in sides]
            for service, known in zip(sides, before, strict=True):
                wait_attached(service, known + 1)
            if tokens:
                record.wait_tokens(tokens)
            stopped = delete(f"{there.base_url}/chat/streaming/{stream_id}")
            assert (stopped.status, stopped.json["status"]) == (200, "cancelled")
            record.wait_closed()
            answers = [reader.result() for reader in reading]
        answers += [read_answer(f"{service.base_url}/chat/streaming/{stream_id}") for service in sides]
        assert len({end_of(got) for got in answers}) == 1
        end = answers[0].terminal
        assert end is not None
        assert (end.event, end.json["reason"]) == ("cancelled", "client")
        assert len({waited(service, stream_id) for service in sides}) == 1


def test_key_of_one_version_attaches_at_the_other(upstream: ScriptedUpstream, sides: tuple[ChatWait, ChatWait]) -> None:
    here, there = sides
    script = Script(steps=[*map(Token, TEXTS[:3]), Gate("rest"), *map(Token, TEXTS[3:]), Finish(), Done()])
    body, key = about(upstream, script), new_key()
    before = attached(there)
    stream_id = begin(here.base_url, body, key)
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(read_answer, f"{there.base_url}/chat/streaming", body, headers=key)
        waiting = pool.submit(post, f"{there.base_url}/chat/wait", body, headers=key)
        wait_attached(there, before + 2)
        upstream.open("rest")
        read, waited_for = reading.result(), waiting.result()
    later = [read_answer(f"{service.base_url}/chat/streaming", body, headers=key) for service in sides]
    assert {got.stream_id for got in (read, *later)} == {stream_id}
    assert {got.text for got in (read, *later)} == {TEXT}
    assert len({end_of(got) for got in (read, *later)}) == 1
    again = [as_written(post(f"{service.base_url}/chat/wait", body, headers=key)) for service in sides]
    assert {as_written(waited_for), *again} == {again[0]}
    assert waited_for.json["stream_id"] == stream_id
    for service in sides:
        other = post(f"{service.base_url}/chat/wait", {"message": "another"}, headers=key)
        assert (other.status, other.json["error_code"]) == (422, "idempotency_key_reused")
    assert len(asked(upstream, body)) == 1


def test_key_that_one_version_frees_is_free_at_the_other(
    upstream: ScriptedUpstream, sides: tuple[ChatWait, ChatWait]
) -> None:
    here, there = sides
    body, key = about(upstream, Script(steps=[Reset()])), new_key()
    failed = post(f"{here.base_url}/chat/wait", body, headers=key)
    assert failed.json["retryable"] is True
    upstream.reset()
    about(upstream, answer(TEXTS), body["message"])
    again = post(f"{there.base_url}/chat/wait", body, headers=key)
    assert (again.status, again.json["content"]) == (200, TEXT)


def test_stream_of_one_version_that_is_killed_is_ended_by_the_other(
    upstream: ScriptedUpstream, sides: tuple[ChatWait, ChatWait], pair: Pair
) -> None:
    here, there = sides
    body, key = about(upstream, Script(steps=[*map(Token, TEXTS), Gate("never")])), new_key()
    before = attached(there)
    stream_id = begin(here.base_url, body, key)
    with ThreadPoolExecutor(3) as pool:
        reading = [
            pool.submit(read_at, urls, stream_id, timeout=30.0)
            for urls in ([there.base_url], [here.base_url, there.base_url])
        ]
        waiting = pool.submit(waited, there, stream_id)
        upstream.wait_reached("never")
        wait_attached(there, before + 2)
        wait_stored(pair.database, stream_id, len(TEXTS))
        assert pair.database.client.exists(f"{{chatwait}}:worker:{field(pair.database, stream_id, 'owner')}")
        here.kill()
        answers = [reader.result() for reader in reading]
        at_once = waiting.result()
    here.start()
    poll(partial(is_ready, here), seconds=20, what="it is ready again")
    answers += [read_answer(f"{service.base_url}/chat/streaming/{stream_id}") for service in sides]
    assert {got.text for got in answers} == {TEXT}
    assert len({end_of(got) for got in answers}) == 1
    end = answers[0].terminal
    assert end is not None
    assert (end.event, end.json["error"]["error_code"]) == ("failed", "producer_lost")
    assert {waited(service, stream_id) for service in sides} == {at_once}
    names = [name for _, fields in entries(pair.database, stream_id) for name, _ in fields]
    assert names == [b"t"] * len(TEXTS) + [b"e"], "one end"
    assert field(pair.database, stream_id, "fence") == "2"
    for service in sides:  # there is text, so the key stays bound
        assert post(f"{service.base_url}/chat/wait", body, headers=key).json["error_code"] == "producer_lost"
    assert len(asked(upstream, body)) == 1


@pytest.mark.long
def test_stream_that_outlasts_a_lease_is_taken_over_by_nobody(upstream: ScriptedUpstream, pair: Pair) -> None:
    """Each version sees the other's sign of life."""
    body = about(upstream, Script(steps=[Token("a"), Gate("rest"), Token("b"), Finish(), Done()]))
    services = (pair.old, pair.new)
    with ThreadPoolExecutor(4) as pool:
        stream_ids = [begin(service.base_url, body) for service in services]
        reading = [pool.submit(read_at, [s.base_url], one, timeout=30.0) for s in services for one in stream_ids]
        time.sleep(2 * LEASE_SECONDS)  # that leases lapse is the case
        upstream.open("rest")
        answers = [reader.result() for reader in reading]
    assert {(got.text, got.terminal and got.terminal.event) for got in answers} == {("ab", "done")}
    assert {field(pair.database, stream_id, "fence") for stream_id in stream_ids} == {"1"}


@pytest.mark.long
def test_version_that_stood_still_has_been_replaced_by_the_other(
    upstream: ScriptedUpstream, sides: tuple[ChatWait, ChatWait]
) -> None:
    """SIGSTOP for longer than a lease, then SIGCONT: nothing that was written meanwhile changes."""
    here, there = sides
    body = about(upstream, Script(steps=[*map(Token, TEXTS), Gate("on"), Token("too late"), Gate("never")]))
    stream_id = begin(here.base_url, body)
    record = wait_asked(upstream, body)
    before = attached(there)
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(read_at, [there.base_url], stream_id, timeout=60.0)
        upstream.wait_reached("on")
        wait_attached(there, before + 1)
        (pid,) = here.worker_pids()
        os.kill(pid, signal.SIGSTOP)
        try:
            ended = elsewhere.result()
            upstream.open("on")
            record.wait_tokens(len(TEXTS) + 1)
        finally:
            os.kill(pid, signal.SIGCONT)
    record.wait_closed()
    assert ended.text == TEXT
    assert ended.terminal is not None
    assert ended.terminal.json["error"]["error_code"] == "producer_lost"
    for service in sides:
        assert end_of(read_answer(f"{service.base_url}/chat/streaming/{stream_id}")) == end_of(ended)


ANSWERS = {
    "whole": answer(TEXTS, usage=USAGE),
    "whole without usage": answer(TEXTS),
    "cut by its limit": answer(TEXTS, finish="length"),
    "filtered": answer(TEXTS, finish="content_filter"),
    "without text": answer([]),
    "half a character": Script(steps=[Token("a"), Delta({"content": "\ud83d"}), Finish(), Done()]),
    "broken off": Script(steps=[*map(Token, TEXTS), Reset()]),
    "incomplete": Script(steps=[*map(Token, TEXTS), EndBody()]),
    "reports an error": Script(steps=[*map(Token, TEXTS), Chunk({"error": {"message": "out of memory"}}), Done()]),
    "reports an error at once": Script(steps=[Chunk({"error": {"code": "content_filter"}}), Done()]),
    "refused": error(401),
    "too long": error(400, code="context_length_exceeded"),
    "too many": error(429, headers={"retry-after": "3000"}),
    "stopped": Script(steps=[*map(Token, TEXTS), Gate("never")]),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_finished_stream_is_stored_and_replayed_alike_by_both(
    upstream: ScriptedUpstream, pair: Pair, name: str
) -> None:
    """What is stored has one form, whichever version writes it, and either version answers with the same bytes."""
    body = about(upstream, ANSWERS[name])
    records = []
    for service in (pair.old, pair.new):
        key = new_key()
        stream_id = begin(service.base_url, body, key)
        if name == "stopped":
            wait_stored(pair.database, stream_id, len(TEXTS))
            delete(f"{service.base_url}/chat/streaming/{stream_id}")
        wait_ended(pair.database, stream_id)
        replayed = [read_answer(f"{s.base_url}/chat/streaming/{stream_id}") for s in (pair.old, pair.new)]
        by_old, by_new = ([(e.event, e.id, e.data) for e in got.events if e.event != "ping"] for got in replayed)
        assert by_old == by_new
        assert waited(pair.old, stream_id) == waited(pair.new, stream_id)
        records.append(stored(pair.database, stream_id))
    assert records[0] == records[1]
