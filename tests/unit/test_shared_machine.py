"""Hypothesis plays at workers that share an engine: it begins, appends, ends, reads, crashes workers and loses keys.

What holds throughout: whatever a reader was shown, every later reader at any worker is shown too, in the same order;
a stream has one end, the same everywhere; and one whose worker has crashed gets one from somebody else.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule, run_state_machine_as_test

from app import errors
from app.streams.store import Binding
from tests.harness.engine import Engine
from tests.unit.shared import ORIGIN, Worker, end_with, wait_until

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


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
    terminal: Any = None
    may_be_gone: bool = False
    """The engine lost its keys after its end: it is not restored."""


class Workers(RuleBasedStateMachine):
    """Three workers, of which one may crash and another take its place."""

    engine: Engine

    streams = Bundle("streams")

    def __init__(self) -> None:
        super().__init__()
        self.database = self.engine.database()
        self.workers: list[Worker] = []
        self.keys = 0
        self.begun: list[Stream] = []

    @initialize()
    def begin_workers(self) -> None:
        self.workers = [Worker(self.database.url).start() for _ in range(3)]

    def teardown(self) -> None:
        for worker in self.workers:
            worker.close()
        self.database.client.flushdb()

    @rule(target=streams, at=st.integers(0, 2))
    def create(self, at: int) -> Stream:
        worker = self.workers[at]
        self.keys += 1
        binding = Binding(f"{self.keys:064}", "f")
        log, created = worker.store.create(ORIGIN, binding)
        assert created
        self.begun.append(Stream(log.stream_id, worker, log, binding))
        return self.begun[-1]

    @rule(stream=streams, chunks=st.lists(TEXTS, min_size=1, max_size=4), settles=st.booleans())
    def append(self, stream: Stream, chunks: list[str], settles: bool) -> None:
        if stream.worker not in self.workers:
            return
        assert stream.log.append(*chunks) is not stream.is_ended
        if not stream.is_ended:
            stream.chunks += chunks
            if settles:
                wait_until(lambda: stream.log.head == len(stream.chunks), "the chunks are shown")
                self.look(stream, stream.log)

    @rule(stream=streams, frees_key=st.booleans())
    def finish(self, stream: Stream, frees_key: bool) -> None:
        if stream.worker not in self.workers:
            return
        assert stream.log.finish(end_with(frees_key=frees_key)) is not stream.is_ended
        stream.is_ended = True
        assert stream.log.settle(20.0)
        if frees_key:
            stream.binding = Binding("", "")
        self.look(stream, stream.log)

    @rule(stream=streams, at=st.integers(0, 2))
    def read(self, stream: Stream, at: int) -> None:
        with contextlib.suppress(errors.StreamUnknown if stream.may_be_gone else ()):
            self.look(stream, self.workers[at].store.find(stream.stream_id, reach=stream.shown))

    @rule(stream=streams, at=st.integers(0, 2))
    def ask_again(self, stream: Stream, at: int) -> None:
        if stream.binding.key and not stream.may_be_gone and stream.worker in self.workers:
            log, created = self.workers[at].store.create(ORIGIN, stream.binding)
            assert (created, log.stream_id) == (False, stream.stream_id)
            with pytest.raises(errors.IdempotencyKeyReused):
                self.workers[at].store.create(ORIGIN, Binding(stream.binding.key, "another"))

    def look(self, stream: Stream, log: Any) -> None:
        """Hold what a log shows against what is true, and remember it."""
        terminal = log.terminal
        head = log.head
        text = log.text()
        if terminal is None:
            wait_until(lambda: log.head >= stream.shown, f"what was shown before: {log.head} of {stream.shown}")
            head = log.head
            text = log.text()
        assert head >= stream.shown
        assert text.startswith("".join(stream.chunks[:head]))
        assert "".join(stream.chunks).startswith(text)
        stream.shown = max(stream.shown, head)
        if terminal is not None:
            assert terminal.content["tokens"] == log.head
            assert terminal.content["sha256"] == hashlib.sha256(log.text().encode()).hexdigest()
            known = stream.terminal or terminal
            assert (terminal.event, terminal.content) == (known.event, known.content)
            stream.terminal = terminal
            assert stream.is_ended or stream.worker not in self.workers, "nobody ends what lives"

    @rule(at=st.integers(0, 2))
    def crash(self, at: int) -> None:
        """Kill a worker; a new one comes in its place."""
        self.workers[at].crash()
        self.workers[at] = Worker(self.database.url).start()

    @rule(stream=consumes(streams), at=st.integers(0, 2))
    def wait_for_the_end(self, stream: Stream, at: int) -> None:
        """A stream whose worker is gone ends all the same."""
        if stream.worker in self.workers or stream.may_be_gone:
            return
        log = self.workers[at].store.find(stream.stream_id)
        assert log.settle(20.0)
        self.look(stream, log)

    @rule()
    def lose_keys(self) -> None:
        """The engine forgets everything; what lives is written anew, what has ended may be gone."""
        self.database.client.flushdb()
        for stream in self.begun:
            if stream.is_ended or stream.worker not in self.workers:
                stream.may_be_gone = True
            else:
                key, _ = stream.worker.store.keys(stream.stream_id)
                wait_until(lambda key=key: self.database.client.exists(key), "it is written anew")


def test_workers_that_share_an_engine_never_contradict_each_other(engine: Engine) -> None:
    class Here(Workers):
        pass

    Here.engine = engine
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
