"""Run the comparison from beginning to end, interleaved, and write what it found.

`make compare` takes some 16 minutes, `make compare QUICK=1` under 4. Exit codes: 0 measured, whatever the bars say;
2 no measurement; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from load.compare import lanes, report, valkey
from load.compare.bars import KEPT, RATIO_STREAMS, WHOLE, WHOLE_PER_SECOND, WHOLE_TOKENS, Results
from load.compare.lanes import Figures, Target
from load.compare.subjects import (
    BEFORE,
    DIRECT,
    OURS,
    ROOT,
    Meter,
    NotStarted,
    Process,
    Subject,
    as_openai,
    before,
    subjects,
)
from load.compare.valkey import CONNECTIONS, CORES_FOR_WORKERS, REMOTE, VALKEY, WORKERS, Cores, Pair
from load.upstream import ARGUMENTS, CONTENT, REASONING

__all__ = ["main"]

LEVELS = (1, 8, 25, 50, 100, 256, 512)
LONG_TOKENS = 10_000
KEPT_CHUNKS = 100

OPENAI_LEVELS = (50, 100, 256)
"""So many streams of OpenAI's route are measured beside as many native ones, and some more in the middle: of reasoning,
and of a tool's arguments."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    tokens: int
    levels: Sequence[int]
    rounds: Callable[[int, str], int]  # of a level and a subject
    repeats: int  # of the short lanes
    request_seconds: float
    connections: Sequence[int]
    valkey_streams: int = valkey.STREAMS
    valkey_rounds: int = 3
    readers: Sequence[int] = (1, valkey.MOST_READERS)
    worker_levels: Sequence[int] = tuple(range(128, 641, 64))
    worker_tokens: int = 600  # so many that all streams are there at once
    openai_levels: Sequence[int] = OPENAI_LEVELS
    whole_rounds: int = 5
    whole_seconds: float = 5.0
    kept_answers: int = 8000


def _rounds(streams: int, subject: str) -> int:
    if streams == RATIO_STREAMS:
        return {OURS: 5, BEFORE: 5, "FastAPI": 5, "nginx": 3, "LiteLLM": 3}.get(subject, 1)
    if subject in (OURS, BEFORE):
        return 3 if streams in (8, 100, 256, 512) else 1
    return 3 if (subject, streams) == (DIRECT, 100) else 1


def _quick_rounds(streams: int, subject: str) -> int:
    return 1 if streams <= 100 or subject in (OURS, BEFORE, DIRECT) else 0


FULL = Plan(400, LEVELS, _rounds, 3, 2.0, (1, 10, 64))
QUICK = Plan(
    100,
    (8, 50, 100, 256, 512),
    _quick_rounds,
    1,
    1.0,
    (1, 10, 64),
    valkey_rounds=1,
    worker_levels=tuple(range(256, 641, 128)),
    whole_rounds=3,
    whole_seconds=2.0,
    kept_answers=2000,
)


class Comparison:
    """One run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._is_quick: bool = options.quick
        self._plan = QUICK if options.quick else FULL
        if options.levels:
            most = max(options.levels)
            self._plan = replace(
                self._plan,
                levels=options.levels,
                valkey_streams=min(most, self._plan.valkey_streams),
                readers=[min(most, each) for each in self._plan.readers],
                worker_levels=options.levels,
                openai_levels=options.levels,
            )
        if options.tokens:
            self._plan = replace(self._plan, tokens=options.tokens, worker_tokens=options.tokens)
        if options.seconds:
            self._plan = replace(self._plan, request_seconds=options.seconds, whole_seconds=options.seconds)
        self._directory: Path = options.report
        self._bins: tuple[Path, Path, Path] = (options.service, options.references, options.litellm)
        self._node: Path = options.node
        self._before: Path | None = options.before
        self._begun = time.monotonic()
        self._results = Results()
        self._targets: dict[str, Target] = {}
        self._pair: Pair | None = None
        self._beaten: set[str] = set()
        self._notes: list[str] = []
        self._upstream_port = 0

    def run(self) -> Path:
        """Measure and write; give the report. Raises: NotStarted, when ours or the mock model does not run."""
        self._directory.mkdir(parents=True, exist_ok=True)
        cores = sorted(os.sched_getaffinity(0))
        self._cores = Cores.of(cores)
        if self._cores.harness is None:
            self._notes.append("One core only: subject, model and client share it.")
        else:
            os.sched_setaffinity(0, self._cores.harness)
        with ExitStack() as stack:
            if self._cores.harness is not None:
                stack.callback(os.sched_setaffinity, 0, cores)
            self._start(stack)
            self._warm()
            for name, target in self._targets.items():
                self._note("memory", 0, name, {"rss_idle_mb": target.meter.rss_mb()})
            for name, target in self._targets.items():  # before any of them has answers to remember
                if name == OURS or not self._is_quick:
                    most = max(self._plan.levels)
                    self._note("held", most, name, lanes.held(target, most))
            self._valkey_lanes(len(cores))  # nor has ours more to remember than those on Valkey
            self._short_lanes()
            self._whole_lane()
            for streams in self._plan.levels:
                self._paced(streams)
            for name, target in self._targets.items():
                self._note("memory", 0, name, {"rss_after_mb": target.meter.rss_mb()})
            self._kept_lane()
        seconds = time.monotonic() - self._begun
        found = report.Report(self._results, self._started, self._notes, cores, seconds, quick=self._is_quick)
        return found.write(self._directory)

    def _start(self, stack: ExitStack) -> None:
        python = [sys.executable, "-m", "load.upstream"]
        upstream = stack.enter_context(Process("upstream", python, self._directory, self._cores.harness))
        upstream.wait_until(lambda: upstream.log.read_bytes().endswith(b"\n"))
        self._upstream_pid = upstream.pid
        self._upstream_port = int(upstream.log.read_text(encoding="ascii"))
        direct = Subject(
            DIRECT,
            'the client straight at the mock model, which every figure that is "added" is over',
            (),
            lambda *_: (),
            stream_path="/v1/chat/completions",
            wait_path="/v1/chat/completions",
            speaks_openai=True,
        )
        self._started: list[Subject] = [direct]
        self._targets[DIRECT] = Target(direct, self._upstream_port, Meter(upstream.pid))
        ours, *others = subjects(*self._bins)
        if self._before is not None:
            others.insert(0, before(ours, self._before))
        for subject in (ours, *others):
            self._say(f"starting {subject.name}")
            try:
                process, port = subject.start(self._directory, self._cores.first, self._upstream_port)
            except NotStarted as problem:
                if subject.name == OURS:
                    raise
                self._notes.append(f"Left out: {problem}")
                continue
            stack.callback(process.__exit__)
            self._targets[subject.name] = Target(subject, port, Meter(process.pid))
            self._started.append(subject)
        for name in ("LiteLLM", "nginx"):
            if name not in self._targets and not any(name in note for note in self._notes):
                self._notes.append(f"Left out: {name} is not installed here.")
        self._say("starting Valkey and two services on it")
        where = (self._directory, self._cores, self._upstream_port)
        try:
            self._pair = Pair.start(stack, self._targets[OURS].subject, *where)
            self._notes.append(self._pair.about)
        except NotStarted as problem:
            self._notes.append(f"Left out, with all its lanes: {problem}")
            return
        self._say("starting what people write in Node")
        try:
            self._pair = self._pair.with_node(stack, self._node, *where)
        except NotStarted as problem:
            self._notes.append(f"Left out: {problem}")
        if self._pair.node is not None:
            self._notes.append(self._pair.node.subject.about)

    def _warm(self) -> None:
        self._say("warming up")
        for target in self._targets.values():
            lanes.paced(target, 10, 20)
            lanes.requests(target, 4, 5, 0.5, streaming=False)

    def _short_lanes(self) -> None:
        plan = self._plan
        for number in range(plan.repeats):
            for name, target in self._in_turn(number):
                self._note("burst", 50, name, lanes.burst(target, 50, 20))
                self._note("long", LONG_TOKENS, name, lanes.long_answer(target, LONG_TOKENS))
                one_token = lanes.requests(target, 10, 1, plan.request_seconds, streaming=True)
                self._note("requests", 10, name, one_token)
            self._note("resume", LONG_TOKENS, OURS, lanes.resume(self._targets[OURS], LONG_TOKENS))
        for connections in plan.connections:
            for name, target in self._in_turn(connections):
                figures = lanes.requests(target, connections, 20, plan.request_seconds, streaming=False)
                self._note("wait", connections, name, figures)

    def _whole_lane(self) -> None:
        plan = self._plan
        asked = [self._targets[OURS], self._openai]
        asked += [self._targets[name] for name in ("LiteLLM",) if name in self._targets]
        for target in asked:
            lanes.whole_answers(target, WHOLE_TOKENS, WHOLE_PER_SECOND, 0.5)
        for number in range(plan.whole_rounds):
            for target in asked[::-1] if number % 2 else asked:
                figures = lanes.whole_answers(target, WHOLE_TOKENS, WHOLE_PER_SECOND, plan.whole_seconds)
                self._note(WHOLE, WHOLE_PER_SECOND, target.subject.name, figures)

    def _kept_lane(self) -> None:
        """Have the service's own code keep answers, in processes of its own."""
        service = self._bins[0]
        command = [str(service / "python"), "-m", "load.memory", "--json", "--answers", str(self._plan.kept_answers)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        try:
            found = json.loads(done.stdout)
        except ValueError:
            self._notes.append(f"What a kept answer takes is not measured: {done.stderr.strip()[-300:]}")
            return
        for name, sizes in found.items():
            self._note(KEPT, KEPT_CHUNKS, name, {f"{key}_kb": size / 1000 for key, size in sizes.items()})

    @property
    def _openai(self) -> Target:
        """Our service as OpenAI's clients ask it."""
        ours = self._targets[OURS]
        return replace(ours, subject=as_openai(ours.subject))

    def _paced(self, streams: int) -> None:
        rounds = self._plan.rounds
        for number in range(max(rounds(streams, name) for name in self._targets)):
            for name, target in self._in_turn(number):
                if number >= rounds(streams, name) or (name in self._beaten and streams > RATIO_STREAMS):
                    continue
                if name == OURS:
                    self._paced_as_both(streams, number)
                    continue
                figures = self._pace("paced", target, streams)
                if figures["sustained_5x"] < streams / 2:
                    self._beaten.add(name)  # the next level would only take longer

    def _paced_as_both(self, streams: int, number: int) -> None:
        """Measure our service by its native route and, right beside, by OpenAI's."""
        levels = self._plan.openai_levels
        measures = [("paced", self._targets[OURS], CONTENT)]
        if streams in levels:
            measures.append(("paced", self._openai, CONTENT))
        if streams == levels[len(levels) // 2]:
            measures += [(where, self._openai, where) for where in (REASONING, ARGUMENTS)]
        for lane, target, where in measures[::-1] if number % 2 else measures:
            self._pace(lane, target, streams, where)

    def _pace(self, lane: str, target: Target, streams: int, where: str = CONTENT) -> Figures:
        lanes.upstream_figures(self._upstream_port)
        figures = lanes.paced(target, streams, self._plan.tokens, where=where)
        figures |= {f"upstream_{key}": value for key, value in lanes.upstream_figures(self._upstream_port).items()}
        self._note(lane, streams, target.subject.name, figures)
        return figures

    def _valkey_lanes(self, cores: int) -> None:
        plan, pair = self._plan, self._pair
        if pair is None:
            return
        streams = plan.valkey_streams
        for target in (pair.first, pair.second):
            lanes.paced(target, 10, 20)
        if pair.node is not None:  # its code gets fast while it runs
            lanes.paced(pair.node, streams, plan.tokens)
        names = [OURS, *pair.measures()]
        for number in range(plan.valkey_rounds):
            for name in names[::-1] if number % 2 else names:
                is_ours = name == OURS  # in memory
                figures = (
                    lanes.paced(self._targets[OURS], streams, plan.tokens)
                    if is_ours
                    else pair.paced(name, streams, plan.tokens)
                )
                self._note(VALKEY, streams, name, figures)
        for readers in plan.readers:
            self._note(CONNECTIONS, readers, REMOTE, pair.connections(readers))
        if cores < CORES_FOR_WORKERS:
            self._notes.append(
                f"Two workers beside one: not measured, because {cores} cores do not allow it. Client and model, the "
                f"Valkey and each worker need a core of their own ({CORES_FOR_WORKERS}); with fewer, the second worker "
                "would take from the others what it needs."
            )
            return
        ours, upstream = self._targets[OURS].subject, (self._upstream_pid, self._upstream_port)
        found = valkey.workers(
            pair.valkey, ours, self._directory, self._cores, upstream, plan.worker_levels, plan.worker_tokens
        )
        for workers, figures in found.items():
            self._note(WORKERS, workers, VALKEY, figures)

    def _in_turn(self, number: int) -> list[tuple[str, Target]]:
        """Give the subjects, forwards and backwards by turns: A B B A."""
        items = list(self._targets.items())
        return items[::-1] if number % 2 else items

    def _note(self, lane: str, level: int, name: str, figures: Figures) -> None:
        self._results.add(lane, level, name, figures)
        shown = ("cpu_us_per_token", "cpu_us_per_request", "ttft_p50_ms", "ttft_p99_ms", "gap_p99_ms", "missing")
        more = ("whole_ms", "requests_per_second", "rss_idle_mb", "rss_live_mb", "rss_after_mb")
        more += ("valkey_cpu_us_per_token", "connections", "sustained", "misframed", "failures")
        more += ("answer_p50_ms", "answer_p99_ms", "resident_kb")
        words = [
            f"{key} {figures[key]:.{2 if key.startswith('answer') else 1}f}"
            for key in (*shown, *more)
            if key in figures and not math.isnan(figures[key])
        ]
        self._say(f"{lane:9} {level:>5}  {name:9} " + "  ".join(words))

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._begun:6.0f} s  {text}", flush=True)


def _levels(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(part) for part in text.split(",")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and give the exit code."""
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(prog="python -m load.compare", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer levels, rounds and tokens: under four minutes")
    parser.add_argument("--levels", type=_levels, help="streams at once, like 8,50,512")
    parser.add_argument("--tokens", type=int, help="of a stream")
    parser.add_argument("--seconds", type=float, help="of each lane that asks again and again")
    parser.add_argument("--report", type=Path, default=root / "load" / "report" / "compare", help="where it is written")
    parser.add_argument("--service", type=Path, default=root / ".venv" / "bin", help="bin of ours")
    parser.add_argument("--references", type=Path, default=root / ".venv" / "compare" / "references" / "bin")
    parser.add_argument("--litellm", type=Path, default=root / ".venv" / "compare" / "litellm" / "bin")
    parser.add_argument("--node", type=Path, default=root / ".venv" / "compare" / "node", help="the reference in Node")
    parser.add_argument("--before", type=Path, help="another checkout of ours, to be measured beside")
    options = parser.parse_args(arguments)
    if not hasattr(os, "sched_setaffinity") or not Path("/proc/self/schedstat").exists():
        print("No measurement. The CPU of a process is read from Linux's /proc, which is not here.")
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever asks: what was started is stopped
        signal.signal(number, signal.default_int_handler)
    if options.report.exists():
        shutil.rmtree(options.report)
    try:
        page = Comparison(options).run()
    except NotStarted as problem:
        print(f"No measurement. {problem}")
        return 2
    except KeyboardInterrupt:
        print("Interrupted: no measurement.")
        return 130
    print(f"\n{page.read_text(encoding='utf-8')}\nReport: {page}")
    return 0
