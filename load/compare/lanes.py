"""The lanes, and the figures that each gives of one subject."""

from __future__ import annotations

import json
import math
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from load.compare import client
from load.compare.client import Exchange, Times
from load.compare.subjects import Meter, Subject
from load.upstream import CONTENT

__all__ = [
    "Figures",
    "Target",
    "burst",
    "held",
    "long_answer",
    "paced",
    "requests",
    "resume",
    "upstream_figures",
    "whole_answers",
]

GAP_MS = 20
STARTS_PER_SECOND = 128
HELD_TOKENS = 12
HELD_GAP_MS = 500
LATE_SECONDS = 12.0  # for the answers of a subject that is behind, after the last should be over
SETTLE_SECONDS = 0.3

Figures = dict[str, float]
"""Named numbers; times in milliseconds, `cpu_…` in microseconds, `rss_…` in MiB."""


@dataclass(frozen=True)
class Target:
    """A subject that runs."""

    subject: Subject
    port: int
    meter: Meter


def _quantile(values: Sequence[float], share: float) -> float:
    """Give the nearest rank of sorted values; NaN of none."""
    return values[min(len(values) - 1, math.ceil(len(values) * share) - 1)] if values else math.nan


def _spread(name: str, seconds: Sequence[float]) -> Figures:
    values = sorted(second * 1000 for second in seconds)
    return {f"{name}_p{share}_ms": _quantile(values, share / 100) for share in (50, 95, 99)} | {
        f"{name}_max_ms": values[-1] if values else math.nan
    }


def _judged(answers: Sequence[Exchange], subject: Subject) -> tuple[list[Times], Figures]:
    times = [answer.judge() for answer in answers]
    is_whole = [each.whole and (each.done or not subject.speaks_openai) for each in times]
    figures: Figures = {
        "tokens": sum(answer.tokens - each.missing for answer, each in zip(answers, times, strict=True)),
        "missing": sum(each.missing for each in times),
        "disordered": sum(not each.in_order for each in times),
        "unfinished": is_whole.count(False),
    }
    if subject.more_frames is not None:
        wanted = [answer.tokens + subject.more_frames for answer in answers]
        figures["misframed"] = sum(each.frames != frames for each, frames in zip(times, wanted, strict=True))
    return times, figures


def paced(
    target: Target,
    streams: int,
    tokens: int,
    gap_ms: int = GAP_MS,
    *,
    where: str = CONTENT,
    at: Target | None = None,
    live: Callable[[], None] = lambda: None,
) -> Figures:
    """Read streams of one token every `gap_ms`; with `at`, they are begun at the target and read there.

    `where` the tokens are: in the content, in the reasoning, or in a tool's arguments. `live` is called while all of
    them are there. CPU and memory are those of both.
    """
    asked = target.subject.stream_request(target.port, tokens, gap_ms, where)
    meters = [each.meter for each in (target, at) if each is not None]
    memory_live: list[float] = []

    def note() -> None:
        memory_live.append(sum(meter.rss_mb() for meter in meters))
        live()

    def elsewhere(stream_id: str) -> tuple[int, bytes]:
        assert at is not None
        return at.port, at.subject.resume_request(at.port, stream_id)

    cpu, own, begun = sum(meter.cpu_us() for meter in meters), time.process_time(), time.monotonic()
    answers = client.paced(
        target.port,
        asked,
        tokens,
        streams=streams,
        starts_per_second=STARTS_PER_SECOND,
        seconds=tokens * gap_ms / 1000 + LATE_SECONDS,
        live=note,
        live_after=tokens * gap_ms / 3000,
        elsewhere=elsewhere if at is not None else None,
    )
    own, took = time.process_time() - own, time.monotonic() - begun
    time.sleep(SETTLE_SECONDS)
    cpu = sum(meter.cpu_us() for meter in meters) - cpu
    times, figures = _judged(answers, target.subject)
    figures["rss_live_mb"] = memory_live[0] if memory_live else math.nan
    gaps = [gap for each in times for gap in each.gaps]
    whole = [each for each in times if not each.missing and each.in_order and each.whole]
    figures |= _spread("ttft", [each.first_seconds for each in times if each.first_seconds is not None])
    figures |= _spread("gap", gaps)
    for factor in (2, 5):
        figures[f"sustained_{factor}x"] = sum(max(each.gaps, default=0.0) * 1000 <= factor * gap_ms for each in whole)
    figures["cpu_us_per_token"] = cpu / figures["tokens"] if figures["tokens"] else math.nan
    figures["tokens_per_arrival"] = figures["tokens"] / max(len(gaps) + len(times), 1)
    figures["core_share"] = cpu / 1e6 / took
    figures["client_core_share"] = own / took
    return figures


def burst(target: Target, streams: int, tokens: int) -> Figures:
    """Start many at the same moment."""
    asked = target.subject.stream_request(target.port, tokens, 0)
    answers = client.burst(target.port, asked, tokens, streams=streams, seconds=20.0)
    times, figures = _judged(answers, target.subject)
    return figures | _spread("ttft", [each.first_seconds for each in times if each.first_seconds is not None])


def long_answer(target: Target, tokens: int) -> Figures:
    """Read one answer that comes as fast as it is taken."""
    asked = target.subject.stream_request(target.port, tokens, 0)
    cpu = target.meter.cpu_us()
    times, figures = _judged([client.exchange(target.port, asked, tokens, seconds=60.0)], target.subject)
    time.sleep(SETTLE_SECONDS)
    figures["cpu_us_per_token"] = (target.meter.cpu_us() - cpu) / tokens
    figures["whole_ms"] = (times[0].last_seconds or math.nan) * 1000
    return figures


def requests(target: Target, connections: int, tokens: int, seconds: float, *, streaming: bool) -> Figures:
    """Ask again and again for short answers, whole or streamed."""
    subject = target.subject
    asked = subject.stream_request(target.port, tokens, 0) if streaming else subject.wait_request(target.port, tokens)
    cpu, own, begun = target.meter.cpu_us(), time.process_time(), time.monotonic()
    taken, failures = client.repeated(target.port, asked, tokens, connections=connections, seconds=seconds)
    own, took = time.process_time() - own, time.monotonic() - begun
    cpu = target.meter.cpu_us() - cpu
    return {
        "failures": failures,
        "requests_per_second": len(taken) / took,
        "cpu_us_per_request": cpu / len(taken) if taken else math.nan,
        "client_core_share": own / took,
        **_spread("answer", taken),
    }


def whole_answers(target: Target, tokens: int, per_second: float, seconds: float) -> Figures:
    """Ask for answers that are not streamed, at a steady rate that does not wait for them."""
    asked = target.subject.wait_request(target.port, tokens)
    cpu, own, begun = target.meter.cpu_us(), time.process_time(), time.monotonic()
    taken, failures = client.steady(target.port, asked, tokens, per_second=per_second, seconds=seconds)
    own, took = time.process_time() - own, time.monotonic() - begun
    cpu = target.meter.cpu_us() - cpu
    return {
        "failures": failures,
        "cpu_us_per_request": cpu / len(taken) if taken else math.nan,
        "client_core_share": own / took,
        **_spread("answer", taken),
    }


def resume(target: Target, tokens: int) -> Figures:
    """Read a finished answer once more from its beginning, as a client does that lost all of it."""
    subject, port = target.subject, target.port
    first = client.exchange(port, subject.stream_request(port, tokens, 0), tokens, seconds=60.0)
    stream_id = client.stream_id(first.pieces)
    if stream_id is None:
        return {"missing": tokens}
    asked = subject.resume_request(port, stream_id)
    times, figures = _judged([client.exchange(port, asked, tokens, seconds=60.0)], subject)
    return figures | {"whole_ms": (times[0].last_seconds or math.nan) * 1000}


def held(target: Target, streams: int) -> Figures:
    """Hold many streams that say little, so that all who are compared can, and tell what memory that takes."""
    figures = paced(target, streams, HELD_TOKENS, HELD_GAP_MS)
    return {name: figures[name] for name in ("rss_live_mb", "missing", "unfinished")}


def upstream_figures(port: int) -> Figures:
    """Ask the mock model how it kept up since it was last asked."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/figures", timeout=5.0) as answer:
        return dict(json.load(answer))
