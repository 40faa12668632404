"""Test the live generations of a worker: their deadlines, their ends in turn, and upstreams that do not end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import pytest

from app import errors
from app.generation import live
from app.generation import run as generation
from app.generation.live import Generations
from app.streams.interface import Origin, StreamLog
from app.streams.memory.store import MemoryStore
from app.upstream.call import Call
from app.upstream.interface import Part
from tests.unit.ends import Terminal, terminal_of
from tests.unit.fakes import PATIENCE_SECONDS, FakeUpstream, Gate, finish, texts, whole
from tests.unit.generations import BOUNDS, QUESTION, Run
from tests.unit.shared import wait_until


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "BACKOFF_SECONDS", 0.0)


# Deadlines


def check_at(made: Run, seconds: float) -> None:
    """Look at the deadlines as the clock would, so long after the last sign of life."""
    live.check(made.generation, made.generation.intake.last_life + seconds)


@pytest.mark.parametrize("after", [0, 3])
def test_generation_silent_for_too_long_fails_and_says_so(gate: Gate, after: int) -> None:
    made = Run(FakeUpstream([*texts(*"abc"[:after]), gate]))
    made.start()
    gate.wait_reached()

    check_at(made, 30.0)
    assert made.log.end is None
    check_at(made, 30.1)

    terminal = made.join()
    assert terminal.event == "failed"
    error = terminal.content["error"]
    assert error["error_code"] == "upstream_timeout"
    assert "sent nothing for 30 seconds" in error["detail"]
    assert made.upstream.calls[0].cancelled
    assert terminal.content["tokens"] == after


def test_generation_takes_a_part_without_text_for_a_sign_of_life(gate: Gate) -> None:
    made = Run(FakeUpstream([Part(), gate, *whole("a")]))
    began = made.generation.intake.last_life
    made.start()
    gate.wait_reached()

    assert made.generation.intake.last_life > began
    gate.open()
    assert made.join().event == "done"


def test_generation_longer_than_allowed_fails_and_says_so(gate: Gate) -> None:
    made = Run(FakeUpstream([*texts("a"), gate]))
    made.start()
    gate.wait_reached()
    made.generation.intake.last_life += 600  # one token each now and then, for ever

    with made.log.reader(0):
        live.check(made.generation, made.generation.started + 599.9)
        assert made.log.end is None
        live.check(made.generation, made.generation.started + 600.1)

    error = made.join().content["error"]
    assert error["error_code"] == "upstream_timeout"
    assert "600 seconds" in error["detail"]


COMMENT: list[Part] = []


@pytest.mark.parametrize("comments", [0, 1, 5])
def test_whole_answer_followed_by_comments_is_done_when_it_was_silent_for_too_long(gate: Gate, comments: int) -> None:
    made = Run(FakeUpstream([*texts("a"), finish(), Part(), lambda: lives.append(now()), *[COMMENT] * comments, gate]))
    lives: list[float] = []

    def now() -> float:
        return made.generation.intake.last_life

    made.start()
    gate.wait_reached()

    assert now() == lives[0], "a comment is no life of what is whole"
    check_at(made, 30.1)
    assert made.log.end is not None
    gate.open()
    assert (terminal := made.join()).event == "done"
    assert terminal.content["finish_reason"] == "stop"


@pytest.mark.parametrize("more", [Part(), finish(), Part(usage={"completion_tokens": 1, "prompt_tokens": 1})])
def test_whole_answer_followed_by_the_same_again_and_again_is_done_when_it_was_silent(gate: Gate, more: Part) -> None:
    usage = Part(usage={"completion_tokens": 1, "prompt_tokens": 1})
    lives: list[float] = []
    made = Run(FakeUpstream([*texts("a"), finish(), usage, lambda: lives.append(now()), *[[more]] * 3, gate]))

    def now() -> float:
        return made.generation.intake.last_life

    made.start()
    gate.wait_reached()
    assert now() == lives[0], "what says nothing new is no life of what is whole"
    check_at(made, 30.1)
    gate.open()
    assert made.join().event == "done"


@pytest.mark.parametrize("more", [Part("b"), Part(usage={"completion_tokens": 1, "prompt_tokens": 1})])
def test_whole_answer_that_says_something_new_lives(gate: Gate, more: Part) -> None:
    lives: list[float] = []
    made = Run(FakeUpstream([*texts("a"), finish(), lambda: lives.append(now()), [more], gate]))

    def now() -> float:
        return made.generation.intake.last_life

    made.start()
    gate.wait_reached()
    assert now() > lives[0]
    gate.open()
    made.join()


def test_whole_answer_that_goes_on_without_text_for_longer_than_allowed_is_done(gate: Gate) -> None:
    made = Run(FakeUpstream([*texts("a"), finish(), gate]))
    made.start()
    gate.wait_reached()
    made.generation.intake.last_life += 600  # a part without text each now and then, for ever

    with made.log.reader(0):
        live.check(made.generation, made.generation.started + 599.9)
        assert made.log.end is None
        live.check(made.generation, made.generation.started + 600.1)
        assert made.log.end is not None

    gate.open()
    assert made.join().event == "done"


@pytest.mark.parametrize("more", [COMMENT, [Part()]], ids=["comments", "parts"])
def test_upstream_that_goes_on_behind_the_end_that_a_deadline_made_is_let_go(more: list[Part]) -> None:
    gate, later = Gate(), Gate()
    made = Run(FakeUpstream([*texts("a"), finish(), gate, more, later]))
    made.start()
    gate.wait_reached()
    check_at(made, 30.1)
    gate.open()

    assert made.join().event == "done"
    assert not later.reached.is_set()
    gate.close()
    later.close()


@pytest.mark.requirement("chatwait clarification 5")
def test_generation_without_a_reader_is_abandoned_only_after_its_time(gate: Gate) -> None:
    made = Run(FakeUpstream([*texts("a"), gate]))
    made.start()
    gate.wait_reached()
    made.generation.intake.last_life += 400
    with made.log.reader(0):
        live.check(made.generation, made.generation.started + 350)
        assert made.log.end is None, "a reader keeps it"
    left = made.log.unread_since
    live.check(made.generation, left + 299.9)
    assert made.log.end is None, "and leaving starts the time anew"

    live.check(made.generation, left + 300.1)

    terminal = made.join()
    assert (terminal.event, terminal.content["reason"]) == ("cancelled", "abandoned")


def test_generation_silent_after_its_finish_reason_is_done_and_lets_the_upstream_go(gate: Gate) -> None:
    generations = Generations(upstream=(upstream := FakeUpstream([*texts("a"), finish(), gate])), bounds=BOUNDS)
    log = new_log()
    generations.start(log, QUESTION)
    gate.wait_reached()
    generations.check(time.monotonic())
    assert log.end is None

    generations.check(time.monotonic() + 31)
    assert wait_for_end(log).event == "done"
    generations.check(time.monotonic() + 31)

    assert upstream.answers[0].closed.wait(2.0), "thread and connection are held for ever"


def test_generation_whose_upstream_stays_silent_after_done_lets_it_go(gate: Gate) -> None:
    generations = Generations(upstream=(upstream := FakeUpstream([*whole("a"), gate])), bounds=BOUNDS)
    log = new_log()
    generations.start(log, QUESTION)
    gate.wait_reached()
    assert log.end is not None
    assert terminal_of(log).event == "done"

    for _ in range(3):
        generations.check(time.monotonic() + 31)

    assert upstream.answers[0].closed.wait(2.0), "thread and connection are held for ever"


# All of a worker's


def new_log() -> StreamLog:
    store = MemoryStore(max_active=10, budget_bytes=10_000_000, retention_seconds=60)
    return store.create(Origin("c-1", "gpt-4o-mini", "2026-11-21T09:00:00.000Z", 1))[0]


def wait_for_end(log: StreamLog) -> Terminal:
    with log.reader(0, only_end=True) as reader:
        while log.end is None:
            reader.wait()
        return terminal_of(log)


def test_generations_run_until_cancelled_and_are_forgotten(gate: Gate) -> None:
    generations = Generations(upstream=(upstream := FakeUpstream([gate])), bounds=BOUNDS)
    log = new_log()
    generations.start(log, QUESTION)
    gate.wait_reached()
    assert generations.live == 1

    assert generations.cancel(log.stream_id, "client") is True

    assert wait_for_end(log).event == "cancelled"
    assert upstream.answers[0].closed.wait(PATIENCE_SECONDS)
    assert generations.cancel(log.stream_id, "client") is False
    assert generations.cancel("cw_unknown", "client") is False


def test_generations_cancelled_all_at_once_end_by_shutdown() -> None:
    gates = [Gate() for _ in range(3)]
    generations = Generations(upstream=FakeUpstream(*[[gate] for gate in gates]), bounds=BOUNDS)
    logs = [new_log() for _ in gates]
    for log in logs:
        generations.start(log, QUESTION)
    for gate in gates:
        gate.wait_reached()

    generations.cancel_all("shutdown")

    assert {wait_for_end(log).content["reason"] for log in logs} == {"shutdown"}
    for gate in gates:
        gate.close()


def test_generations_checked_hold_each_to_its_deadlines(gate: Gate) -> None:
    generations = Generations(upstream=FakeUpstream([gate]), bounds=BOUNDS)
    log = new_log()
    generations.start(log, QUESTION)
    gate.wait_reached()

    generations.check(time.monotonic())
    assert log.end is None
    generations.check(time.monotonic() + 31)

    assert wait_for_end(log).content["error"]["error_code"] == "upstream_timeout"


def test_generations_that_cannot_be_judged_or_ended_keep_no_other_from_its_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gates = [Gate() for _ in range(4)]
    generations = Generations(upstream=FakeUpstream(*[[gate] for gate in gates]), bounds=BOUNDS)
    logs = [new_log() for _ in gates]
    for log in logs:
        generations.start(log, QUESTION)
    for gate in gates:
        gate.wait_reached()

    def fail(*_: Any) -> Any:
        raise ValueError("words")

    unjudged, unended, *others = list(generations._live.values())
    with monkeypatch.context() as broken:
        broken.setattr(unjudged, "intake", None)
        broken.setattr(unended, "fail", fail)
        generations.check(time.monotonic() + 31)
        for made in others:
            assert wait_for_end(made.log).event == "failed"
        assert unjudged.log.end is unended.log.end is None
    messages = {record.message for record in caplog.records}
    assert messages >= {"a generation's deadlines could not be checked", "a generation could not be ended"}

    generations.check(time.monotonic() + 31)
    for log in logs:
        assert wait_for_end(log).event == "failed"
    for gate in gates:
        gate.close()


def test_generation_that_lives_again_before_its_turn_goes_on() -> None:
    gates = [Gate() for _ in range(2)]
    generations = Generations(upstream=FakeUpstream(*[[gate] for gate in gates]), bounds=BOUNDS)
    logs = [new_log() for _ in gates]
    for log in logs:
        generations.start(log, QUESTION)
    for gate in gates:
        gate.wait_reached()
    with generations._turns:  # another one's, which takes a while
        generations.check(time.monotonic() + 31)
        generations._live[logs[0].stream_id].intake.last_life += 31
    assert wait_for_end(logs[1]).event == "failed"
    wait_until(lambda: not generations.ending, "the turns are over")
    assert logs[0].end is None
    generations.cancel_all("shutdown")
    for gate in gates:
        gate.close()


def test_generations_that_are_due_are_told_to_be_so_until_the_last_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = [Gate() for _ in range(3)]
    generations = Generations(upstream=FakeUpstream(*[[gate] for gate in gates]), bounds=BOUNDS)
    logs = [new_log() for _ in gates]
    for log in logs:
        generations.start(log, QUESTION)
    for gate in gates:
        gate.wait_reached()
    held = threading.Event()
    first = next(iter(generations._live.values()))
    cancel = first.cancel
    monkeypatch.setattr(first, "cancel", lambda reason: held.wait(PATIENCE_SECONDS) and cancel(reason))

    assert not generations.ending
    generations.begin_cancel_all("shutdown")
    generations.begin_cancel_all("shutdown")

    assert generations.ending
    assert [log.end for log in logs] == [None] * 3
    held.set()
    assert {wait_for_end(log).content["reason"] for log in logs} == {"shutdown"}
    for gate in gates:
        gate.close()


class EndlessAnswer:
    """Says all that is wanted, and then goes on for ever; notes how often it was listened to."""

    rate_limits: ClassVar[dict[str, str]] = {}

    def __init__(self, call: Call) -> None:
        self.more = 0
        self._call = call
        self._first = True

    def receive(self, take: Callable[[Sequence[Part]], bool]) -> bool:
        while not self._call.cancelled:
            batch, self._first = whole("a") if self._first else texts("x", "y"), False
            self.more += 1
            if not take(batch):
                return True
            time.sleep(0.001)
        raise errors.UpstreamUnavailable

    def pending(self) -> None:
        return None

    def close(self) -> None: ...


def test_generation_whose_upstream_goes_on_for_ever_after_done_is_done_and_lets_it_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Run(FakeUpstream())
    monkeypatch.setattr(made.upstream, "ask", lambda _, call: EndlessAnswer(call))
    monkeypatch.setattr(live, "TAIL_SECONDS", 0.05)
    made.start()
    until = time.monotonic() + PATIENCE_SECONDS
    while made.log.end is None:
        assert time.monotonic() < until
        time.sleep(0.001)
    ended = time.monotonic()
    assert made.generation._answer.more < 1000, "the end is told before the upstream has ended"

    while made._thread.is_alive() and time.monotonic() < ended + 5:
        live.check_tail(made.generation, time.monotonic())
        time.sleep(0.005)

    assert (made.join().event, made.log.text()) == ("done", "a")
    assert time.monotonic() - ended >= 0.04
    assert made.generation._answer.more > 3, "listened to meanwhile"
