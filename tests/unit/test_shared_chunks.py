"""Logs of chunks that several workers share: copies, logs written anew, heirs, erasing, and what is damaged."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from app import errors
from app.streams.chunk import Chunk
from app.streams.interface import Binding
from app.streams.shared.chunk_entries import read_chunk, write_chunk
from app.streams.shared.connection import Command
from app.streams.shared.log import SharedLog
from app.streams.shared.records import Damaged, Stream, field_of, read_stream, write_stream
from app.streams.shared.unshown import piece_behind, written
from tests.harness.valkey import Database
from tests.harness.valkey_fixtures import EACH_KIND
from tests.unit.chunks import CHUNKS, CONTENT, REASONING, SAMPLES, enveloped, raw
from tests.unit.ends import end_with, terminal_of
from tests.unit.shared import ORIGIN, PATIENCE_SECONDS, Worker, wait_until, workers

OWNER = "Bearer owner"
CHUNKED = replace(ORIGIN, kind="chunks")


@pytest.fixture(params=EACH_KIND)
def database(request: pytest.FixtureRequest) -> Database:
    database: Database = request.getfixturevalue(f"{request.param}_database")
    return database


@pytest.fixture
def pair(database: Database) -> Iterator[list[Worker]]:
    with workers(database.url, 2) as made:
        yield made


def begun(worker: Worker, chunks: list[Chunk], binding: Binding | None = None) -> SharedLog:
    log, is_new = worker.store.create(CHUNKED, binding, credential=OWNER)
    assert is_new
    assert log.append_chunks(chunks)
    wait_until(lambda: log.head == len(chunks), "the chunks")
    return log


def copied(worker: Worker, log: SharedLog) -> SharedLog:
    return worker.store.find(log.stream_id, credential=OWNER)


def all_of(log: SharedLog) -> list[Chunk]:
    piece = piece_behind(log.records, 0, log.head)
    return [] if piece is None else list(piece.chunks or ())


def keys_of(worker: Worker, log: SharedLog) -> tuple[str, str]:
    return worker.store._commands.keys(log.stream_id)


# On the wire to Valkey


@given(CHUNKS)
def test_any_chunks_are_read_as_they_were_written(chunks: list[Chunk]) -> None:
    used: list[object] = []
    envelopes: list[object] = []
    for chunk in chunks:
        begins = chunk.envelope is not None and chunk.envelope not in used
        used += [chunk.envelope] if begins else []
        form = None if chunk.envelope is None else used.index(chunk.envelope)
        assert read_chunk(write_chunk(chunk, form, begins), envelopes) == chunk  # type: ignore[arg-type]
    assert envelopes == used


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"a",
        b"b text",
        b"q",
        b"\xff",
        b"A",
        b"[1]",
        b"{\n}",
        "{é}".encode(),
        b'{"a":1',
        b'"text',
        b'"text"',
        b'"text"[]',
        b'"\\ud800"{}',
        b"+",
        b"+[]\nx",
        b'+["{","}",1]\nx',
        b'+["{\\n","}",true]\nx',
        b'+["{","}",true]\n\xff',
        b'+["x","y",true]\nx',
    ],
)
def test_record_that_no_worker_writes_is_damage(stored: bytes) -> None:
    with pytest.raises((ValueError, LookupError, TypeError)):
        read_chunk(stored, [])


def test_record_that_begins_a_seventeenth_envelope_is_damage() -> None:
    seventeenth = write_chunk(enveloped(CONTENT, "a"), 0, True)
    assert read_chunk(seventeenth, [REASONING] * 15).envelope == CONTENT
    with pytest.raises(ValueError, match=r"^$"):
        read_chunk(seventeenth, [REASONING] * 16)


def told(stream: Stream, **more: object) -> list[bytes]:
    written = [str(part) for part in write_stream(stream)]
    have = dict(zip(written[::2], written[1::2], strict=True)) | {name: str(value) for name, value in more.items()}
    return [part.encode() for pair in have.items() for part in pair]


STREAM = "cwc_" + "A" * 22


@pytest.mark.parametrize("kind", ["chunks", "json"])
@pytest.mark.parametrize("client", [None, "a" * 64])
def test_stream_of_chunks_is_read_as_it_was_written(kind: str, client: str | None) -> None:
    stream = Stream(STREAM, replace(ORIGIN, kind=kind, client=client), None, "w", 1)
    assert read_stream(STREAM, told(stream)) == stream
    assert field_of(stream.origin.kind) == "c"


def test_stream_of_a_newer_version_is_not_read_and_not_damaged() -> None:
    stream = Stream(STREAM, replace(ORIGIN, kind="chunks"), None, "w", 1)
    with pytest.raises(errors.StoreUnavailable) as refused:
        read_stream(STREAM, told(stream, format=3, kind="new"))
    assert refused.value.retry_after_seconds


@pytest.mark.parametrize(
    "fields", [{"kind": "text"}, {"kind": "other"}, {"client": "x"}, {"client": "A" * 64}, {"format": "x"}]
)
def test_stream_whose_kind_or_client_is_none_is_damaged(fields: dict[str, str]) -> None:
    stream = Stream(STREAM, replace(ORIGIN, kind="chunks", client="a" * 64), None, "w", 1)
    with pytest.raises(Damaged):
        read_stream(STREAM, told(stream, **fields))


# Copies


def test_copy_has_every_record_of_any_kind(pair: list[Worker]) -> None:
    """Those that were there when it was made, those that came later, and the end."""
    one, two = pair
    log = begun(one, SAMPLES)
    copy = copied(two, log)
    assert all_of(copy) == SAMPLES
    late = begun(one, [])
    followed = copied(two, late)
    for chunk in SAMPLES:
        late.append_chunks([chunk])
    for source, target in ((log, copy), (late, followed)):
        assert source.finish(end_with())
        assert source.settle(PATIENCE_SECONDS) and target.settle(PATIENCE_SECONDS)
        assert all_of(target) == SAMPLES == all_of(source)
        assert terminal_of(target).content == terminal_of(source).content


def test_copy_of_a_long_log_is_read_page_by_page(pair: list[Worker]) -> None:
    one, two = pair
    chunks = [enveloped((CONTENT, REASONING)[number % 2], f"{number} ") for number in range(1500)]
    log = begun(one, chunks)
    assert all_of(copied(two, log)) == chunks == all_of(log)


def test_log_that_valkey_has_lost_is_written_anew_with_its_envelopes(database: Database, pair: list[Worker]) -> None:
    one, two = pair
    log = begun(one, SAMPLES)
    database.client.delete(*keys_of(one, log))
    log.append_chunks(SAMPLES)
    wait_until(lambda: log.head == 2 * len(SAMPLES), "the records, written anew")
    assert all_of(copied(two, log)) == SAMPLES * 2


def test_records_that_are_sent_twice_are_stored_once(pair: list[Worker]) -> None:
    """And those that are sent again come from the log's memory, where no commit has kept them."""
    one, two = pair
    log = begun(one, SAMPLES)
    assert log.owned is not None
    log.owned.not_committed()
    log.append_chunks(SAMPLES)
    wait_until(lambda: log.head == 2 * len(SAMPLES), "the records")
    assert all_of(copied(two, log)) == SAMPLES * 2


def test_heir_has_every_record_and_goes_on_with_the_envelopes(pair: list[Worker]) -> None:
    dying, heir = pair
    log = begun(dying, SAMPLES)
    copy = copied(heir, log)
    with copy.reader(0):
        dying.crash()
        assert copy.settle(PATIENCE_SECONDS)
    assert terminal_of(copy).event == "failed"
    assert all_of(copy) == SAMPLES
    assert written(copy.records, SAMPLES, 1) == written(log.records, SAMPLES, 1)


def test_damaged_record_is_410_for_its_readers(database: Database, pair: list[Worker]) -> None:
    one, two = pair
    log = begun(one, SAMPLES)
    copy = copied(two, log)
    with copy.reader(copy.head) as reader:
        database.client.xadd(keys_of(one, log)[1], {"c": b"q"}, f"{len(SAMPLES) + 1}-0")
        wait_until(lambda: reader.is_released, "it is sent away")
    with pytest.raises(errors.StreamExpired):
        copied(two, log)


def test_end_is_held_to_the_text_of_the_chunks(database: Database, pair: list[Worker]) -> None:
    one, two = pair
    log = begun(one, SAMPLES)
    assert log.finish(end_with())
    assert log.settle(PATIENCE_SECONDS)
    entries = keys_of(one, log)[1]
    kept = database.client.xrange(entries)
    database.client.delete(entries)
    for place, fields in kept:
        changed = {b"c": b'"other"{"id": "c"}'} if place == b"2-0" else fields
        database.client.xadd(entries, changed, place)
    with pytest.raises(errors.StreamExpired):
        copied(two, log)


def test_foreign_client_loads_nothing(pair: list[Worker]) -> None:
    one, two = pair
    log = begun(one, SAMPLES)
    for _ in range(3):
        with pytest.raises(errors.StreamUnknown):
            two.store.find(log.stream_id, credential="Bearer other")
    assert (two.store._copies.all(), two.store.used_bytes) == ([], 0)


# Erasing


@pytest.mark.parametrize("is_ended", [False, True])
@pytest.mark.parametrize("eraser", [0, 1])
def test_log_that_one_worker_erases_is_unknown_to_all(
    database: Database, pair: list[Worker], *, is_ended: bool, eraser: int
) -> None:
    """Whoever wrote it: the readers of all are sent away, and nobody has its records any more."""
    one, two = pair
    binding = Binding("k" * 64, "f" * 64)
    log = begun(one, [*SAMPLES, raw("secret", content="secret")], binding)
    copy = copied(two, log)
    if is_ended:
        assert log.finish(end_with())
        assert log.settle(PATIENCE_SECONDS)
        assert copy.settle(PATIENCE_SECONDS)
    with log.reader(0) as mine, copy.reader(0) as theirs:
        (one, two)[eraser].store.erase((log, copy)[eraser])
        if not is_ended:
            wait_until(lambda: mine.is_released and theirs.is_released, "both are sent away")
    for worker in pair:
        with pytest.raises(errors.StreamUnknown):
            worker.store.find(log.stream_id, credential=OWNER)
    assert (log.is_erased, copy.is_erased, log.text(), copy.text()) == (True, True, "", "")
    assert not one.store.knows(binding.key)
    assert (one.store.used_bytes, two.store.used_bytes) == (0, 0)
    kept = b"".join(database.client.dump(key) or b"" for key in database.client.keys("*"))
    assert b"secret" not in kept
    assert log.stream_id in one.aborted or is_ended or eraser == 1


def test_worker_of_a_log_that_ended_hears_that_another_has_erased_it(database: Database, pair: list[Worker]) -> None:
    """It would store the log again, and serve it, if Valkey lost the tombstone."""
    one, two = pair
    log = begun(one, SAMPLES)
    copy = copied(two, log)
    assert log.finish(end_with())
    assert log.settle(PATIENCE_SECONDS)
    assert copy.settle(PATIENCE_SECONDS)
    two.store.erase(copy)
    wait_until(lambda: log.is_erased, "it hears of it")
    assert one.store.used_bytes == 0
    database.client.flushdb()
    one.store._look_again()
    one.store.flush()
    assert not database.client.exists(keys_of(one, log)[0])


def test_log_that_was_erased_is_never_written_again(database: Database, pair: list[Worker]) -> None:
    """Not by its producer, which has not heard of it, and whose records and end are still to come."""
    one, two = pair
    log = begun(one, SAMPLES)
    copy = copied(two, log)
    one.pause()
    two.store.erase(copy)
    log.append_chunks([raw("late", content="late")])
    log.finish(end_with())
    one.go_on()
    wait_until(lambda: log.is_erased, "it hears of it")
    time.sleep(0.1)  # a batch more, in which it would write
    assert not database.client.exists(keys_of(one, log)[0])
    assert log.stream_id in one.aborted
    entries = database.client.xrange(keys_of(one, log)[1])
    assert [list(fields) for _, fields in entries] == [[b"erased"]]
    assert 0 < database.client.pttl(keys_of(one, log)[1]) <= 60_000
    assert database.client.pttl(one.store._commands.tombstone_key(log.stream_id)) > 86_400_000


def test_stop_of_a_log_that_is_erased_in_between_says_that_it_is_unknown(
    pair: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that it is damaged, which would be 410."""
    one, two = pair
    log = begun(one, SAMPLES)
    read = two.store._committer.read

    def read_and_erase(*commands: Command) -> list[Any]:
        answers = read(*commands)
        if commands[0][0] == "HGET":
            one.store.erase(log)
        return answers

    monkeypatch.setattr(two.store._committer, "read", read_and_erase)
    with pytest.raises(errors.StreamUnknown):
        two.store.cancel(log.stream_id)


def test_log_that_was_erased_has_no_heir(pair: list[Worker]) -> None:
    """A worker whose copy has not heard of it takes nothing over that would bring the log back."""
    dying, heir = pair
    log = begun(dying, SAMPLES)
    copy = copied(heir, log)
    heir.store._tail.unfollow(keys_of(heir, log)[1], copy)
    dying.store.erase(log)
    dying.crash()
    with copy.reader(copy.head) as reader:
        wait_until(lambda: copy.is_erased or reader.is_released, "it is not brought back")
    wait_until(lambda: copy.is_erased or copy.is_dropped, "it is given up")
    with pytest.raises((errors.StreamUnknown, errors.StoreUnavailable)):
        heir.store.find(log.stream_id, credential=OWNER)


def test_log_for_which_there_is_no_room_is_erased_all_the_same(database: Database, pair: list[Worker]) -> None:
    one, two = pair
    log = begun(one, SAMPLES)
    two.store._retention._budget_bytes = 0
    with pytest.raises(errors.Overloaded):
        copied(two, log)
    two.store.erase_unread(log.stream_id)
    wait_until(lambda: log.is_erased, "its producer hears of it")
    assert not database.client.exists(keys_of(one, log)[0])
    with pytest.raises(errors.StreamUnknown):
        two.store.erase_unread(log.stream_id)
