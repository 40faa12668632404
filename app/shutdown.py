"""The drain: how a worker ends in order, phase by phase.

    SERVING ─▶ FINISHING ─▶ CUT ─▶ LAST_FRAMES ─▶ LEAVING ─▶ FINISHED
                 ▲ │         ▲        ▲ │
                 │ └─────────│────────┘ │     no generation has to be cut
                 └───────────┴──────────┘     a generation began late, or a reader of another worker's stream came

SERVING      The worker works. The next tick after a stop was asked for ends this phase.
FINISHING    The store begins no new streams. Live generations go on up to the deadline. Readers of other workers'
             streams are sent away, some at each tick.
CUT          The deadline has passed, or the stop is quick. Live generations are cancelled.
LAST_FRAMES  No generation lives. Readers have a moment to come back for an end that nobody has read.
LEAVING      Every reader is sent away. The last of their answers are being written.
FINISHED     The worker may end.

A reader whose connection broke just before a restart loses nothing: resumes are answered until LEAVING is over.
A generation that begins during LEAVING is waited for up to the deadline and is cut then, without a way back. Several
phases may pass in one tick. A quick stop skips every wait but the cut's and the short ones of LAST_FRAMES and LEAVING.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from app.generation.live import Generations
from app.observability import facts
from app.observability.observer import tell
from app.platform.clock import TICK_SECONDS
from app.reading.readers import Readers
from app.streams.interface import Store, StreamLog

__all__ = ["Drain", "Phase"]

QUICK_SECONDS = 0.5
"""How long LAST_FRAMES lasts at most in a quick stop, and LEAVING in every stop."""

RAMP_SECONDS = 10.0
"""Readers of other workers' streams are sent away over this time at most. Half of the drain's time is a bound too."""

ENDS_SECONDS = 5.0
"""How long the drain waits for ends that are due: after the cut, or else after the deadline."""

LAST_FRAMES_SECONDS = 5.0
"""How long readers have for what they have not read, after the last generation ended."""


class Phase(Enum):
    """How far the drain has come. The diagram above shows every way between the phases."""

    SERVING = auto()
    FINISHING = auto()
    CUT = auto()
    LAST_FRAMES = auto()
    LEAVING = auto()
    FINISHED = auto()


class Drain:
    """The end of one worker. The clock calls `check` at each tick. Units: monotonic seconds."""

    def __init__(
        self,
        *,
        store: Store,
        generations: Generations,
        readers: Readers,
        answering: Callable[[], int],
        drain_seconds: float,
    ) -> None:
        """`answering` counts the requests whose answer has not begun. Live generations have `drain_seconds`."""
        self._store = store
        self._generations = generations
        self._readers = readers
        self._answering = answering
        self._drain_seconds = drain_seconds
        self._phase = Phase.SERVING
        self._finished: Callable[[], None] | None = None
        self._quick = False
        self._logs: list[StreamLog] = []
        self._deadline = 0.0
        self._ramp_ends = 0.0
        self._last_live = 0.0
        self._cut_at: float | None = None
        self._leaves_at = 0.0

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def begun(self) -> bool:
        """A stop was asked for. True from then on, before the next tick and after the last."""
        return self._finished is not None

    def begin(self, finished: Callable[[], None], *, quick: bool = False) -> None:
        """Ask the worker to end, and call `finished` when it may. A `quick` stop cuts every generation at once.

        Safe in a signal handler: nothing here waits, locks or logs. A second call can make the stop quick.
        """
        self._quick = self._quick or quick
        if self._finished is None:
            self._finished = finished

    def check(self, now: float) -> None:
        """Go through the phases as far as nothing holds the drain up."""
        if self._finished is None or self._phase is Phase.FINISHED:
            return
        if self._phase is Phase.SERVING:
            self._start(now)
        self._release_foreign(now)
        if self._generations_hold(now) or self._foreign_readers_hold(now):
            if self._phase is Phase.LAST_FRAMES:
                self._phase = Phase.FINISHING if self._cut_at is None else Phase.CUT
            return
        if self._phase is not Phase.LEAVING:
            self._phase = Phase.LAST_FRAMES
            if self._last_frames_hold(now):
                return
            self._leave(now)
            if not self._quick:
                return
        if self._is_reading() and now < self._leaves_at + QUICK_SECONDS:
            return
        tell(facts.DrainFinished(readers=self._readers.count, cut=self._cut_at is not None))
        self._phase = Phase.FINISHED
        self._finished()

    def _start(self, now: float) -> None:
        self._deadline = now + self._drain_seconds
        self._ramp_ends = now + min(RAMP_SECONDS, self._drain_seconds / 2)
        self._last_live = now
        self._store.stop_admitting()
        self._logs = self._generations.logs()
        self._phase = Phase.FINISHING
        tell(facts.DrainStarted(generations=len(self._logs), readers=self._readers.present))

    def _release_foreign(self, now: float) -> None:
        """Send some readers of other workers' streams away. All at once would be a storm for the other workers."""
        ticks = 0.0 if self._quick else max(0.0, (self._ramp_ends - now) / TICK_SECONDS)
        self._readers.release_foreign(1 / (1 + ticks))

    def _generations_hold(self, now: float) -> bool:
        """Tell whether a generation may go on, or an end may still be made. Cut the generations that may not go on."""
        if self._generations.live:
            self._last_live = now
            if now < self._deadline and not self._quick:
                return True
            if self._cut_at is None:
                self._cut(now)
            self._generations.begin_cancel_all("shutdown")
        # An end that is held up must not hold up the stop.
        ends_by = (self._deadline if self._cut_at is None else self._cut_at) + ENDS_SECONDS
        return self._generations.ending and now < ends_by

    def _cut(self, now: float) -> None:
        self._cut_at = now
        if self._phase is not Phase.LEAVING:
            self._phase = Phase.CUT
        tell(facts.DrainCut(generations=self._generations.live))

    def _foreign_readers_hold(self, now: float) -> bool:
        """Tell whether readers of other workers' streams are still being sent away."""
        if self._quick or now >= self._ramp_ends or not self._readers.has_foreign:
            return False
        self._last_live = now
        return True

    def _last_frames_hold(self, now: float) -> bool:
        """Tell whether a reader may still read the rest, or come back for it."""
        seconds = QUICK_SECONDS if self._quick else LAST_FRAMES_SECONDS
        is_unread = self._is_reading() or any(not log.end_read for log in self._logs)
        return is_unread and now < self._last_live + seconds

    def _leave(self, now: float) -> None:
        """Send every reader away. A request that is under way is not cut, but its answer ends as soon as it begins."""
        self._phase = Phase.LEAVING
        self._leaves_at = now
        self._readers.release_all()

    def _is_reading(self) -> bool:
        """Tell whether a client is being answered."""
        return bool(self._readers.count or self._answering())
