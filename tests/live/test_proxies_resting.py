"""Connections that rest behind real proxies, around the moments when one side closes them."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.reader import post
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream, answer
from tests.live.fronts import both
from tests.live.steps import settings

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

REQUESTS = 350  # before and after the pause, through each proxy


@pytest.mark.parametrize("pause", [60.0, 75.0])
def test_connections_that_rest_around_every_keepalive_time_lose_no_request(tmp_path: Path, pause: float) -> None:
    """A POST into a connection that was just closed would be answered with 502, for it may not be sent twice."""
    with ScriptedUpstream() as upstream, ChatWait(**settings(upstream)) as chatwait:
        upstream.always(answer(["a"]))
        with (
            both(tmp_path, chatwait.port) as (nginx, haproxy),
            ThreadPoolExecutor(32) as pool,
        ):

            def ask(number: int, at: float) -> int:
                time.sleep(max(0.0, at - time.monotonic()))  # how long the connections rest is the case
                url = (nginx, haproxy)[number % 2].base_url
                return post(f"{url}/chat/wait", {"message": "Hi"}, timeout=60).status

            statuses: list[int] = []
            for rest in (0.0, pause):  # the proxies close what rests for 60 s, the service for 75 s
                middle = time.monotonic() + rest
                moments = sorted(middle + random.uniform(-2.0, 2.0) for _ in range(2 * REQUESTS))
                statuses += pool.map(ask, range(len(moments)), moments)
    assert len(statuses) == 2 * REQUESTS * 2
    assert set(statuses) == {200}
