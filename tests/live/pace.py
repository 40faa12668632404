"""Streams at a steady pace, and how steadily they come: what others do must not change it.

Must never import the service's code.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import quantiles

from tests.harness.server import ROOT
from tests.live.many import Asker


@contextmanager
def paced_upstream(tokens: int, gap_ms: float = 0.0) -> Iterator[str]:
    """Run the scripted upstream as a process of its own, so that it shares no lock with the readers; give its URL."""
    command = [sys.executable, "-m", "tests.harness.upstream", "--tokens", str(tokens), "--gap-ms", str(gap_ms)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.terminate()


async def read_paced(asker: Asker, gaps: list[tuple[float, float]]) -> bytes:
    """Read one stream to its end, note when each piece came and how long after the one before, and give the last.
    Units: seconds of the monotonic clock."""
    before, last = time.monotonic(), b""
    async for piece in asker.pieces():
        now = time.monotonic()
        gaps.append((now, now - before))
        before, last = now, piece
    await asker.close()
    return last


def percentile(values: Sequence[float], percent: int) -> float:
    """Tell what so many percent of the values stay under."""
    return quantiles(values, n=100)[percent - 1]


def in_ms(values: Sequence[float]) -> str:
    """Write the distribution of gaps for a table."""
    shown = " ".join(f"p{percent} {percentile(values, percent) * 1000:.0f}" for percent in (50, 90, 99))
    return f"{len(values):6} gaps, ms: {shown} max {max(values) * 1000:.0f}"
