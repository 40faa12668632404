"""Services that share one Valkey, and what tests of them do alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.harness.answer import Answer
from tests.harness.pace import Pace
from tests.harness.reader import Dropped, get, open_stream
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream
from tests.live.steps import poll, settings

LOST_SECONDS = 5.0
"""Within this, whoever reads what a dead worker generated is told its end."""

SHORT_LEASE_SECONDS = 1.5
SHORT_LEASES = {"app.streams.shared.leases.LEASE_SECONDS": SHORT_LEASE_SECONDS}
"""The pace of services whose tests wait for a lease to lapse. Those of `killed` processes keep the real one."""


@contextlib.contextmanager
def services(
    upstream: ScriptedUpstream, url: str, count: int = 2, *, pace: Pace | None = None, probe: bool = False, **more: Any
) -> Iterator[list[ChatWait]]:
    """Run so many services over the Valkey of that URL, all with the same settings, and wait until all take work.

    They start side by side. A service that has just begun to answer may not have reached its Valkey yet: its first
    answers are 503.
    """
    made = [ChatWait(pace=pace, probe=probe, **settings(upstream, REDIS_URL=url, **more)) for _ in range(count)]
    with contextlib.ExitStack() as running, ThreadPoolExecutor(count) as pool:
        for service in made:
            running.push(service)  # one that did not start is ended too
        list(pool.map(ChatWait.start, made))
        poll(lambda: all(map(is_ready, made)), seconds=30, what="all services take work")
        yield made


def is_ready(service: ChatWait) -> bool:
    """Tell whether it takes work: its Valkey answers."""
    return get(f"{service.base_url}/ready").status == 200


def wait_settled(running: Iterable[ChatWait]) -> None:
    """Wait until the services say of a stream that never was that it is unknown. For some seconds after an outage of
    Valkey, which may be their start on a busy machine, they say 503."""
    for service in running:
        url = f"{service.base_url}/chat/wait/cw_{'A' * 22}"
        poll(lambda url=url: get(url).status == 404, seconds=30, what="what is unknown is told so")


def read_at(base_urls: list[str], stream_id: str, *, timeout: float = 10.0) -> Answer:
    """Read one stream to its end, at the next of the services whenever a connection drops.

    Raises: AssertionError for anything wrong in the stream.
    """
    answer = Answer(stream_id=stream_id)
    for attempt in range(50):
        headers = {"Last-Event-ID": answer.last_event_id} if answer.last_event_id else {}
        url = f"{base_urls[attempt % len(base_urls)]}/chat/streaming/{stream_id}"
        try:
            with open_stream(url, headers=headers, timeout=timeout) as connection:
                assert connection.status == 200, connection.body()
                answer.begin_connection(connection.headers)
                for event in connection.events():
                    answer.add(event)
        except (Dropped, ConnectionError) as drop:
            answer.drops.append(str(drop))
        if answer.is_complete:
            return answer.verify()
    raise AssertionError(f"the answer did not end: {answer.drops[-5:]}")
