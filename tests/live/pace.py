"""Streams at a steady pace, and how steadily they come: what others do must not change it.

Must never import the service's code.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import quantiles

from tests.live.many import Asker


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
