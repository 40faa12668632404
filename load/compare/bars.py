"""What this service must show, by one run: each bar, the aim beyond it, and what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from load.compare.lanes import GAP_MS, Figures
from load.compare.subjects import DIRECT, OURS
from load.compare.valkey import CONNECTIONS, LOCAL, MOST_READERS, REMOTE, STREAMS, VALKEY, WORKERS

__all__ = ["Bar", "Results", "Verdict", "judge"]

RATIO_STREAMS = 50


class Results:
    """Every round's figures of each lane, level and subject."""

    def __init__(self) -> None:
        self.rounds: dict[tuple[str, int, str], list[Figures]] = {}

    def add(self, lane: str, level: int, subject: str, figures: Figures) -> None:
        self.rounds.setdefault((lane, level, subject), []).append(figures)

    def median(self, lane: str, level: int, subject: str, figure: str) -> float:
        """Give the median of the rounds; NaN where it was not measured."""
        values = [
            each[figure]
            for each in self.rounds.get((lane, level, subject), ())
            if figure in each and not math.isnan(each[figure])
        ]
        return statistics.median(values) if values else math.nan

    def count(self, lane: str, level: int, subject: str) -> int:
        return len(self.rounds.get((lane, level, subject), ()))

    def worst(self, lane: str, level: int, subject: str, figure: str) -> float:
        """Give the largest of the rounds; NaN where it was not measured."""
        values = [each[figure] for each in self.rounds.get((lane, level, subject), ()) if figure in each]
        return max(values) if values else math.nan

    def added_ttft(self, streams: int, share: int) -> float:
        """Units: milliseconds more than straight from the model."""
        figure = f"ttft_p{share}_ms"
        return self.median("paced", streams, OURS, figure) - self.median("paced", streams, DIRECT, figure)

    def request_us(self, subject: str) -> float:
        """Tell what a request costs beyond its one token. Units: microseconds of CPU."""
        token = self.median("paced", RATIO_STREAMS, subject, "cpu_us_per_token")
        return self.median("requests", 10, subject, "cpu_us_per_request") - token

    def of_memory(self, streams: int, readers: str) -> float:
        """Tell how many times the memory store's CPU a token costs whose stream is on Valkey."""
        ours, theirs = (self.median(VALKEY, streams, name, "cpu_us_per_token") for name in (readers, OURS))
        return ours / theirs

    def added_gap(self, streams: int, readers: str) -> float:
        """Units: milliseconds that the gap's p99 is over the memory store's."""
        ours, theirs = (self.median(VALKEY, streams, name, "gap_p99_ms") for name in (readers, OURS))
        return ours - theirs

    def two_workers(self) -> float:
        """Tell how many times one worker's streams two of them sustain."""
        one, two = (self.median(WORKERS, number, VALKEY, "sustained") for number in (1, 2))
        return two / one if one else math.nan

    def more_connections(self, readers: int) -> float:
        """Tell how many more connections a worker holds to Valkey than for one remote reader."""
        most, fewest = (self.median(CONNECTIONS, number, REMOTE, "connections") for number in (readers, 1))
        return most - fewest


@dataclass(frozen=True)
class Bar:
    """One figure with its bound."""

    what: str
    bound: float
    aim: float | None
    unit: str
    value: Callable[[Results], float]
    at_least: bool = False  # else at most

    def holds(self, value: float, bound: float) -> bool:
        return value >= bound if self.at_least else value <= bound


@dataclass(frozen=True)
class Verdict:
    """A bar, what was measured, and whether it holds; None where it was not measured."""

    bar: Bar
    value: float
    met: bool | None
    aim_met: bool | None


def _per_token(results: Results, other: str) -> float:
    ours, theirs = (results.median("paced", RATIO_STREAMS, name, "cpu_us_per_token") for name in (OURS, other))
    return ours / theirs


def _missing(results: Results, streams: int) -> float:
    names = ("missing", "disordered", "unfinished")
    return sum(results.worst("paced", streams, OURS, name) for name in names)


def _missing_on_valkey(results: Results) -> float:
    names = ("missing", "disordered", "unfinished")
    return sum(results.worst(VALKEY, STREAMS, readers, name) for readers in (LOCAL, REMOTE) for name in names)


def _rise(results: Results) -> float:
    """Tell by how much the dearest of the higher levels is above the lowest one."""
    costs = [results.median("paced", streams, OURS, "cpu_us_per_token") for streams in (8, 100, 512)]
    return max(costs[1:]) / costs[0]


BARS = (
    Bar("CPU per token, 50 streams: of FastAPI's", 1 / 3, 1 / 4, "×", lambda r: _per_token(r, "FastAPI")),
    Bar("CPU per token, 50 streams: of LiteLLM's", 1 / 8, 1 / 15, "×", lambda r: _per_token(r, "LiteLLM")),
    Bar("CPU per token, 50 streams: of nginx's", 5, 4, "×", lambda r: _per_token(r, "nginx")),
    Bar(
        "CPU per request beyond its token: of FastAPI's",
        1,
        1 / 2,
        "×",
        lambda r: r.request_us(OURS) / r.request_us("FastAPI"),
    ),
    Bar("added first token, 100 streams, p50", 3, 1, "ms", lambda r: r.added_ttft(100, 50)),
    Bar("added first token, 100 streams, p99", 20, 5, "ms", lambda r: r.added_ttft(100, 99)),
    Bar("256 streams: tokens missing, or answers not whole", 0, 0, "", lambda r: _missing(r, 256)),
    Bar("256 streams: gap p99", 2 * GAP_MS, None, "ms", lambda r: r.median("paced", 256, OURS, "gap_p99_ms")),
    Bar("512 streams: tokens missing, or answers not whole", 0, 0, "", lambda r: _missing(r, 512)),
    Bar(
        "512 streams: gap p99",
        5 * GAP_MS,
        2 * GAP_MS,
        "ms",
        lambda r: r.median("paced", 512, OURS, "gap_p99_ms"),
    ),
    Bar("50 starts at once: the last first token", 150, 60, "ms", lambda r: r.median("burst", 50, OURS, "ttft_max_ms")),
    Bar("worker's memory at 512 streams", 150, None, "MiB", lambda r: r.worst("held", 512, OURS, "rss_live_mb")),
    Bar("10,000 tokens resumed", 20, 5, "ms", lambda r: r.median("resume", 10_000, OURS, "whole_ms")),
    Bar("CPU per token at 100 and 512 streams: of that at 8", 1, None, "×", _rise),
    Bar(
        "Valkey, 100 streams, local readers: CPU per token, of the memory store's",
        1.4,
        None,
        "×",
        lambda r: r.of_memory(STREAMS, LOCAL),
    ),
    Bar(
        "Valkey, 100 streams, remote readers: CPU per token, of the memory store's",
        2.5,
        None,
        "×",
        lambda r: r.of_memory(STREAMS, REMOTE),
    ),
    Bar("Valkey, 100 streams, remote readers: added gap p99", 30, None, "ms", lambda r: r.added_gap(STREAMS, REMOTE)),
    Bar("Valkey, 100 streams: tokens missing, or answers not whole", 0, 0, "", _missing_on_valkey),
    Bar("Valkey: streams of two workers, of one's", 1.7, None, "×", Results.two_workers, at_least=True),
    Bar(
        "Valkey: connections of a worker, more at 500 remote readers than at 1",
        0,
        0,
        "",
        lambda r: r.more_connections(MOST_READERS),
    ),
)


def judge(results: Results) -> Sequence[Verdict]:
    """Hold what was measured to the bars."""
    verdicts: list[Verdict] = []
    for bar in BARS:
        value = bar.value(results)
        known = not math.isnan(value)
        verdicts.append(
            Verdict(
                bar,
                value,
                bar.holds(value, bar.bound) if known else None,
                bar.holds(value, bar.aim) if known and bar.aim is not None else None,
            )
        )
    return verdicts
