"""Test a generation: every way out writes one terminal event and nothing after it, and is booked once."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import pytest

from app import errors
from app.generation import run as generation
from app.generation.run import ATTEMPTS, Bounds, Generation, Generations
from app.streams.interface import Origin, StreamLog
from app.streams.memory.store import MemoryStore
from app.upstream.call import Call
from app.upstream.interface import Part, Question
from tests.unit.conftest import Events
from tests.unit.ends import Terminal, terminal_of
from tests.unit.fakes import PATIENCE_SECONDS, FakeUpstream, Gate, Last, Step, done, finish, texts, whole
from tests.unit.shared import wait_until

BOUNDS = Bounds(silence_seconds=30.0, generation_seconds=600.0, abandoned_seconds=300.0, answer_chars=1000)
QUESTION = Question([{"role": "user", "content": "Hello"}], "gpt-4o-mini", 256, None)
PROMPT_TOKENS = 8
KEYS = [
    "sequence",
    "is_final",
    "status",
    "finish_reason",
    "model",
    "tokens",
    "usage",
    "first_token_ms",
    "duration_ms",
    "characters",
    "sha256",
    "correlation_id",
]


class WatchedLog:
    """A log that notes what is asked of it, and may do something at it."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.appended: list[tuple[str, bool]] = []
        self.batches: list[tuple[str, ...]] = []
        self.finished: list[bool] = []
        self.at_append: Callable[[str], None] = lambda text: None
        self.after_append: Callable[[str], None] = lambda text: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append(self, *texts: str) -> bool:
        for text in texts:
            self.at_append(text)
        taken = bool(self._log.append(*texts))
        self.appended += [(text, taken) for text in texts]
        self.batches.append(texts)
        for text in texts:
            self.after_append(text)
        return taken

    def finish(self, end: Any) -> bool:
        won = bool(self._log.finish(end))
        self.finished.append(won)
        return won


class Run:
    """One generation and all that it wrote."""

    def __init__(self, upstream: FakeUpstream, bounds: Bounds = BOUNDS) -> None:
        store = MemoryStore(max_active=10, budget_bytes=10_000_000, retention_seconds=60)
        log, _ = store.create(Origin("c-1", "gpt-4o-mini", "2026-11-21T09:00:00.000Z", PROMPT_TOKENS))
        self.log = WatchedLog(log)
        self.upstream = upstream
        self.generation = Generation(self.log, QUESTION, upstream=upstream, bounds=bounds)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self.generation.run, daemon=True)
        self._thread.start()

    def join(self) -> Terminal:
        assert self._thread is not None
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), "the generation's thread goes on"
        return self.terminal

    @property
    def terminal(self) -> Terminal:
        """The one terminal event, once it has been seen that there is one and that nothing follows it."""
        terminal = terminal_of(self.log)
        assert self.log.finished.count(True) == 1
        content = terminal.content
        text = self.log.text()
        assert list(content)[: len(KEYS)] == KEYS
        assert content["is_final"] is True
        assert content["tokens"] == self.log.head == content["sequence"] - 1
        assert content["characters"] == len(text)
        assert content["sha256"] == hashlib.sha256(text.encode()).hexdigest()
        assert text == "".join(text for text, taken in self.log.appended if taken)
        assert content["correlation_id"] == "c-1"
        assert content["model"] == "gpt-4o-mini"
        assert {"complete": "done"}.get(content["status"], content["status"]) == terminal.event
        return terminal


def run(*scripts: Iterable[Step] | BaseException, half: str = "", bounds: Bounds = BOUNDS) -> Run:
    """Run a generation to its end in this thread."""
    made = Run(FakeUpstream(*scripts, half=half), bounds)
    made.generation.run()
    return made


def holds_question(made: Run) -> bool:
    """Tell whether the generation refers to its question in any way."""
    return any(QUESTION is value for value in vars(made.generation).values())


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "BACKOFF_SECONDS", 0.0)


# Complete


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "tool_calls"])
def test_generation_that_finishes_is_done_with_its_reason(reason: str, events: Events) -> None:
    made = run([*texts("He", "llo"), finish(reason), done()])

    assert made.terminal.event == "done"
    assert made.terminal.content["finish_reason"] == reason
    assert made.log.text() == "Hello"
    assert list(made.terminal.content) == KEYS
    assert made.log.end.frees_key is False
    assert made.upstream.answers[0].closed.is_set()


def test_generation_numbers_only_the_parts_that_add_text() -> None:
    made = run([Part(), Part("a"), Part(), Part(""), Part("b"), finish(), done()])

    assert made.terminal.content["tokens"] == 2


def test_generation_whose_stream_ends_after_the_finish_reason_without_done_is_done() -> None:
    assert run([*texts("a"), finish()]).terminal.event == "done"


def test_generation_with_done_and_without_finish_reason_is_done() -> None:
    made = run([*texts("a"), done()])

    assert made.terminal.event == "done"
    assert made.terminal.content["finish_reason"] is None


def test_generation_without_any_text_is_done_with_nothing() -> None:
    made = run([finish(), done()])

    assert made.terminal.event == "done"
    assert made.terminal.content["tokens"] == 0
    assert made.terminal.content["first_token_ms"] is None


def test_generation_given_more_after_done_takes_none_of_it() -> None:
    made = run([*whole("a"), Part("b"), done(), errors.UpstreamError()])

    assert made.terminal.event == "done"
    assert made.log.text() == "a"


# Failed


@pytest.mark.parametrize("after", [0, 1, 5])
def test_generation_broken_off_without_finish_reason_or_done_has_failed(after: int) -> None:
    made = run(texts(*"abcdefgh"[:after]))

    terminal = made.terminal
    assert terminal.event == "failed"
    assert terminal.content["error"]["error_code"] == "upstream_error"
    assert terminal.content["error"]["correlation_id"] == "c-1"
    assert terminal.content["tokens"] == after
    assert list(terminal.content) == [*KEYS, "error"]
    assert terminal.frees_key is (after == 0)


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("kind", [k for k in errors.walk() if k.origin == "upstream"], ids=lambda k: k.__name__)
def test_generation_whose_upstream_fails_fails_with_that_error(kind: type[errors.UpstreamError], after: int) -> None:
    made = run([*texts(*"abc"[:after]), kind()])

    terminal = made.terminal
    assert terminal.event == "failed"
    assert terminal.content["error"]["error_code"] == kind.error_code
    assert terminal.content["tokens"] == after
    assert terminal.frees_key is (kind.retryable and after == 0)
    assert made.upstream.answers[0].closed.is_set()


def test_generation_that_meets_a_bug_of_ours_fails_as_an_internal_error(events: Events) -> None:
    for script in ([*texts("a"), RuntimeError("secret words")], RuntimeError("secret words")):
        made = run(script)
        assert made.terminal.event == "failed"
        assert made.terminal.content["error"]["error_code"] == "internal_error"
        assert "secret words" not in str(made.terminal)
    assert [record["error_type"] for record in events.of("error_occurred")] == ["internal_error"] * 2


def test_generation_longer_than_an_answer_may_be_fails_with_what_there_was() -> None:
    made = run(whole("a" * 999, "é", "b"))

    assert made.terminal.event == "failed"
    assert made.terminal.content["error"]["error_code"] == "upstream_error"
    assert made.terminal.content["characters"] == 1000
    assert run(whole("a" * 999, "é")).terminal.event == "done"


def test_generation_without_memory_for_its_text_fails_as_overloaded() -> None:
    made = Run(FakeUpstream(whole("a", "b")))

    def refuse(text: str) -> None:
        if text == "b":
            raise errors.Overloaded

    made.log.at_append = refuse
    made.generation.run()

    assert made.terminal.content["error"]["error_code"] == "overloaded"
    assert made.log.text() == "a"


@pytest.mark.parametrize("script", [[Part("a"), Part("b")], [Part("a"), finish(), done()], [Part("a")]])
def test_generation_without_memory_for_its_pending_half_ends_all_the_same(script: list[Step]) -> None:
    made = Run(FakeUpstream(script, half="\ufffd"))

    def refuse(text: str) -> None:
        if text != "a":
            raise errors.Overloaded

    made.log.at_append = refuse
    try:
        made.generation.run()
    except errors.Overloaded:
        pytest.fail("the generation's thread died of it, and its readers wait for ever")

    assert made.terminal.content["tokens"] == 1


# Half a character


@pytest.mark.parametrize("script", [whole("a"), texts("a"), [*texts("a"), errors.UpstreamError()]])
def test_generation_with_half_a_character_pending_appends_it_before_the_terminal(script: list[Step]) -> None:
    made = run(script, half="\ufffd")

    assert made.terminal.content["tokens"] == 2
    assert made.log.text() == "a\ufffd"


def test_generation_cancelled_with_half_a_character_pending_appends_it_before_the_terminal(gate: Gate) -> None:
    made = Run(FakeUpstream([*texts("a"), gate], half="\ufffd"))
    made.start()
    gate.wait_reached()

    assert made.generation.cancel("client")

    assert made.join().content["tokens"] == 2


# Cancelled


@pytest.mark.parametrize("reason", ["client", "abandoned", "shutdown"])
@pytest.mark.parametrize("after", [0, 2])
def test_generation_cancelled_keeps_its_text_and_closes_the_call(gate: Gate, reason: str, after: int) -> None:
    made = Run(FakeUpstream([*texts(*"ab"[:after]), gate, *whole("c")]))
    made.start()
    gate.wait_reached()

    assert made.generation.cancel(reason) is True
    assert made.generation.cancel("client") is False

    terminal = made.join()
    assert (terminal.event, terminal.content["reason"]) == ("cancelled", reason)
    assert list(terminal.content) == [*KEYS, "reason"]
    assert made.log.text() == "ab"[:after]
    assert made.upstream.calls[0].cancelled
    assert made.upstream.answers[0].closed.is_set()
    assert terminal.frees_key is False


def test_generation_cancelled_before_it_asks_asks_nothing() -> None:
    made = Run(FakeUpstream(whole("a")))
    assert made.generation.cancel("client")

    made.generation.run()

    assert made.terminal.event == "cancelled"
    assert made.upstream.questions == []


def test_generation_cancelled_while_it_waits_to_ask_again_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "BACKOFF_SECONDS", 0.0)
    asked = threading.Event()

    class Upstream(FakeUpstream):
        def ask(self, *arguments: Any) -> Any:
            asked.set()
            return super().ask(*arguments)

    made = Run(Upstream(errors.UpstreamRateLimited(retry_after_seconds=29)))
    made.start()
    assert asked.wait(PATIENCE_SECONDS)

    assert made.generation.cancel("client")

    assert made.join().event == "cancelled"
    assert len(made.upstream.questions) == 1


def test_generation_cancelled_after_its_end_stays_done() -> None:
    made = run(whole("a"))

    assert made.generation.cancel("client") is False
    assert made.generation.fail(errors.UpstreamTimeout()) is False
    assert made.terminal.event == "done"


def test_generation_cancelled_by_many_threads_while_it_ends_is_booked_once(events: Events) -> None:
    winners = set()
    for number in range(40):
        barrier = threading.Barrier(5)
        script: list[Step] = [*texts("a"), finish(), lambda barrier=barrier: barrier.wait(PATIENCE_SECONDS), done()]
        made = Run(FakeUpstream(script))
        results: list[bool] = []

        def cancel(made: Run = made, barrier: threading.Barrier = barrier, results: list[bool] = results) -> None:
            barrier.wait(PATIENCE_SECONDS)
            results.append(made.generation.cancel("client"))

        threads = [threading.Thread(target=cancel) for _ in range(4)]
        for thread in threads:
            thread.start()
        made.start()
        terminal = made.join()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert results.count(True) == (terminal.event == "cancelled")
        winners.add(terminal.event)
        assert len(events.of("response_complete")) == number + 1
        assert events.of("response_complete")[-1]["status"] == terminal.content["status"]
    assert winners <= {"done", "cancelled"}


# Deadlines


def check_at(made: Run, seconds: float) -> None:
    """Look at the deadlines as the clock would, so long after the last sign of life."""
    made.generation.check(made.generation.last_life + seconds)


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
    assert "silent for 30 seconds" in error["detail"]
    assert made.upstream.calls[0].cancelled
    assert terminal.content["tokens"] == after


def test_generation_takes_a_part_without_text_for_a_sign_of_life(gate: Gate) -> None:
    made = Run(FakeUpstream([Part(), gate, *whole("a")]))
    began = made.generation.last_life
    made.start()
    gate.wait_reached()

    assert made.generation.last_life > began
    gate.open()
    assert made.join().event == "done"


def test_generation_longer_than_allowed_fails_and_says_so(gate: Gate) -> None:
    made = Run(FakeUpstream([*texts("a"), gate]))
    made.start()
    gate.wait_reached()
    made.generation.last_life += 600  # one token each now and then, for ever

    with made.log.reader(0):
        made.generation.check(made.generation.started + 599.9)
        assert made.log.end is None
        made.generation.check(made.generation.started + 600.1)

    error = made.join().content["error"]
    assert error["error_code"] == "upstream_timeout"
    assert "600 seconds" in error["detail"]


COMMENT: list[Part] = []


@pytest.mark.parametrize("comments", [0, 1, 5])
def test_whole_answer_followed_by_comments_is_done_when_it_was_silent_for_too_long(gate: Gate, comments: int) -> None:
    made = Run(FakeUpstream([*texts("a"), finish(), Part(), lambda: lives.append(now()), *[COMMENT] * comments, gate]))
    lives: list[float] = []

    def now() -> float:
        return made.generation.last_life

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
        return made.generation.last_life

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
        return made.generation.last_life

    made.start()
    gate.wait_reached()
    assert now() > lives[0]
    gate.open()
    made.join()


def test_whole_answer_that_goes_on_without_text_for_longer_than_allowed_is_done(gate: Gate) -> None:
    made = Run(FakeUpstream([*texts("a"), finish(), gate]))
    made.start()
    gate.wait_reached()
    made.generation.last_life += 600  # a part without text each now and then, for ever

    with made.log.reader(0):
        made.generation.check(made.generation.started + 599.9)
        assert made.log.end is None
        made.generation.check(made.generation.started + 600.1)
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
    made.generation.last_life += 400
    with made.log.reader(0):
        made.generation.check(made.generation.started + 350)
        assert made.log.end is None, "a reader keeps it"
    left = made.log.unread_since
    made.generation.check(left + 299.9)
    assert made.log.end is None, "and leaving starts the time anew"

    made.generation.check(left + 300.1)

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


# Asking again


@pytest.mark.parametrize("kind", [errors.UpstreamUnavailable, errors.UpstreamRateLimited])
def test_generation_refused_before_its_first_token_asks_again(kind: type[errors.UpstreamError], events: Events) -> None:
    made = run(kind(), kind(), whole("a"))

    assert made.terminal.event == "done"
    assert len(made.upstream.questions) == 3
    assert len(events.of("upstream_retry")) == 2


@pytest.mark.parametrize("kind", [errors.UpstreamUnavailable, errors.UpstreamRateLimited])
def test_generation_refused_for_ever_asks_three_times(kind: type[errors.UpstreamError]) -> None:
    made = run(kind())

    assert ATTEMPTS == 3
    assert made.terminal.content["error"]["error_code"] == kind.error_code
    assert len(made.upstream.questions) == 3
    assert made.terminal.frees_key is True


@pytest.mark.parametrize(
    "kind",
    [
        errors.UpstreamError,
        errors.UpstreamAuthFailed,
        errors.ContentFiltered,
        errors.PromptRefusedAsTooLong,
        errors.UpstreamTimeout,
    ],
)
def test_generation_refused_for_good_does_not_ask_again(kind: type[errors.UpstreamError]) -> None:
    made = run(kind(), whole("a"))

    assert made.terminal.content["error"]["error_code"] == kind.error_code
    assert len(made.upstream.questions) == 1


@pytest.mark.parametrize("first", [Part("a"), Part()])
def test_generation_that_fails_in_mid_answer_does_not_ask_again(first: Part) -> None:
    made = run([first, errors.UpstreamUnavailable()], whole("b"))

    assert made.terminal.event == "failed"
    assert len(made.upstream.questions) == 1


class Waits:
    """Stand for the event on which a generation waits between two attempts."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    def is_set(self) -> bool:
        return False

    def set(self) -> None: ...

    def wait(self, seconds: float) -> bool:
        self.delays.append(seconds)
        return False


def delays_of(monkeypatch: pytest.MonkeyPatch, error: errors.UpstreamError, jitter: float) -> list[float]:
    monkeypatch.setattr(generation, "BACKOFF_SECONDS", 0.5)
    monkeypatch.setattr(generation.random, "uniform", lambda low, high: low + jitter * (high - low))
    made = Run(FakeUpstream(error))
    made.generation._stopped = waits = Waits()  # type: ignore[assignment]
    made.generation.run()
    assert made.terminal.event == "failed"
    return waits.delays


@pytest.mark.requirement("core risk 2")
def test_generation_backs_off_exponentially_with_full_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert delays_of(monkeypatch, errors.UpstreamUnavailable(), 1.0) == [0.5, 1.0]
    assert delays_of(monkeypatch, errors.UpstreamUnavailable(), 0.5) == [0.25, 0.5]
    assert delays_of(monkeypatch, errors.UpstreamUnavailable(), 0.0) == [0.0, 0.0]


def test_generation_honours_a_retry_after_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    error = errors.UpstreamRateLimited(retry_after_seconds=7)

    assert delays_of(monkeypatch, error, 1.0) == [7.0, 7.0]


def test_generation_whose_retry_after_does_not_fit_passes_it_on_at_once() -> None:
    made = run(errors.UpstreamRateLimited(retry_after_seconds=31), whole("a"))

    assert len(made.upstream.questions) == 1
    assert made.terminal.content["error"]["retry_after_seconds"] == 31


def test_generation_near_its_deadline_does_not_back_off_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "BACKOFF_SECONDS", 0.5)
    monkeypatch.setattr(generation.random, "uniform", lambda low, high: high)
    made = Run(FakeUpstream(errors.UpstreamUnavailable()))
    made.generation.started -= 29.9

    made.generation.run()

    assert len(made.upstream.questions) == 1


# Usage

PROVIDED = {"prompt_tokens": 31, "completion_tokens": 2, "total_tokens": 33}
PROVIDER = {**PROVIDED, "source": "provider"}


def estimated(completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": completion,
        "total_tokens": PROMPT_TOKENS + completion,
        "source": "estimated",
    }


@pytest.mark.parametrize(
    "script",
    [
        [*texts("Hello", " world"), finish(), Part(usage=PROVIDED), done()],
        [Part(usage=PROVIDED), *texts("Hello", " world"), finish(), done()],
        [*texts("Hello", " world"), Part(finish_reason="stop", usage=PROVIDED), done()],
        [Part(usage={**PROVIDED, "completion_tokens": 1}), *texts("Hello"), Part(usage=PROVIDED), finish(), done()],
        [*texts("Hello", " world"), Part(usage=PROVIDED), Part(usage={"prompt_tokens": -1}), finish(), done()],
    ],
    ids=["last", "first", "with the reason", "twice", "then nonsense"],
)
def test_usage_of_a_whole_answer_is_the_providers(script: list[Step]) -> None:
    assert run(script).terminal.content["usage"] == PROVIDER


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 5}, "many", {**PROVIDED, "completion_tokens": 0}])
def test_usage_that_is_missing_or_denies_the_text_is_counted_here(usage: Any) -> None:
    made = run([*texts("hello", " world"), finish(), Part(usage=usage), done()])

    assert made.terminal.content["usage"] == estimated(2)


def test_usage_of_an_answer_that_broke_off_is_counted_here(gate: Gate) -> None:
    failed = run([*texts("hello"), Part(usage=PROVIDED), errors.UpstreamError()])
    assert failed.terminal.content["usage"] == estimated(1)

    made = Run(FakeUpstream([*texts("hello"), Part(usage=PROVIDED), gate]))
    made.start()
    gate.wait_reached()
    made.generation.cancel("client")
    assert made.join().content["usage"] == estimated(1)


# What it tells the log


@pytest.mark.requirement("core SC-006")
def test_generation_is_booked_once_with_its_figures(events: Events) -> None:
    made = run([*texts("hello"), finish(), Part(usage=PROVIDED), done()])

    (booked,) = events.of("response_complete")
    assert booked["status"] == "complete"
    assert booked["usage"] == PROVIDER
    assert booked["tokens"] == 1
    assert booked["finish_reason"] == "stop"
    assert booked["rate_limits"] == {"x-ratelimit-remaining-requests": "9"}
    assert booked["correlation_id"] == "c-1"
    assert made.log.stream_id not in str([record.__dict__ for record in events.records])


def test_generation_keeps_a_finish_reason_of_the_upstreams_own_out_of_the_log(events: Events) -> None:
    run([*texts("hello"), finish("words of a conversation"), done()])

    assert events.of("response_complete")[0]["finish_reason"] is None


@pytest.mark.parametrize("reason", ["x" * 100_000, "half \ud83d", "\r\nid: 5"])
def test_generation_given_a_hostile_finish_reason_does_not_pass_it_on(reason: str) -> None:
    made = run([*texts("hello"), finish(reason), done()])

    assert made.terminal.event == "done"
    assert made.terminal.content["finish_reason"] != reason


def sequences(events: Events) -> list[int]:
    return [sequence for record in events.of("chunks_sent") for sequence in range(record["first"], record["last"] + 1)]


def test_generation_logs_every_chunk_that_it_appended(events: Events) -> None:
    made = run(whole("a", "b", "c"))

    assert sequences(events) == [1, 2, 3]
    assert made.terminal.content["tokens"] == 3


def test_generation_logs_the_pending_half_as_a_chunk_too(events: Events) -> None:
    made = run(whole("a"), half="\ufffd")

    assert made.terminal.content["tokens"] == 2
    assert sequences(events) == [1, 2]


def test_generation_cancelled_between_a_chunk_and_its_note_logs_that_chunk(events: Events) -> None:
    made = Run(FakeUpstream(whole("a", "b", "c")))
    made.log.after_append = lambda text: text == "b" and made.generation.cancel("client") and None

    made.generation.run()

    assert made.terminal.content["tokens"] == 2
    assert sequences(events) == [1, 2]


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
        broken.setattr(unjudged, "due", fail)
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
        generations._live[logs[0].stream_id].last_life += 31
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


def test_generation_given_text_after_its_finish_reason_that_does_not_fit_fails_and_hides_no_hole() -> None:
    made = run([*texts("hello"), finish("stop"), *texts("x" * (BOUNDS.answer_chars + 1)), done()])

    assert made.terminal.event == "failed"
    assert made.terminal.content["error"]["error_code"] == "upstream_error"
    assert made.terminal.content["tokens"] == 1


# What comes together


def test_generation_appends_the_chunks_that_came_together_in_one_step(events: Events) -> None:
    made = run([texts("a", "é", "😀"), [Part()], [], [Part("b"), finish()], done()])

    assert made.log.batches == [("a", "é", "😀"), ("b",)]
    assert (made.terminal.event, made.terminal.content["tokens"], made.log.text()) == ("done", 4, "aé😀b")
    (line,) = events.of("chunks_sent")
    assert (line["first"], line["last"], line["bytes"], len(line["ms"])) == (1, 4, [1, 2, 4, 1], 4)


@pytest.mark.parametrize("kind", [list, Last], ids=["more follows", "that was all"])
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_generation_given_its_end_among_other_parts_takes_what_came_before_it(kind: Any, at: int) -> None:
    """Text after `[DONE]` is nobody's, whatever comes with it and whether or not the bytes end there."""
    batch = [Part("a"), Part("b"), finish("length")]
    made = run([kind([*batch[:at], done(), Part("x"), *batch[at:], done(), Part("y")]), Part("z"), [Part("z")]])

    assert made.terminal.event == "done"
    assert made.terminal.content["finish_reason"] == ("length" if at == 3 else None)
    assert made.log.text() == "ab"[:at]
    assert made.upstream.answers[0].closed.is_set()


def test_generation_takes_usage_and_reason_that_come_with_its_end() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    made = run([Last([Part("a"), finish("length"), Part(usage=usage), done()])])

    assert made.terminal.content["finish_reason"] == "length"
    assert made.terminal.content["usage"] == {**usage, "source": "provider"}


def test_generation_that_breaks_off_behind_a_batch_keeps_the_batch() -> None:
    for script in ([Last(texts("a", "b"))], [texts("a", "b"), errors.UpstreamUnavailable()]):
        made = run(script)
        assert (made.terminal.event, made.log.text()) == ("failed", "ab")


@pytest.mark.parametrize("kind", [list, Last])
def test_generation_that_grows_too_long_within_a_batch_keeps_what_fitted(kind: Any, events: Events) -> None:
    made = run([kind([Part("a" * 998), Part("é"), Part("b"), Part("c"), Part(""), *whole("d")])])

    assert made.terminal.event == "failed"
    assert made.terminal.content["error"]["error_code"] == "upstream_error"
    assert made.log.text() == "a" * 998 + "éb"
    (line,) = events.of("chunks_sent")
    assert line["bytes"] == [998, 2, 1]


def test_generation_too_long_with_its_first_chunk_appends_nothing() -> None:
    made = run([texts("a" * 1001, "b")])

    assert (made.terminal.event, made.terminal.content["tokens"], made.log.batches) == ("failed", 0, [])
    assert made.terminal.content["first_token_ms"] is None


def test_generation_without_memory_for_a_batch_shows_none_of_it(events: Events) -> None:
    made = Run(FakeUpstream([texts("a"), texts("b", "c"), *whole("d")]))

    def refuse(text: str) -> None:
        if text == "c":
            raise errors.Overloaded

    made.log.at_append = refuse
    made.generation.run()

    assert made.terminal.content["error"]["error_code"] == "overloaded"
    assert made.log.text() == "a"
    assert [line["bytes"] for line in events.of("chunks_sent")] == [[1]]


@pytest.mark.parametrize("last", [list, Last])
def test_generation_cancelled_before_a_batch_takes_none_of_it_and_no_end_from_it(last: Any, events: Events) -> None:
    made = Run(FakeUpstream())
    listened: list[int] = []
    batch = last([Part("b"), *whole("c")])
    made.upstream.scripts = [
        [Part("a"), lambda: made.generation.cancel("client"), batch, lambda: listened.append(1), *whole("d")]
    ]
    made.generation.run()

    assert made.terminal.event == "cancelled"
    assert (made.log.text(), listened) == ("a", [])
    assert [line["bytes"] for line in events.of("chunks_sent")] == [[1]]
    assert len(events.of("response_complete")) == 1


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

    def pending(self) -> str:
        return ""

    def close(self) -> None: ...


def test_generation_whose_upstream_goes_on_for_ever_after_done_is_done_and_lets_it_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Run(FakeUpstream())
    monkeypatch.setattr(made.upstream, "ask", lambda _, call: EndlessAnswer(call))
    monkeypatch.setattr(generation, "TAIL_SECONDS", 0.05)
    made.start()
    until = time.monotonic() + PATIENCE_SECONDS
    while made.log.end is None:
        assert time.monotonic() < until
        time.sleep(0.001)
    ended = time.monotonic()
    assert made.generation._answer.more < 1000, "the end is told before the upstream has ended"

    while made._thread.is_alive() and time.monotonic() < ended + 5:
        made.generation.check_tail(time.monotonic())
        time.sleep(0.005)

    assert (made.join().event, made.log.text()) == ("done", "a")
    assert time.monotonic() - ended >= 0.04
    assert made.generation._answer.more > 3, "listened to meanwhile"


# The question is held, and counted, until it is answered


def test_question_is_held_until_the_head_of_its_answer_is_there(gate: Gate) -> None:
    seen: list[bool] = []
    made = Run(FakeUpstream([lambda: seen.append(holds_question(made)), *whole("Hello")]))
    assert holds_question(made)
    made.generation.run()
    assert made.terminal.event == "done"
    assert seen == [False]


@pytest.mark.parametrize("error", [errors.UpstreamError("no"), RuntimeError("no")])
def test_question_that_was_not_answered_is_not_held(error: Exception) -> None:
    made = run(error)
    assert made.terminal.event == "failed"
    assert not holds_question(made)


def test_question_is_counted_until_the_head_of_its_answer_is_there() -> None:
    store = MemoryStore(max_active=10, budget_bytes=10_000_000, retention_seconds=60)
    log, _ = store.create(Origin("c-1", "m", "2026-11-21T09:00:00.000Z"), prompt_bytes=1_000_000)
    counted: list[int] = []
    upstream = FakeUpstream([lambda: counted.append(store.used_bytes), *whole("Hello")])
    assert store.used_bytes > 1_000_000
    Generation(log, QUESTION, upstream=upstream, bounds=BOUNDS).run()
    assert counted[0] < 10_000


def test_question_takes_its_messages_and_the_body_that_they_are_sent_in() -> None:
    text = "x" * 1000
    question = Question([{"role": "user", "content": text}] * 10, "m", 1, None)
    assert 20_000 < question.held_bytes < 30_000
