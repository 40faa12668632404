"""What is kept in memory: who is counted, who is evicted for whom, who expires, and who hears of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app import errors
from app.streams import retention as room
from app.streams.retention import LOG_OVERHEAD_BYTES, RESERVED_BYTES, Retention

BUDGET_BYTES = 20 * LOG_OVERHEAD_BYTES
KEPT_SECONDS = 60.0


class Time:
    now = 1000.0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now


@dataclass(eq=False)
class Kept:
    """A log as it is counted."""

    stream_id: str
    prompt_bytes: int = 0
    cost: int = LOG_OVERHEAD_BYTES
    text: int = 0
    used_at: float = 1000.0
    readers: int = 0

    @property
    def size(self) -> int:
        return LOG_OVERHEAD_BYTES + self.text


class Keeping:
    def __init__(self, *, max_active: int = 100) -> None:
        self.forgotten: list[Kept] = []
        self.names = iter(range(10_000))
        self.retention: Retention[Kept] = Retention(
            max_active=max_active,
            budget_bytes=BUDGET_BYTES,
            retention_seconds=KEPT_SECONDS,
            forgotten=self.forgotten.append,
        )

    def begin(self, prompt_bytes: int = 0) -> Kept:
        self.retention.admit()
        counted = self.retention.admit_prompt(prompt_bytes)
        log = Kept(str(next(self.names)), counted, LOG_OVERHEAD_BYTES + counted)
        self.retention.begin(log)
        return log

    def finished(self, text: int = 0) -> Kept:
        log = self.begin()
        self.grow(log, text)
        self.end(log)
        return log

    def grow(self, log: Kept, text: int) -> None:
        if log.size + text > log.cost:
            self.retention.make_room_for(log, log.size + text)
        log.text += text

    def end(self, log: Kept) -> None:
        log.used_at = Time.now
        self.retention.ended(log)


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> Keeping:
    monkeypatch.setattr(room, "time", Time)
    monkeypatch.setattr(Time, "now", 1000.0)
    return Keeping()


def test_live_logs_are_counted_in_steps_and_finished_ones_as_what_they_take(keeping: Keeping) -> None:
    log = keeping.begin()
    assert keeping.retention.used_bytes == LOG_OVERHEAD_BYTES
    keeping.grow(log, 1)
    assert keeping.retention.used_bytes == LOG_OVERHEAD_BYTES + RESERVED_BYTES
    keeping.grow(log, RESERVED_BYTES - 1)
    assert keeping.retention.used_bytes == LOG_OVERHEAD_BYTES + RESERVED_BYTES, "it is not asked at every record"
    keeping.grow(log, 3 * RESERVED_BYTES)
    assert keeping.retention.used_bytes == LOG_OVERHEAD_BYTES + 4 * RESERVED_BYTES
    log.text -= 10
    keeping.end(log)
    assert keeping.retention.used_bytes == log.cost == log.size


def test_room_is_made_by_the_least_recently_used_that_nobody_reads(keeping: Keeping) -> None:
    first, second, third, fourth = (keeping.finished(3 * LOG_OVERHEAD_BYTES) for _ in range(4))
    assert keeping.retention.kept(first.stream_id) is first
    second.readers = 1
    live = keeping.begin()
    keeping.grow(live, 6 * LOG_OVERHEAD_BYTES)
    assert keeping.forgotten == [third]
    keeping.retention.used(fourth)
    keeping.begin(3 * LOG_OVERHEAD_BYTES)
    assert keeping.forgotten == [third, first]
    assert set(keeping.retention.finished.values()) == {second, fourth}


def test_live_logs_and_those_that_are_read_are_never_evicted(keeping: Keeping) -> None:
    live, read = keeping.begin(), keeping.finished(2 * LOG_OVERHEAD_BYTES)
    read.readers = 1
    used = keeping.retention.used_bytes
    with pytest.raises(errors.Overloaded) as refused:
        keeping.grow(live, BUDGET_BYTES)
    assert refused.value.retry_after_seconds
    assert (keeping.retention.used_bytes, live.cost, keeping.forgotten) == (used, LOG_OVERHEAD_BYTES, [])
    read.readers = 0
    keeping.grow(live, 18 * LOG_OVERHEAD_BYTES)
    assert keeping.forgotten == [read]


def test_log_ends_though_there_is_no_room_left(keeping: Keeping) -> None:
    log, other = keeping.begin(), keeping.begin()
    keeping.grow(log, 1)
    keeping.grow(other, BUDGET_BYTES - keeping.retention.used_bytes)
    assert keeping.retention.used_bytes == BUDGET_BYTES
    with pytest.raises(errors.Overloaded):
        keeping.begin()
    keeping.end(log)
    assert keeping.retention.used_bytes == BUDGET_BYTES - RESERVED_BYTES + 1
    assert (list(keeping.retention.live.values()), list(keeping.retention.finished.values())) == ([other], [log])


def test_limit_of_live_logs_holds_until_one_ends_or_is_dropped() -> None:
    keeping = Keeping(max_active=2)
    one, two = keeping.begin(), keeping.begin()
    for over in (lambda: keeping.end(one), lambda: keeping.retention.discount(two)):
        with pytest.raises(errors.Overloaded):
            keeping.begin()
        over()
        keeping.begin()
    keeping.retention.stop_admitting()
    with pytest.raises(errors.ShuttingDown):
        keeping.retention.admit()


def test_questions_count_for_half_of_the_budget_and_are_released_once(keeping: Keeping) -> None:
    largest = keeping.begin(10 * BUDGET_BYTES)
    assert largest.prompt_bytes <= BUDGET_BYTES // 2
    with pytest.raises(errors.Overloaded, match="question"):
        keeping.begin(largest.prompt_bytes)
    for _ in range(2):
        keeping.retention.release_prompt(largest)
    assert (largest.prompt_bytes, largest.cost) == (0, LOG_OVERHEAD_BYTES)
    again = keeping.begin(BUDGET_BYTES // 4)
    keeping.end(again)
    assert (again.prompt_bytes, again.cost) == (0, LOG_OVERHEAD_BYTES), "its end releases it"
    dropped = keeping.begin(BUDGET_BYTES // 4)
    keeping.retention.discount(dropped)
    assert keeping.retention.used_bytes == 2 * LOG_OVERHEAD_BYTES
    keeping.begin(BUDGET_BYTES // 2)


def test_log_that_somebody_else_keeps_is_counted_and_discounted(keeping: Keeping) -> None:
    copy = Kept("copy")
    keeping.retention.count(copy)
    assert (keeping.retention.used_bytes, keeping.retention.live) == (LOG_OVERHEAD_BYTES, {})
    keeping.grow(copy, 100)
    keeping.retention.discount(copy)
    assert keeping.retention.used_bytes == 0
    assert keeping.retention.kept("copy") is None


def test_finished_log_expires_so_long_after_its_last_use_and_not_while_it_is_read(keeping: Keeping) -> None:
    log, read, young = keeping.finished(), keeping.finished(), keeping.finished()
    read.readers = 1
    young.used_at = 1030.0
    keeping.retention.sweep(1000.0 + KEPT_SECONDS)
    assert keeping.forgotten == []
    keeping.retention.sweep(1000.0 + KEPT_SECONDS + 0.001)
    assert keeping.forgotten == [log]
    Time.now = 1030.0 + KEPT_SECONDS
    assert keeping.retention.kept(young.stream_id) is young
    Time.now += 0.001
    assert keeping.retention.kept(read.stream_id) is read
    assert keeping.retention.kept(young.stream_id) is None, "judged when it is asked for"
    assert keeping.forgotten == [log, young]
    assert keeping.retention.used_bytes == read.cost


class Games(RuleBasedStateMachine):
    """Whatever is begun, grown, read, ended and dropped: all that is kept is counted, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.keeping = Keeping()
        self.live: list[Kept] = []
        self.ended: list[Kept] = []

    @rule(prompt_bytes=st.integers(0, BUDGET_BYTES))
    def begin(self, prompt_bytes: int) -> None:
        try:
            self.live.append(self.keeping.begin(prompt_bytes))
        except errors.Overloaded:
            pass

    @precondition(lambda self: self.live)
    @rule(data=st.data(), text=st.integers(0, BUDGET_BYTES // 2))
    def grow(self, data: st.DataObject, text: int) -> None:
        log = data.draw(st.sampled_from(self.live))
        self.keeping.retention.release_prompt(log)  # it is answered
        try:
            self.keeping.grow(log, text)
        except errors.Overloaded:
            pass

    @precondition(lambda self: self.live)
    @rule(data=st.data(), ends=st.booleans())
    def leave(self, data: st.DataObject, ends: bool) -> None:
        log = data.draw(st.sampled_from(self.live))
        self.live.remove(log)
        if ends:
            self.keeping.end(log)
            self.ended.append(log)
        else:
            self.keeping.retention.discount(log)

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), readers=st.integers(0, 1))
    def read(self, data: st.DataObject, readers: int) -> None:
        data.draw(st.sampled_from(self.ended)).readers = readers

    @invariant()
    def all_are_counted(self) -> None:
        retention = self.keeping.retention
        kept = [log for log in self.ended if log not in self.keeping.forgotten]
        assert list(retention.live.values()) == self.live
        assert set(retention.finished.values()) == set(kept)
        assert retention.used_bytes == sum(log.cost for log in [*self.live, *kept])
        assert retention.used_bytes <= BUDGET_BYTES
        assert all(log.cost >= log.size + log.prompt_bytes for log in self.live)
        assert not any(log.readers for log in self.keeping.forgotten if log in kept)


TestGames = Games.TestCase
