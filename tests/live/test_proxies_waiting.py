"""A minute of silence behind real proxies that give up after half of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from tests.harness.proxies import Proxy
from tests.harness.reader import Answer, Reply, get, post, read_answer
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Pause, Script, ScriptedUpstream, Token
from tests.live.fronts import KINDS, front
from tests.live.steps import about, asked, new_key, settings

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

SILENCE = 60.0
PLAIN = [kind for kind in KINDS if kind.endswith("plain")]
SILENT_FIRST = Script(steps=[Pause(SILENCE), Token("late"), Finish(), Done()])
SILENT_BETWEEN = Script(steps=[Token("soon "), Pause(SILENCE), Token("late"), Finish(), Done()])


class Minute:
    """Everything that lasts a minute, at the same time; each test takes what it is about."""

    def __init__(self, upstream: ScriptedUpstream, proxies: dict[str, Proxy], pool: ThreadPoolExecutor) -> None:
        self.upstream = upstream
        self._pool = pool
        self.streams = {
            (kind, when): self._begin(script, lambda body, url=proxy.base_url: read_stream(url, body))
            for kind, proxy in proxies.items()
            for when, script in (("before the first token", SILENT_FIRST), ("between two", SILENT_BETWEEN))
        }
        self.held = {
            kind: self._begin(SILENT_FIRST, lambda body, url=proxies[kind].base_url: hold(url, body)) for kind in PLAIN
        }
        self.polled = {
            kind: self._begin(SILENT_FIRST, lambda body, url=proxies[kind].base_url: poll_it(url, body))
            for kind in PLAIN
        }

    def _begin(self, script: Script, call: Callable[[dict[str, str]], Any]) -> tuple[dict[str, str], Future[Any]]:
        body = about(self.upstream, script)
        return body, self._pool.submit(call, body)


def read_stream(url: str, body: dict[str, str]) -> tuple[Answer, float]:
    begun = time.monotonic()
    return read_answer(f"{url}/chat/streaming", body, timeout=25), time.monotonic() - begun


def hold(url: str, body: dict[str, str]) -> tuple[Reply, float, Reply]:
    """Wait on one connection until the proxy gives up; then ask again with the same key."""
    key, begun = new_key(), time.monotonic()
    late = post(f"{url}/chat/wait", body, headers=key, timeout=80)
    gave_up = time.monotonic() - begun
    time.sleep(10)  # what is left must be shorter than the proxy's timeout too
    return late, gave_up, post(f"{url}/chat/wait", body, headers=key, timeout=80)


def poll_it(url: str, body: dict[str, str]) -> list[Reply]:
    """Wait as the guide says: in parts that are shorter than the proxy's timeout."""
    prefer = {"Prefer": "wait=20"}
    replies = [post(f"{url}/chat/wait", body, headers={**prefer, **new_key()}, timeout=80)]
    while replies[-1].status == 202:
        replies.append(get(f"{url}{replies[-1].headers['location']}", prefer, timeout=80))
    return replies


@pytest.fixture(scope="module")
def minute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minute]:
    with ExitStack() as stack:
        upstream = stack.enter_context(ScriptedUpstream())
        own = {"TIMEOUT_SECONDS": 90, "HEARTBEAT_SECONDS": 10}
        chatwait = stack.enter_context(ChatWait(**settings(upstream, **own)))
        proxies = {}
        for kind in KINDS:
            changes = (
                {"630s": "30s", "timeout client 35s": "timeout client 30s"} if "haproxy" in kind else {"630s": "30s"}
            )
            made = front(kind, tmp_path_factory.mktemp("proxy"), chatwait.port, changes=changes)
            proxies[kind] = stack.enter_context(made)
        yield Minute(upstream, proxies, stack.enter_context(ThreadPoolExecutor(16)))


@pytest.mark.parametrize("when", ["before the first token", "between two"])
@pytest.mark.parametrize("kind", KINDS)
def test_silence_of_a_minute_survives_a_proxy_that_gives_up_after_thirty_seconds(
    minute: Minute, kind: str, when: str
) -> None:
    body, reading = minute.streams[kind, when]
    got, seconds = reading.result(100)
    assert seconds > SILENCE - 1
    assert (got.text, got.connections) == ("late" if when.startswith("before") else "soon late", 1)
    assert len([event for event in got.events if event.event == "ping"]) >= 5
    assert len(asked(minute.upstream, body)) == 1


@pytest.mark.parametrize("kind", PLAIN)
def test_wait_of_a_minute_is_cut_by_the_proxy_and_taken_up_with_the_same_key(minute: Minute, kind: str) -> None:
    body, holding = minute.held[kind]
    late, gave_up, again = holding.result(100)
    assert late.status == 504
    assert 29 < gave_up < 45
    assert (again.status, again.json["content"]) == (200, "late")
    assert len(asked(minute.upstream, body)) == 1


@pytest.mark.parametrize("kind", PLAIN)
def test_wait_of_a_minute_in_parts_of_twenty_seconds_is_not_cut(minute: Minute, kind: str) -> None:
    body, polling = minute.polled[kind]
    replies = polling.result(100)
    assert [reply.status for reply in replies[:2]] == [202, 202]
    assert (replies[-1].status, replies[-1].json["content"]) == (200, "late")
    assert len(asked(minute.upstream, body)) == 1
