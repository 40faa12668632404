"""The running service in front of a scripted upstream, and the real clients: one of each for a process of the run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.programs import KINDS, Program
from tests.harness.chaos import ChaosProxy
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream
from tests.live.steps import settings


@pytest.fixture(scope="session")
def shared_upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(shared_upstream: ScriptedUpstream) -> Iterator[ScriptedUpstream]:
    shared_upstream.reset()
    yield shared_upstream
    shared_upstream.reset()


@pytest.fixture(scope="session")
def shared_chatwait(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    """A service with a heartbeat each second; tests that need other settings start one of their own."""
    with ChatWait(**settings(shared_upstream, TIMEOUT_SECONDS=30, ALLOWED_MODELS="scripted,org/model")) as chatwait:
        yield chatwait


@pytest.fixture
def chatwait(shared_chatwait: ChatWait, upstream: ScriptedUpstream) -> ChatWait:
    return shared_chatwait


@pytest.fixture
def proxy(chatwait: ChatWait) -> Iterator[ChaosProxy]:
    with ChaosProxy("127.0.0.1", chatwait.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def programs() -> Iterator[dict[str, Program]]:
    """The programs that were used so far."""
    made: dict[str, Program] = {}
    yield made
    for program in made.values():
        program.end()


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, programs: dict[str, Program]) -> Iterator[Program]:
    """One real client after the other."""
    yield from _lend(programs, request.param)


@pytest.fixture
def clients(programs: dict[str, Program]) -> Iterator[list[Program]]:
    """All real clients: what takes long they do at the same time."""
    lent = [_lend(programs, kind) for kind in KINDS]
    yield [next(one) for one in lent]
    for one in lent:
        next(one, None)


def _lend(programs: dict[str, Program], kind: str) -> Iterator[Program]:
    """Give a test a program, and end one whose scenario the test did not see the end of."""
    program = programs.get(kind) or programs.setdefault(kind, Program(kind))
    yield program
    if not program.is_idle:
        program.end()
