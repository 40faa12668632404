"""The live generations of one worker: their registry, and the deadlines that they are held to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from app import errors
from app.generation.run import Bounds, Generation
from app.generation.turns import DueEnds, Turns
from app.observability import facts
from app.observability.observer import tell
from app.streams.interface import StreamLog, log_name
from app.upstream.interface import Forwarded, Question, Upstream

__all__ = ["Generations", "check", "check_tail"]

TAIL_SECONDS = 2.0
"""How long the upstream may go on after the end of its answer."""

SETTLE_SECONDS = 10.0
"""How long a generation stays live after its end was decided, until that end is stored and shown."""

_log = logging.getLogger(__name__)


class Generations:
    """Starts generations, finds them, and ends those that are over a deadline."""

    def __init__(self, *, upstream: Upstream, bounds: Bounds) -> None:
        self._upstream = upstream
        self._bounds = bounds
        self._live: dict[str, Generation] = {}
        self._turns = Turns()
        self._due_ends = DueEnds(self._turns)

    @property
    def ending(self) -> bool:
        """Tell whether an end is due and has not been made."""
        return self._due_ends.busy

    @property
    def live(self) -> int:
        """How many generations have not ended."""
        return sum(generation.log.end is None for generation in list(self._live.values()))

    def start(self, log: StreamLog, question: Question | Forwarded) -> None:
        """Begin to generate into a new log."""
        generation = Generation(log, question, upstream=self._upstream, bounds=self._bounds, turns=self._turns)
        self._live[log.stream_id] = generation
        tell(
            facts.StreamStarted(
                stream=log_name(log.stream_id),
                correlation_id=log.origin.correlation_id,
                model=question.model,
                max_tokens=question.max_tokens,
                messages=question.messages_count,
                prompt_tokens=log.origin.prompt_tokens,
            )
        )
        try:
            threading.Thread(target=self._run, args=(generation,), name="generation", daemon=True).start()
        except RuntimeError:  # no more threads; never with gevent, whose threads are objects
            generation.fail(errors.Overloaded(retry_after_seconds=5))
            self._live.pop(log.stream_id, None)

    def _run(self, generation: Generation) -> None:
        try:
            generation.run()
            if (sharing := generation.log.sharing) is not None:
                sharing.settle(SETTLE_SECONDS)
        finally:
            self._live.pop(generation.log.stream_id, None)

    def logs(self) -> list[StreamLog]:
        """List the logs of the generations that have not ended."""
        return [live.log for live in list(self._live.values()) if live.log.end is None]

    def cancel(self, stream_id: str, reason: str) -> bool:
        """Stop a generation. False when it has ended already."""
        generation = self._live.get(stream_id)
        return generation is not None and generation.cancel(reason)

    def abort(self, stream_id: str) -> None:
        """Stop a generation whose log now belongs to another worker."""
        if generation := self._live.get(stream_id):
            generation.abort()

    def cancel_all(self, reason: str) -> None:
        """Stop all generations, and return when each has its end."""
        for generation in list(self._live.values()):
            generation.cancel(reason)

    def begin_cancel_all(self, reason: str) -> None:
        """Stop all generations, one after the other, in another thread. `ending` is true until that is done."""
        for generation in list(self._live.values()):
            if generation.log.end is None:
                self._due_ends.add(generation, partial(generation.cancel, reason))

    def check(self, now: float) -> None:
        """End generations that are over a deadline, and drop upstreams that do not end. Units: monotonic seconds."""
        for generation in list(self._live.values()):
            try:
                if generation.log.end is not None:
                    check_tail(generation, now)
                elif _due(generation, now):
                    # The generation is judged again in its turn, and goes on if the upstream has
                    # said something meanwhile.
                    self._due_ends.add(generation, partial(check, generation, now))
            except Exception:  # noqa: BLE001 - a fault in one must not keep the others from their ends
                _log.exception("a generation's deadlines could not be checked")


def check(generation: Generation, now: float) -> None:
    """End a generation that is over one of its deadlines. Units: monotonic seconds."""
    if end := _due(generation, now):
        end()


def check_tail(generation: Generation, now: float) -> None:
    """Drop an upstream that does not end its stream after the answer's end. Units: monotonic seconds."""
    if now - generation.intake.last_life > TAIL_SECONDS:
        generation.hang_up()


def _due(generation: Generation, now: float) -> Callable[[], bool] | None:
    """Return the call that ends a generation over one of its deadlines, else None. Units: monotonic seconds."""
    bounds, intake = generation.bounds, generation.intake
    is_silent = now - intake.last_life > bounds.silence_seconds
    is_long = now - generation.started > bounds.generation_seconds
    if intake.is_whole and (is_silent or is_long):
        return generation.end  # the answer is whole, and only the end of its stream is missing
    if is_silent:
        silent = errors.UpstreamTimeout(f"The model's server sent nothing for {bounds.silence_seconds:g} seconds.")
        return lambda: generation.fail(silent)
    if is_long:
        long = errors.UpstreamTimeout(
            f"The answer was not complete after {bounds.generation_seconds:g} seconds, the limit of this server."
        )
        return lambda: generation.fail(long)
    if (unread_since := generation.log.unread_since) and now - unread_since > bounds.abandoned_seconds:
        return lambda: generation.cancel("abandoned")
    return None
