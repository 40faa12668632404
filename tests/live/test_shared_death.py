"""A process dies or stands still while it generates: whoever reads its streams elsewhere is told one end, and soon."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest

from tests.harness.answer import Answer
from tests.harness.reader import delete, get, open_stream, post, read_answer, read_resuming
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Paced, Script, ScriptedUpstream, Stall, Token
from tests.harness.valkey import Database, Valkey
from tests.live.figures import unheard
from tests.live.shared import LOST_SECONDS, SHORT_LEASES, is_ready, read_at, services
from tests.live.steps import about, asked, begin, log_name, new_key, poll, settings, wait_asked

READERS = 20


@pytest.fixture(scope="module")
def pair(shared_upstream: ScriptedUpstream, valkey: Valkey) -> Iterator[list[ChatWait]]:
    """Two for all tests that leave them alive."""
    with services(shared_upstream, valkey.url(valkey.new_database()), pace=SHORT_LEASES) as pair:
        yield pair


TEXTS = [f"{number}é " for number in range(1, 11)]


def entries(database: Database, stream_id: str) -> list[bytes]:
    """List what Valkey has of a stream: the names of its entries' fields."""
    found: Any = database.client.xrange(f"{{chatwait}}:{stream_id}:log")
    return [name for _, fields in found for name in fields]


def assert_lost(answer: Answer, texts: list[str]) -> None:
    assert answer.terminal is not None
    assert (answer.terminal.event, answer.text) == ("failed", "".join(texts))
    error = answer.terminal.json["error"]
    assert (error["error_code"], error["origin"], error["retryable"]) == ("producer_lost", "service", True)
    assert all(error[part] for part in ("message", "detail", "action"))


def test_readers_of_a_process_that_is_killed_get_all_there_is_and_one_end(
    upstream: ScriptedUpstream, valkey_database: Database, record_property: pytest.RecordProperty
) -> None:
    """The lease is the real one. An answer that dies with it before its first token leaves its key free."""
    script = Script(steps=[*map(Token, TEXTS), Gate("never"), Finish(), Done()])
    body, key = about(upstream, script), new_key()
    silent_body, silent_key = about(upstream, Script(steps=[Stall()])), new_key()
    with services(upstream, valkey_database.url, 3) as (dying, *others), ThreadPoolExecutor(READERS + 2) as pool:
        stream_id = begin(dying.base_url, body, key)
        upstream.wait_reached("never")
        silent_id = begin(dying.base_url, silent_body, silent_key)
        wait_asked(upstream, silent_body)
        urls = [service.base_url for service in others]

        def read(number: int) -> tuple[Answer, float]:
            answer = read_at(urls[number % 2 :] + urls[: number % 2], stream_id)
            return answer, time.monotonic()

        reading = [pool.submit(read, number) for number in range(READERS)]
        waiting = pool.submit(get, f"{urls[0]}/chat/wait/{stream_id}", timeout=30.0)
        for service in others:
            poll(lambda service=service: len(service.log_of("reader_attached")) >= 10, seconds=10, what="its readers")
        killed_at = time.monotonic()
        dying.kill()
        for future in reading:
            answer, ended_at = future.result()
            assert_lost(answer, TEXTS)
            assert ended_at - killed_at < 2 * LOST_SECONDS
        longest = max(future.result()[1] for future in reading) - killed_at
        record_property("figure", f"{READERS} readers of a killed process were told its end after {longest:.1f} s (5)")

        waited = waiting.result()
        assert (waited.status, waited.json["error_code"]) == (503, "producer_lost")
        assert waited.json["partial"] == {"content": "".join(TEXTS), "tokens": len(TEXTS)}
        for url in urls:  # later resumers, whoever asks with the key, and whoever would stop it
            assert_lost(read_answer(f"{url}/chat/streaming/{stream_id}"), TEXTS)
            assert post(f"{url}/chat/wait", body, headers=key).json["error_code"] == "producer_lost"
            stopped = delete(f"{url}/chat/streaming/{stream_id}")
            assert (stopped.status, stopped.json["status"]) == (200, "failed")
        assert entries(valkey_database, stream_id) == [b"t"] * len(TEXTS) + [b"e"]
        assert len(asked(upstream, body)) == 1
        assert_lost(read_at(urls, silent_id), [])
        for lost_id in (stream_id, silent_id):
            lost = {"error_type": "producer_lost", "stream": log_name(lost_id)}
            poll(
                lambda lost=lost: any(service.log_of("error_occurred", **lost) for service in others),
                seconds=5,
                what="the line of who ended it, who may be another than who answered",
            )
            assert sum(len(service.log_of("error_occurred", **lost)) for service in others) == 1
        upstream.reset()
        about(upstream, Script(steps=[Token("whole"), Finish(), Done()]), silent_body["message"])
        again = post(f"{urls[0]}/chat/wait", silent_body, headers=silent_key)
        assert (again.status, again.json["content"]) == (200, "whole")


def test_process_that_stood_still_and_goes_on_changes_nothing(upstream: ScriptedUpstream, pair: list[ChatWait]) -> None:
    """SIGSTOP, long enough to be taken for dead; SIGCONT: it has been replaced, and says so to its own readers."""
    script = Script(steps=[*map(Token, TEXTS), Gate("on"), Token("too late"), Gate("never"), Finish(), Done()])
    body = about(upstream, script)
    still, other = pair
    attached = len(still.log_of("reader_attached"))
    with ThreadPoolExecutor(2) as pool:
        stream_id = begin(still.base_url, body)
        record = wait_asked(upstream, body)
        upstream.wait_reached("on")
        own = pool.submit(read_at, [still.base_url], stream_id, timeout=60.0)
        elsewhere = pool.submit(read_at, [other.base_url], stream_id, timeout=60.0)
        poll(lambda: len(still.log_of("reader_attached")) == attached + 2, seconds=10, what="its own reader")
        (pid,) = still.worker_pids()
        os.kill(pid, signal.SIGSTOP)
        try:
            assert_lost(elsewhere.result(), TEXTS)
            upstream.open("on")
            record.wait_tokens(len(TEXTS) + 1)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert_lost(own.result(), TEXTS)
        record.wait_closed()
        still.wait_for_log("stream_fenced")
        for service in (still, other):
            assert_lost(read_answer(f"{service.base_url}/chat/streaming/{stream_id}"), TEXTS)
        whole = about(upstream, Script(steps=[Token("whole"), Finish(), Done()]))
        assert post(f"{still.base_url}/chat/wait", whole).json["content"] == "whole", "it serves on"


def test_stop_at_any_service_closes_the_models_connection_within_a_second(
    upstream: ScriptedUpstream, pair: list[ChatWait]
) -> None:
    one, other = pair
    with ThreadPoolExecutor(2) as pool:
        for steps in ([Stall()], [Token("a"), Gate("never")]):
            body = about(upstream, Script(steps=steps))
            stream_id = begin(one.base_url, body)
            record = wait_asked(upstream, body)
            readers = [pool.submit(read_at, [service.base_url], stream_id) for service in (one, other)]
            if len(steps) > 1:
                record.wait_tokens(1)
            asked_at = time.monotonic()
            stopped = delete(f"{other.base_url}/chat/streaming/{stream_id}")
            assert (stopped.status, stopped.json["status"]) == (200, "cancelled")
            assert record.wait_closed() - asked_at < 1.0
            for reader in readers:
                answer = reader.result()
                assert answer.terminal is not None
                assert (answer.terminal.event, answer.terminal.json["reason"]) == ("cancelled", "client")
            assert delete(f"{other.base_url}/chat/wait/{stream_id}").json["status"] == "cancelled"


def test_stop_reaches_a_stream_that_this_service_has_no_memory_to_read(
    upstream: ScriptedUpstream, pair: list[ChatWait]
) -> None:
    """Stopping is what helps when memory is short."""
    one, _ = pair
    body = about(upstream, Script(steps=[Token("é" * 40_000)] * 24 + [Gate("never")]))
    with ChatWait(**one.settings | {"STREAM_MEMORY_MB": 1}) as small:
        poll(lambda: is_ready(small), seconds=20, what="it is ready")
        stream_id = begin(one.base_url, body)
        record = wait_asked(upstream, body)
        with open_stream(f"{one.base_url}/chat/streaming/{stream_id}") as connection:
            next(event for event in connection.events() if event.id == f"{stream_id}.24")
        url = f"{small.base_url}/chat/streaming/{stream_id}"
        assert get(url).status == 503, "there is more of it than can be read here"
        stopped = delete(url)
        assert (stopped.status, stopped.json["status"]) == (200, "running")
        record.wait_closed()
        poll(lambda: delete(url).json["status"] == "cancelled", seconds=10, what="its end is known")
        assert delete(url).json == {"stream_id": stream_id, "status": "cancelled", "tokens": 24}


def test_keys_and_waiting_hold_across_services(upstream: ScriptedUpstream, pair: list[ChatWait]) -> None:
    with ThreadPoolExecutor(8) as pool:
        for number in range(10):
            script = Script(steps=[Token("a"), Gate(f"{number}"), Token("b"), Finish(), Done()])
            body, key = about(upstream, script), new_key()
            urls = [pair[index % 2].base_url for index in range(4)]
            streams = [pool.submit(read_answer, f"{url}/chat/streaming", body, headers=key) for url in urls]
            waits = [pool.submit(post, f"{url}/chat/wait", body, headers=key) for url in urls]
            upstream.wait_reached(f"{number}")
            upstream.open(f"{number}")
            assert {future.result().text for future in streams} == {"ab"}
            assert {future.result().json["content"] for future in waits} == {"ab"}
            assert len({future.result().stream_id for future in streams}) == 1
            assert len(asked(upstream, body)) == 1
            other = post(f"{pair[1].base_url}/chat/wait", {"message": "another"}, headers=key)
            assert (other.status, other.json["error_code"]) == (422, "idempotency_key_reused")


def test_readers_of_both_services_are_booked_and_a_damaged_record_is_410_for_its_own(
    upstream: ScriptedUpstream, valkey: Valkey, pair: list[ChatWait]
) -> None:
    one, other = pair
    client: Any = valkey.client(int(one.settings["REDIS_URL"].rpartition("/")[2]))
    with ThreadPoolExecutor(3) as pool:
        body = about(upstream, Script(steps=[Token("a"), Gate("end"), Token("b"), Finish(), Done()]))
        stream_id = begin(one.base_url, body)
        reading = [pool.submit(read_at, [service.base_url], stream_id) for service in (one, other, other)]
        poll(lambda: client.hget(f"{{chatwait}}:{stream_id}", "attached") == b"4", seconds=10, what="they are noted")
        upstream.open("end")
        assert [reader.result().text for reader in reading] == ["ab"] * 3
        line = one.wait_for_log("response_complete", stream=log_name(stream_id))
        assert line["resumes"] == 3
        assert other.log_of("response_complete", stream=log_name(stream_id)) == []

        body = about(upstream, Script(steps=[Token("a"), Gate("later"), Token("b"), Finish(), Done()]))
        ended = begin(one.base_url, body)
        upstream.wait_reached("later")
        poll(lambda: client.hget(f"{{chatwait}}:{ended}", "head") == b"1", seconds=10, what="its token is stored")
        client.hset(f"{{chatwait}}:{ended}", "head", 2**60)
        for ask in (get, delete):
            gone = ask(f"{other.base_url}/chat/streaming/{ended}")
            assert (gone.status, gone.json["error_code"], gone.json["retryable"]) == (410, "stream_expired", False)
        other.wait_for_log("stream_damaged", stream=log_name(ended))
        upstream.open("later")
        assert read_at([one.base_url], ended).text == "ab", "who generates it has it, and writes it anew"
        assert read_at([other.base_url], ended).text == "ab"
        assert read_at([other.base_url, one.base_url], stream_id).text == "ab"
        assert is_ready(one)
        assert is_ready(other)


def test_answer_that_is_read_at_another_service_only_is_not_abandoned(
    upstream: ScriptedUpstream, valkey_database: Database
) -> None:
    script = Script(steps=[Token("a"), Gate("end"), Token("b"), Finish(), Done()])
    with services(upstream, valkey_database.url, ABANDONED_SECONDS=2) as (one, other):
        body = about(upstream, script)
        stream_id = begin(one.base_url, body)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read_at, [other.base_url], stream_id)
            time.sleep(4)  # twice as long as nobody reads what is abandoned
            upstream.open("end")
            answer = reading.result()
        assert answer.terminal is not None
        assert (answer.terminal.event, answer.text) == ("done", "ab")
        body = about(upstream, Script(steps=[Token("a"), Gate("never")]))
        stream_id = begin(one.base_url, body)
        with open_stream(f"{other.base_url}/chat/streaming/{stream_id}") as connection:
            next(connection.events())
        wait_asked(upstream, body).wait_closed(10.0)


@pytest.fixture
def three_workers(upstream: ScriptedUpstream, valkey_database: Database) -> Iterator[ChatWait]:
    with ChatWait(pace=SHORT_LEASES, **settings(upstream, REDIS_URL=valkey_database.url, WORKERS=3)) as chatwait:
        chatwait.wait_for_workers(3)
        yield chatwait


def kill_one(pids: list[int], choice: random.Random) -> None:
    """Kill one worker; gunicorn puts another in its place."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(choice.choice(pids), signal.SIGKILL)


def generating(chatwait: ChatWait, upstream: ScriptedUpstream) -> list[int]:
    """List the workers that are connected to the model's server."""
    return [
        pid
        for pid in chatwait.worker_pids()
        for peers in [[it.raddr.port for it in psutil.Process(pid).net_connections("inet") if it.raddr]]
        if upstream.port in peers
    ]


def kill_workers_during_streams(
    chatwait: ChatWait, upstream: ScriptedUpstream, *, rounds: int, streams: int, seed: int, kills: int = 2
) -> dict[str, int]:
    """Let readers read while workers die at random moments, first one that generates, and now and then one that has
    just taken over what the first one left: each reader ends with the whole text, or a part and one end."""
    choice = random.Random(seed)
    ended: dict[str, int] = {"done": 0, "failed": 0}
    texts = [f"{number}é " for number in range(24)]
    for _ in range(rounds):
        upstream.reset()
        body = about(upstream, Script(steps=[Paced(texts, 0.08), Finish(), Done()]))
        with ThreadPoolExecutor(streams) as pool:
            reading = [
                pool.submit(read_resuming, chatwait.base_url, json=body, timeout=20.0, max_attempts=100)
                for _ in range(streams)
            ]
            wait_asked(upstream, body, streams, timeout=20.0)
            kill_one(generating(chatwait, upstream), choice)
            for _ in range(kills - 1):
                time.sleep(choice.uniform(0.1, 2.0))  # the moment is the case
                kill_one(chatwait.worker_pids(), choice)
            for future in reading:
                answer = future.result()
                assert answer.terminal is not None
                ended[answer.terminal.event] += 1
                if answer.terminal.event == "done":
                    assert answer.text == "".join(texts)
                else:
                    assert_lost(answer, texts[: answer.tokens])
        chatwait.wait_for_workers(3, timeout=10)
    return ended


def test_workers_killed_among_streams_leave_nobody_without_an_end(
    three_workers: ChatWait, upstream: ScriptedUpstream
) -> None:
    ended = kill_workers_during_streams(three_workers, upstream, rounds=1, streams=30, seed=1)
    assert ended["failed"] > 0, "no worker died while it generated"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_fifty_kills_during_a_hundred_streams_each_leave_nobody_without_an_end(
    three_workers: ChatWait, upstream: ScriptedUpstream, record_property: pytest.RecordProperty
) -> None:
    with unheard(three_workers):
        ended = kill_workers_during_streams(three_workers, upstream, rounds=17, streams=100, seed=2, kills=3)
    assert ended["failed"] > 0, "no worker died while it generated"
    assert ended["done"] > 0
    record_property("figure", f"51 workers killed, three during each 100 streams: {ended}")
