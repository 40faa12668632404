"""Turn what was measured into the figures that are judged and reported."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass, field

from load.measurements import Measurements, percentile
from load.processes import Usage
from load.thresholds import Figure

MIB = 1 << 20
UNKNOWN = "the service was not started here"
UNSTAMPED = "its model sends no stamps"
BACK_SECONDS = 1.0  # after the longest absence
STORM_SECONDS = 1.0  # after a cut: the service's work then is the storm's
SLOW = "answer (slow)"


@dataclass
class Window:
    """Hold what had been used at the begin and the end of the measured time, and before and after it at rest."""

    seconds: float = 0.0
    tokens: int = 0
    generator_cpu_seconds: float = 0.0
    machine_cpu_seconds: float = 0.0  # of all programs together
    begin: dict[str, Usage] = field(default_factory=dict)
    end: dict[str, Usage] = field(default_factory=dict)
    before: Usage | None = None
    after: Usage | None = None
    course: list[tuple[float, Usage]] = field(default_factory=list)  # of the service, to the last answer

    def cpu_seconds(self, name: str) -> float | None:
        """Tell what a process used within the window; None of one that was not started here."""
        if name not in self.begin or name not in self.end:
            return None
        return self.end[name].cpu_seconds - self.begin[name].cpu_seconds

    def core_wait_seconds(self, name: str) -> float | None:
        """Tell for how long a process was ready within the window, and had no core."""
        if name not in self.begin or name not in self.end:
            return None
        return self.end[name].core_wait_seconds - self.begin[name].core_wait_seconds

    def service_share(self, begin: float, end: float) -> float | None:
        """Tell what share of a core the service used from one moment to another; None where that is not known."""
        moments = [at for at, _ in self.course]
        first, last = bisect_left(moments, begin), bisect_left(moments, end)
        if last >= len(moments) or first >= last:
            return None
        used = self.course[last][1].cpu_seconds - self.course[first][1].cpu_seconds
        return used / (moments[last] - moments[first])

    @property
    def peak_bytes(self) -> int | None:
        """Tell the most memory that the service held."""
        return max((usage.rss_bytes for _, usage in self.course), default=None)

    @property
    def others_cpu_seconds(self) -> float:
        """Tell what the machine's other programs used; a service that was not started here is one of them."""
        ours = [self.cpu_seconds(name) or 0.0 for name in self.begin]
        return max(self.machine_cpu_seconds - self.generator_cpu_seconds - sum(ours), 0.0)


def figures_of(
    measured: Measurements, window: Window, *, users: int, waiters: int = 0, spread: float = 1.0, stamped: bool
) -> dict[str, Figure]:
    """Compute every figure, of whatever scenario. Units: as their names end."""
    figures = _figures(measured, window, users=users, waiters=waiters, stamped=stamped)
    return figures | _storm_figures(measured, window, spread) | _slow_figures(measured, window)


def _figures(measured: Measurements, window: Window, *, users: int, waiters: int, stamped: bool) -> dict[str, Figure]:
    of = _percentile
    no_stamps = "" if stamped else UNSTAMPED
    begun = measured.begun.total()
    streams = of(measured.open_streams, 0.5)
    waits = of(measured.open_waits, 0.5)
    return {
        "ttft_p50_ms": of(measured.ttft_ms, 0.5),
        "ttft_p95_ms": of(measured.ttft_ms, 0.95),
        "ttft_p99_ms": of(measured.ttft_ms, 0.99),
        "delay_p50_ms": of(measured.delay_ms, 0.5, no_stamps),
        "delay_p99_ms": of(measured.delay_ms, 0.99, no_stamps),
        "delay_max_ms": of(measured.delay_ms, 1.0, no_stamps),
        "resume_p95_ms": of(measured.resume_ms, 0.95),
        "wait_p95_ms": of(measured.wait_ms, 0.95, no_stamps),
        "wait_overhead_p50_ms": of(measured.wait_overhead_ms, 0.5, no_stamps),
        "wait_overhead_p95_ms": of(measured.wait_overhead_ms, 0.95, no_stamps),
        "wait_overhead_p99_ms": of(measured.wait_overhead_ms, 0.99, no_stamps),
        "complete_percent": Figure(100 * measured.complete.total() / begun if begun else None, begun),
        "streams_at_once": streams,
        "started_percent": _of_those_asked_for(streams, users),
        "waiting_percent": _of_those_asked_for(waits, waiters),
        "tokens_per_second": Figure(window.tokens / window.seconds if window.seconds else None, window.tokens),
        "generator_cpu_percent": _share(window.generator_cpu_seconds, window.seconds, 100),
        "generator_lag_p99_ms": of(measured.lag_ms, 0.99),
        "others_cpu_percent": _share(window.others_cpu_seconds, window.seconds, 100),
        "upstream_cpu_percent": _share(window.cpu_seconds("upstream"), window.seconds, 100),
        "upstream_lag_p99_ms": of(measured.late_ms, 0.99, no_stamps),
        "service_cpu_percent": _share(window.cpu_seconds("service"), window.seconds, 100),
        "service_core_wait_percent": _share(window.core_wait_seconds("service"), window.seconds, 100),
        "service_cpu_us_per_token": _share(window.cpu_seconds("service"), window.tokens, 1e6),
        "service_rss_before_mib": _at_rest(window.before, "rss_bytes", MIB),
        "service_rss_after_mib": _at_rest(window.after, "rss_bytes", MIB),
        "service_descriptors_before": _at_rest(window.before, "descriptors", 1),
        "service_descriptors_after": _at_rest(window.after, "descriptors", 1),
    }


def _storm_figures(measured: Measurements, window: Window, spread: float) -> dict[str, Figure]:
    strikes = measured.strikes
    first_frame_ms = array("d", (value for strike in strikes for value in strike.first_frame_ms))
    in_time = sum(value <= (spread + BACK_SECONDS) * 1000 for strike in strikes for value in strike.back_ms)
    cut = sum(strike.cut for strike in strikes)
    shares = [100 * strike.cut / strike.readers for strike in strikes if strike.readers]
    used = [window.service_share(strike.at, strike.at + STORM_SECONDS) for strike in strikes]
    most_used = max((share for share in used if share is not None), default=None)
    return {
        "storms": Figure(len(strikes), len(strikes)),
        "storm_cut_percent": Figure(min(shares, default=None), cut),
        "storm_back_percent": Figure(100 * in_time / cut if cut else None, cut),
        "storm_refused": Figure(sum(strike.refused for strike in strikes), cut),
        "storm_first_frame_p50_ms": _percentile(first_frame_ms, 0.5),
        "storm_first_frame_p95_ms": _percentile(first_frame_ms, 0.95),
        "storm_first_frame_p99_ms": _percentile(first_frame_ms, 0.99),
        "storm_first_frame_max_ms": _percentile(first_frame_ms, 1.0),
        "storm_cpu_percent": _share(most_used, 1.0, 100),
    }


def _slow_figures(measured: Measurements, window: Window) -> dict[str, Figure]:
    begun, complete = measured.begun[SLOW], measured.complete[SLOW]
    # One that came to a bad end proves nothing against its reader's slowness, and is the service's to answer for.
    held_back = begun - complete + measured.gathered[SLOW]
    along = measured.complete["answer"]
    growth = None if window.before is None or window.peak_bytes is None else window.peak_bytes - window.before.rss_bytes
    return {
        "slow_complete_percent": Figure(100 * complete / begun if begun else None, begun),
        "slow_held_back_percent": Figure(100 * held_back / begun if begun else None, begun),
        "slow_at_once_p50": _percentile(measured.most_at_once, 0.5),
        "along_held_back_percent": Figure(100 * measured.gathered["answer"] / along if along else None, along),
        "service_rss_growth_mib": _share(growth, MIB),
    }


def _percentile(values: array[float], share: float, why: str = "") -> Figure:
    return Figure(percentile(values, share), len(values), why if not values else "")


def _of_those_asked_for(of: Figure, number: int) -> Figure:
    return Figure(None if of.value is None or not number else 100 * of.value / number, of.samples)


def _share(part: float | None, whole: float, factor: float = 1.0) -> Figure:
    if part is None:
        return Figure(None, 0, UNKNOWN)
    return Figure(factor * part / whole if whole else None)


def _at_rest(usage: Usage | None, name: str, unit: int) -> Figure:
    return Figure(None, 0, UNKNOWN) if usage is None else Figure(getattr(usage, name) / unit)
