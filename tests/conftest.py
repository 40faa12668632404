"""A skip is never silent: the run ends with what was skipped and why, and may not skip what is required.

And no line that a test's service writes in this process may hold what no log may.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.harness.leaks import leaks
from tests.requirements import MISSING, is_required

FIRST = (
    "test_shared_",
    "test_examples.",
    "test_leases.",
    "test_patched.",
    "test_schemathesis.",
    "test_silence_usual.",
    "test_upstream_faults.",
)
"""How the names of the files begin that are run first."""

pytest_plugins = ["tests.collecting", "tests.lanes", "tests.harness.contract_run", "tests.harness.valkey_fixtures"]


def _skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """Return why this was skipped; None for what was not, and for an expected failure."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return None
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ").partition("\n")[0]


def _judge_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Fail what may not be skipped; leave of any other skip its reason, without the log that a service has added."""
    reason = _skip_reason(report)
    if reason is None:
        return
    if reason.startswith(MISSING) and is_required():
        report.outcome = "failed"
        report.longrepr = f"CHATWAIT_REQUIRE=1 and {reason}"
    elif isinstance(report.longrepr, tuple):
        report.longrepr = (*report.longrepr[:2], f"Skipped: {reason}")


def _fail_for_leaks(report: pytest.TestReport) -> None:
    """Fail a test whose service, in this process, has written into its log what no log may hold.

    Looked for once, at the end: the sections of a teardown hold what every phase has written.
    """
    if report.when != "teardown":
        return
    captured = (text for name, text in report.sections if name.startswith("Captured stdout"))
    lines = [line for text in captured for line in text.splitlines() if line.startswith('{"timestamp"')]
    if report.passed and lines and (found := leaks(lines)):
        report.outcome = "failed"
        report.longrepr = "\n".join(found[:20])


def _limit(items: list[pytest.Item]) -> float:
    """Add up how long the functions that have a limit of their own may take, each once. Units: seconds."""
    limits = {(item.path, getattr(item, "originalname", "")): item.get_closest_marker("timeout") for item in items}
    return sum(float(limit.args[0]) for limit in limits.values() if limit is not None)


@pytest.hookimpl(trylast=True)  # when the others are deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the tests so that nobody waits for the last one.

    In `make test`, whose workers take one file after the other (not in `.ci/run`'s young machine), what mostly waits
    (for leases, for a Valkey that is away) comes first, beside the browsers, which keep a core busy. So does a file
    that takes half a minute. The short files of tests/unit are the last.

    In `make test-long`, all workers but one begin with what takes minutes: what has a limit of time of its own. They
    share it by these limits, so that none of it is left for the end, where it would be alone. The tests are dealt as
    pytest-xdist's `worksteal` deals them, in equal shares.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers < 2:
        return
    if config.option.markexpr == "not long":
        items.sort(key=lambda item: not item.path.name.startswith(FIRST))
    if config.option.markexpr != "long":
        return
    slow: dict[Path, list[pytest.Item]] = {}  # by file, because tests of one share what they wait for
    rest: list[pytest.Item] = []
    for item in items:
        (slow.setdefault(item.path, []) if item.get_closest_marker("timeout") else rest).append(item)
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for together in sorted(slow.values(), key=_limit, reverse=True):
        min(shares[: workers - 1], key=_limit).extend(together)
    left = len(items)
    for place, share in enumerate(shares):
        size = left // (workers - place)
        left -= size
        missing = max(size - len(share), 0)
        share += rest[:missing]
        del rest[:missing]
    items[:] = [item for share in shares for item in share] + rest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _judge_skip(report)
    _fail_for_leaks(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _judge_skip(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what tests have measured, and given by `record_property("figure", …)`; a test may fail much later."""
    reports = [one for kind in ("passed", "failed", "") for one in terminalreporter.stats.get(kind, [])]
    told = [item for report in reports for item in getattr(report, "user_properties", [])]
    figures = sorted({str(value) for name, value in told if name == "figure"})
    if figures:
        terminalreporter.section("MEASURED", sep="-")
    for figure in figures:
        terminalreporter.line(figure)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around pytest's own, which ends with the line of counts
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """List what was skipped as the last thing of the run, so that nobody overlooks it."""
    yield
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = terminal.stats.get("skipped", []) if terminal is not None else []  # a worker of xdist has none
    if reasons := Counter(reason for report in skipped if (reason := _skip_reason(report))):
        terminal.section("SKIPPED BECAUSE SOMETHING IS MISSING HERE", sep="=", red=True, bold=True)
        for reason, count in sorted(reasons.items()):
            terminal.line(f"{count:4} × {reason}", red=True)
