"""Runs one generation: the upstream's answer into a log, whatever happens to its readers.

Owns the deadlines, the retries, the one terminal event, and the one broad `except` on an answer's way. A
generation ends exactly once: `StreamLog.finish` lets the first reason win, from whichever thread it comes.
"""

from __future__ import annotations

import contextlib
import logging
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from app import errors
from app.observability import facts
from app.observability.chunk_log import ChunkLog
from app.observability.exceptions import describe
from app.observability.observer import tell
from app.streams.interface import End, Origin, StreamLog, Totals, log_name
from app.tokens.usage import Usage, estimated_usage, provider_usage
from app.upstream import Answer, Call, Part, Question, Upstream

__all__ = ["Bounds", "Generation", "Generations", "end_lost"]

ATTEMPTS = 3
BACKOFF_SECONDS = 0.5
TAIL_SECONDS = 2.0
SETTLE_SECONDS = 10.0
"""How long a generation still counts as live after its end was decided, until that is stored and shown."""

BETWEEN_ENDS_SECONDS = 0.001
"""How long the others have at least between two ends that are due together."""

KNOWN_FINISH_REASONS = ("stop", "length", "content_filter", "tool_calls", "function_call")

_log = logging.getLogger(__name__)

_FINISH_REASON = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long and how much. Units: seconds, characters."""

    silence_seconds: float
    generation_seconds: float
    abandoned_seconds: float
    answer_chars: int


@dataclass(frozen=True, slots=True)
class _Ending:
    """Why a generation ends: completed, cancelled for a reason, or failed with an error."""

    reason: str | None = None
    error: errors.ChatError | None = None
    cause: BaseException | None = None


class _Stopped(Exception):
    """The log has ended; nothing more is wanted of the upstream."""


class Turns:
    """One end at a time, and a moment for others behind each: an outage ends hundreds at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        try:
            time.sleep(BETWEEN_ENDS_SECONDS)
        finally:
            self._lock.release()


class Generation:
    """One generation, in a thread of its own from `run` to its terminal event."""

    def __init__(
        self, log: StreamLog, question: Question, *, upstream: Upstream, bounds: Bounds, turns: Turns | None = None
    ) -> None:
        """`turns`: what fails at the same moment as others ends in its turn."""
        self.log = log
        self.started = time.monotonic()
        self.last_life = self.started
        self._upstream = upstream
        self._bounds = bounds
        self._question: Question | None = question
        self._turns = turns or Turns()
        self._call = Call()
        self._stopped = threading.Event()
        self._answer: Answer | None = None
        self._finish_reason: str | None = None
        self._whole = False
        self._done = False
        self._usage: Usage | None = None
        self._first_token_ms: int | None = None
        self._room = bounds.answer_chars
        self._name = log_name(log.stream_id)
        self._chunks = ChunkLog(
            stream=self._name, correlation_id=log.origin.correlation_id, started=self.started, sizes=log.sizes
        )

    # The way of the answer

    def run(self) -> None:
        """Ask, read the answer into the log, and end it; returns when nothing of it is left running."""
        try:
            self._answer = self._ask()
            self._forget_question()
            self.last_life = time.monotonic()
            self._read(self._answer)
            self.end()
        except _Stopped:
            self._fail(errors.InternalError())  # does nothing, unless whoever was ending it has failed to
        except errors.ChatError as error:
            with self._turns:
                if self._whole:
                    self.end()  # the answer was there before its stream went wrong
                else:
                    self._fail(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, its readers get their terminal event
            with self._turns:
                self._fail(errors.InternalError(), error)
        finally:
            self._forget_question()
            self._chunks.flush(time.monotonic())  # one that was appended while another thread ended the log
            if self._answer is not None:
                self._answer.close()

    def _forget_question(self) -> None:
        """Hold it no longer than it is needed: it may be as large as many answers."""
        self._question = None
        self.log.release_prompt()

    def _ask(self) -> Answer:
        """Ask, and again after what may pass: only here, where not a token has come yet."""
        attempt = 1
        assert self._question is not None
        while True:
            if self._stopped.is_set():
                raise _Stopped
            try:
                return self._upstream.ask(self._question, self._call)
            except (errors.UpstreamUnavailable, errors.UpstreamRateLimited) as error:
                asked = attempt + self._call.asked_again
                delay = self._delay(error, asked)
                if delay is None:
                    raise
                tell(
                    facts.UpstreamRetried(
                        stream=self._name,
                        correlation_id=self.log.origin.correlation_id,
                        attempt=asked,
                        error_code=error.error_code,
                        delay_ms=int(delay * 1000),
                        cause=_cause(error),
                    )
                )
            self._stopped.wait(delay)
            attempt += 1

    def _delay(self, error: errors.UpstreamError, asked: int) -> float | None:
        """Choose how long to wait before the next attempt; None when there is none. Units: seconds."""
        if asked >= ATTEMPTS or self._stopped.is_set():
            return None
        left = self.started + self._bounds.silence_seconds - time.monotonic()
        delay = random.uniform(0, BACKOFF_SECONDS * 2 ** (asked - 1))
        if error.retry_after_seconds is not None:
            delay = max(delay, float(error.retry_after_seconds))
        return delay if delay < left else None

    def _read(self, answer: Answer) -> None:
        more = True
        while more:
            more = answer.receive(self._take)
            if self._done:
                self.end()  # here and not in `_take`, because it may wait
            elif more:
                raise _Stopped  # the log takes no more
        if self._stopped.is_set():
            raise _Stopped
        if self._finish_reason is None and self.log.end is None:
            raise errors.UpstreamError("The model's server broke off in the middle of its answer.")

    def _take(self, parts: Sequence[Part]) -> bool:
        """Take what came; False when the answer or its log has ended. Must not wait."""
        if self._done:
            return True  # nothing is wanted any more but the end of its bytes, for `check_tail` not for ever
        if self._stopped.is_set():
            return False  # it was ended from outside: whatever still comes must not keep the call open
        now = time.monotonic()
        if not self._whole:  # behind a whole answer only what says something new is life: the rest could go on for ever
            self.last_life = now
        texts: list[str] = []
        too_long = False
        for part in parts:
            if text := part.text:
                self._whole = False  # also after a finish reason: what fails here would be a hole
                self._room -= len(text)
                if self._room < 0:
                    too_long = True
                    break
                texts.append(text)
            if part.finish_reason:
                self._whole = True
                known = _FINISH_REASON.fullmatch(part.finish_reason)
                self._finish_reason = part.finish_reason if known else "unknown"
            if part.usage is not None and (usage := provider_usage(part.usage)):
                if self._usage is None:
                    self.last_life = now
                self._usage = usage
            if part.done:
                self._done = True
                break
        if texts:
            self.last_life = now
            if self._first_token_ms is None:
                self._first_token_ms = int((now - self.started) * 1000)
            if not self.log.append(*texts):
                self._done = False
                return False
            self._chunks.add(len(texts), now)
        if too_long:
            raise errors.UpstreamError("The answer is longer than this server takes.")
        return not self._done

    # The ends

    def end(self) -> bool:
        """End as complete."""
        return self._end(_Ending())

    def cancel(self, reason: str) -> bool:
        """End as cancelled by `client`, `abandoned` or `shutdown`; False when it had ended already."""
        return self._end(_Ending(reason=reason))

    def fail(self, error: errors.ChatError) -> bool:
        return self._end(_Ending(error=error))

    def abort(self) -> None:
        """Stop, and write no end: the log is another's now."""
        self._stopped.set()
        self._call.cancel()

    def _fail(self, error: errors.ChatError, cause: BaseException | None = None) -> None:
        self._end(_Ending(error=error, cause=cause or error))

    def due(self, now: float) -> Callable[[], bool] | None:
        """Return what ends it, if it has outlived one of its deadlines. Units: monotonic seconds."""
        bounds = self._bounds
        is_silent = now - self.last_life > bounds.silence_seconds
        is_long = now - self.started > bounds.generation_seconds
        if self._whole and (is_silent or is_long):
            return self.end  # the answer is whole, only its end is missing
        if is_silent:
            silent = errors.UpstreamTimeout(f"It was silent for {bounds.silence_seconds:g} seconds.")
            return lambda: self.fail(silent)
        if is_long:
            long = errors.UpstreamTimeout(
                f"The answer was not complete after {bounds.generation_seconds:g} seconds, the longest allowed."
            )
            return lambda: self.fail(long)
        if (unread_since := self.log.unread_since) and now - unread_since > bounds.abandoned_seconds:
            return lambda: self.cancel("abandoned")
        return None

    def check(self, now: float) -> None:
        """End it, if it has outlived one of its deadlines. Units: monotonic seconds."""
        if end := self.due(now):
            end()

    def check_tail(self, now: float) -> None:
        """Let go of an upstream that does not end its stream after the answer's end."""
        if now - self.last_life > TAIL_SECONDS:
            self._call.cancel()

    def _end(self, ending: _Ending) -> bool:
        self._append_half()
        end: End | None = None

        def write(totals: Totals) -> End:
            nonlocal end
            end = self._written(ending, totals)
            return end

        if not self.log.finish(write):
            return False
        self._stopped.set()
        if ending.reason or ending.error:
            self._call.cancel()
        assert end is not None
        self._report(ending, end)
        return True

    def _append_half(self) -> None:
        """Show half a character that nothing will complete any more as what it is."""
        half = self._answer.pending() if self._answer is not None else ""
        if half:
            with contextlib.suppress(errors.Overloaded):
                if self.log.append(half):
                    self._chunks.add(1, time.monotonic())

    def _written(self, ending: _Ending, totals: Totals) -> End:
        usage = self._usage
        # Figures that came before the end are of the part until then: good only for a whole answer, and not
        # when they deny the text that is there.
        is_whole = not ending.reason and not ending.error
        if not is_whole or usage is None or not (usage.completion_tokens or not totals.records):
            usage = None
        return _written(
            ending,
            totals,
            self.log.origin,
            usage=usage,
            finish_reason=self._finish_reason,
            first_token_ms=self._first_token_ms,
            duration_ms=int((time.monotonic() - self.started) * 1000),
        )

    def _report(self, ending: _Ending, end: End) -> None:
        """Book the generation: called by the one `_end` that won, so once."""
        self._chunks.flush(time.monotonic())
        rate_limits = dict(self._answer.rate_limits) if self._answer is not None else {}
        _report(self.log, ending, end, rate_limits)


def _written(
    ending: _Ending,
    totals: Totals,
    origin: Origin,
    *,
    usage: Usage | None = None,
    finish_reason: str | None = None,
    first_token_ms: int | None = None,
    duration_ms: int,
) -> End:
    """Write how it ended; without the provider's `usage` it is estimated."""
    return End(
        status="cancelled" if ending.reason else "failed" if ending.error else "complete",
        records=totals.records,
        characters=totals.characters,
        sha256=totals.sha256,
        usage=usage or estimated_usage(origin.prompt_tokens, totals.text, origin.model),
        finish_reason=finish_reason,
        first_token_ms=first_token_ms,
        duration_ms=duration_ms,
        reason=ending.reason,
        error=ending.error.failure if ending.error else None,
    )


def _report(log: StreamLog, ending: _Ending, end: End, rate_limits: dict[str, str]) -> None:
    name, correlation_id = log_name(log.stream_id), log.origin.correlation_id
    if ending.error is not None:
        tell(
            facts.GenerationFailed(
                error_type=ending.error.error_code,
                error_message=ending.error.message,
                detail=ending.error.detail,
                recovery_action=ending.error.action,
                stream=name,
                correlation_id=correlation_id,
                origin=ending.error.origin,
                exception=describe(ending.cause) if ending.cause is not None else None,
            )
        )
    reason = ending.reason  # and no more of the end: its error may hold on to much

    def write(outcome: str) -> None:
        fact = facts.GenerationCutOff if outcome == "response_cut_off" else facts.GenerationEnded
        tell(
            fact(
                status=end.status,
                reason=reason,
                model=log.origin.model,
                finish_reason=end.finish_reason if end.finish_reason in KNOWN_FINISH_REASONS else None,
                tokens=end.records,
                duration_ms=end.duration_ms,
                first_token_ms=end.first_token_ms,
                usage=end.usage._asdict(),
                resumes=log.resumes,
                rate_limits=rate_limits,
                stream=name,
                correlation_id=correlation_id,
            )
        )

    log.book(write)


def end_lost(log: StreamLog, error: errors.ChatError) -> None:
    """End a log that nobody can go on with, with what there is of it."""
    ending = _Ending(error=error)
    age = datetime.now(UTC) - datetime.fromisoformat(log.origin.created)
    written: list[End] = []

    def write(totals: Totals) -> End:
        written.append(_written(ending, totals, log.origin, duration_ms=max(0, int(age.total_seconds() * 1000))))
        return written[-1]

    if log.finish(write):
        _report(log, ending, written[-1], {})


def _cause(error: BaseException) -> list[str]:
    """Name the types behind an error, for the log."""
    names: list[str] = []
    cause = error.__cause__
    while cause is not None and len(names) < 4:
        names.append(type(cause).__name__)
        cause = cause.__cause__
    return names


class Generations:
    """The live generations of this worker: starts them, finds them, holds them to their deadlines."""

    def __init__(self, *, upstream: Upstream, bounds: Bounds) -> None:
        self._upstream = upstream
        self._bounds = bounds
        self._live: dict[str, Generation] = {}
        self._turns = Turns()
        self._endings = _Endings(self._turns)

    @property
    def ending(self) -> bool:
        """Tell whether ends are due that have not been made."""
        return self._endings.busy

    @property
    def live(self) -> int:
        """How many have not ended."""
        return sum(generation.log.end is None for generation in list(self._live.values()))

    def start(self, log: StreamLog, question: Question) -> None:
        """Begin to generate into a new log."""
        generation = Generation(log, question, upstream=self._upstream, bounds=self._bounds, turns=self._turns)
        self._live[log.stream_id] = generation
        tell(
            facts.StreamStarted(
                stream=log_name(log.stream_id),
                correlation_id=log.origin.correlation_id,
                model=question.model,
                max_tokens=question.max_tokens,
                messages=len(question.messages),
                prompt_tokens=log.origin.prompt_tokens,
            )
        )
        try:
            threading.Thread(target=self._run, args=(generation,), name="generation", daemon=True).start()
        except RuntimeError:  # no more threads: never with gevent's, which are objects
            generation.fail(errors.Overloaded(retry_after_seconds=5))
            self._live.pop(log.stream_id, None)

    def _run(self, generation: Generation) -> None:
        try:
            generation.run()
            generation.log.settle(SETTLE_SECONDS)
        finally:
            self._live.pop(generation.log.stream_id, None)

    def logs(self) -> list[StreamLog]:
        """List the logs of those that have not ended."""
        return [live.log for live in list(self._live.values()) if live.log.end is None]

    def cancel(self, stream_id: str, reason: str) -> bool:
        """Stop one; False when it has ended already."""
        generation = self._live.get(stream_id)
        return generation is not None and generation.cancel(reason)

    def abort(self, stream_id: str) -> None:
        """Stop one whose log is another worker's now."""
        if generation := self._live.get(stream_id):
            generation.abort()

    def cancel_all(self, reason: str) -> None:
        """Stop all, and return when each has its end."""
        for generation in list(self._live.values()):
            generation.cancel(reason)

    def begin_cancel_all(self, reason: str) -> None:
        """Have all stopped one by one; `ending` tells until when."""
        for generation in list(self._live.values()):
            if generation.log.end is None:
                self._endings.add(generation, partial(generation.cancel, reason))

    def check(self, now: float) -> None:
        """Have those ended that have outlived a deadline, and let go of upstreams that do not end."""
        for generation in list(self._live.values()):
            try:
                if generation.log.end is not None:
                    generation.check_tail(now)
                elif generation.due(now):
                    # Judged again in its turn: what said something meanwhile goes on.
                    self._endings.add(generation, partial(generation.check, now))
            except Exception:  # noqa: BLE001 - one that cannot be judged must not keep the others from their ends
                _log.exception("a generation's deadlines could not be checked")


class _Endings:
    """Ends that are due, made one after the other, in a thread of their own that lets others run between them.

    An outage makes hundreds due at once; made together they would hold up every stream. The thread ends with the last.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._due: deque[tuple[Generation, Callable[[], object]]] = deque()
        self._known: set[Generation] = set()
        self._lock = threading.Lock()
        self._running = False

    @property
    def busy(self) -> bool:
        return self._running

    def add(self, generation: Generation, end: Callable[[], object]) -> None:
        """Note an end; nothing, where one of this generation's is noted already."""
        with self._lock:
            if generation in self._known:
                return
            self._known.add(generation)
            self._due.append((generation, end))
            if self._running:
                return
            self._running = True
        try:
            threading.Thread(target=self._run, name="endings", daemon=True).start()
        except RuntimeError:  # no more threads: never with gevent's, which are objects
            self._run()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._due:
                    self._running = False
                    return
                generation, end = self._due.popleft()
            try:
                with self._turns:
                    end()
            except Exception:  # noqa: BLE001 - the others' ends are due all the same
                _log.exception("a generation could not be ended")
            finally:
                with self._lock:
                    self._known.discard(generation)
