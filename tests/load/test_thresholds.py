"""How a run is judged by the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from load.figures import Window, figures_of
from load.measurements import Measurements
from load.thresholds import BadTable, Figure, Judged, Threshold, Verdict, exit_code, judge, read_thresholds


def row(figure: str = "ttft_p95_ms", comparison: str = "below", bound: float = 100, **more: object) -> Threshold:
    named = {"name": figure, "unit": "ms", "samples": 10, "source": "", "meaning": ""}
    return Threshold(figure=figure, comparison=comparison, bound=bound, **(named | more))


def verdict(threshold: Threshold, value: float | None, samples: int = 10, why: str = "") -> Verdict:
    return judge([threshold], {threshold.figure: Figure(value, samples, why)})[0].verdict


@pytest.mark.parametrize(
    ("comparison", "value", "expected"),
    [
        ("below", 99.9, Verdict.PASS),
        ("below", 100, Verdict.MISSED),
        ("at_most", 100, Verdict.PASS),
        ("at_most", 100.1, Verdict.MISSED),
        ("at_least", 100, Verdict.PASS),
        ("at_least", 99.9, Verdict.MISSED),
    ],
)
def test_figure_at_the_edge_of_its_bound_is_judged_by_the_comparison(
    comparison: str, value: float, expected: Verdict
) -> None:
    assert verdict(row(comparison=comparison), value) is expected


def test_figure_of_too_few_samples_is_neither_passed_nor_missed() -> None:
    assert verdict(row(), 5, samples=9) is Verdict.TOO_FEW
    assert verdict(row(), 500, samples=9) is Verdict.TOO_FEW
    assert verdict(row(), None, samples=0) is Verdict.TOO_FEW


def test_figure_that_cannot_be_known_here_is_shown_as_not_measured() -> None:
    judged = judge([row()], {"ttft_p95_ms": Figure(None, 0, "its model sends no stamps")})
    assert judged[0].words == "not measured: its model sends no stamps"


def test_row_about_the_run_that_is_missed_or_empty_voids_it() -> None:
    assert verdict(row(judges="run"), 500) is Verdict.VOID
    assert verdict(row(judges="run"), None, samples=0) is Verdict.VOID


def judged_with_noise(figure: str, unit: str, value: float) -> list[Verdict]:
    """Judge a service's row beside a row of noise that is over its bound."""
    rows = [row(figure, unit=unit), row("lag", judges="noise")]
    return [each.verdict for each in judge(rows, {figure: Figure(value, 10), "lag": Figure(500, 10)})]


def test_time_over_its_bound_on_a_busy_machine_is_undecided_and_one_within_it_a_pass() -> None:
    assert judged_with_noise("ttft_p95_ms", "ms", 500) == [Verdict.UNDECIDED, Verdict.BUSY]
    assert judged_with_noise("ttft_p95_ms", "ms", 5) == [Verdict.PASS, Verdict.BUSY]


def test_lost_answers_on_a_busy_machine_are_missed_all_the_same() -> None:
    assert judged_with_noise("complete_percent", "%", 500) == [Verdict.MISSED, Verdict.BUSY]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ({Verdict.PASS}, 0),
        ({Verdict.PASS, Verdict.NOT_MEASURED}, 0),
        ({Verdict.PASS, Verdict.BUSY}, 0),
        ({Verdict.PASS, Verdict.MISSED}, 1),
        ({Verdict.MISSED, Verdict.TOO_FEW}, 1),
        ({Verdict.PASS, Verdict.TOO_FEW}, 2),
        ({Verdict.PASS, Verdict.UNDECIDED, Verdict.BUSY}, 2),
        ({Verdict.MISSED, Verdict.VOID}, 2),
        ({Verdict.NOT_MEASURED}, 2),
        (set(), 2),
    ],
)
def test_exit_code_of_verdicts_is_the_gravest_that_can_be_told(verdicts: set[Verdict], expected: int) -> None:
    assert exit_code([Judged(row(), Figure(1.0), each) for each in verdicts]) == expected


def test_table_of_the_project_names_only_figures_that_are_measured() -> None:
    rows = read_thresholds()
    judge(rows, figures_of(Measurements(), Window(), users=100, stamped=True))
    bounds = {each.figure: each.text for each in rows}
    assert bounds["ttft_p95_ms"] == "< 2000 ms"
    assert bounds["streams_at_once"] == "≥ 100"
    assert bounds["complete_percent"] == "≥ 99 %"
    assert bounds["delay_p99_ms"] == "< 200 ms"


def test_run_without_any_measurement_is_none_in_the_table_of_the_project() -> None:
    judged = judge(read_thresholds(), figures_of(Measurements(), Window(), users=100, stamped=True))
    assert exit_code(judged) == 2
    assert Verdict.PASS not in {each.verdict for each in judged}


ROW = '[[threshold]]\nname = "n"\nfigure = "ttft_p95_ms"\nunit = "ms"\nsamples = 1\nsource = ""\nmeaning = ""\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("threshold = ", "no table"),
        ("", "no table"),
        (ROW, "exactly one of"),
        (ROW + "below = 1\nat_most = 1", "exactly one of"),
        (ROW + 'below = "1"', "no number"),
        (ROW + "below = 1\nhurts = true", "hurts"),
        (ROW + 'below = 1\njudges = "nobody"', "judges one of"),
        (ROW + 'below = 1\nscenarios = ["stormy"]', "are not a list of"),
        (ROW + 'below = 1\nscenarios = "storm"', "are not a list of"),
        (ROW + 'below = 1\nscenarios = ["storm"]', "no row for the scenario 'steady'"),
    ],
)
def test_table_with_a_mistake_is_refused_in_words(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "thresholds.toml"
    path.write_text(text)
    with pytest.raises(BadTable, match=said):
        read_thresholds(path)


def test_row_holds_in_its_scenarios_and_without_any_in_each(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.toml"
    path.write_text(ROW + "below = 1\n" + ROW + 'below = 2\nscenarios = ["storm", "slow"]\n')
    assert [row.bound for row in read_thresholds(path)] == [1]
    assert [row.bound for row in read_thresholds(path, "storm")] == [1, 2]


def test_table_that_names_an_unknown_figure_is_refused() -> None:
    with pytest.raises(BadTable, match="there is no figure 'ttft'"):
        judge([row("ttft")], {"ttft_p95_ms": Figure(1.0)})
