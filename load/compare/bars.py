"""What this service must show, by one run: each bar, the aim beyond it, and what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from load.compare.lanes import GAP_MS, Figures
from load.compare.subjects import DIRECT, NODE, OPENAI, OURS
from load.compare.valkey import CONNECTIONS, LOCAL, LOCAL_OPENAI, MOST_READERS, REMOTE, STREAMS, VALKEY, WORKERS
from load.upstream import ARGUMENTS, REASONING

__all__ = [
    "KEPT",
    "RATIO_STREAMS",
    "WHOLE",
    "WHOLE_PER_SECOND",
    "WHOLE_TOKENS",
    "Bar",
    "Results",
    "Verdict",
    "judge",
]

RATIO_STREAMS = 50

WHOLE = "whole"
"""The lane of answers that are not streamed: of 20 tokens, 50 a second."""

WHOLE_TOKENS, WHOLE_PER_SECOND = 20, 50

KEPT = "kept"
"""The lane that tells what a finished answer takes in memory (`load.memory`)."""


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

    def ratio(self, lane: str, level: int, names: tuple[str, str], figure: str) -> float:
        """Tell how many times the second one's figure the first one's is."""
        ours, theirs = (self.median(lane, level, name, figure) for name in names)
        return ours / theirs

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
        return self.ratio(VALKEY, streams, (readers, OURS), "cpu_us_per_token")

    def of_native(self, streams: int, lane: str = "paced") -> float:
        """Tell how many times the native stream's CPU a chunk of OpenAI's route costs, in this lane."""
        native = self.median("paced", streams, OURS, "cpu_us_per_token")
        return self.median(lane, streams, OPENAI, "cpu_us_per_token") / native

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


def _per_token(results: Results, other: str, ours: str = OURS) -> float:
    return results.ratio("paced", RATIO_STREAMS, (ours, other), "cpu_us_per_token")


def _missing_as_openai(results: Results) -> float:
    """Count what is wrong in all streams of OpenAI's route."""
    names = ("missing", "disordered", "unfinished", "misframed")
    found = [
        figures[name]
        for (lane, _, subject), rounds in results.rounds.items()
        if subject in (OPENAI, LOCAL_OPENAI) and lane in ("paced", VALKEY, REASONING, ARGUMENTS)
        for figures in rounds
        for name in names
    ]
    return sum(found) if found else math.nan


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
    Bar(
        "OpenAI's route, 50 streams: CPU per token, of the native stream's", 1.15, None, "×", lambda r: r.of_native(50)
    ),
    Bar(
        "OpenAI's route, 100 streams: CPU per token, of the native stream's",
        1.15,
        None,
        "×",
        lambda r: r.of_native(100),
    ),
    Bar(
        "OpenAI's route, 256 streams: CPU per token, of the native stream's", 1.5, None, "×", lambda r: r.of_native(256)
    ),
    Bar(
        "OpenAI's route, 50 streams: CPU per token, of LiteLLM's",
        1 / 6,
        None,
        "×",
        lambda r: _per_token(r, "LiteLLM", OPENAI),
    ),
    Bar(
        "OpenAI's route, 100 streams of reasoning: CPU per token, of the native stream's",
        1.25,
        None,
        "×",
        lambda r: r.of_native(100, REASONING),
    ),
    Bar(
        "OpenAI's route, 100 streams of a tool's arguments: CPU per token, of the native stream's",
        1.25,
        None,
        "×",
        lambda r: r.of_native(100, ARGUMENTS),
    ),
    Bar("OpenAI's route: chunks missing or merged, or answers not whole", 0, 0, "", _missing_as_openai),
    Bar(
        "OpenAI's route, 20 tokens not streamed, 50 a second: p50, of native wait mode's",
        1.1,
        None,
        "×",
        lambda r: r.ratio(WHOLE, WHOLE_PER_SECOND, (OPENAI, OURS), "answer_p50_ms"),
    ),
    Bar(
        "OpenAI's route, 20 tokens not streamed, 50 a second: p99, of native wait mode's",
        1.5,
        None,
        "×",
        lambda r: r.ratio(WHOLE, WHOLE_PER_SECOND, (OPENAI, OURS), "answer_p99_ms"),
    ),
    Bar(
        "Valkey, 100 streams: CPU per token, of Node's with resumable-stream",
        0.65,
        None,
        "×",
        lambda r: r.ratio(VALKEY, STREAMS, (LOCAL, NODE), "cpu_us_per_token"),
    ),
    Bar(
        "Valkey, 100 streams, OpenAI's route: CPU per token, of Node's with resumable-stream",
        0.75,
        None,
        "×",
        lambda r: r.ratio(VALKEY, STREAMS, (LOCAL_OPENAI, NODE), "cpu_us_per_token"),
    ),
    Bar(
        "Valkey, 100 streams: first token p50, of Node's with resumable-stream",
        1,
        None,
        "×",
        lambda r: r.ratio(VALKEY, STREAMS, (LOCAL, NODE), "ttft_p50_ms"),
    ),
    Bar(
        "kept: a native answer of 100 chunks",
        3.2,
        None,
        "KB",
        lambda r: r.median(KEPT, 100, "native", "resident_kb"),
    ),
    Bar(
        "kept: an answer of OpenAI's route, 100 chunks",
        3.6,
        None,
        "KB",
        lambda r: r.median(KEPT, 100, "openai", "resident_kb"),
    ),
    Bar(
        "kept: an answer of OpenAI's route, 100 chunks of reasoning",
        6,
        None,
        "KB",
        lambda r: r.median(KEPT, 100, "reasoning", "resident_kb"),
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
