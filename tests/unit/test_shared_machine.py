"""Hypothesis plays at workers that share a Valkey: it begins, appends, ends, reads, crashes workers, has them stand
still for longer than a lease and go on, and loses keys. Their clocks go at different speeds.

What holds throughout: whatever a reader was shown, every later reader at any worker is shown too, in the same order;
a stream has one end, the same everywhere; and one whose worker has crashed, or stands still, gets one from somebody
else. A worker that goes on after that contradicts nobody, but for readers of its own that it has told (`unresumable`).
Every step of every log is an arrow of the drawing in app/streams/shared/state.py, and none is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app import errors
from app.streams.interface import Binding
from app.streams.shared.state import ADOPTED, ARROWS, CUT_OFF, END_READ, END_STORED, TAKEN_OVER, Arrow, State
from tests.harness.valkey import Valkey
from tests.unit.ends import end_with
from tests.unit.shared import LEASE_SECONDS, ORIGIN, PATIENCE_SECONDS, Step, Worker, steps_taken, wait_until

CLOCKS = (1.0, 1.25, 1.5)
"""How long each worker's second takes: of its lease, and of its looks at the others."""
T = TypeVar("T")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def asked(ask: Callable[[], T]) -> T:
    """Ask as clients do: who cannot tell yet, as one that has stood still, is asked again."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except errors.StoreUnavailable:
            assert time.monotonic() < until, "it cannot tell for ever"
            time.sleep(0.02)


@dataclass(eq=False)
class Stream:
    """What is true of one stream."""

    stream_id: str
    worker: Worker
    log: Any
    binding: Binding
    chunks: list[str] = field(default_factory=list)
    shown: int = 0
    is_ended: bool = False
    end: Any = None
    may_be_gone: bool = False
    """Valkey lost its keys after its end: it is not restored."""
    may_be_taken: bool = False
    """Its worker has stood still, and others may have ended it."""


class Workers(RuleBasedStateMachine):
    """Three workers, of which one may crash and another take its place."""

    valkey: Valkey
    taken: Counter[str]
    """How often each arrow was taken, in all games."""

    streams = Bundle("streams")

    def __init__(self) -> None:
        super().__init__()
        self.last = contextlib.ExitStack()
        self.steps: list[Step] = self.last.enter_context(steps_taken())
        self.looked = 0
        self.states: dict[Any, State] = {}
        self.database = self.valkey.database()
        self.workers: list[Worker] = []
        self.keys = 0
        self.begun: list[Stream] = []

    @initialize()
    def begin_workers(self) -> None:
        self.workers = [self.worker(at) for at in range(3)]

    def worker(self, at: int) -> Worker:
        clock = CLOCKS[at]
        return Worker(self.database.url, lease_seconds=clock * LEASE_SECONDS, tick_seconds=clock * 0.05).start()

    def runs(self, worker: Worker) -> bool:
        return worker in self.workers and not worker.is_paused

    def teardown(self) -> None:
        for stream in self.begun:
            if self.runs(stream.worker):
                stream.log.finish(end_with())
        for worker in self.workers:
            worker.close()
        self.database.client.flushdb()
        self.last.close()
        self.every_step_is_an_arrow()

    @invariant()
    def every_step_is_an_arrow(self) -> None:
        """Look at the steps since the last look. Nothing but a step changes a log's state."""
        steps = self.steps[self.looked :]
        self.looked += len(steps)
        for step in steps:
            begins_at = (State.STORED, State.FOLLOWED)
            assert step.before in ((self.states[step.log],) if step.log in self.states else begins_at)
            assert step.arrow in ARROWS
            assert step.before in step.arrow.sources
            assert step.after is step.arrow.target, "it was refused"
            self.states[step.log] = step.after
            self.taken[step.arrow.name] += 1

    @rule(target=streams, at=st.integers(0, 2))
    def create(self, at: int) -> Stream:
        worker = next(worker for worker in (self.workers * 2)[at:] if self.runs(worker))
        self.keys += 1
        binding = Binding(f"{self.keys:064}", "f")
        wait_until(worker.store.ready, "it takes work")
        log, created = worker.store.create(ORIGIN, binding)
        assert created
        self.begun.append(Stream(log.stream_id, worker, log, binding))
        return self.begun[-1]

    @rule(stream=streams, chunks=st.lists(TEXTS, min_size=1, max_size=4), settles=st.booleans())
    def append(self, stream: Stream, chunks: list[str], settles: bool) -> None:
        if not self.runs(stream.worker):
            return
        log = stream.log
        taken = log.append(*chunks)
        assert taken is not stream.is_ended or (stream.may_be_taken and not taken)
        if taken:
            stream.chunks += chunks
            if settles:
                wait_until(
                    lambda: log.head == len(stream.chunks) or log.is_foreign or log.end is not None,
                    "the chunks are shown",
                )
                self.look(stream, log)

    @rule(stream=streams, frees_key=st.booleans())
    def finish(self, stream: Stream, frees_key: bool) -> None:
        if not self.runs(stream.worker):
            return
        ends = stream.log.finish(end_with("failed" if frees_key else "done", frees_key=frees_key))
        assert ends is not stream.is_ended or (stream.may_be_taken and not ends)
        stream.is_ended = True
        assert stream.log.settle(20.0)
        if frees_key:
            stream.binding = Binding("", "")
        self.look(stream, stream.log)

    @rule(stream=streams, at=st.integers(0, 2))
    def read(self, stream: Stream, at: int) -> None:
        if not self.runs(self.workers[at]):
            return
        with contextlib.suppress(errors.StreamUnknown if stream.may_be_gone else ()):
            self.look(stream, asked(lambda: self.workers[at].store.find(stream.stream_id, reach=stream.shown)))

    @rule(stream=streams, at=st.integers(0, 2))
    def ask_again(self, stream: Stream, at: int) -> None:
        if not self.runs(stream.worker) or not self.runs(self.workers[at]) or stream.may_be_taken:
            return
        if stream.binding.key and not stream.may_be_gone:
            store = self.workers[at].store
            log, created = asked(lambda: store.create(ORIGIN, stream.binding))
            assert (created, log.stream_id) == (False, stream.stream_id)
            with pytest.raises(errors.IdempotencyKeyReused):
                asked(lambda: store.create(ORIGIN, Binding(stream.binding.key, "another")))

    def look(self, stream: Stream, log: Any) -> None:
        """Hold what a log shows against what is true, and remember it."""
        lives = stream.worker in self.workers and not stream.may_be_taken
        if lives:
            wait_until(lambda: not log.is_unresumable, "what is told of a Valkey that was late is taken back")
        terminal = log.end
        head = log.head
        text = log.text()
        if terminal is None and not log.is_unresumable:
            wait_until(
                lambda: log.head >= stream.shown or log.is_unresumable,
                f"what was shown before: {log.head} of {stream.shown}",
            )
            head = log.head
            text = log.text()
        # Looked at last, as readers do: what was read before that may be what they were told of just now.
        if log.is_unresumable:
            if lives:
                return self.look(stream, log)
            return None  # its readers here have been told that it may end otherwise elsewhere
        assert head >= stream.shown
        assert text.startswith("".join(stream.chunks[:head]))
        assert "".join(stream.chunks).startswith(text)
        stream.shown = max(stream.shown, head)
        if terminal is not None:
            assert terminal.records == log.head
            assert terminal.sha256 == hashlib.sha256(log.text().encode()).hexdigest()
            known = stream.end or terminal
            assert terminal == known
            stream.end = terminal
            assert stream.is_ended or not lives, "nobody ends what lives"
        return None

    @rule(at=st.integers(0, 2))
    def crash(self, at: int) -> None:
        """Kill a worker; a new one comes in its place."""
        self.workers[at].crash()
        self.workers[at] = self.worker(at)

    @rule(stream=streams, at=st.integers(0, 2), is_taken=st.booleans())
    def pause(self, stream: Stream, at: int, is_taken: bool) -> None:
        """Have a stream's worker stand still for longer than a lease; who reads it elsewhere may take it over."""
        worker, other = stream.worker, self.workers[at]
        if worker is other:
            other = self.workers[(at + 1) % 3]
        if worker not in self.workers or any(one.is_paused for one in self.workers):
            return
        if stream.is_ended or stream.may_be_gone:
            return
        copy = asked(lambda: other.store.find(stream.stream_id))
        for mine in self.begun:  # what it has taken over itself among them
            is_its = mine.worker is worker or mine.worker not in self.workers
            mine.may_be_taken = mine.may_be_taken or (is_its and not mine.is_ended)
        worker.pause()
        self.database.client.delete(worker.store._commands.life_key(worker.store.worker))  # as after a lease
        if is_taken:
            assert copy.settle(20.0)
            self.look(stream, copy)

    @precondition(lambda self: any(worker.is_paused for worker in self.workers))
    @rule(ends=st.booleans())
    def go_on(self, ends: bool) -> None:
        """Its models go on talking, and may come to their ends, before it hears of anything."""
        for worker in self.workers:
            if worker.is_paused:
                worker.go_on()
                for stream in self.begun:
                    if stream.worker is worker and not stream.is_ended:
                        self.append(stream, ["late"], False)
                        if ends:
                            self.finish(stream, False)

    @rule(stream=consumes(streams), at=st.integers(0, 2))
    def wait_for_the_end(self, stream: Stream, at: int) -> None:
        """A stream whose worker is gone ends all the same."""
        if self.runs(stream.worker) or stream.may_be_gone or not self.runs(self.workers[at]):
            return
        log = asked(lambda: self.workers[at].store.find(stream.stream_id))
        assert log.settle(20.0)
        self.look(stream, log)

    @rule()
    def lose_keys(self) -> None:
        """Valkey forgets everything; what lives is written anew, what has ended may be gone."""
        if any(stream.may_be_taken for stream in self.begun):
            return  # that it has been taken over would be forgotten too
        for stream in self.begun:
            if stream.worker not in self.workers:
                self.wait_for_copies(stream)
        self.database.client.flushdb()
        for stream in self.begun:
            if stream.is_ended or stream.worker not in self.workers:
                stream.may_be_gone = True
            else:
                key, _ = stream.worker.store._commands.keys(stream.stream_id)
                wait_until(lambda key=key: self.database.client.exists(key), "it is written anew")

    def wait_for_copies(self, stream: Stream) -> None:
        """What a crashed worker has written is soon all that anybody has: let who reads it have it all."""
        key, _ = self.workers[0].store._commands.keys(stream.stream_id)
        head = int(self.database.client.hget(key, "head") or 0)
        for worker in self.workers:
            copy = worker.store._copies.table.get(stream.stream_id)
            if copy is not None:
                wait_until(lambda copy=copy: copy.head >= head or not copy.is_followed, "its copies have it all")


def test_workers_that_share_a_valkey_never_contradict_each_other(valkey: Valkey) -> None:
    class Here(Workers):
        pass

    Here.valkey, Here.taken = valkey, Counter()
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    assert_taken(Here.taken, END_STORED)


def assert_taken(taken: Counter[str], *arrows: Arrow) -> None:
    """Hold what was taken against what must have been, whatever chance has played."""
    print(", ".join(f"{name} {count}" for name, count in taken.most_common()))
    assert set(taken) >= {arrow.name for arrow in arrows}


@pytest.mark.parametrize("settles", [True, False])
def test_worker_that_stood_still_and_was_taken_over_contradicts_nobody(valkey: Valkey, settles: bool) -> None:
    """The one game that chance seldom plays, with and without tokens on their way when it is stopped."""

    class Here(Workers):
        pass

    Here.valkey, Here.taken = valkey, Counter()
    game = Here()
    game.begin_workers()
    try:
        streams = [game.create(0), game.create(0)]
        for stream in streams:
            game.append(stream, ["a", "b"], settles)
        game.pause(streams[0], 1, True)
        assert streams[0].worker.is_paused
        game.go_on(True)
        # Whoever reads the other one before its end is stored may take it over too.
        for stream, at in ((streams[0], 1), (streams[1], 0)):
            log = asked(lambda at=at, stream=stream: game.workers[at].store.find(stream.stream_id))
            assert log.settle(20.0)
            wait_until(lambda log=log: not log.is_unresumable, "its end is stored")
        for stream in streams:
            for at in (2, 0, 1):
                game.read(stream, at)
        assert [stream.end.status for stream in streams] == ["failed", "complete"], (
            "the one that was read, and the other"
        )
    finally:
        game.teardown()
    # Who has shown what was still on its way to Valkey cannot follow the other worker's copy.
    is_ahead = not settles and CUT_OFF.name in Here.taken
    assert_taken(Here.taken, ADOPTED, END_READ, END_STORED, CUT_OFF if is_ahead else TAKEN_OVER)
