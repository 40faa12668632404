"""The service as a new user has it after `make run`, with neither key nor base URL: its embedded model answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from app.embedded_model import model
from tests.harness.http1 import get
from tests.harness.server import ChatWait
from tests.live.steps import poll
from tests.requirements import require_or_skip

PATIENCE_SECONDS = 90.0
"""The model computes on the cores that the other tests use too."""


@contextmanager
def embedded_service() -> Iterator[ChatWait]:
    """Run it, and wait until the model is loaded."""
    require_or_skip("the embedded model (requirements-local.txt)", model.installed())
    with ChatWait(TIMEOUT_SECONDS=100) as chatwait:
        # 15 s on a machine of its own; here others may be at work.
        poll(lambda: get(f"{chatwait.base_url}/ready").status == 200, seconds=PATIENCE_SECONDS, what=chatwait.output)
        yield chatwait
