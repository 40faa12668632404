"""Each scenario passes the real service, and fails one that is at fault in what the scenario is about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.chaos import ChaosProxy, OneQueue
from tests.harness.server import ChatWait
from tests.live.steps import KEY, copy_of_service
from tests.load.liar import lying
from tests.load.suite import ROW, Run, mock_upstream, run, run_locust

pytestmark = pytest.mark.long

FEW = ("--users", "6", "--seconds", "5")
STORM = ("--scenario", "storm", *FEW, "--tokens", "40", "--gap-ms", "50", "--spread", "0.5")
MIXED = ("--scenario", "mixed", *FEW, "--tokens", "20", "--gap-ms", "50")
SLOW = ("--scenario", "slow", *FEW, "--tokens", "100", "--gap-ms", "10", "--slow-share", "0.3")
SLOW += ("--slow-seconds", "2", "--slow-rate", "20000")
ROWS = {
    "storm": ROW.format(figure="storm_refused", bound="at_most = 0", samples=3)
    + ROW.format(figure="storm_back_percent", bound="at_least = 99", samples=3),
    "mixed": ROW.format(figure="wait_overhead_p95_ms", bound="below = 500", samples=3),
    "slow": ROW.format(figure="slow_complete_percent", bound="at_least = 99", samples=2)
    + ROW.format(figure="along_delay", bound="below = 200", samples=20).replace(
        'figure = "along_delay"', 'figure = "delay_p99_ms"'
    ),
}
PATCH = """
import itertools
import time

_whole = app.wsgi_app
_resumes = itertools.count()


def faulty(environ, start_response):
    if environ["PATH_INFO"] == "/chat/wait":
        time.sleep(0.6)
    if "HTTP_LAST_EVENT_ID" in environ:
        fault = next(_resumes) % 3
        if fault == 0 and environ["HTTP_LAST_EVENT_ID"].endswith(".0"):
            fault = 1  # it has nothing yet, so whoever ignores where it was does right by it
        if fault == 0:
            del environ["HTTP_LAST_EVENT_ID"]
        elif fault == 1:
            start_response("503 Service Unavailable", [("Content-Type", "application/json"), ("Content-Length", "31")])
            return [b'{"error_code": "overloaded"   }']
        else:
            time.sleep(1.6)
    return _whole(environ, start_response)


app.wsgi_app = faulty
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatWait]:
    """Run a service that waits before each whole answer, and of three resumes ignores, refuses and delays one each."""
    root = copy_of_service(tmp_path_factory.mktemp("service"), PATCH)
    with (
        mock_upstream(gap_ms=50) as base_url,
        ChatWait(root=root, OPENAI_BASE_URL=base_url, OPENAI_API_KEY=KEY) as chatwait,
    ):
        yield chatwait


def value(ended: Run, figure: str) -> float:
    return ended.result["figures"][figure]["value"]


def complete(ended: Run) -> dict[str, bool]:
    """Tell of each kind of answers whether there were some, and all of them were complete."""
    return {kind: 0 < of["begun"] == of["complete"] for kind, of in ended.result["answers"].items()}


def test_storm_cuts_all_readers_twice_and_they_come_back_to_every_token(tmp_path: Path) -> None:
    ended = run(tmp_path, *STORM, rows=ROWS["storm"])
    assert ended.exit_code == 0, ended.output
    assert complete(ended) == {"answer (storm)": True}
    assert value(ended, "storms") == 2
    came_back = ended.result["figures"]["storm_first_frame_p99_ms"]["samples"]
    assert 8 <= came_back == ended.result["figures"]["storm_back_percent"]["samples"] <= 12
    assert value(ended, "storm_back_percent") == 100
    assert value(ended, "storm_cpu_percent") > 0
    figures = ended.result["figures"]  # tokens that were sent to nobody do not count as late
    assert 0 < figures["delay_p99_ms"]["samples"] < figures["upstream_lag_p99_ms"]["samples"]
    assert "2 storms; first frame of readers that came back p50 " in ended.output


def test_mixed_run_measures_both_modes(tmp_path: Path) -> None:
    ended = run(tmp_path, *MIXED, "--ttft-ms", "300")
    assert ended.exit_code == 0, ended.output
    assert complete(ended) == {"answer": True, "answer (wait)": True}
    assert value(ended, "ttft_p50_ms") >= 300
    waited = ended.result["figures"]["wait_overhead_p50_ms"]
    assert waited["samples"] == ended.result["answers"]["answer (wait)"]["complete"]
    assert waited["value"] > 0
    assert value(ended, "waiting_percent") > 50
    assert "wait mode, all but the model's own time: p50 " in ended.output


def test_slow_readers_are_held_back_and_get_every_token(tmp_path: Path) -> None:
    ended = run(tmp_path, *SLOW, rows=ROWS["slow"].replace("200", "60000"))
    assert ended.exit_code == 0, ended.output
    assert complete(ended) == {"answer": True, "answer (slow)": True}
    assert value(ended, "slow_held_back_percent") == 100
    assert value(ended, "slow_at_once_p50") >= 2
    assert value(ended, "service_rss_growth_mib") > 0
    along = ended.result["figures"]
    assert along["delay_p99_ms"]["samples"] == along["upstream_lag_p99_ms"]["samples"] > 100


def test_service_that_ignores_refuses_and_delays_resumes_fails_in_the_storm(tmp_path: Path, faulty: ChatWait) -> None:
    ended = run(tmp_path, *STORM, "--host", faulty.base_url, "--stamped", rows=ROWS["storm"])
    assert ended.exit_code == 1, ended.output
    reasons = {entry["reason"] for entry in ended.result["incomplete"]}
    assert reasons == {"a sequence number is missing, repeated or out of order", "HTTP 503 overloaded"}
    verdicts = ended.result["verdicts"]
    assert {verdicts[name] for name in ("complete", "storm_refused", "storm_back_percent")} == {"missed"}
    assert value(ended, "storm_back_percent") == 0  # what goes on from another place is no coming back either
    assert value(ended, "storm_first_frame_max_ms") > 1600


def test_service_that_adds_half_a_second_to_whole_answers_fails_in_the_mixed_run(
    tmp_path: Path, faulty: ChatWait
) -> None:
    ended = run(tmp_path, *MIXED, "--host", faulty.base_url, "--stamped", rows=ROWS["mixed"])
    assert ended.exit_code == 1, ended.output
    assert complete(ended) == {"answer": True, "answer (wait)": True}
    missed = {name for name, verdict in ended.result["verdicts"].items() if verdict == "missed"}
    assert missed == {"wait_overhead_p95_ms"}
    assert value(ended, "wait_overhead_p50_ms") >= 600


def test_service_whose_slow_readers_make_the_others_late_fails_in_the_slow_run(tmp_path: Path) -> None:
    with (
        mock_upstream(gap_ms=10) as base_url,
        ChatWait(OPENAI_BASE_URL=base_url, OPENAI_API_KEY=KEY) as chatwait,
        ChaosProxy("127.0.0.1", chatwait.port, default=OneQueue()) as proxy,
    ):
        ended = run(tmp_path, *SLOW, "--host", proxy.base_url, "--stamped", rows=ROWS["slow"])
    assert ended.exit_code == 1, ended.output
    missed = {name for name, verdict in ended.result["verdicts"].items() if verdict == "missed"}
    assert missed == {"along_delay"}
    assert complete(ended) == {"answer": True, "answer (slow)": True}


def test_locusts_own_command_runs_the_users_of_a_scenario(tmp_path: Path) -> None:
    options = ["-u", "2", "-r", "2", "-t", "2s", "--tokens", "10"]
    options += ["--scenario", "slow", "--slow-share", "0.5", "--slow-seconds", "0"]
    with lying([""]) as liar:
        ended = run_locust(liar.base_url, *options)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    assert "answer (slow)" in said
    assert "answer (resumed)" not in said
