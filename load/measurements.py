"""Keep what was measured, every value of it: percentiles are exact, and nothing is rounded or sampled."""

from __future__ import annotations

import math
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

LAG_PERIOD_SECONDS = 0.02


def percentile(values: Sequence[float], share: float) -> float | None:
    """Give the smallest value that this share of all does not exceed; None of none."""
    if not values:
        return None
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def _milliseconds() -> array[float]:
    return array("d")


@dataclass
class Strike:
    """Hold one storm: when it struck, how many of the readers it cut, and how they came back. Units: milliseconds."""

    at: float
    readers: int
    cut: int = 0
    refused: int = 0  # came back, and got no frame
    first_frame_ms: array[float] = field(default_factory=_milliseconds)  # from before the connection that came back
    back_ms: array[float] = field(default_factory=_milliseconds)  # from the cut, so with the absence

    def note_back(self, begun_at: float, received_at: float) -> None:
        """Note the first frame of one who came back."""
        self.first_frame_ms.append((received_at - begun_at) * 1000)
        self.back_ms.append((received_at - self.at) * 1000)


class Measurements:
    """Hold the values of one run. Units: milliseconds.

    Only answers that begin while `is_measuring` count, with all that belongs to them, to their end.
    """

    def __init__(self) -> None:
        self.is_measuring = False
        self.is_watching = False  # until the last answer that counts has ended
        self.ttft_ms = array("d")
        self.delay_ms = array("d")  # from the upstream's sending to the receipt, of each token
        self.late_ms = array("d")  # from the upstream's schedule to its sending
        self.resume_ms = array("d")
        self.wait_ms = array("d")  # of a wait-mode answer, after its last token was sent
        self.wait_overhead_ms = array("d")  # all of it but the model's own time
        self.lag_ms = array("d")  # by how much our own timers were late
        self.open_streams = array("d")
        self.open_waits = array("d")
        self.strikes: list[Strike] = []
        self.gathered: Counter[str] = Counter()  # answers with several tokens in a frame
        self.most_at_once = array("d")  # tokens in a frame, of each answer of a slow reader
        self.asked: Counter[str] = Counter()  # warm-up and last answers included
        self.begun: Counter[str] = Counter()
        self.complete: Counter[str] = Counter()
        self.reasons: Counter[tuple[str, str]] = Counter()
        self.tokens = 0  # received while measuring, of whatever answer
        self.streams = 0  # open now
        self.waiting = 0  # for a whole answer, now

    @property
    def incomplete(self) -> int:
        """Count the answers that came to a bad end so far."""
        return self.reasons.total()

    def note_waited(
        self, begun_at: float, received_at: float, *, first_ms: float, last_ms: float, ttft_ms: float
    ) -> None:
        """Note what the service added to a whole answer: all but what passed between the model's sending of the first
        token and of the last one, and what the model was told to take for the first.
        """
        self.wait_ms.append(received_at * 1000 - last_ms)
        self.wait_overhead_ms.append((received_at - begun_at) * 1000 - (last_ms - first_ms) - ttft_ms)

    def note_unfinished(self) -> None:
        """Count what had begun and never came to an end as incomplete, when the run is over."""
        for kind, begun in self.begun.items():
            ended = self.complete[kind] + sum(n for (of_kind, _), n in self.reasons.items() if of_kind == kind)
            if begun > ended:
                self.reasons[kind, "it had not ended long after the run"] += begun - ended

    def note_timer(self, asked_at: float) -> None:
        """Note how late a timer of LAG_PERIOD_SECONDS came, and how many answers are open.

        One that was late for long stands for all those that could not be asked for meanwhile: two seconds without a
        core are a hundred late timers, not one.
        """
        late_seconds = time.monotonic() - asked_at - LAG_PERIOD_SECONDS
        if self.is_measuring:
            self.open_streams.append(self.streams)
            self.open_waits.append(self.waiting)
        if self.is_watching:
            missed = range(int(late_seconds / LAG_PERIOD_SECONDS) + 1)
            self.lag_ms.extend((late_seconds - LAG_PERIOD_SECONDS * index) * 1000 for index in missed)


class Progress:
    """Say in one line how it goes, each time about what came since the last time."""

    def __init__(self, measurements: Measurements) -> None:
        self._of = measurements
        self._begun_at = self._at = time.monotonic()
        self._tokens = self._first = self._delays = 0

    def line(self) -> str:
        """Write the line."""
        now, of = time.monotonic(), self._of
        rate = (of.tokens - self._tokens) / (now - self._at)
        ttft = percentile(of.ttft_ms[self._first :], 0.95)
        delay = percentile(of.delay_ms[self._delays :], 0.99)
        self._at, self._tokens = now, of.tokens
        self._first, self._delays = len(of.ttft_ms), len(of.delay_ms)
        return (
            f"{now - self._begun_at:4.0f} s  {of.streams:4} streams  {of.complete.total():5} complete"
            f"  {of.incomplete:3} incomplete  {rate:6.0f} tokens/s"
            f"  TTFT p95 {_ms(ttft)}  added delay p99 {_ms(delay)}"
        )


def _ms(value: float | None) -> str:
    return "    - ms" if value is None else f"{value:5.1f} ms"
