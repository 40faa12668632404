"""Read the table of thresholds, and judge a run by it."""

from __future__ import annotations

import operator
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "below": ("<", operator.lt),
    "at_most": ("≤", operator.le),
    "at_least": ("≥", operator.ge),
}
NAMES = ("steady", "openai", "both", "storm", "mixed", "slow")
"""The scenarios that a row can be for; load/scenarios.py says what they are."""

TABLE = Path(__file__).with_name("thresholds.toml")

PASSED, FAILED, NO_MEASUREMENT = 0, 1, 2


class BadTable(ValueError):
    """The table of thresholds cannot be used; the text says why."""


class Verdict(Enum):
    """Say what a row means for the service."""

    PASS = "pass"
    MISSED = "MISSED"
    UNDECIDED = "UNDECIDED: missed, on a machine that was too busy to tell why"
    TOO_FEW = "too few samples"
    NOT_MEASURED = "not measured"
    BUSY = "TOO BUSY"
    VOID = "NO MEASUREMENT"


MISSES = {"service": Verdict.MISSED, "run": Verdict.VOID, "noise": Verdict.BUSY}


@dataclass(frozen=True)
class Figure:
    """Hold one measured value and how many samples it is made of; without a value, why there is none."""

    value: float | None
    samples: int = 1
    why: str = ""


@dataclass(frozen=True)
class Threshold:
    """Hold one row of the table."""

    name: str
    figure: str
    comparison: str
    bound: float
    unit: str
    samples: int
    source: str
    meaning: str
    judges: str = "service"
    scenarios: tuple[str, ...] = ()
    timed: bool = False

    @property
    def text(self) -> str:
        """Write the bound as people do."""
        return f"{BOUNDS[self.comparison][0]} {self.bound:g} {self.unit}".rstrip()

    def judge(self, figure: Figure) -> Verdict:
        """Judge one figure. What is nothing to this run is no miss; what has too few samples is no pass."""
        if figure.value is None and figure.why:
            return Verdict.NOT_MEASURED
        if figure.value is None or figure.samples < self.samples:
            return Verdict.VOID if self.judges == "run" else Verdict.TOO_FEW
        return Verdict.PASS if BOUNDS[self.comparison][1](figure.value, self.bound) else MISSES[self.judges]


@dataclass(frozen=True)
class Judged:
    """Hold a row with what was measured and what that means."""

    threshold: Threshold
    figure: Figure
    verdict: Verdict

    @property
    def measured(self) -> str:
        """Write the figure as people do."""
        if self.figure.value is None:
            return "-"
        return f"{self.figure.value:.1f} {self.threshold.unit}".rstrip()

    @property
    def words(self) -> str:
        """Write the verdict, with its reason."""
        if self.verdict is Verdict.NOT_MEASURED:
            return f"not measured: {self.figure.why}"
        if self.verdict is Verdict.TOO_FEW:
            return f"too few samples: {self.figure.samples} of {self.threshold.samples}"
        return self.verdict.value


def read_thresholds(path: Path = TABLE, scenario: str = "steady") -> list[Threshold]:
    """Read the rows of the table that are for a scenario. Raises: BadTable."""
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))["threshold"]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as problem:
        raise BadTable(f"{path} is no table of thresholds: {problem}") from None
    thresholds = [_threshold(path, dict(row)) for row in rows]
    chosen = [row for row in thresholds if not row.scenarios or scenario in row.scenarios]
    if not chosen:
        raise BadTable(f"{path} has no row for the scenario {scenario!r}")
    return chosen


def _threshold(path: Path, row: dict[str, object]) -> Threshold:
    comparisons = [name for name in BOUNDS if name in row]
    if len(comparisons) != 1:
        raise BadTable(f"{path}: {row.get('name')!r} needs exactly one of {', '.join(BOUNDS)}")
    bound = row.pop(comparisons[0])
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        raise BadTable(f"{path}: the bound of {row.get('name')!r} is no number")
    if row.get("judges", "service") not in MISSES:
        raise BadTable(f"{path}: {row.get('name')!r} judges one of {', '.join(MISSES)}")
    scenarios = row.pop("scenarios", [])
    if not isinstance(scenarios, list) or any(name not in NAMES for name in scenarios):
        raise BadTable(f"{path}: the scenarios of {row.get('name')!r} are not a list of {', '.join(NAMES)}")
    try:
        return Threshold(scenarios=tuple(scenarios), comparison=comparisons[0], bound=float(bound), **row)  # type: ignore[arg-type]
    except TypeError as problem:
        raise BadTable(f"{path}: {row.get('name')!r}: {problem}") from None


def judge(thresholds: Sequence[Threshold], figures: dict[str, Figure]) -> list[Judged]:
    """Judge every row. Raises: BadTable for a figure that nobody measures."""
    judged = []
    for threshold in thresholds:
        if threshold.figure not in figures:
            raise BadTable(f"{threshold.name!r}: there is no figure {threshold.figure!r}; there are {sorted(figures)}")
        figure = figures[threshold.figure]
        judged.append(Judged(threshold, figure, threshold.judge(figure)))
    if not any(row.verdict is Verdict.BUSY for row in judged):
        return judged
    return [replace(row, verdict=Verdict.UNDECIDED) if _is_late(row) else row for row in judged]


def _is_late(row: Judged) -> bool:
    """Tell whether a busy machine may be why: it makes times long, but loses no token."""
    return row.verdict is Verdict.MISSED and (row.threshold.unit == "ms" or row.threshold.timed)


def exit_code(judged: Sequence[Judged]) -> int:
    """Sum up: a run that measured nothing blames nobody, and a miss weighs more than a lack of samples."""
    verdicts = {row.verdict for row in judged}
    if Verdict.VOID in verdicts or not verdicts - {Verdict.NOT_MEASURED}:
        return NO_MEASUREMENT
    if Verdict.MISSED in verdicts:
        return FAILED
    return NO_MEASUREMENT if verdicts & {Verdict.TOO_FEW, Verdict.UNDECIDED} else PASSED
