"""Test a generation: every way out writes one terminal event and nothing after it, and is booked once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from app import errors
from app.generation import run as generation
from app.generation.ending import end_lost
from app.generation.run import ATTEMPTS, Generation
from app.streams.interface import Origin
from app.streams.memory.store import MemoryStore
from app.upstream.interface import Forwarded, Part, Question
from tests.unit.conftest import Events
from tests.unit.ends import end_with
from tests.unit.fakes import PATIENCE_SECONDS, FakeUpstream, Gate, Last, Step, done, finish, texts, whole
from tests.unit.generations import BOUNDS, KEYS, PROMPT_TOKENS, QUESTION, Run, run


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
    """They come earlier after an answer that was whole, and later after one that was cancelled: it stays near."""
    winners = set()
    late = 0.0  # seconds from the answer's end to those who cancel; below zero the end is later
    for number in range(40):
        barrier = threading.Barrier(5)

        def meet(barrier: threading.Barrier = barrier, late: float = late) -> None:
            barrier.wait(PATIENCE_SECONDS)
            time.sleep(max(0.0, -late))  # the moment is the case

        script: list[Step] = [*texts("a"), meet, finish(), done()]
        made = Run(FakeUpstream(script))
        results: list[bool] = []

        def cancel(
            made: Run = made,
            barrier: threading.Barrier = barrier,
            results: list[bool] = results,
            late: float = late,
        ) -> None:
            barrier.wait(PATIENCE_SECONDS)
            time.sleep(max(0.0, late))  # the moment is the case
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
        late += 0.0005 if terminal.event == "cancelled" else -0.0005
        assert len(events.of("response_complete")) == number + 1
        assert events.of("response_complete")[-1]["status"] == terminal.content["status"]
    assert winners == {"done", "cancelled"}, "there was no race"


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


def test_generation_that_is_silent_until_its_end_waits_no_longer_for_an_upstream_that_refuses() -> None:
    """The client of an answer that is not streamed waits for as long, but not for this."""
    made = Run(FakeUpstream(errors.UpstreamRateLimited(retry_after_seconds=31), whole("a")))
    question = Forwarded("m", lambda left_out: b"{}", "chatcmpl-cwc_x", is_streamed=False)
    made.generation = Generation(made.log, question, upstream=made.upstream, bounds=BOUNDS)

    made.generation.run()

    assert made.generation.bounds.silence_seconds == BOUNDS.generation_seconds
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


def holds_question(made: Run) -> bool:
    """Tell whether the generation refers to its question in any way."""
    held = [*vars(made.generation).values(), *vars(made.generation.intake).values()]
    return any(QUESTION is value for value in held)


def test_generation_whose_log_was_ended_by_another_listens_no_longer() -> None:
    listened: list[int] = []
    made = Run(FakeUpstream())
    made.upstream.scripts = [
        [Part("a"), lambda: made.log.finish(end_with()), Part("b"), lambda: listened.append(1), *whole("c")]
    ]
    made.generation.run()

    assert (made.log.text(), listened) == ("a", [])
    assert made.upstream.answers[0].closed.is_set()


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


def test_log_that_no_worker_can_go_on_with_is_ended_and_booked_once(events: Events) -> None:
    store = MemoryStore(max_active=10, budget_bytes=10_000_000, retention_seconds=60)
    log, _ = store.create(Origin("c-1", "gpt-4o-mini", "2026-11-21T09:00:00.000Z"))
    log.append("a")

    for _ in range(2):
        end_lost(log, errors.ProducerLost())

    (booked,) = events.of("response_complete")
    assert (booked["status"], booked["tokens"], booked["correlation_id"]) == ("failed", 1, "c-1")
    assert [event["error_type"] for event in events.of("error_occurred")] == ["producer_lost"]
    assert log.end is not None
    assert booked["duration_ms"] == log.end.duration_ms > 0
