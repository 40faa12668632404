"""Write what was found: a table for the terminal, a page with locust's own report, and JSON for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from load.measurements import Measurements
from load.thresholds import Figure, Judged, Verdict

SENTENCES = {
    0: "Every threshold is met.",
    1: "A threshold is missed.",
    2: "This run is no measurement: it says nothing about the service, see the verdicts.",
}
STYLE = """
<style>
  #thresholds { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; padding: 24px; }
  #thresholds table { border-collapse: collapse; margin: 12px 0 24px; }
  #thresholds th, #thresholds td { border: 1px solid #bbb; padding: 4px 10px; text-align: left; vertical-align: top; }
  #thresholds .pass { background: #dff3e0; } #thresholds .bad { background: #f9d6d5; font-weight: 600; }
  #thresholds .busy { background: #fdf0c4; }
  #thresholds h1 { font-size: 24px; } #thresholds h2 { font-size: 18px; margin-top: 16px; }
</style>
"""


@dataclass(frozen=True)
class Result:
    """Hold all that is known at the end of a run."""

    exit_code: int
    host: str
    options: Mapping[str, Any]
    judged: Sequence[Judged]
    figures: Mapping[str, Figure]
    measured: Measurements

    @property
    def answers(self) -> dict[str, dict[str, int]]:
        """Count the answers of each kind."""
        of = self.measured
        return {
            kind: {"asked": of.asked[kind], "begun": of.begun[kind], "complete": of.complete[kind]}
            for kind in sorted(of.asked | of.begun)
        }

    @property
    def reasons(self) -> list[tuple[str, str, int]]:
        """List why answers were incomplete, the most frequent first."""
        return [(kind, reason, count) for (kind, reason), count in self.measured.reasons.most_common() if count]


def table(result: Result) -> str:
    """Write the verdicts for a terminal."""
    rows = [("threshold", "bound", "measured", "samples", "verdict")]
    rows += [
        (row.threshold.name, row.threshold.text, row.measured, str(row.figure.samples), row.words)
        for row in result.judged
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += ["", *_known(result)]
    lines += [f"incomplete: {count} × {kind}: {reason}" for kind, reason, count in result.reasons]
    return "\n".join([*lines, "", SENTENCES[result.exit_code]])


def _known(result: Result) -> list[str]:
    """Write the figures that nobody judges, a few in a line."""
    figures = result.figures

    def of(name: str, digits: int = 1) -> str:
        value = figures[name].value
        return "-" if value is None else f"{value:.{digits}f}"

    scenarios = {
        "storm": f"{of('storms', 0)} storms; first frame of readers that came back p50 "
        f"{of('storm_first_frame_p50_ms')} ms, p95 {of('storm_first_frame_p95_ms')} ms, "
        f"p99 {of('storm_first_frame_p99_ms')} ms, max "
        f"{of('storm_first_frame_max_ms')} ms; the service in the second after a cut: at most "
        f"{of('storm_cpu_percent', 0)} % of a core",
        "mixed": f"wait mode, all but the model's own time: p50 {of('wait_overhead_p50_ms')} ms, "
        f"p95 {of('wait_overhead_p95_ms')} ms, p99 {of('wait_overhead_p99_ms')} ms",
        "slow": f"several tokens in a frame: {of('slow_held_back_percent')} % of the slow readers' answers (half of "
        f"them up to {of('slow_at_once_p50', 0)} tokens), {of('along_held_back_percent')} % of the others'",
    }
    line = scenarios.get(result.options.get("scenario", ""))
    return [
        *([line] if line else []),
        f"TTFT p50 {of('ttft_p50_ms')} ms, p99 {of('ttft_p99_ms')} ms; added delay p50 {of('delay_p50_ms')} ms, "
        f"max {of('delay_max_ms')} ms; resume p95 {of('resume_p95_ms')} ms; "
        f"wait mode, after its last token, p95 {of('wait_p95_ms')} ms",
        f"{of('tokens_per_second', 0)} tokens/s; service: {of('service_cpu_us_per_token', 0)} µs CPU a token, requests "
        f"included, {of('service_cpu_percent', 0)} % of a core; RSS {of('service_rss_before_mib', 0)} → "
        f"{of('service_rss_after_mib', 0)} MiB, at its peak {of('service_rss_growth_mib', 0)} MiB more than before; "
        f"descriptors {of('service_descriptors_before', 0)} → {of('service_descriptors_after', 0)}; upstream "
        f"{of('upstream_cpu_percent', 0)} %",
        f"{os.cpu_count()} cores; the generator used {of('generator_cpu_percent', 0)} % of one, programs that have "
        f"nothing to do with this run {of('others_cpu_percent', 0)} %",
    ]


def write(result: Result, directory: Path, locust_html: str) -> Path:
    """Write result.json and index.html there, and give the page's path."""
    content = {
        "exit_code": result.exit_code,
        "host": result.host,
        "options": dict(result.options),
        "verdicts": {row.threshold.name: row.verdict.name.lower() for row in result.judged},
        "figures": {name: {"value": of.value, "samples": of.samples} for name, of in result.figures.items()},
        "answers": result.answers,
        "incomplete": [{"kind": kind, "reason": reason, "count": n} for kind, reason, n in result.reasons],
    }
    (directory / "result.json").write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    page = directory / "index.html"
    page.write_text(_with_section(locust_html, _section(result)), encoding="utf-8")
    return page


def _with_section(html: str, section: str) -> str:
    """Put our section before locust's own, which is drawn into `<div id="root">`."""
    before, root, after = html.rpartition('<div id="root">')
    return f"{before}{section}{root}{after}"


def _section(result: Result) -> str:
    rows = "".join(_row(row) for row in result.judged)
    reasons = "".join(f"<tr><td>{escape(k)}<td>{escape(r)}<td>{n}" for k, r, n in result.reasons)
    kinds = "".join(
        f"<tr><td>{escape(k)}<td>{n['asked']}<td>{n['begun']}<td>{n['complete']}" for k, n in result.answers.items()
    )
    known = "".join(f"<p>{escape(line)}</p>" for line in _known(result))
    options = " ".join(f"{name}={value}" for name, value in result.options.items() if value is not None)
    return (
        f'{STYLE}<section id="thresholds"><h1>ChatWait under load: {escape(str(result.options.get("scenario")))}</h1>'
        f"<p><strong>{escape(SENTENCES[result.exit_code])}</strong> Exit code {result.exit_code}.</p>"
        f"<table><tr><th>threshold<th>bound<th>measured<th>samples<th>verdict<th>what it is<th>from{rows}</table>"
        f"{known}<h2>Answers</h2><table><tr><th>kind<th>asked in all<th>begun while measuring"
        f"<th>complete of these{kinds}</table>"
        + (f"<table><tr><th>kind<th>why incomplete<th>count{reasons}</table>" if reasons else "")
        + f"<p>{escape(result.host)}; {escape(options)}</p></section>\n    "
    )


def _row(row: Judged) -> str:
    look = {Verdict.PASS: "pass", Verdict.NOT_MEASURED: "", Verdict.BUSY: "busy"}.get(row.verdict, "bad")
    of = row.threshold
    cells = (of.name, of.text, row.measured, str(row.figure.samples))
    return (
        f"<tr>{''.join(f'<td>{escape(cell)}' for cell in cells)}"
        f'<td class="{look}">{escape(row.words)}<td>{escape(of.meaning)}<td>{escape(of.source)}'
    )
