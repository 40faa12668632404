"""What the suite notices of a real service at fault, also where its numbers and its hash agree with its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.chaos import ChaosProxy, CutAfter
from tests.harness.server import ChatWait
from tests.live.steps import KEY, copy_of_service
from tests.load.liar import lying
from tests.load.suite import Run, mock_upstream, run, run_locust

pytestmark = pytest.mark.long

FEW = ("--users", "5", "--tokens", "20", "--gap-ms", "20", "--seconds", "4")
PATCH = """
from app.streams.memory.log import MemoryLog

_append = MemoryLog.append


def append(self, *chunks):
    return {body}


MemoryLog.append = append
"""
PATCHES = {
    "loses": '(kept := [chunk for chunk in chunks if "t7/" not in chunk]) == [] or _append(self, *kept)',
    "repeats": '_append(self, *(chunk for one in chunks for chunk in ([one, one] if "t7/" in one else [one])))',
    "keeps": "_append(self, *chunks)",
}


@contextmanager
def patched_service(directory: Path, body: str) -> Iterator[ChatWait]:
    """Run a copy of the service in front of the mock upstream, with a change of what it keeps."""
    directory.mkdir()
    root = copy_of_service(directory, PATCH.format(body=body))
    with (
        mock_upstream(gap_ms=20) as base_url,
        ChatWait(root=root, OPENAI_BASE_URL=base_url, OPENAI_API_KEY=KEY) as chatwait,
    ):
        yield chatwait


def run_against(tmp_path: Path, body: str, *options: str) -> Run:
    with patched_service(tmp_path / "service", PATCHES[body]) as chatwait:
        return run(tmp_path / "report", "--host", chatwait.base_url, "--stamped", *FEW, *options)


def reasons(ended: Run) -> set[str]:
    return {entry["reason"] for entry in ended.result["incomplete"]}


def test_service_behind_host_that_keeps_every_token_passes_with_its_added_delay(tmp_path: Path) -> None:
    ended = run_against(tmp_path, "keeps")
    assert ended.exit_code == 0, ended.output
    assert ended.result["verdicts"]["delay"] == "pass"
    assert ended.result["figures"]["service_cpu_us_per_token"]["value"] is None


@pytest.mark.parametrize("change", ["loses", "repeats"])
def test_service_that_hides_its_fault_behind_a_fitting_hash_fails(tmp_path: Path, change: str) -> None:
    ended = run_against(tmp_path, change)
    assert ended.exit_code == 1, ended.output
    assert reasons(ended) == {"a token of the model is missing, repeated or out of order"}
    for counts in ended.result["answers"].values():
        assert counts["begun"] > counts["complete"] == 0  # every answer has a token 7


def test_upstream_that_breaks_half_of_its_answers_off_fails_and_is_named(tmp_path: Path) -> None:
    ended = run(tmp_path, *FEW, "--error-rate", "0.5")
    assert ended.exit_code == 1, ended.output
    assert reasons(ended) <= {"it ended as failed: upstream_unavailable", "HTTP 503 upstream_unavailable"} | {
        "it ended as failed: upstream_error",
        "HTTP 502 upstream_error",
    }
    complete = ended.result["figures"]["complete_percent"]["value"]
    assert 10 < complete < 90


def test_network_that_cuts_connections_fails_whoever_does_not_come_back(tmp_path: Path) -> None:
    with (
        patched_service(tmp_path / "service", PATCHES["keeps"]) as chatwait,
        ChaosProxy("127.0.0.1", chatwait.port, default=CutAfter(1500)) as proxy,
    ):
        ended = run(tmp_path / "report", "--host", proxy.base_url, "--stamped", *FEW)
    assert ended.exit_code == 1, ended.output
    assert {reason.partition(":")[0] for reason in reasons(ended)} == {"the connection broke"}


@pytest.mark.parametrize(("faults", "judged"), [([""], lambda code: code == 0), (["skips a token"], lambda code: code)])
def test_locusts_own_command_runs_the_users_and_fails_with_the_service(
    tmp_path: Path, faults: list[str], judged: Callable[[int], bool]
) -> None:
    options = ["-u", "3", "-r", "3", "-t", "3s", "--tokens", "10"]
    with lying(faults) as liar:
        ended = run_locust(liar.base_url, *options)
    assert judged(ended.returncode), ended.stderr
    assert "Traceback" not in ended.stderr
    assert "answer" in ended.stderr + ended.stdout
    assert ("a sequence number is missing" in ended.stderr + ended.stdout) is bool(faults[0])
