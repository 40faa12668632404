"""The whole suite, small: it passes the real service, notices every fault of a lying one, and stops when told to."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.harness.net import reserve_port
from tests.harness.server import ROOT
from tests.load.liar import Liar, lying
from tests.load.streams import FAULTS
from tests.load.suite import Run, command, run

FEW = ("--users", "5", "--tokens", "20", "--gap-ms", "50", "--seconds")


@pytest.fixture(scope="module")
def liar() -> Iterator[Liar]:
    with lying([*FAULTS, ""]) as liar:
        yield liar


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, liar: Liar) -> Iterator[dict[str, Future[Run]]]:
    """Begin the runs side by side: most of their time is waiting."""
    directory = tmp_path_factory.mktemp("load")
    with ThreadPoolExecutor(2) as pool:
        yield {
            "real": pool.submit(run, directory / "real", *FEW, "4"),
            "openai": pool.submit(run, directory / "openai", *FEW, "3", "--scenario", "openai"),
            "lying": pool.submit(run, directory / "lying", "--host", liar.base_url, *FEW, "3"),
        }


def test_real_service_under_a_small_load_passes_with_right_counts(runs: dict[str, Future[Run]]) -> None:
    ended = runs["real"].result()
    assert ended.exit_code == 0, ended.output
    assert "Every threshold is met." in ended.output
    result = ended.result
    assert set(result["answers"]) == {"answer", "answer (resumed)", "answer (wait)"}
    for counts in result["answers"].values():
        assert 0 < counts["begun"] == counts["complete"] < counts["asked"]  # the warm-up is asked too, and not counted
    assert result["incomplete"] == []
    figures = {name: figure["samples"] for name, figure in result["figures"].items()}
    assert figures["complete_percent"] == sum(counts["begun"] for counts in result["answers"].values())
    assert figures["ttft_p95_ms"] == result["answers"]["answer"]["complete"]
    assert figures["delay_p99_ms"] == figures["upstream_lag_p99_ms"] >= 10 * figures["ttft_p95_ms"]
    assert figures["resume_p95_ms"] >= 1
    assert 3 <= result["figures"]["streams_at_once"]["value"] <= 5  # each is for a moment between two answers
    for measured in ("service_cpu_us_per_token", "service_rss_after_mib", "service_descriptors_after"):
        assert result["figures"][measured]["value"] > 0


def test_real_service_under_a_small_load_of_openais_clients_passes(runs: dict[str, Future[Run]]) -> None:
    ended = runs["openai"].result()
    assert ended.exit_code == 0, ended.output
    assert set(ended.result["answers"]) == {"chunks", "chunks (resumed)", "whole (wait)"}
    for counts in ended.result["answers"].values():
        assert 0 < counts["begun"] == counts["complete"]
    assert ended.result["incomplete"] == []


def test_report_holds_the_thresholds_and_locusts_own_figures(runs: dict[str, Future[Run]]) -> None:
    page = runs["real"].result().page
    section, _, locusts = page.partition('<div id="root">')
    assert "<td>first token<td>&lt; 60000 ms<td>" in section
    assert '<td class="pass">pass' in section
    assert "token delay (added)" in locusts
    assert "TTFT" in locusts


def test_progress_is_shown_while_it_runs(runs: dict[str, Future[Run]]) -> None:
    lines = runs["real"].result().output.splitlines()
    assert any(re.search(r" [1-9]\d* streams .* tokens/s  TTFT p95", line) for line in lines), lines


def test_service_with_faults_is_caught_at_each_of_them_and_fails(runs: dict[str, Future[Run]], liar: Liar) -> None:
    ended = runs["lying"].result()
    assert ended.exit_code == 1, ended.output
    result = ended.result
    said = [entry["reason"] for entry in result["incomplete"]]
    for reason, _ in FAULTS.values():
        assert any(reason in each for each in said), (reason, said)
    assert result["verdicts"]["complete"] == "missed"
    for kind, counts in result["answers"].items():
        lost = sum(entry["count"] for entry in result["incomplete"] if entry["kind"] == kind)
        assert counts["begun"] == counts["complete"] + lost
    assert result["answers"]["answer (wait)"]["complete"] == result["answers"]["answer (wait)"]["begun"]
    assert sum(counts["asked"] for counts in result["answers"].values()) == liar.asked.total()
    # One stream in so many is whole: nothing else may have passed.
    streams = [result["answers"][kind] for kind in ("answer", "answer (resumed)")]
    share = sum(counts["complete"] for counts in streams) / sum(counts["begun"] for counts in streams)
    assert 0 < share < 2 / (len(FAULTS) + 1)


def test_service_whose_model_sends_no_stamps_is_not_judged_by_the_added_delay(runs: dict[str, Future[Run]]) -> None:
    ended = runs["lying"].result()
    assert ended.result["verdicts"]["delay"] == "not_measured"
    assert "not measured: its model sends no stamps" in ended.output


def test_host_where_nothing_answers_is_no_measurement_and_says_so(tmp_path: Path) -> None:
    with reserve_port() as reserved:
        host = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        ended = run(tmp_path, "--host", host, *FEW, "3")
    assert ended.exit_code == 2
    assert f"No measurement. Nothing answers at {host}: " in ended.output
    assert "Connection refused" in ended.output
    assert "Traceback" not in ended.output
    assert not (tmp_path / "result.json").exists()


def test_service_that_never_answers_has_no_stream_and_its_last_answers_can_be_left(tmp_path: Path) -> None:
    options = ("--users", "5", "--tokens", "20", "--gap-ms", "50", "--seconds", "2")
    with (
        lying([], silent=True) as liar,
        subprocess.Popen(
            command(tmp_path, "--host", liar.base_url, *options), cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as running,
    ):
        assert running.stdout is not None
        progress = next(line for line in running.stdout if "streams" in line)
        assert " 0 streams " in progress
        assert "The last answers" in running.stdout.readline()
        running.send_signal(signal.SIGINT)
        rest = running.stdout.read()
        assert running.wait(30) == 130, rest
    assert "Interrupted" in rest


def test_run_that_is_interrupted_ends_all_that_it_started(tmp_path: Path) -> None:
    running = subprocess.Popen(command(tmp_path, *FEW, "60"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    with running.stdout as output:
        assert "6 users" in output.readline()  # from here on the service and the upstream run
        children = psutil.Process(running.pid).children(recursive=True)
        assert len(children) >= 3  # premise: the upstream, gunicorn and its worker
        running.send_signal(signal.SIGINT)
        rest = output.read()
    assert running.wait(30) == 130, rest
    assert "Interrupted" in rest
    assert "Traceback" not in rest
    assert psutil.wait_procs(children, timeout=10)[1] == []
