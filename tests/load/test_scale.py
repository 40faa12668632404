"""Test the load on Valkey: a short run of it, and what it makes of its figures."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from load import scale
from load.scale import Figures, Memory, Plan

STEP = Figures(
    streams=500,
    tokens_per_second=25_000.0,
    valkey_us=12.0,
    valkey_share=0.3,
    valkey_waited=0.0,
    bytes_in=150.0,
    bytes_out=15.0,
    commands_per_second=600.0,
    steps_per_second=100_000.0,
    read_share=0.1,
    commit_p50_ms=1.0,
    commit_p99_ms=5.0,
    load_share=0.3,
)

RUNS = 5
"""A run in which others had the cores writes too little, or too much: what it had not written before."""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="measures on Linux only")
def test_run_loads_a_valkey_and_says_what_it_must_carry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "scale.json"
    arguments = ["--streams", "40", "--steps", "1", "--seconds", "1.5", "--read-share", "0.5", "--worker-streams", "20"]

    for _ in range(RUNS):
        assert scale.main([*arguments, "--json", str(file)]) == 0
        found = json.loads(file.read_text())
        (step,) = found["steps"]
        if 20 * 50 < step["tokens_per_second"] < 60 * 50 and step["commands_per_second"] > 100:
            break
    else:
        pytest.fail(f"the load has never the rate that it is to have: {step}")

    assert caplog.records == []
    assert step["streams"] == 40
    assert 0.2 < step["read_share"] < 0.8
    assert step["valkey_us"] > 1
    assert step["bytes_in"] > len(scale.CHUNK)
    assert step["steps_per_second"] > step["commands_per_second"]
    assert found["memory"]["finished"] > found["memory"]["live"] > 250 * len(scale.CHUNK)
    assert 0 < found["memory"]["remembered"] < 2000
    assert found["goal"]["workers"] == 50_000
    assert found["goal"]["valkey_servers"] > 10
    said = capsys.readouterr().out
    assert "| 40 |" in said
    assert "| workers of 20 streams, a core each | 50 | 50,000 |" in said


def test_plan_takes_the_last_step_that_valkey_carried() -> None:
    more = replace(STEP, streams=1000, tokens_per_second=50_000.0, valkey_share=0.6)
    full = replace(STEP, streams=1500, tokens_per_second=75_000.0, valkey_share=0.95)
    plan = Plan([STEP, more, full], Memory(8000, 13_000, 300), 250)

    assert plan.best.streams == 1000
    assert plan.streams_per_valkey == 600
    assert plan.needed(1_000_000) == (1667, 4000)
    assert plan.bytes_for(1000) == (1000 * 8000 + 100 * 3600 * 13_000, 100 * 86_400 * 300)


def test_plan_reckons_with_the_cpu_of_a_token_where_the_thread_was_not_filled() -> None:
    late = replace(STEP, streams=750, commit_p99_ms=30.0)

    assert Plan([STEP, late], Memory(1, 1, 1), 250).thread_streams == pytest.approx(1500)
    assert Plan([late], Memory(1, 1, 1), 250).best == late


@pytest.mark.parametrize(
    ("changed", "is_full"),
    [
        ({}, False),
        ({"valkey_share": 0.9}, True),
        ({"commit_p99_ms": 21.0}, True),
        ({"tokens_per_second": 20_000.0}, True),
    ],
)
def test_valkey_is_full_when_its_thread_is_or_it_falls_behind(changed: dict[str, float], is_full: bool) -> None:
    assert replace(STEP, **changed).is_full is is_full
