"""What is gone is remembered under a bound: the memory of it levels off, however many streams there have been."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from app import errors
from app.streams.interface import Binding, Origin
from app.streams.memory import store as memory
from tests.unit.ends import end_with

BUDGET_BYTES = 64 << 10
MOST_BYTES_EACH = 400
"""Of memory, for a stream that is gone and had an idempotency key."""


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def live_and_forget(store: memory.MemoryStore, first: int, count: int) -> list[str]:
    """Begin and end so many streams, each with a key of its own; most are evicted by those that follow."""
    ids = []
    for number in range(first, first + count):
        binding = Binding(key=f"key {number}", fingerprint=f"fingerprint {number}")
        log, _ = store.create(Origin(correlation_id="c", model="m", created="now"), binding)
        log.finish(end_with())
        ids.append(log.stream_id)
    return ids


@pytest.mark.usefixtures("traced")
def test_store_that_has_forgotten_more_than_it_remembers_takes_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It remembers 100,000; a tenth shows the same."""
    remembered = memory.REMEMBERED // 10
    monkeypatch.setattr(memory, "REMEMBERED", remembered)
    store = memory.MemoryStore(max_active=10, budget_bytes=BUDGET_BYTES, retention_seconds=3600)
    first = live_and_forget(store, 0, 1000)[0]
    begun, _ = tracemalloc.get_traced_memory()
    live_and_forget(store, 1000, remembered)
    full, _ = tracemalloc.get_traced_memory()
    last = live_and_forget(store, 1000 + remembered, remembered)[0]
    still, _ = tracemalloc.get_traced_memory()

    print(f"\n{(full - begun) / remembered:.0f} bytes each of {remembered:,} gone; {still - full} for as many again")
    assert (full - begun) / remembered < MOST_BYTES_EACH
    assert still - full < remembered * 16, "something is kept of each that makes room"
    with pytest.raises(errors.StreamUnknown):
        store.find(first)  # too long ago
    with pytest.raises(errors.StreamExpired):
        store.find(last)
