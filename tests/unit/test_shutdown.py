"""Test each way between the phases of a drain, by a clock that the test turns. What readers see is in test_drain.py."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from app import errors, shutdown
from app.generation.live import Generations
from app.generation.run import Bounds
from app.reading.readers import Readers
from app.shutdown import ENDS_SECONDS, LAST_FRAMES_SECONDS, QUICK_SECONDS, RAMP_SECONDS, Drain, Phase
from app.streams.interface import Origin, StreamLog
from app.streams.memory.store import MemoryStore
from app.upstream.interface import Question
from tests.unit.conftest import Events
from tests.unit.fakes import FakeUpstream, Gate, whole
from tests.unit.shared import wait_until

DRAIN_SECONDS = 25.0
BEGUN = 100.0
DEADLINE = BEGUN + DRAIN_SECONDS
BOUNDS = Bounds(silence_seconds=30.0, generation_seconds=600.0, abandoned_seconds=300.0, answer_chars=1000)
QUESTION = Question([{"role": "user", "content": "Hello"}], "gpt-4o-mini", 256, None)
ORIGIN = Origin("c-1", "gpt-4o-mini", "2026-11-21T09:00:00.000Z", 8)


class Parts:
    """The parts that a drain is given, and the drain. Every answer stands at the gate."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.store = MemoryStore(max_active=10, budget_bytes=10_000_000, retention_seconds=60)
        self.generations = Generations(upstream=FakeUpstream([gate, *whole("He", "llo")]), bounds=BOUNDS)
        self.readers = Readers(limit=10, heartbeat_seconds=10.0)
        self.answering = 0
        self.finished: list[str] = []
        self.drain = Drain(
            store=self.store,
            generations=self.generations,
            readers=self.readers,
            answering=lambda: self.answering,
            drain_seconds=DRAIN_SECONDS,
        )

    def log(self) -> StreamLog:
        return self.store.create(ORIGIN)[0]

    def generate(self, log: Any = None) -> StreamLog:
        """Begin an answer, which stands at the gate when this returns."""
        log = log or self.log()
        self.generations.start(log, QUESTION)
        self.gate.wait_reached()
        return log

    def end(self) -> None:
        """Let the answer end."""
        self.gate.open()
        wait_until(lambda: not self.generations.live, "the answer has ended")

    def stop(self, *, quick: bool = False) -> None:
        self.drain.begin(lambda: self.finished.append("finished"), quick=quick)

    def at(self, now: float) -> Phase:
        """Let the clock tick, and tell the phase."""
        self.drain.check(now)
        return self.drain.phase


class HeldLog:
    """A log whose end takes as long as the test wants."""

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        self.let_go = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def finish(self, end: Any) -> bool:
        self.let_go.wait()
        return self._log.finish(end)


class ForeignReader:
    """What the drain knows of a reader of another worker's stream. A real one needs another worker."""

    log = SimpleNamespace(sharing=SimpleNamespace(is_foreign=True))
    is_released = False

    def release(self) -> None:
        self.is_released = True


@pytest.fixture
def parts() -> Iterator[Parts]:
    gate = Gate()
    made = Parts(gate)
    yield made
    gate.close()
    wait_until(lambda: not made.generations.live, "no generation is left")


def test_worker_serves_until_the_first_tick_after_a_stop(parts: Parts, events: Events) -> None:
    assert parts.at(BEGUN - 2) is Phase.SERVING
    parts.generate()
    parts.readers.add(parts.log().reader(0))
    assert not parts.drain.begun

    parts.stop()

    assert (parts.drain.begun, parts.drain.phase) == (True, Phase.SERVING)
    parts.store.admit()
    assert parts.at(BEGUN) is Phase.FINISHING
    with pytest.raises(errors.ShuttingDown):
        parts.store.admit()
    (started,) = events.of("drain_started")
    assert (started["generations"], started["readers"]) == (1, 1)


def test_finishing_becomes_last_frames_when_the_last_generation_has_ended(parts: Parts, events: Events) -> None:
    log = parts.generate()
    parts.stop()
    assert parts.at(BEGUN) is Phase.FINISHING
    assert parts.at(DEADLINE - 0.1) is Phase.FINISHING

    parts.end()

    assert parts.at(DEADLINE) is Phase.LAST_FRAMES
    assert log.end is not None and log.end.status == "complete"
    assert not events.of("drain_cut")


@pytest.mark.parametrize("quick", [False, True], ids=["at the deadline", "in a quick stop"])
def test_finishing_becomes_cut_and_then_last_frames(parts: Parts, events: Events, quick: bool) -> None:
    held = HeldLog(parts.log())
    parts.generate(held)
    if not quick:
        parts.stop()
        assert parts.at(BEGUN) is Phase.FINISHING
    parts.stop(quick=quick)
    cut_at = BEGUN + 0.1 if quick else DEADLINE

    assert parts.at(cut_at) is Phase.CUT
    assert parts.at(cut_at + 0.1) is Phase.CUT
    (cut,) = events.of("drain_cut")
    assert (cut["generations"], cut["levelname"]) == (1, "WARNING")

    held.let_go.set()
    wait_until(lambda: not parts.generations.ending, "the end is made")
    assert parts.at(cut_at + 0.2) is Phase.LAST_FRAMES
    assert held.end.reason == "shutdown"


def test_stop_that_becomes_quick_cuts_at_the_next_tick(parts: Parts) -> None:
    parts.generate()
    parts.stop()
    assert parts.at(BEGUN) is Phase.FINISHING

    parts.stop(quick=True)
    parts.at(BEGUN + 0.2)

    wait_until(lambda: not parts.generations.live, "the generation is cut")


def test_end_that_is_held_up_keeps_a_cut_for_a_while_and_no_longer(parts: Parts) -> None:
    held = HeldLog(parts.log())
    parts.generate(held)
    parts.stop()
    parts.at(BEGUN)

    assert parts.at(DEADLINE) is Phase.CUT
    assert parts.at(DEADLINE + ENDS_SECONDS - 0.1) is Phase.CUT
    assert parts.at(DEADLINE + ENDS_SECONDS) is Phase.LAST_FRAMES
    held.let_go.set()


@pytest.mark.parametrize(
    ("late_at", "phase"), [(BEGUN + 2, Phase.FINISHING), (DEADLINE, Phase.CUT)], ids=["before", "after the deadline"]
)
def test_generation_that_begins_late_takes_last_frames_back(parts: Parts, late_at: float, phase: Phase) -> None:
    unread = parts.log()
    late = HeldLog(parts.log())
    parts.generate(unread)
    parts.stop()
    parts.at(BEGUN)
    assert parts.at(late_at - 1) is Phase.FINISHING
    parts.end()
    assert parts.at(late_at - 0.5) is Phase.LAST_FRAMES

    parts.generations.start(late, QUESTION)

    assert parts.at(late_at) is phase
    late.let_go.set()


def test_last_frames_becomes_leaving_as_soon_as_every_end_has_been_read(parts: Parts) -> None:
    log = parts.generate()
    parts.stop()
    parts.at(BEGUN)
    parts.end()
    assert parts.at(BEGUN + 0.2) is Phase.LAST_FRAMES
    assert not parts.readers.is_leaving

    log.end_read = True

    assert parts.at(BEGUN + 0.4) is Phase.LEAVING
    assert parts.readers.is_leaving


@pytest.mark.parametrize("quick", [False, True], ids=["ordinary", "quick"])
def test_last_frames_becomes_leaving_when_its_time_is_up(parts: Parts, quick: bool) -> None:
    parts.generate()
    parts.stop()
    parts.at(BEGUN)
    last_live = BEGUN + 1
    parts.at(last_live)
    parts.end()
    parts.stop(quick=quick)
    until = last_live + (QUICK_SECONDS if quick else LAST_FRAMES_SECONDS)

    assert parts.at(until - 0.1) is Phase.LAST_FRAMES
    assert parts.at(until) is (Phase.FINISHED if quick else Phase.LEAVING)


@pytest.mark.parametrize("waits_for", ["a reader", "an answer that has not begun"])
def test_last_frames_and_leaving_wait_for_who_is_being_answered(parts: Parts, waits_for: str) -> None:
    reader = parts.log().reader(0)
    if waits_for == "a reader":
        parts.readers.add(reader)
    else:
        parts.answering = 1
    parts.stop()
    assert parts.at(BEGUN) is Phase.LAST_FRAMES
    assert parts.at(BEGUN + LAST_FRAMES_SECONDS - 0.1) is Phase.LAST_FRAMES
    assert not reader.is_released

    leaves_at = BEGUN + LAST_FRAMES_SECONDS
    assert parts.at(leaves_at) is Phase.LEAVING
    assert reader.is_released is (waits_for == "a reader")
    assert parts.at(leaves_at + QUICK_SECONDS - 0.1) is Phase.LEAVING
    assert parts.finished == []
    assert parts.at(leaves_at + QUICK_SECONDS) is Phase.FINISHED
    assert parts.finished == ["finished"]


def test_leaving_becomes_finished_when_nobody_is_being_answered(parts: Parts, events: Events) -> None:
    reader = parts.log().reader(0)
    parts.readers.add(reader)
    parts.stop()
    parts.at(BEGUN)
    assert parts.at(BEGUN + LAST_FRAMES_SECONDS) is Phase.LEAVING

    parts.readers.remove(reader)

    assert parts.at(BEGUN + LAST_FRAMES_SECONDS + 0.1) is Phase.FINISHED
    (finished,) = events.of("drain_finished")
    assert (finished["readers"], finished["cut"]) == (0, False)


def test_generation_that_begins_while_readers_leave_is_waited_for_up_to_the_deadline(parts: Parts) -> None:
    late = parts.log()
    parts.stop()
    assert parts.at(BEGUN) is Phase.LEAVING

    parts.generate(late)

    assert parts.at(DEADLINE - 0.1) is Phase.LEAVING
    parts.at(DEADLINE)
    wait_until(lambda: late.end is not None and not parts.generations.ending, "the generation is cut")
    assert parts.at(DEADLINE + 0.2) is Phase.FINISHED


@pytest.mark.parametrize("quick", [False, True], ids=["ordinary", "quick"])
def test_worker_with_nothing_to_finish_ends_at_once(parts: Parts, quick: bool) -> None:
    parts.stop(quick=quick)

    assert parts.at(BEGUN) is (Phase.FINISHED if quick else Phase.LEAVING)
    assert parts.at(BEGUN + 0.2) is Phase.FINISHED


def test_drain_that_has_finished_does_nothing_more(parts: Parts, events: Events) -> None:
    parts.stop(quick=True)
    for second in range(3):
        parts.at(BEGUN + second)
        parts.stop()

    assert (parts.finished, len(events.of("drain_finished"))) == (["finished"], 1)
    assert parts.drain.begun


def test_readers_of_other_workers_streams_are_sent_away_bit_by_bit_and_waited_for(parts: Parts) -> None:
    foreign = [ForeignReader() for _ in range(200)]
    for reader in foreign:
        parts.readers.add(reader)  # type: ignore[arg-type]
    parts.stop()

    assert parts.at(BEGUN) is Phase.FINISHING
    assert 0 < sum(reader.is_released for reader in foreign) < 20
    assert parts.at(BEGUN + RAMP_SECONDS - 0.1) is Phase.FINISHING
    parts.at(BEGUN + RAMP_SECONDS)
    assert all(reader.is_released for reader in foreign)
    assert parts.drain.phase is Phase.LAST_FRAMES

    # Their last frames have their time from the end of the ramp on.
    assert parts.at(BEGUN + RAMP_SECONDS - 0.1 + LAST_FRAMES_SECONDS - 0.1) is Phase.LAST_FRAMES
    assert parts.at(BEGUN + RAMP_SECONDS - 0.1 + LAST_FRAMES_SECONDS) is Phase.LEAVING


def test_reader_of_another_workers_stream_takes_last_frames_back(parts: Parts) -> None:
    parts.answering = 1
    parts.stop()
    assert parts.at(BEGUN) is Phase.LAST_FRAMES

    parts.readers.add(ForeignReader())  # type: ignore[arg-type]

    assert parts.at(BEGUN + 0.2) is Phase.FINISHING


def test_quick_stop_sends_readers_of_other_workers_streams_away_at_once(parts: Parts) -> None:
    foreign = [ForeignReader() for _ in range(20)]
    for reader in foreign:
        parts.readers.add(reader)  # type: ignore[arg-type]
    parts.stop(quick=True)

    assert parts.at(BEGUN) is Phase.LAST_FRAMES
    assert all(reader.is_released for reader in foreign)


def test_ramp_takes_no_more_than_half_of_the_drain(monkeypatch: pytest.MonkeyPatch, parts: Parts) -> None:
    monkeypatch.setattr(shutdown, "RAMP_SECONDS", DRAIN_SECONDS)
    parts.readers.add(ForeignReader())  # type: ignore[arg-type]
    parts.stop()

    assert parts.at(BEGUN) is Phase.FINISHING
    assert parts.at(BEGUN + DRAIN_SECONDS / 2 - 0.1) is Phase.FINISHING
    assert parts.at(BEGUN + DRAIN_SECONDS / 2) is Phase.LAST_FRAMES
