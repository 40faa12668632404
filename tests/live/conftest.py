"""The real service in front of a scripted upstream; one of each for the run, reset between tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.chaos import ChaosProxy
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream

KEY = "sk-harness-0123456789abcdefghijklmnop"


@pytest.fixture(scope="session")
def shared_upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def shared_chatwait(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    """A service with short deadlines; tests that need other settings start one of their own."""
    settings = {
        "OPENAI_BASE_URL": shared_upstream.base_url,
        "OPENAI_API_KEY": KEY,
        "TIMEOUT_SECONDS": 5,
        "HEARTBEAT_SECONDS": 1,
        "ALLOWED_MODELS": "gpt-4o-mini,other-model",
    }
    with ChatWait(**settings) as chatwait:
        yield chatwait


@pytest.fixture
def upstream(shared_upstream: ScriptedUpstream) -> Iterator[ScriptedUpstream]:
    shared_upstream.reset()
    yield shared_upstream
    shared_upstream.reset()


@pytest.fixture
def chatwait(shared_chatwait: ChatWait, upstream: ScriptedUpstream) -> ChatWait:
    return shared_chatwait


@pytest.fixture
def proxy(chatwait: ChatWait) -> Iterator[ChaosProxy]:
    with ChaosProxy("127.0.0.1", chatwait.port) as proxy:
        yield proxy
