"""The figures of a storm, of both modes at once and of slow readers, and how the project's table judges them."""

from __future__ import annotations

import json
import subprocess
import sys
from array import array

import pytest

from load.figures import Window, figures_of
from load.measurements import Measurements, Strike
from load.processes import Usage
from load.thresholds import NAMES, Judged, Verdict, exit_code, judge, read_thresholds
from tests.harness.server import ROOT

MIB = 1 << 20


def figure(measured: Measurements, name: str, window: Window | None = None, **more: float) -> tuple[float | None, int]:
    found = figures_of(measured, window or Window(), users=100, stamped=True, **more)[name]
    return found.value, found.samples


def storm(*, back_ms: list[float], cut: int, refused: int = 0, readers: int = 100) -> Measurements:
    measured = Measurements()
    measured.strikes = [
        Strike(at=10.0, readers=readers, cut=cut, refused=refused, back_ms=array("d", back_ms)),
        Strike(at=20.0, readers=readers, cut=readers, back_ms=array("d", [1.0] * readers)),
    ]
    return measured


def judged(measured: Measurements, scenario: str, *, window: Window | None = None) -> dict[str, Judged]:
    """Judge by the project's own table."""
    figures = figures_of(measured, window or Window(), users=100, waiters=100, stamped=True)
    return {row.threshold.name: row for row in judge(read_thresholds(scenario=scenario), figures)}


def test_reader_that_comes_back_is_timed_from_before_its_connection_and_from_the_cut() -> None:
    strike = Strike(at=10.0, readers=1, cut=1)
    strike.note_back(10.75, 11.0)
    assert list(strike.first_frame_ms) == [250]
    assert list(strike.back_ms) == [1000]


def test_reader_that_is_back_too_late_or_never_is_not_back() -> None:
    measured = storm(back_ms=[900.0] * 96 + [2000.0, 2001.0], cut=100)
    assert figure(measured, "storm_back_percent") == (pytest.approx(100 * 197 / 200), 200)
    assert figure(measured, "storm_back_percent", spread=0.5) == (pytest.approx(100 * 196 / 200), 200)


def test_storm_is_as_large_as_its_smallest_strike_and_without_one_there_is_none() -> None:
    assert figure(storm(back_ms=[], cut=40), "storm_cut_percent") == (40, 140)
    rows = judged(storm(back_ms=[], cut=40), "storm")
    assert rows["run: readers that a storm cut"].verdict is Verdict.VOID
    calm = judged(Measurements(), "storm")
    assert calm["run: storms"].verdict is Verdict.VOID
    assert calm["storm: resumes refused"].verdict is Verdict.TOO_FEW


def test_one_refused_resume_among_hundreds_is_a_miss_also_on_a_busy_machine() -> None:
    measured = storm(back_ms=[1.0] * 99, cut=100, refused=1)
    measured.lag_ms = array("d", [500.0] * 100)
    rows = judged(measured, "storm")
    assert rows["noise: load generator's lag, p99"].verdict is Verdict.BUSY
    assert rows["storm: resumes refused"].verdict is Verdict.MISSED


def test_readers_that_are_back_late_on_a_busy_machine_are_undecided() -> None:
    late = storm(back_ms=[5000.0] * 100, cut=100)
    assert judged(late, "storm")["storm: back within 2 s of the cut"].verdict is Verdict.MISSED
    late.lag_ms = array("d", [500.0] * 100)
    assert judged(late, "storm")["storm: back within 2 s of the cut"].verdict is Verdict.UNDECIDED


def test_service_in_a_storm_is_judged_by_the_second_after_the_cut() -> None:
    """It uses a tenth of a core, and nine tenths from second 20 to 21."""
    course = [(quarter / 4, 0.1 * quarter / 4 + 0.8 * min(max(quarter / 4 - 20, 0), 1)) for quarter in range(120)]
    window = Window(course=[(at, Usage(cpu_seconds=used)) for at, used in course])
    assert window.service_share(10.0, 11.0) == pytest.approx(0.1)
    assert window.service_share(20.0, 21.0) == pytest.approx(0.9)
    assert window.service_share(29.5, 30.5) is None  # nobody looked any more
    assert figure(storm(back_ms=[], cut=1), "storm_cpu_percent", window)[0] == pytest.approx(90)
    assert figure(storm(back_ms=[], cut=1), "storm_cpu_percent")[0] is None


def test_overhead_of_a_whole_answer_is_all_but_the_models_own_time() -> None:
    """Asked for at 1 s, there at 7.25 s; the model took 1 s to the first token, and 5 s from it to the last."""
    measured = Measurements()
    measured.note_waited(1.0, 7.25, first_ms=2100.0, last_ms=7100.0, ttft_ms=1000.0)
    assert list(measured.wait_overhead_ms) == [250]
    assert list(measured.wait_ms) == [150]


def test_mixed_run_in_which_nobody_waits_is_none() -> None:
    measured = Measurements()
    measured.open_waits = array("d", [94.0] * 100)
    assert judged(measured, "mixed")["run: waiting at once"].verdict is Verdict.VOID
    measured.open_waits = array("d", [95.0] * 100)
    assert judged(measured, "mixed")["run: waiting at once"].verdict is Verdict.PASS
    assert figure(measured, "waiting_percent", waiters=0)[0] is None


def slow(*, begun: int, complete: int, gathered: int) -> Measurements:
    measured = Measurements()
    for counter, count in ((measured.begun, begun), (measured.complete, complete), (measured.gathered, gathered)):
        counter["answer (slow)"] = count
    return measured


def test_slow_readers_whom_the_service_never_waited_for_were_not_slow() -> None:
    assert (
        judged(slow(begun=20, complete=20, gathered=17), "slow")["run: slow readers held back"].verdict is Verdict.VOID
    )
    assert (
        judged(slow(begun=20, complete=20, gathered=18), "slow")["run: slow readers held back"].verdict is Verdict.PASS
    )


def test_service_that_drops_its_slow_readers_fails_and_is_not_excused_as_no_measurement() -> None:
    rows = judged(slow(begun=20, complete=0, gathered=0), "slow")
    assert rows["run: slow readers held back"].verdict is Verdict.PASS
    assert rows["slow: slow readers' answers complete"].verdict is Verdict.MISSED


def test_memory_of_the_service_is_judged_by_its_peak() -> None:
    course = [(float(at), Usage(rss_bytes=megabytes * MIB)) for at, megabytes in enumerate((160, 290, 170))]
    window = Window(before=Usage(rss_bytes=150 * MIB), course=course)
    row = judged(slow(begun=0, complete=0, gathered=0), "slow", window=window)["slow: service's memory, growth"]
    assert row.figure.value == 140
    assert row.verdict is Verdict.MISSED
    elsewhere = judged(slow(begun=0, complete=0, gathered=0), "slow")["slow: service's memory, growth"]
    assert elsewhere.words == "not measured: the service was not started here"


@pytest.mark.parametrize("scenario", NAMES)
def test_run_of_a_scenario_without_any_measurement_is_none(scenario: str) -> None:
    rows = judged(Measurements(), scenario)
    assert exit_code(list(rows.values())) == 2
    assert Verdict.PASS not in {row.verdict for row in rows.values()}


ASKED = """
import json, sys
import locust
from load.options import options_of
from load.scenarios import SCENARIOS
from load.thresholds import NAMES
assert tuple(SCENARIOS) == NAMES
said = []
for arguments in json.loads(sys.argv[1]):
    options = options_of(arguments)
    counts = SCENARIOS[options.scenario].counts(105, options)
    said.append([{user.__name__: count for user, count in counts.items()}, options.every])
print(json.dumps(said))
"""
USERS = [
    ([], {"ChatUser": 94, "ResumingUser": 11, "WaitUser": 11}, 10),
    (["--scenario", "openai"], {"OpenAIUser": 94, "ResumingOpenAIUser": 11, "WholeOpenAIUser": 11}, 10),
    (
        ["--scenario", "both"],
        {
            "ChatUser": 47,
            "ResumingUser": 6,
            "WaitUser": 6,
            "OpenAIUser": 46,
            "ResumingOpenAIUser": 6,
            "WholeOpenAIUser": 6,
        },
        10,
    ),
    (["--scenario", "storm"], {"StormUser": 105}, 10),
    (["--scenario", "storm", "--seconds", "8"], {"StormUser": 105}, 4),  # two storms at least
    (["--scenario", "mixed"], {"ChatUser": 105, "WaitUser": 105}, 10),
    (["--scenario", "mixed", "--wait-share", "0.2"], {"ChatUser": 105, "WaitUser": 26}, 10),
    (["--scenario", "slow"], {"ChatUser": 94, "SlowUser": 11}, 10),
    (["--scenario", "slow", "--slow-share", "0.5"], {"ChatUser": 52, "SlowUser": 53}, 10),
]


def test_scenario_says_who_the_users_are() -> None:
    """In a process of its own: locust changes the one that imports it."""
    command = [sys.executable, "-c", ASKED, json.dumps([arguments for arguments, _, _ in USERS])]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert json.loads(ended.stdout) == [[counts, every] for _, counts, every in USERS]
