"""Times of the wall clock, as the log and the answers write them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache

__all__ = ["unix_seconds", "utc_now"]


def utc_now(at: float | None = None) -> str:
    """Format a time (now by default; Units: seconds since 1970) as UTC ISO 8601 with milliseconds and Z."""
    second, fraction = divmod(time.time() if at is None else at, 1)
    return f"{_second(int(second))}.{int(fraction * 1000):03d}Z"


def unix_seconds(written: str) -> int:
    """Read a time that `utc_now` has written. Units: seconds since 1970."""
    return int(datetime.fromisoformat(written).timestamp())


@lru_cache(4)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")
