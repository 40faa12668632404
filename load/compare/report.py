"""What a run found, as Markdown for people, JSON for programs, and a picture."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from load.compare.bars import WHOLE, WHOLE_PER_SECOND, WHOLE_TOKENS, Results, judge
from load.compare.lanes import GAP_MS, STARTS_PER_SECOND
from load.compare.subjects import DIRECT, NODE, OPENAI, OURS, Subject
from load.compare.valkey import CONNECTIONS, LOCAL, LOCAL_OPENAI, REMOTE, VALKEY, WORKERS
from load.upstream import ARGUMENTS, REASONING

__all__ = ["Report"]

MOST_LATE_MS = 5.0
MOST_CORE_SHARE = 0.75


@dataclass(frozen=True)
class Report:
    """One run's results and what must be known to read them."""

    results: Results
    subjects: Sequence[Subject]
    notes: Sequence[str]
    cores: Sequence[int]
    seconds: float
    quick: bool

    def write(self, directory: Path) -> Path:
        """Write compare.md, compare.json and compare.png; give the first."""
        rounds = [
            {"lane": lane, "level": level, "subject": subject, "rounds": figures}
            for (lane, level, subject), figures in self.results.rounds.items()
        ]
        (directory / "compare.json").write_text(json.dumps(rounds, indent=1), encoding="utf-8")
        try:
            from load.compare import picture  # here, because it alone needs more than the standard library
        except ModuleNotFoundError as missing:
            print(f"No picture is drawn: {missing.name} is not installed.")
        else:
            picture.draw(self.results, [each.name for each in self.subjects], directory / "compare.png")
        page = directory / "compare.md"
        parts = [
            self._head(),
            self._bars(),
            self._paced(),
            self._others(),
            self._openai(),
            self._valkey(),
            self._harness(),
            self._notes(),
        ]
        page.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
        return page

    def _head(self) -> str:
        command = "make compare QUICK=1" if self.quick else "make compare"
        versions = ", ".join(f"{each.name} ({_version(each)})" for each in self.subjects if each.version)
        return (
            f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {self.seconds / 60:.0f} minutes. {_cpu_model()}, "
            f"{len(self.cores)} cores: each service alone on one, mock model and client on another. "
            f"Linux {platform.release().split('-')[0]}. {versions}. Streams of one token every {GAP_MS} ms, "
            f"{STARTS_PER_SECOND} starts a second. Medians of the rounds."
        )

    def _bars(self) -> str:
        lines = ["| figure | measured | bar | aim |", "|---|---|---|---|"]
        for each in judge(self.results):
            bar = each.bar
            mark = {True: "met", False: "**missed**", None: "not measured"}[each.met]
            aim = "" if bar.aim is None else f"{_number(bar.aim)} {bar.unit}{_met(each.aim_met)}"
            value = f"{_number(each.value)} {bar.unit}" if each.met is not None else ""
            least = "at least " if bar.at_least else ""
            lines.append(f"| {bar.what} | {value} | {least}{_number(bar.bound)} {bar.unit}: {mark} | {aim} |")
        return "\n".join(lines)

    def _paced(self) -> str:
        lines = [
            "| streams | | CPU a token | first token p50, p95, p99 | gap p50, p95, p99, max | tokens missing "
            f"| streams sustained at 2×, 5× {GAP_MS} ms |",
            "|---|---|---|---|---|---|---|",
        ]
        levels = sorted({level for lane, level, _ in self.results.rounds if lane == "paced"})
        for level in levels:
            for subject in self.subjects:
                if self.results.count("paced", level, subject.name):
                    lines.append(self._paced_line(level, subject.name))
                    continue
                lines.append(f"| {level} | {subject.name} | not tried: see below | | | | |")
        return "\n".join(lines)

    def _paced_line(self, level: int, name: str) -> str:
        def of(figure: str) -> str:
            return _number(self.results.median("paced", level, name, figure))

        cpu = "" if name == DIRECT else f"{of('cpu_us_per_token')} µs"
        first = ", ".join(of(f"ttft_p{share}_ms") for share in (50, 95, 99))
        gaps = ", ".join(of(f"gap_{share}_ms") for share in ("p50", "p95", "p99", "max"))
        missing = _number(self.results.worst("paced", level, name, "missing"))
        return (
            f"| {level} | {name} | {cpu} | {first} ms | {gaps} ms | {missing} "
            f"| {of('sustained_2x')}, {of('sustained_5x')} |"
        )

    def _others(self) -> str:
        of = self.results.median
        waits = sorted({level for lane, level, _ in self.results.rounds if lane == "wait"})
        most = max((level for lane, level, _ in self.results.rounds if lane == "paced"), default=0)
        lines = [
            "| | CPU a request beyond its token | 50 at once: first token p50, last | 10,000 tokens at once | resumed "
            f"| wait mode at {', '.join(map(str, waits))}: answers a second | memory idle, at {most} streams, after |",
            "|---|---|---|---|---|---|---|",
        ]
        for subject in self.subjects:
            name = subject.name
            cpu = "" if name == DIRECT else f"{_number(self.results.request_us(name))} µs"
            burst = (
                f"{_number(of('burst', 50, name, 'ttft_p50_ms'))}, {_number(of('burst', 50, name, 'ttft_max_ms'))} ms"
            )
            whole = f"{_number(of('long', 10_000, name, 'whole_ms'))} ms"
            again = f"{_number(of('resume', 10_000, name, 'whole_ms'))} ms" if name == OURS else "cannot"
            rates = ", ".join(_number(of("wait", level, name, "requests_per_second")) for level in waits)
            sizes = (
                of("memory", 0, name, "rss_idle_mb"),
                of("held", most, name, "rss_live_mb"),
                of("memory", 0, name, "rss_after_mb"),
            )
            memory = "" if name == DIRECT else ", ".join(map(_number, sizes)) + " MiB"
            lines.append(f"| {name} | {cpu} | {burst} | {whole} | {again} | {rates} | {memory} |")
        return "\n".join(lines)

    def _openai(self) -> str:
        """Tell what the lanes of OpenAI's route found; empty where it was not measured."""
        of = self.results.median
        shown = (
            ("paced", OURS, OURS),
            ("paced", OPENAI, OPENAI),
            (REASONING, OPENAI, "the same, reasoning"),
            (ARGUMENTS, OPENAI, "the same, a tool's arguments"),
        )
        lines = [
            "| OpenAI's route: streams | | CPU a token | first token p50, p95, p99 | gap p50, p95, p99, max "
            "| tokens missing |",
            "|---|---|---|---|---|---|",
        ]
        for level in sorted({level for lane, level, name in self.results.rounds if (lane, name) == ("paced", OPENAI)}):
            for lane, name, said in shown:
                if not self.results.count(lane, level, name):
                    continue
                first = ", ".join(_number(of(lane, level, name, f"ttft_p{share}_ms")) for share in (50, 95, 99))
                gaps = ", ".join(_number(of(lane, level, name, f"gap_{it}_ms")) for it in ("p50", "p95", "p99", "max"))
                lines.append(
                    f"| {level} | {said} | {_number(of(lane, level, name, 'cpu_us_per_token'))} µs | {first} ms "
                    f"| {gaps} ms | {_number(self.results.worst(lane, level, name, 'missing'))} |"
                )
        if len(lines) == 2:
            return ""
        lines += [
            "",
            f"| {WHOLE_TOKENS} tokens not streamed, {WHOLE_PER_SECOND} a second | answer p50, p95, p99 | CPU |",
        ]
        lines.append("|---|---|---|")
        for name in (OURS, OPENAI, "LiteLLM"):
            if self.results.count(WHOLE, WHOLE_PER_SECOND, name):
                times = [of(WHOLE, WHOLE_PER_SECOND, name, f"answer_p{share}_ms") for share in (50, 95, 99)]
                cpu = _number(of(WHOLE, WHOLE_PER_SECOND, name, "cpu_us_per_request"))
                said = f"{OURS}, wait mode" if name == OURS else name
                lines.append(f"| {said} | {', '.join(map(_number, times))} ms | {cpu} µs |")
        return "\n".join(lines)

    def _valkey(self) -> str:
        """Tell what the lanes on Valkey found; empty where there is none."""
        of = self.results.median
        lines = [
            "| with Valkey: streams | | CPU a token | Valkey's own | first token p50, p95, p99 "
            "| gap p50, p95, p99, max | tokens missing |",
            "|---|---|---|---|---|---|---|",
        ]
        for level in sorted({level for lane, level, _ in self.results.rounds if lane == VALKEY}):
            for name in (OURS, LOCAL, LOCAL_OPENAI, REMOTE, NODE):
                if not self.results.count(VALKEY, level, name):
                    continue
                shown = f"{OURS}, in memory" if name == OURS else name
                first = ", ".join(_number(of(VALKEY, level, name, f"ttft_p{share}_ms")) for share in (50, 95, 99))
                gaps = ", ".join(
                    _number(of(VALKEY, level, name, f"gap_{it}_ms")) for it in ("p50", "p95", "p99", "max")
                )
                own = of(VALKEY, level, name, "valkey_cpu_us_per_token")
                lines.append(
                    f"| {level} | {shown} | {_number(of(VALKEY, level, name, 'cpu_us_per_token'))} µs "
                    f"| {'' if math.isnan(own) else f'{_number(own)} µs'} | {first} ms | {gaps} ms "
                    f"| {_number(self.results.worst(VALKEY, level, name, 'missing'))} |"
                )
        if len(lines) == 2:
            return ""
        said = [
            f"{_number(of(CONNECTIONS, level, REMOTE, 'connections'))} with {level}"
            for level in sorted({level for lane, level, _ in self.results.rounds if lane == CONNECTIONS})
        ]
        lines += ["", f"Connections of a worker to Valkey, by remote readers: {', '.join(said)}."]
        if self.results.count(WORKERS, 1, VALKEY):
            one, two = (_number(of(WORKERS, number, VALKEY, "sustained")) for number in (1, 2))
            lines[-1] += f" Streams sustained at 5× {GAP_MS} ms (p99): {one} by one worker, {two} by two."
        return "\n".join(lines)

    def _harness(self) -> str:
        """Tell how far the client and the mock model were from their own limits."""
        parts: list[str] = []
        strained: list[str] = []
        for level in sorted({level for lane, level, _ in self.results.rounds if lane == "paced"}):
            worst = {
                figure: max(
                    (
                        value
                        for each in self.subjects
                        if not math.isnan(value := self.results.worst("paced", level, each.name, figure))
                    ),
                    default=math.nan,
                )
                for figure in ("client_core_share", "upstream_core_share", "upstream_late_p99_ms")
            }
            share = worst["client_core_share"] + worst["upstream_core_share"]
            late = worst["upstream_late_p99_ms"]
            parts.append(f"{level} streams {share * 100:.0f} %, {_number(late)} ms")
            if share > MOST_CORE_SHARE or late > MOST_LATE_MS:
                strained.append(str(level))
        said = (
            "The harness itself, at its worst: what client and mock model together used of their core, and how late "
            f"the model's tokens were (p99): {'; '.join(parts)}."
        )
        if strained:
            said += (
                f" **At {', '.join(strained)} streams that is near a limit of its own** (over "
                f"{MOST_CORE_SHARE * 100:.0f} % or {MOST_LATE_MS:g} ms): read times there as upper bounds."
            )
        return said

    def _notes(self) -> str:
        tried = {(level, name) for lane, level, name in self.results.rounds if lane == "paced"}
        levels = sorted({level for level, _ in tried})
        stopped = [
            f"{each.name} was not tried beyond {max(level for level, name in tried if name == each.name)} streams"
            + ("." if self.quick else ": at that level fewer than half of its streams were sustained.")
            for each in self.subjects
            if any(name == each.name for _, name in tried) and (levels[-1], each.name) not in tried
        ]
        about = [each.about for each in self.subjects]
        not_included = (
            "Not included: TLS on either side, real networks and models, proxies in front, several workers (but see "
            "the figures with Valkey). A token's CPU holds the whole request's, spread over its tokens, and for ours "
            "the log lines, the hash and the kept answer. The gaps are those between arrivals that brought tokens, so "
            "a subject that falls behind and sends several at once is judged by its pauses. Memory is the worker's: "
            "after its start, while it holds the streams (one token every half a second), and after the whole run, "
            "all its kept answers included."
        )
        return "\n".join(f"- {line}" for line in (*about, *stopped, *self.notes, not_included))


def _met(met: bool | None) -> str:
    return {True: ": met", False: ": not met", None: ""}[met]


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 2 else f"{value:.1f}"


def _version(subject: Subject) -> str:
    try:
        done = subprocess.run(list(subject.version), capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return "?"
    said = (done.stdout or done.stderr).strip()
    return ("Python " if subject.name == OURS else "") + said.rpartition("/")[2].splitlines()[-1] if said else "?"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
