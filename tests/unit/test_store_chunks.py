"""Logs of chunks in every store: what they give back, to whom they belong, and how they are erased."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import errors
from app.streams.chunk import Chunk
from app.streams.interface import Binding, Piece, bound_to, is_bound
from app.streams.retention import LOG_OVERHEAD_BYTES
from tests.harness.valkey_fixtures import EACH_KIND
from tests.unit.chunks import CHUNKS, CONTENT, SAMPLES, enveloped, raw
from tests.unit.ends import end_with
from tests.unit.stores import (
    BUDGET_BYTES,
    KEY,
    ORIGIN,
    RETENTION_SECONDS,
    Factory,
    Time,
    clock_of,
    factory_of,
    totals_of,
)

CHUNKED = replace(ORIGIN, kind="chunks")
OWNER, OTHER = "Bearer owner", "Bearer other"


@pytest.fixture(params=["memory", *EACH_KIND])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def factory(kind: str, request: pytest.FixtureRequest) -> Iterator[Factory]:
    with factory_of(kind, request) as factory:
        yield factory


@pytest.fixture
def store(factory: Factory) -> Any:
    return factory()


@pytest.fixture
def clock(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Time:
    return clock_of(kind, request, monkeypatch)


def begin(store: Any, credential: str | None = None, binding: Binding | None = None) -> Any:
    log, created = store.create(CHUNKED, binding, credential=credential)
    assert created
    return log


def finished(store: Any, credential: str | None = None, binding: Binding | None = None) -> Any:
    log = begin(store, credential, binding)
    assert log.append_chunks(SAMPLES)
    assert log.finish(end_with())
    return log


def read_chunks(log: Any, after: int = 0, max_bytes: int = 1_000_000) -> list[Chunk]:
    reader, found = log.reader(after), []
    while (piece := reader.read_chunks(max_bytes)) is not None:
        found += piece.chunks
        assert piece.text == "".join(chunk.text for chunk in piece.chunks)
        reader.after = piece.sequence
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(chunks=CHUNKS, data=st.data())
def test_log_given_any_chunks_reads_them_exactly_from_every_cursor(
    factory: Factory, chunks: list[Chunk], data: st.DataObject
) -> None:
    log = begin(factory())
    left = list(chunks)
    while left:
        taken = data.draw(st.integers(1, len(left)))
        assert log.append_chunks(left[:taken])
        del left[:taken]
    text = "".join(chunk.text for chunk in chunks)
    for is_ended in (False, True):
        if is_ended:
            assert log.finish(end_with())
            assert totals_of(log) == (len(chunks), len(text), hashlib.sha256(text.encode()).hexdigest())
        assert (log.head, log.text()) == (len(chunks), text)
        for after in range(len(chunks) + 1):
            assert read_chunks(log, after, data.draw(st.integers(0, 200))) == chunks[after:]


def test_reader_that_sleeps_is_given_the_chunks_that_were_appended(store: Any) -> None:
    log = begin(store)
    told: list[Piece] = []
    with log.reader(0) as reader:
        reader.deliver = lambda piece: bool(told.append(piece)) or True
        reader._asleep = True
        log.append_chunks(SAMPLES[:3])
        reader._asleep = True
        log.append_chunks(SAMPLES[3:4])
    assert [(piece.sequence, piece.records, list(piece.chunks or ())) for piece in told] == [
        (3, 3, SAMPLES[:3]),
        (4, 1, SAMPLES[3:4]),
    ]


def test_reader_of_text_gets_records_without_text_with_the_others(store: Any) -> None:
    log = finished(store)
    piece = log.reader(0).read(1_000_000)
    assert piece == Piece(len(SAMPLES), len(SAMPLES), "".join(chunk.text for chunk in SAMPLES))


def test_what_is_no_text_counts_in_the_budget(factory: Factory) -> None:
    store = factory()
    log = begin(store)
    used = store.used_bytes
    log.append_chunks([raw(value="x" * 100_000)])
    assert store.used_bytes >= used + 100_000
    with pytest.raises(errors.Overloaded):
        log.append_chunks([raw(value="x" * BUDGET_BYTES)])
    assert log.head == 1
    assert len(read_chunks(log)) == 1


def test_finished_log_counts_what_it_takes_then(store: Any) -> None:
    log = begin(store)
    log.append_chunks([raw(value="x" * 200_000), *[enveloped(CONTENT, "word ")] * 50])
    used = store.used_bytes
    log.finish(end_with())
    assert store.used_bytes == log.size < used - 150_000, "it is packed"
    assert log.size > LOG_OVERHEAD_BYTES


def test_log_of_chunks_has_an_id_that_version_0_1_never_finds(store: Any) -> None:
    log = begin(store)
    assert log.stream_id.startswith("cwc_")
    assert is_bound(log.stream_id)
    text, _ = store.create(ORIGIN)
    assert text.stream_id.startswith("cw_")
    assert not is_bound(text.stream_id)


# Whose it is


@pytest.mark.parametrize("others", ["same worker", "another worker"])
def test_log_belongs_to_the_credential_it_was_begun_with(factory: Factory, kind: str, others: str) -> None:
    """Live, finished and from its key. To anybody else it is as unknown as one that never was."""
    store = factory()
    there = store if others == "same worker" or kind == "memory" else factory()
    logs = [begin(store, OWNER), finished(store, OWNER), finished(store, OWNER, KEY)]
    assert logs[0].append_chunks(SAMPLES)
    for log in logs:
        assert log.origin.client == bound_to(log.stream_id, OWNER)
        for credential in (OTHER, "", OWNER[:-1], "\udcff"):
            with pytest.raises(errors.StreamUnknown):
                there.find(log.stream_id, reach=1, credential=credential)
        assert read_chunks(there.find(log.stream_id, reach=1, credential=OWNER)) == SAMPLES
        with pytest.raises(errors.StreamUnknown):
            there.find(log.stream_id)
    known, is_new = there.create(CHUNKED, KEY, credential=OWNER)
    assert (known.stream_id, is_new) == (logs[2].stream_id, False)


def test_log_begun_with_the_empty_credential_belongs_to_those_who_show_none(store: Any) -> None:
    log = begin(store, "")
    assert store.find(log.stream_id) is log
    with pytest.raises(errors.StreamUnknown):
        store.find(log.stream_id, credential=OTHER)


def test_log_that_expired_is_gone_for_its_own_client_and_unknown_to_others(store: Any, clock: Time) -> None:
    log = finished(store, OWNER)
    clock.now += RETENTION_SECONDS + 1
    store.sweep(clock.now)
    with pytest.raises(errors.StreamExpired):
        store.find(log.stream_id, credential=OWNER)
    with pytest.raises(errors.StreamUnknown):
        store.find(log.stream_id, credential=OTHER)


# Erasing


@pytest.mark.parametrize("is_ended", [False, True])
def test_log_that_is_erased_was_never_there(store: Any, is_ended: bool) -> None:
    """Neither its records, nor its key, nor that it expired; its memory is free, and its readers are sent away."""
    before = store.used_bytes
    log = finished(store, OWNER, KEY) if is_ended else begin(store, OWNER, KEY)
    with log.reader(0) as reader:
        store.erase(log)
        assert (reader.is_released, log.is_erased, log.head, log.text()) == (True, True, 0, "")
        assert reader.read_chunks(1000) is None
    with pytest.raises(errors.StreamUnknown):
        store.find(log.stream_id, credential=OWNER)
    assert not store.knows(KEY.key)
    assert store.used_bytes == before
    assert not log.append_chunks(SAMPLES)
    assert not log.finish(end_with()), "and nobody waits for its end"
    fresh, is_new = store.create(CHUNKED, KEY, credential=OWNER)
    assert is_new
    assert fresh.stream_id != log.stream_id
    store.erase(log)  # again, and nothing happens to the new one
    assert store.find(fresh.stream_id, credential=OWNER) is fresh


def test_erasing_a_log_of_text_forgets_it_too(store: Any) -> None:
    log, _ = store.create(ORIGIN)
    log.append("secret")
    log.finish(end_with())
    store.erase(log)
    assert log.text() == ""
    with pytest.raises(errors.StreamUnknown):
        store.find(log.stream_id)
