"""The one end of a generation: decided once, and booked once.

`StreamLog.finish` lets the first end win, from whichever thread it comes. Only the winner books it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from app import errors
from app.observability import facts
from app.observability.exceptions import describe
from app.observability.observer import tell
from app.streams.interface import End, Origin, StreamLog, Totals, log_name
from app.tokens.usage import Usage, estimated_usage

__all__ = ["Ending", "Figures", "book", "decide", "end_lost"]

KNOWN_FINISH_REASONS = ("stop", "length", "content_filter", "tool_calls", "function_call")
"""Only these are logged: any other text is the upstream's own."""

CUT_OFF = "response_cut_off"
"""`StreamLog.book` gives this name when another worker has ended the log for all other readers."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a generation ends: it is complete, cancelled for a `reason`, or failed with an `error`.

    `cause` is the exception behind the error, for the log.
    """

    reason: str | None = None
    error: errors.ChatError | None = None
    cause: BaseException | None = None

    @property
    def is_whole(self) -> bool:
        return not self.reason and not self.error


@dataclass(frozen=True, slots=True)
class Figures:
    """What is known of the answer at its end. Units: milliseconds since the generation began.

    `usage` is the provider's, None if the provider told none.
    """

    duration_ms: int
    usage: Usage | None = None
    finish_reason: str | None = None
    first_token_ms: int | None = None


def decide(log: StreamLog, ending: Ending, figures: Callable[[], Figures]) -> End | None:
    """End the log. Return its end, or None when the log had ended already. `figures` is called at the end itself."""
    written: list[End] = []

    def write(totals: Totals) -> End:
        written.append(_end(ending, totals, log.origin, figures()))
        return written[-1]

    return written[-1] if log.finish(write) else None


def _end(ending: Ending, totals: Totals, origin: Origin, figures: Figures) -> End:
    # The provider's usage counts only for a whole answer: before that, the usage is about a part. A usage without
    # completion tokens does not count either when there is text.
    usage = figures.usage if ending.is_whole else None
    if usage is None or not (usage.completion_tokens or not totals.records):
        usage = estimated_usage(origin.prompt_tokens, totals.text, origin.model)
    return End(
        status="cancelled" if ending.reason else "failed" if ending.error else "complete",
        records=totals.records,
        characters=totals.characters,
        sha256=totals.sha256,
        usage=usage,
        finish_reason=figures.finish_reason,
        first_token_ms=figures.first_token_ms,
        duration_ms=figures.duration_ms,
        reason=ending.reason,
        error=ending.error.failure if ending.error else None,
    )


def book(log: StreamLog, ending: Ending, end: End, rate_limits: Mapping[str, str]) -> None:
    """Tell what ended, and how. Called once, by the caller whose end was taken.

    `rate_limits` are the upstream's headers of that name.
    """
    stream, correlation_id = log_name(log.stream_id), log.origin.correlation_id
    if ending.error is not None:
        tell(
            facts.GenerationFailed(
                error_type=ending.error.error_code,
                error_message=ending.error.message,
                detail=ending.error.detail,
                recovery_action=ending.error.action,
                stream=stream,
                correlation_id=correlation_id,
                origin=ending.error.origin,
                exception=describe(ending.cause) if ending.cause is not None else None,
            )
        )
    reason = ending.reason  # the function below must not keep the ending: its error's frames may hold much

    def tell_end(outcome: str) -> None:
        fact = facts.GenerationCutOff if outcome == CUT_OFF else facts.GenerationEnded
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
                stream=stream,
                correlation_id=correlation_id,
            )
        )

    log.book(tell_end)


def end_lost(log: StreamLog, error: errors.ChatError) -> None:
    """End a log that no worker can go on with. Its readers keep what it holds."""
    ending = Ending(error=error)
    age = datetime.now(UTC) - datetime.fromisoformat(log.origin.created)
    figures = Figures(duration_ms=max(0, int(age.total_seconds() * 1000)))
    if end := decide(log, ending, lambda: figures):
        book(log, ending, end, {})
