"""Hold every answer of a whole run of pytest to the contract: fail the test that met a breach, and tell what was seen.

A plugin of pytest. The answers of real services are heard on their connections (`tap`), those of Flask's test client
where it gives them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.harness import leaks, tap
from tests.harness.contract_check import Asked, Check
from tests.harness.http1 import Headers

KEY = "contract"

tap.install()


class _Heard:
    """Give the pieces of a test client's answer, and have them checked as they pass."""

    def __init__(self, pieces: Iterable[bytes], check: Check) -> None:
        self._pieces = pieces
        self._next = iter(pieces)
        self._check = check

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            piece = next(self._next)
        except StopIteration:
            self._check.end(whole=True)
            raise
        self._check.feed(piece)
        return piece

    def close(self) -> None:
        self._check.end(whole=False)
        if callable(close := getattr(self._pieces, "close", None)):
            close()


_open = FlaskClient.open


def _open_checked(self: FlaskClient, *arguments: Any, **named: Any) -> TestResponse:
    response = _open(self, *arguments, **named)
    if "chatwait" in self.application.extensions:
        asked = response.request
        target = asked.full_path if asked.query_string else asked.path
        pairs = Headers(list(asked.headers.items()))
        answered = Headers(list(response.headers.items()))
        leaks.hear(pairs, json.dumps(named["json"]).encode() if "json" in named else b"")
        check = Check(tap.contract(), tap.RUN, Asked(asked.method, target, pairs), response.status_code, answered)
        response.response = _Heard(response.response, check)
    return response


FlaskClient.open = _open_checked  # type: ignore[method-assign]


def _fail_for_breaches() -> None:
    if problems := tap.RUN.take_problems():
        more = f"\nand {len(problems) - 5} more" if len(problems) > 5 else ""
        raise AssertionError("against the contract: " + "\n".join(problems[:5]) + more)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    result = yield
    _fail_for_breaches()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, Any, Any]:
    result = yield
    _fail_for_breaches()
    return result


class Total:
    """Add up what the processes of a run have seen."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()
        self.events: Counter[str] = Counter()
        self.exempt: Counter[str] = Counter()
        self.cut = 0
        self.problems: list[str] = []

    def add(self, part: dict[str, Any]) -> None:
        self.seen.update({(name, status): count for name, status, count in part["seen"]})
        self.events.update(part["events"])
        self.exempt.update(part["exempt"])
        self.cut += part["cut"]
        self.problems += part["problems"]


_TOTAL = Total()


def _part() -> dict[str, Any]:
    """Give what this process has seen, as plain data."""
    run = tap.RUN
    return {
        "seen": [[*pair, count] for pair, count in run.seen.items()],
        "events": dict(run.events),
        "exempt": dict(run.exempt),
        "cut": run.cut,
        "problems": run.take_problems(),
    }


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker of xdist has seen."""
    if part := getattr(node, "workeroutput", {}).get(KEY):
        _TOTAL.add(part)


def _is_whole(session: pytest.Session) -> bool:
    """Tell whether all that `make test` runs was run: nothing selected, nothing stopped early."""
    config = session.config
    return (
        config.args_source == pytest.Config.ArgsSource.TESTPATHS
        and config.option.markexpr == "not long"
        and not (config.option.keyword or config.option.collectonly or config.option.maxfail)
        and not any(config.getoption(name, False) for name in ("lf", "stepwise", "deselect", "ignore", "ignore_glob"))
        and session.exitstatus != pytest.ExitCode.INTERRUPTED
    )


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput[KEY] = _part()
        return
    _TOTAL.add(_part())
    if _TOTAL.problems or (_is_whole(session) and unseen()):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def unseen() -> list[tuple[str, str]]:
    """List what the contract promises and no answer of this run has shown."""
    return sorted(tap.contract().promises() - set(_TOTAL.seen))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    total = _TOTAL
    promised = tap.contract().promises()
    met = promised & set(total.seen)
    if total.seen:
        exempt = ", ".join(f"{count} × {why}" for why, count in sorted(total.exempt.items())) or "none"
        terminalreporter.line(
            f"contract: {sum(total.seen.values())} answers ({total.cut} of them cut) and {sum(total.events.values())} "
            f"events validated, {len(met)} of {len(promised)} operations × statuses; exempt: {exempt}"
        )
    if missing := unseen():
        shown = ", ".join(f"{name} {status}" for name, status in missing)
        whole = terminalreporter._session is not None and _is_whole(terminalreporter._session)
        if whole:
            terminalreporter.line(f"contract: promised, but never seen: {shown}", red=True, bold=True)
        elif total.seen:
            terminalreporter.line(f"contract: {len(missing)} operations × statuses were not seen in this selection")
    for problem in total.problems:
        terminalreporter.line(f"contract: this was wrong after the last test: {problem}", red=True, bold=True)
