"""Runs one generation: asks the upstream, and reads its answer into a log, whatever happens to its readers.

Retries are here, and the one broad `except` on an answer's way. A generation ends exactly once.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, replace

from app import errors
from app.generation.ending import Ending, Figures, book, decide
from app.generation.intake import Intake, Phase
from app.generation.turns import Turns
from app.observability import facts
from app.observability.observer import tell
from app.streams.interface import StreamLog, log_name
from app.upstream.call import Call
from app.upstream.interface import Answer, Forwarded, Question, Upstream

__all__ = ["Bounds", "Generation"]

ATTEMPTS = 3
BACKOFF_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a generation may take, and how long its answer may be. Units: seconds, characters."""

    silence_seconds: float
    generation_seconds: float
    abandoned_seconds: float
    answer_chars: int


class _Stopped(Exception):
    """The log has ended, so nothing more is wanted of the upstream."""


class Generation:
    """One generation, in a thread of its own from `run` to its end."""

    def __init__(
        self,
        log: StreamLog,
        question: Question | Forwarded,
        *,
        upstream: Upstream,
        bounds: Bounds,
        turns: Turns | None = None,
    ) -> None:
        """`turns` is shared by generations: those that fail at the same moment end one after the other."""
        self.log = log
        # The upstream says nothing until an answer that is not streamed is whole.
        is_silent = isinstance(question, Forwarded) and not question.is_streamed
        self.bounds = replace(bounds, silence_seconds=bounds.generation_seconds) if is_silent else bounds
        self._patience_seconds = bounds.silence_seconds  # for an upstream that refuses
        self._attempts = 1 if isinstance(question, Forwarded) and question.asked_once else ATTEMPTS
        self.started = time.monotonic()
        self._upstream = upstream
        self._question: Question | Forwarded | None = question
        self._turns = turns or Turns()
        self._call = Call()
        self._stopped = threading.Event()
        self._answer: Answer | None = None
        self.intake = Intake(log, started=self.started, room=bounds.answer_chars, stopped=self._stopped)

    # The way of the answer

    def run(self) -> None:
        """Ask, read the answer into the log, and end it. Returns when nothing of the generation runs any more."""
        try:
            self._answer = self._ask()
            if isinstance(self._question, Forwarded):
                self._question.rate_limits.update(self._answer.rate_limits)
            self._forget_question()
            self.intake.last_life = time.monotonic()
            self._read(self._answer)
            self.end()
        except _Stopped:
            self._fail(errors.InternalError())  # does nothing, unless another thread has failed to end it
        except errors.ChatError as error:
            if isinstance(error, errors.UpstreamError) and isinstance(self._question, Forwarded):
                self._question.rate_limits.update(error.rate_limits)
            with self._turns:
                if self.intake.is_whole:
                    self.end()  # the answer was there before its stream went wrong
                else:
                    self._fail(error)
        except Exception as error:  # noqa: BLE001 - the readers must get an end, whatever the error is
            with self._turns:
                self._fail(errors.InternalError(), error)
        finally:
            self._forget_question()
            self.intake.flush()  # a record may have been appended while another thread ended the log
            if self._answer is not None:
                self._answer.close()

    def _forget_question(self) -> None:
        """Free the question as soon as nothing needs it. A question may be as large as many answers."""
        self._question = None
        self.log.release_prompt()

    def _ask(self) -> Answer:
        """Ask, and ask again after an error that may pass. No text has come yet, so nothing can come twice."""
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
                        stream=log_name(self.log.stream_id),
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
        """Choose how long to wait before the next attempt. None when there must be no other attempt. Units: seconds."""
        if asked >= self._attempts or self._stopped.is_set():
            return None
        left = self.started + self._patience_seconds - time.monotonic()
        delay = random.uniform(0, BACKOFF_SECONDS * 2 ** (asked - 1))
        if error.retry_after_seconds is not None:
            delay = max(delay, float(error.retry_after_seconds))
        return delay if delay < left else None

    def _read(self, answer: Answer) -> None:
        """Read the answer to the end of its bytes. Raises: _Stopped, errors.ChatError."""
        more = True
        while more:
            more = answer.receive(self.intake.take)
            if self.intake.phase is Phase.OVER:
                self._check_begun()
                self.end()  # here and not in `take`, because it may wait
            elif self.intake.phase is Phase.UNWANTED:
                raise _Stopped
        if self._stopped.is_set():
            raise _Stopped
        if self.intake.finish_reason is None and self.log.end is None:
            raise errors.UpstreamError("The model's server stopped in the middle of its answer.")

    def _check_begun(self) -> None:
        """Raises: UpstreamError for a client's own answer that is over before it has begun."""
        intake = self.intake
        if self.log.origin.kind != "text" and intake.first_token_ms is None and intake.finish_reason is None:
            raise errors.UpstreamError("The model's server ended its answer without a word.")

    # The ends

    def end(self) -> bool:
        """End as complete. False when the generation had ended already."""
        return self._end(Ending())

    def cancel(self, reason: str) -> bool:
        """End as cancelled for a reason: `client`, `abandoned` or `shutdown`. False when the generation had ended
        already."""
        return self._end(Ending(reason=reason))

    def fail(self, error: errors.ChatError) -> bool:
        """End as failed. False when the generation had ended already."""
        return self._end(Ending(error=error))

    def abort(self) -> None:
        """Stop without an end, because the log now belongs to another worker."""
        self._stopped.set()
        self._call.cancel()

    def hang_up(self) -> None:
        """Close the call to the upstream, from any thread."""
        self._call.cancel()

    def _fail(self, error: errors.ChatError, cause: BaseException | None = None) -> None:
        self._end(Ending(error=error, cause=cause or error))

    def _end(self, ending: Ending) -> bool:
        if self._answer is not None:
            self.intake.take_half(self._answer.pending())
        end = decide(self.log, ending, self._figures)
        if end is None:
            return False
        self._stopped.set()
        if not ending.is_whole:
            self._call.cancel()
        self.intake.flush()
        book(self.log, ending, end, dict(self._answer.rate_limits) if self._answer is not None else {})
        return True

    def _figures(self) -> Figures:
        return Figures(
            duration_ms=int((time.monotonic() - self.started) * 1000),
            usage=self.intake.usage,
            finish_reason=self.intake.finish_reason,
            first_token_ms=self.intake.first_token_ms,
        )


def _cause(error: BaseException) -> list[str]:
    """Name the types behind an error, for the log."""
    names: list[str] = []
    cause = error.__cause__
    while cause is not None and len(names) < 4:
        names.append(type(cause).__name__)
        cause = cause.__cause__
    return names
