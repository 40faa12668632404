"""One bad record on Valkey harms its own readers alone: they are told that it is gone (410), and a line says so.

Whoever can write there can do so, or a fault. Every other stream of the same worker goes on, in the same batches and
reads.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app import errors
from app.streams.interface import Binding, Totals, log_name, new_stream_id
from app.streams.readership import LogReader
from app.streams.retention import LOG_OVERHEAD_BYTES
from app.streams.shared import commands, owned
from app.streams.shared import store as shared
from app.streams.shared.copies import take_page
from app.streams.shared.log import SharedLog
from app.streams.shared.owned import Owned
from app.streams.shared.records import Damaged, read_end, write_end
from app.streams.shared.state import State
from tests.harness.valkey import Database
from tests.unit.conftest import Events
from tests.unit.ends import end_with, terminal_of
from tests.unit.shared import ORIGIN, PATIENCE_SECONDS, Worker, wait_until, workers

KEY = Binding("k" * 64, "f" * 64)
STREAM = "cw_" + "s" * 22


@pytest.fixture
def database(valkey_database: Database) -> Database:
    return valkey_database


@pytest.fixture
def pair(database: Database) -> Iterator[list[Worker]]:
    with workers(database.url, 2) as made:
        yield made


def filled(worker: Worker, *chunks: str) -> SharedLog:
    log = worker.begin()
    log.append(*chunks)
    wait_until(lambda: log.head == len(chunks), "the chunks")
    return log


def wait_of(reader: LogReader) -> None:
    """Wait as a reader does, but not for ever."""
    waiting = threading.Thread(target=reader.wait, daemon=True)
    waiting.start()
    waiting.join(PATIENCE_SECONDS)
    assert not waiting.is_alive(), "it is woken"


@contextlib.contextmanager
def nobody_else_is_harmed(*workers: Worker) -> Iterator[None]:
    """Watch a stream of each worker, which the next one reads, from before to after."""
    logs = [filled(worker, "a") for worker in workers]
    copies = [workers[1 - at].store.find(log.stream_id) for at, log in enumerate(logs)]
    yield
    for log, copy in zip(logs, copies, strict=True):
        log.append("b")
        wait_until(lambda log=log, copy=copy: log.head == copy.head == 2, "the others' chunk", 5.0)
        assert not log.is_unresumable
        assert log.finish(end_with())
        assert log.settle(PATIENCE_SECONDS)
        assert copy.settle(PATIENCE_SECONDS)
        assert (copy.text(), terminal_of(copy).event) == ("ab", "done")
    for worker in workers:
        assert worker.store.ready()
        worker.begin().finish(end_with())


# What a producer meets


def spoil_head(database: Database, keys: tuple[str, str]) -> None:
    database.client.hset(keys[0], "head", 2**60)


def spoil_head_within_lua(database: Database, keys: tuple[str, str]) -> None:
    database.client.hset(keys[0], "head", 2**52)


def spoil_bytes(database: Database, keys: tuple[str, str]) -> None:
    database.client.hset(keys[0], "bytes", "many")


def other_hash(database: Database, keys: tuple[str, str]) -> None:
    database.client.delete(keys[0])
    database.client.set(keys[0], "x")


def other_entries(database: Database, keys: tuple[str, str]) -> None:
    database.client.delete(keys[1])
    database.client.set(keys[1], "x")


def entry_ahead(database: Database, keys: tuple[str, str]) -> None:
    database.client.xadd(keys[1], {"t": "forged"}, f"{2**60}-0")


def ended_by_nobody(database: Database, keys: tuple[str, str]) -> None:
    database.client.hset(keys[0], "end", "done")


FOR_PRODUCERS = [
    spoil_head,
    spoil_head_within_lua,
    spoil_bytes,
    other_hash,
    other_entries,
    entry_ahead,
    ended_by_nobody,
]


@pytest.mark.parametrize("spoil", FOR_PRODUCERS)
def test_record_of_a_live_stream_that_is_damaged_is_written_anew_by_its_producer(
    database: Database, pair: list[Worker], events: Events, spoil: Callable[[Database, tuple[str, str]], None]
) -> None:
    one, two = pair
    with nobody_else_is_harmed(one, two):
        log = filled(one, "a", "b")
        spoil(database, one.store._commands.keys(log.stream_id))
        log.append("c")
        wait_until(lambda: log.stored == 3 and log.owned._written is not None, "it is written anew", 5.0)
        assert log.finish(end_with())
        assert log.settle(PATIENCE_SECONDS)
        copy = two.store.find(log.stream_id)
        assert (copy.text(), copy.end) == ("abc", log.end)
    (said,) = events.of("stream_damaged")
    assert said["stream"] == log_name(log.stream_id)
    assert events.of("store_away") == []


def test_end_of_a_stream_whose_record_is_damaged_is_written_all_the_same(
    database: Database, pair: list[Worker]
) -> None:
    one, two = pair
    log = filled(one, "a")
    spoil_head(database, one.store._commands.keys(log.stream_id))
    assert log.finish(end_with())
    assert log.settle(PATIENCE_SECONDS)
    assert two.store.find(log.stream_id).text() == "a"


def test_record_that_is_damaged_again_and_again_is_given_up_and_its_own_readers_go_on(
    database: Database, pair: list[Worker], events: Events
) -> None:
    one, two = pair
    with nobody_else_is_harmed(one, two):
        log = filled(one, "a")
        for number in range(owned.MOST_REPAIRS + 1):
            spoil_head(database, one.store._commands.keys(log.stream_id))
            log.append("b")
            wait_until(
                lambda number=number: (
                    log.owned._repairs > number and (log.state is State.CUT_OFF or log.stored == number + 2)
                ),
                "noticed",
            )
        assert (log.state is State.CUT_OFF, log.is_unresumable) == (True, True)
        assert log.append("c")
        assert log.finish(end_with())
        assert (log.text(), terminal_of(log).event) == ("abbbbc", "done")
        with pytest.raises((errors.StreamExpired, errors.StreamUnknown)):
            two.store.find(log.stream_id)
            two.store.cancel(log.stream_id)
    assert len(events.of("stream_damaged")) == 2, "said once by each worker"


def test_log_that_cannot_be_written_stops_no_other(pair: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with it: each is asked, and told, alone."""
    one, two = pair

    def fail(*_: Any) -> None:
        raise IndexError

    with nobody_else_is_harmed(one, two):
        for what in ("_has_written", "commit"):
            log = one.begin()
            monkeypatch.setattr(Owned, what, _only_for(log.owned, getattr(Owned, what), fail))
            log.append("a")
            wait_until(lambda log=log: log.state is State.CUT_OFF, "it is given up")
            assert (log.head, log.text()) == (1, "a")


def _only_for(log: object, usual: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *arguments: (other if self is log else usual)(self, *arguments)


# What readers meet


def end_text(**changed: Any) -> str:
    """Write the end of a log of one chunk, "a"."""
    event = changed.pop("event", "done")
    end = end_with(event if event in ("done", "cancelled", "failed") else "done")(Totals(1, 1, "0" * 64, "a"))
    stored = json.loads(write_end(ORIGIN, end))
    return json.dumps({"event": event, "content": stored["content"] | changed})


ENTRIES: list[tuple[str, dict[str, str | bytes]]] = [
    ("3-0", {"t": "a gap"}),
    ("2-0", {"x": "no name"}),
    ("2-0", {"t": b"\xff"}),
    ("2-0", {"t": "two", "u": "fields"}),
    ("2-0", {"e": "no JSON"}),
    ("2-0", {"e": "[]"}),
    ("2-0", {"e": end_text(event="done\nevent: token\ndata: forged")}),
    ("2-0", {"e": end_text(event="token")}),
    ("2-0", {"e": end_text(event="complete")}),
    ("2-0", {"e": end_text(sequence=1)}),
    ("2-0", {"e": end_text(tokens=7)}),
    ("2-0", {"e": end_text(status="failed")}),
    ("2-0", {"e": end_text(status="running")}),
    ("2-0", {"e": end_text(usage=None)}),
    ("2-0", {"e": end_text(sha256=1)}),
    ("2-0", {"e": end_text(event="failed", error=None)}),
    ("2-0", {"e": end_text(event="failed", error={"error_code": "nothing"})}),
    ("2-0", {"e": end_text(error={})}),
]


@pytest.mark.parametrize(("at", "entry"), ENTRIES)
def test_entry_that_is_none_is_410_for_its_readers_alone(
    database: Database, pair: list[Worker], events: Events, at: str, entry: dict[str, Any]
) -> None:
    """Whether it is met by who reads already, or by who comes."""
    one, two = pair
    with nobody_else_is_harmed(one, two):
        log = filled(one, "a")
        copy = two.store.find(log.stream_id)
        with copy.reader(1) as reader:
            database.client.xadd(one.store._commands.keys(log.stream_id)[1], entry, at)
            wait_of(reader)
            assert reader.is_released, "and comes back"
        assert (copy.end, copy.text()) == (None, "a")
        for _ in range(2):
            with pytest.raises(errors.StreamExpired):
                two.store.find(log.stream_id)
        assert two.store.used_bytes <= LOG_OVERHEAD_BYTES * 2 + 3 * 4096, "and nothing is kept of it"
    assert [said["stream"] for said in events.of("stream_damaged")] == [log_name(log.stream_id)]
    assert not [line for line in events.records if line.levelname == "ERROR" and line.exc_info]


def test_copy_that_fails_at_what_is_read_stops_no_other(pair: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with it: its readers come back, and the others read on."""
    one, two = pair

    def fail(*_: Any) -> None:
        raise IndexError

    with nobody_else_is_harmed(one, two):
        log = filled(one, "a")
        copy = two.store.find(log.stream_id)
        monkeypatch.setattr(SharedLog, "take", _only_for(copy, SharedLog.take, fail))
        log.append("b")
        wait_until(lambda: copy.is_dropped, "it is given up", 5.0)
        assert two.store.find(log.stream_id, reach=2).text() == "ab"


def test_end_that_newer_versions_add_to_is_read() -> None:
    text = json.loads(end_text(more=[1]))
    assert read_end(json.dumps(text | {"later": 1}).encode(), 2) == end_with()(Totals(1, 1, "0" * 64, "a"))
    with pytest.raises(Damaged):
        read_end(json.dumps(text).encode(), 3)


FIELDS: list[tuple[str, str | bytes | None]] = [
    ("correlation_id", None),
    ("correlation_id", "a\nb"),
    ("correlation_id", "x" * 1000),
    ("model", b"\xff"),
    ("model", ""),
    ("created", "yesterday"),
    ("created", "2026-11-21T09:00:00"),
    ("prompt_tokens", "-1"),
    ("prompt_tokens", "9" * 5000),
    ("owner", "x y"),
    ("owner", None),
    ("fence", "0"),
    ("fence", "1e3"),
    ("fence", str(2**60)),
    ("fence", str(2**53)),
    ("head", str(2**60)),
    ("head", str(2**53)),
    ("head", None),
    ("key", "k"),
]


@pytest.mark.parametrize(("field", "value"), FIELDS)
def test_hash_with_a_field_that_is_none_is_410(
    database: Database, pair: list[Worker], events: Events, field: str, value: str | bytes | None
) -> None:
    one, two = pair
    log = filled(one, "a")
    hash_key, _ = one.store._commands.keys(log.stream_id)
    if value is None:
        database.client.hdel(hash_key, field)
    else:
        database.client.hset(hash_key, field, value)
    with pytest.raises(errors.StreamExpired):
        two.store.find(log.stream_id)
    assert len(events.of("stream_damaged")) == 1


@pytest.mark.parametrize("part", [0, 1])
def test_key_of_another_kind_is_410_for_whoever_finds_it_or_stops_it(
    database: Database, pair: list[Worker], events: Events, part: int
) -> None:
    one, two = pair
    with nobody_else_is_harmed(one, two):
        stream_id = new_stream_id()
        database.client.hset(
            two.store._commands.keys(stream_id)[0], mapping={"owner": "x", "fence": 1, "head": 0, "end": "done"}
        )
        database.client.delete(two.store._commands.keys(stream_id)[part])
        database.client.set(two.store._commands.keys(stream_id)[part], "x")
        for lost in (two.store.find, two.store.cancel):
            with pytest.raises(errors.StreamExpired):
                lost(stream_id)
    assert len(events.of("stream_damaged")) == 1
    assert events.of("store_away") == []


def test_entries_that_become_another_kind_while_they_are_followed_stop_no_other(
    database: Database, pair: list[Worker]
) -> None:
    one, two = pair
    with nobody_else_is_harmed(one, two):
        log = filled(one, "a")
        copy = two.store.find(log.stream_id)
        with copy.reader(1) as reader:
            other_entries(database, one.store._commands.keys(log.stream_id))
            wait_of(reader)
            assert reader.is_released
        with pytest.raises(errors.StreamExpired):
            two.store.find(log.stream_id)


@pytest.mark.parametrize("text", ["", "cw_short f", f"{STREAM}", f"{STREAM} f g", b"\xff", None])
def test_idempotency_key_that_stands_for_nothing_is_410(
    database: Database, pair: list[Worker], events: Events, text: str | bytes | None
) -> None:
    one, two = pair
    with nobody_else_is_harmed(one, two):
        key = f"{{{shared.TAG}}}:key:{KEY.key}"
        if text is None:
            database.client.sadd(key, "x")
        else:
            database.client.set(key, text)
        with pytest.raises(errors.StreamExpired):
            one.store.create(ORIGIN, KEY)
    assert len(events.of("stream_damaged")) == 1
    wait_until(lambda: not one.store.live, "nothing is left of it, nor of the others")


def test_messages_that_make_no_sense_or_cannot_be_left_stop_nothing(database: Database, pair: list[Worker]) -> None:
    one, two = pair
    wake, stops = one.store._commands.wake_key(one.store.worker), one.store._commands.stops_key(one.store.worker)
    with nobody_else_is_harmed(one, two):
        for spoil in (
            lambda: database.client.xadd(wake, {"cancel": b"\xff", "reads": b"\xff\xff", "x": "y"}),
            lambda: (database.client.delete(wake), database.client.set(wake, "x")),
            lambda: (database.client.delete(wake), database.client.xadd(wake, {"x": "y"}, f"{2**63}-{2**63}")),
            lambda: database.client.set(stops, "x"),
            lambda: (database.client.delete(stops), database.client.sadd(stops, b"\xff", new_stream_id())),
        ):
            spoil()
            log = filled(one, "a")
            two.store.cancel(log.stream_id)
            wait_until(lambda log=log: log.stream_id in one.cancelled, "the stop", 5.0)
            copy = one.store.find(filled(two, "b").stream_id)
            two.store.flush()
            assert copy.text() == "b"
            assert log.finish(end_with())
            assert log.settle(PATIENCE_SECONDS)
        wait_until(lambda: not database.client.exists(stops), "nothing is left of what is over")


# What heirs meet


def test_damaged_streams_of_a_dead_worker_keep_no_other_from_its_end(database: Database) -> None:
    spoils = (other_hash, other_entries, spoil_head, spoil_head_within_lua, entry_ahead)
    with workers(database.url, 2) as (dying, heir), contextlib.ExitStack() as reading:
        logs = [filled(dying, "a") for _ in range(len(spoils) + 2)]
        copies = [heir.store.find(log.stream_id) for log in logs]
        readers = [reading.enter_context(copy.reader(1)) for copy in copies]
        dying.crash()
        for spoil, log in zip(spoils, logs[1:], strict=False):
            spoil(database, dying.store._commands.keys(log.stream_id))
        for copy in (copies[0], copies[-1]):
            assert copy.settle(PATIENCE_SECONDS)
            assert (copy.text(), terminal_of(copy).event) == ("a", "failed")
        for copy, reader in zip(copies, readers, strict=True):
            wait_until(lambda c=copy, r=reader: r.is_released or c.end is not None, "it is not waited for for ever")
        wait_until(lambda: heir.store.ready() and not heir.store._leases._is_adopting, "it goes on")


# What would be read for ever, or leave somebody waiting for ever


def sub_entries(database: Database, keys: tuple[str, str], after: int, count: int = 1) -> None:
    """Add entries whose places are none of a log's: between two of them."""
    for part in range(1, count + 1):
        database.client.xadd(keys[1], {"t": "x"}, f"{after}-{part}")


def within(seconds: float, call: Callable[[], object]) -> None:
    """Call, and see it end. Raises: AssertionError."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it goes on for ever"


def test_entry_between_two_places_keeps_nobody_who_adopts_catches_up_loads_or_follows(
    database: Database, pair: list[Worker]
) -> None:
    one, two = pair

    def refused(stream_id: str, reach: int) -> None:
        with pytest.raises(errors.StreamExpired):
            two.store.find(stream_id, reach=reach)

    with nobody_else_is_harmed(one, two):
        logs = [filled(one, "a") for _ in range(3)]
        adopted, awaited, followed = (two.store.find(log.stream_id) for log in logs)
        for copy in (adopted, awaited):
            two.store._tail.unfollow(two.store._commands.keys(copy.stream_id)[1], copy)  # the others meet it first
        with followed.reader(1) as reader:
            for log in logs:
                sub_entries(database, one.store._commands.keys(log.stream_id), 1, commands.PAGE_ENTRIES + 1)
            wait_until(lambda: reader.is_released, "it comes back", 5.0)
        within(5.0, lambda: two.store._leases._try_to_adopt(adopted, [two.store.worker.encode(), b"2", None, b"50"]))
        within(5.0, lambda: refused(awaited.stream_id, 9))
        within(5.0, lambda: refused(awaited.stream_id, 0))
        assert (adopted.is_dropped, awaited.is_dropped) == (True, True)


def test_page_that_leads_no_further_is_damaged(pair: list[Worker]) -> None:
    one, two = pair
    copy = two.store.find(filled(one, "a").stream_id)
    take_page(copy, [], 1)
    take_page(copy, [[b"1-0", [b"t", b"a"]]], 0)
    with pytest.raises(Damaged):
        take_page(copy, [[b"1-0", [b"t", b"a"]]], 1)


FENCES = ["x", "", "-1", "0", "01", " 7", "nan", "1e308", "0x10", str(2**53 + 1), "9" * 20, b"\xff\x00"]


def test_fence_that_is_none_keeps_no_producer_from_its_log(
    database: Database, pair: list[Worker], events: Events
) -> None:
    """Met by a chunk, and by an end that comes alone."""
    one, two = pair
    with nobody_else_is_harmed(one, two):
        logs = [filled(one, "a") for _ in range(2 * len(FENCES))]
        copies = [two.store.find(log.stream_id) for log in logs]
        for fence, log in zip(FENCES * 2, logs, strict=True):
            database.client.hset(one.store._commands.keys(log.stream_id)[0], "fence", fence)
        for log in logs[: len(FENCES)]:
            log.append("b")
        for log in logs:
            assert log.finish(end_with())
        for log, copy in zip(logs, copies, strict=True):
            assert log.settle(PATIENCE_SECONDS), "its producer goes on with it"
            assert copy.settle(PATIENCE_SECONDS), "and so do who read it elsewhere"
            assert (copy.text(), copy.end) == (log.text(), log.end)
    assert events.of("stream_fenced") == events.of("stream_cut_off") == []
    assert {said["stream"] for said in events.of("stream_damaged")} == {log_name(log.stream_id) for log in logs}


def test_text_that_its_end_denies_is_nobodys_answer(database: Database, pair: list[Worker], events: Events) -> None:
    """A chunk or an end of somebody else's is met by who follows and by who comes, until its producer wrote it anew."""
    one, two = pair
    with nobody_else_is_harmed(one, two):
        forged_chunk, forged_end = filled(one, "a"), filled(one, "a")
        copies = [two.store.find(log.stream_id) for log in (forged_chunk, forged_end)]
        with contextlib.ExitStack() as reading:
            readers = [reading.enter_context(copy.reader(1)) for copy in copies]
            database.client.xadd(one.store._commands.keys(forged_chunk.stream_id)[1], {"t": "EVIL"}, "2-0")
            database.client.xadd(one.store._commands.keys(forged_end.stream_id)[1], {"e": end_text()}, "2-0")
            wait_until(lambda: copies[0].head == 2 and readers[1].is_released, "they are met", 5.0)
            with pytest.raises(errors.StreamExpired):
                two.store.find(forged_end.stream_id)
            for log in (forged_chunk, forged_end):
                log.append("b")
                assert log.finish(end_with())
                assert log.settle(PATIENCE_SECONDS)
            wait_until(lambda: readers[0].is_released, "it comes back, and is not told that this is all", 5.0)
        assert [copy.end for copy in copies] == [None, None]
        for log in (forged_chunk, forged_end):
            again = two.store.find(log.stream_id)
            assert (again.text(), again.end) == ("ab", log.end)
    assert {said["what"] for said in events.of("stream_damaged")} == {"the text that its end tells of", "its record"}


@pytest.mark.parametrize("place", ["9999999999999-5", f"{2**64 - 1}-{2**64 - 1}"])
def test_message_of_a_later_time_makes_no_worker_deaf(database: Database, pair: list[Worker], place: str) -> None:
    one, two = pair
    with nobody_else_is_harmed(one, two):
        wake = one.store._commands.wake_key(one.store.worker)
        log = filled(one, "a")
        copy = two.store.find(log.stream_id)
        database.client.xadd(wake, {"a": "b"}, place)
        wait_until(lambda: not database.client.xlen(wake), "it is heard, and the key begun anew", 5.0)
        database.client.delete(wake)
        # What comes from here on has a smaller place than what was heard.
        two.store._mailbox.note_reading([copy])
        wait_until(lambda: log._read_elsewhere_at, "somebody reads it", 5.0)


def test_copy_of_a_log_that_its_living_owner_gave_up_sends_its_readers_away(database: Database) -> None:
    with workers(database.url, 2, lease_seconds=0.3) as (one, two), nobody_else_is_harmed(one, two):
        two.store._note_seconds = 0.05
        two.store._next_note = 0.0
        log, silent = filled(one, "a"), filled(one, "a")
        with two.store.find(log.stream_id).reader(1) as reader, two.store.find(silent.stream_id).reader(1) as other:
            database.client.delete(one.store._commands.keys(silent.stream_id)[0])
            for number in range(owned.MOST_REPAIRS + 1):
                spoil_bytes(database, one.store._commands.keys(log.stream_id))
                one.store._look_at(log)
                wait_until(
                    lambda number=number: (
                        log.owned._repairs > number and (log.state is State.CUT_OFF or log.stored == 1)
                    ),
                    "noticed",
                    5.0,
                )
            assert log.state is State.CUT_OFF
            wait_until(lambda: reader.is_released, "they come back", 5.0)
            with pytest.raises(errors.StreamExpired):
                two.store.find(log.stream_id)
            assert not other.is_released, "what is silent is written anew when it hears that somebody reads it"
            assert database.client.exists(one.store._commands.keys(silent.stream_id)[0])
