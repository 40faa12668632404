"""Turn what was measured into the figures that are judged and reported."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from load.measurements import Measurements, percentile
from load.processes import Usage
from load.thresholds import Figure

MIB = 1 << 20
UNKNOWN = "the service was not started here"
UNSTAMPED = "its model sends no stamps"


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

    @property
    def others_cpu_seconds(self) -> float:
        """Tell what the machine's other programs used; a service that was not started here is one of them."""
        ours = [self.cpu_seconds(name) or 0.0 for name in self.begin]
        return max(self.machine_cpu_seconds - self.generator_cpu_seconds - sum(ours), 0.0)


def figures_of(measured: Measurements, window: Window, *, users: int, stamped: bool) -> dict[str, Figure]:
    """Compute every figure. Units: as their names end."""

    def of(values: array[float], share: float, why: str = "") -> Figure:
        return Figure(percentile(values, share), len(values), why if not values else "")

    no_stamps = "" if stamped else UNSTAMPED
    begun = measured.begun.total()
    streams = of(measured.open_streams, 0.5)
    started = None if streams.value is None else 100 * streams.value / users
    return {
        "ttft_p50_ms": of(measured.ttft_ms, 0.5),
        "ttft_p95_ms": of(measured.ttft_ms, 0.95),
        "ttft_p99_ms": of(measured.ttft_ms, 0.99),
        "delay_p50_ms": of(measured.delay_ms, 0.5, no_stamps),
        "delay_p99_ms": of(measured.delay_ms, 0.99, no_stamps),
        "delay_max_ms": of(measured.delay_ms, 1.0, no_stamps),
        "resume_p95_ms": of(measured.resume_ms, 0.95),
        "wait_p95_ms": of(measured.wait_ms, 0.95, no_stamps),
        "complete_percent": Figure(100 * measured.complete.total() / begun if begun else None, begun),
        "streams_at_once": streams,
        "started_percent": Figure(started, streams.samples),
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


def _share(part: float | None, whole: float, factor: float = 1.0) -> Figure:
    if part is None:
        return Figure(None, 0, UNKNOWN)
    return Figure(factor * part / whole if whole else None)


def _at_rest(usage: Usage | None, name: str, unit: int) -> Figure:
    return Figure(None, 0, UNKNOWN) if usage is None else Figure(getattr(usage, name) / unit)
