"""Percentiles are exact, stalls are counted whole, and answers that never end are not forgotten."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load.figures import Window, figures_of
from load.measurements import LAG_PERIOD_SECONDS, Measurements, Progress, percentile


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_percentile_of_any_values_is_the_smallest_that_the_share_does_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


def test_percentile_of_nothing_is_none() -> None:
    assert percentile([], 0.99) is None


def test_p99_of_a_thousand_values_is_the_ten_worst_ones_bound() -> None:
    values = [float(number) for number in range(1, 1001)]
    random.Random(1).shuffle(values)
    assert percentile(values, 0.99) == 990.0


def test_timer_that_was_late_for_long_stands_for_all_that_it_kept_from_being_asked() -> None:
    measured = Measurements()
    measured.is_watching = True
    measured.note_timer(time.monotonic() - 100 * LAG_PERIOD_SECONDS)
    assert len(measured.lag_ms) == 100
    assert measured.lag_ms[0] == pytest.approx(1980, abs=50)
    assert min(measured.lag_ms) >= 0


def test_timer_outside_of_the_measured_time_is_not_noted() -> None:
    measured = Measurements()
    measured.note_timer(time.monotonic())
    assert not measured.lag_ms
    assert not measured.open_streams


def test_answers_that_never_ended_count_as_incomplete() -> None:
    measured = Measurements()
    measured.begun["answer"] = 10
    measured.complete["answer"] = 6
    measured.reasons["answer", "HTTP 503 overloaded"] = 1
    measured.note_unfinished()
    assert measured.incomplete == 4
    assert measured.reasons["answer", "it had not ended long after the run"] == 3
    assert figures_of(measured, Window(), users=1, stamped=True)["complete_percent"].value == 60


def test_progress_is_about_what_came_since_the_last_line() -> None:
    measured = Measurements()
    progress = Progress(measured)
    measured.ttft_ms.append(900.0)
    assert "TTFT p95 900.0 ms" in progress.line()
    measured.ttft_ms.append(5.0)
    assert "TTFT p95   5.0 ms" in progress.line()
    assert "TTFT p95     - ms" in progress.line()
