"""What a service holds before, while and after something, as a table that a test prints and judges.

Must never import the service's code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.harness import tap
from tests.harness.server import ChatWait
from tests.live.steps import poll

MIB = 1 << 20

Sample = Mapping[str, int]

SHOWN = ("fds", "threads", "greenlets", "readers", "generations", "live", "logs", "store_bytes", "rss_bytes")


def sample(chatwait: ChatWait) -> Sample:
    """Ask the kernel and, where there is a probe, the worker itself what is held now."""
    inside = chatwait.inside() if chatwait.has_probe else {}
    return {**chatwait.resources(), **inside}


@contextmanager
def unheard(chatwait: ChatWait) -> Iterator[None]:
    """Hold what is asked meanwhile to no contract: to check each of a million frames costs the readers more time than
    the service takes to send them, and makes them slow ones."""
    tap.unwatch(chatwait.port)
    try:
        yield
    finally:
        tap.watch(chatwait.port)


class Figures:
    """Samples under names, the first of which is where all must be back in the end."""

    def __init__(self, title: str, chatwait: ChatWait) -> None:
        self._title = title
        self._chatwait = chatwait
        self._samples: dict[str, Sample] = {}

    def note(self, name: str) -> Sample:
        """Take a sample, and keep it for the table."""
        self._samples[name] = sample(self._chatwait)
        return self._samples[name]

    def __str__(self) -> str:
        columns = [name for name in SHOWN if any(name in found for found in self._samples.values())]
        rows = [["", *columns]]
        rows += [[name, *(_show(column, found) for column in columns)] for name, found in self._samples.items()]
        widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([f"\n{self._title}", *lines])

    def assert_back(self, *, mib: int, since: str = "", kept: int = 0, seconds: float = 30.0) -> None:
        """Check that everything is back where the first sample was, and memory nearly; print the table.

        `since` names the sample that memory is compared with, if not the first: what a crowd needs once is there
        after the first crowd. `kept` connections to the upstream may stay open for the next answers.
        """
        before = next(iter(self._samples.values()))
        counted = ("greenlets", "readers", "generations", "live", "log_readers")

        def is_back() -> bool:
            now = self._chatwait.resources()
            # gevent keeps a pool of at most ten threads, for the names of hosts, and ends them when it likes.
            if now["fds"] > before["fds"] + kept or now["threads"] > max(before["threads"], 12):
                return False
            inside = sample(self._chatwait)  # asked only now, because it stops the worker while it counts
            return all(inside[name] <= before[name] for name in counted if name in before)

        try:
            poll(is_back, seconds=seconds, what="everything back where it was")
        finally:
            after = self.note("after")
            print(self)
        grown = after["rss_bytes"] - self._samples.get(since, before)["rss_bytes"]
        assert grown < mib * MIB, f"{grown / MIB:.1f} MiB more than before"


def _show(column: str, found: Sample) -> str:
    if column not in found:
        return "-"
    return f"{found[column] / MIB:.1f} MiB" if column.endswith("bytes") else str(found[column])
