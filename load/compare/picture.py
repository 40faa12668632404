"""The picture of a comparison: four panels, each with a line or a bar for every subject."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from load.compare.bars import Results
from load.compare.lanes import GAP_MS
from load.compare.subjects import DIRECT, OURS

__all__ = ["draw"]

COLOURS = {OURS: "#0b6bcb", "FastAPI": "#d9480f", "Flask": "#9c36b5", "LiteLLM": "#c92a2a", "nginx": "#2b8a3e"}
OTHER = "#868e96"


def draw(results: Results, names: Sequence[str], path: Path) -> None:
    """Write the PNG."""
    mpl.use("Agg")
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, ((cpu, first), (gap, request)) = plt.subplots(2, 2, figsize=(12.8, 9.0), dpi=110)
    measured = [name for name in names if name != DIRECT]
    _lines(cpu, results, measured, "cpu_us_per_token", "CPU of a token (µs)")
    _lines(first, results, names, "ttft_p99_ms", "First token, p99 (ms)")
    _lines(gap, results, names, "gap_p99_ms", "Gap between tokens, p99 (ms)")
    for factor in (2, 5):
        gap.axhline(factor * GAP_MS, color=OTHER, linewidth=1, linestyle=":")
        gap.annotate(f"{factor}× the model's pace", (1, factor * GAP_MS * 1.04), color=OTHER, fontsize=9)
    _requests(request, results, measured)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.suptitle(
        f"Streams of one token every {GAP_MS} ms through each service on one core (lower is better)", fontsize=14
    )
    figure.tight_layout(rect=(0, 0.04, 1, 0.98))
    figure.savefig(path)
    plt.close(figure)


def _lines(axes: Axes, results: Results, names: Sequence[str], figure: str, title: str) -> None:
    levels = sorted({level for lane, level, _ in results.rounds if lane == "paced"})
    for name in names:
        points = [(level, results.median("paced", level, name, figure)) for level in levels]
        points = [(level, value) for level, value in points if not math.isnan(value)]
        axes.plot(
            [level for level, _ in points],
            [value for _, value in points],
            label=name,
            color=COLOURS.get(name, OTHER),
            linewidth=2.6 if name == OURS else 1.6,
            linestyle="--" if name == DIRECT else "-",
            marker="o",
            markersize=4,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(levels, [str(level) for level in levels])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.set_xlabel("streams at once")
    axes.set_title(title, loc="left", fontsize=12)
    axes.grid(axis="y", color="#e9ecef")
    axes.set_axisbelow(True)


def _requests(axes: Axes, results: Results, names: Sequence[str]) -> None:
    values = [max(results.request_us(name), 0.0) / 1000 for name in names]
    shown = [0.0 if math.isnan(value) else value for value in values]
    bars = axes.barh(range(len(names)), shown, color=[COLOURS.get(name, OTHER) for name in names])
    axes.bar_label(bars, [f" {value:.2f}" for value in shown])
    axes.set_yticks(range(len(names)), list(names))
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.set_title("CPU of a request beyond its token (ms)", loc="left", fontsize=12)
