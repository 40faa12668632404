"""Test the times of log lines and answers."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.platform.utc import utc_now


@pytest.mark.requirement("tasks T006")
def test_timestamps_are_utc_whatever_the_zone_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert utc_now(0.0) == "1970-01-01T00:00:00.000Z"
        assert utc_now(1_700_000_000.9996) in ("2023-11-14T22:13:20.999Z", "2023-11-14T22:13:21.000Z")
        assert utc_now(1_700_000_000) == "2023-11-14T22:13:20.000Z"
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.floats(0, 4_102_444_800) | st.floats(1_699_999_999, 1_700_000_002) | st.integers(0, 4_102_444_800))
def test_time_of_a_line_is_its_moment_cut_to_milliseconds(at: float) -> None:
    """Reckoned in whole numbers: what is kept for a second must never be that of another one."""
    told = utc_now(at)

    moment = datetime.fromisoformat(told)
    assert told == moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    ms = round(moment.timestamp() * 1000)
    # A float is seldom the number it was written as: 0.3 is a little less, and is told as 300 ms all the same.
    assert Fraction(at) * 1000 - 1 < ms <= Fraction(at) * 1000 + Fraction(1, 100)


def test_time_of_now_never_goes_back_from_line_to_line() -> None:
    before = datetime.now(UTC)
    told = [utc_now() for _ in range(2000)]

    assert told == sorted(told)
    assert abs((datetime.fromisoformat(told[0]) - before).total_seconds()) < 1
