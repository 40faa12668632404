"""Stock clients, unmodified, over connections that break: each comes to the whole text, and one generation is paid."""

from __future__ import annotations

import hashlib
import http.client
import json
import secrets
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
import requests_sse
from httpx_sse import ServerSentEvent, connect_sse

from load.events import EventParser
from tests.harness.chaos import ChaosProxy, CleanCloseAfter, CutAfter
from tests.harness.script import Paced
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Script, ScriptedUpstream, Usage
from tests.live.steps import about, asked, new_key

TOKENS = [f"{number} é🙂\u2028\r\n data: x{'.' * 400} " for number in range(60)]
TEXT = "".join(TOKENS)
USAGE = {"prompt_tokens": 1, "completion_tokens": 60, "total_tokens": 61}
SCRIPT = Script(steps=[Paced(TOKENS, 0.01), Finish(), Usage(USAGE), Done()])
BROWSER_LIKE = {"User-Agent": "Mozilla/5.0", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}

Event = tuple[str, str]
"""A type and its data."""


def assert_whole(events: list[Event], upstream: ScriptedUpstream, body: dict[str, str]) -> None:
    """Check the text, the hash and the tokens of the terminal event, and that the model was asked once."""
    text = "".join(json.loads(data)["content"] for event, data in events if event == "token")
    name, data = events[-1]
    end = json.loads(data)
    assert name == "done"
    assert text == TEXT
    assert end["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert (end["tokens"], end["usage"]["source"]) == (len(TOKENS), "provider")
    assert [event for event, _ in events].count("done") == 1
    assert len(asked(upstream, body)) == 1


def read_as_the_readme_says(url: str, body: dict[str, str]) -> list[Event]:
    """Read with httpx-sse and the recipe of its README: again after a ReadError, with the last id, after `retry`."""
    events: list[Event] = []
    headers = new_key()
    last_event_id, reconnection_delay = "", 0.0

    def iterate(client: httpx.Client) -> Iterator[ServerSentEvent]:
        nonlocal last_event_id, reconnection_delay
        time.sleep(reconnection_delay)  # as its recipe says
        fields = {**headers, **({"Last-Event-ID": last_event_id} if last_event_id else {})}
        with connect_sse(client, "POST", url, json=body, headers=fields) as source:
            for sse in source.iter_sse():
                last_event_id = sse.id
                if sse.retry is not None:
                    reconnection_delay = sse.retry / 1000
                yield sse

    with httpx.Client(trust_env=False, timeout=10) as client:
        for _ in range(10):
            try:
                events.extend((sse.event, sse.data) for sse in iterate(client))
                break
            except httpx.ReadError:
                continue
    assert reconnection_delay == 1.0
    return events


@pytest.mark.requirement("plan testing", "tasks pattern 4")
def test_httpx_sse_with_the_reconnect_recipe_of_its_readme_gets_the_whole_text(
    chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy
) -> None:
    body = about(upstream, SCRIPT)
    proxy.plan(CutAfter(2000), CutAfter(12_000))  # each long enough for a frame of the replay
    events = read_as_the_readme_says(f"{proxy.base_url}/chat/streaming", body)
    assert proxy.connections == 3
    assert_whole(events, upstream, body)


def test_httpx_sse_cut_between_the_ping_of_a_resume_and_its_first_token_keeps_its_place(
    chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy
) -> None:
    """Its decoder begins anew with each connection, and the recipe takes an event's id as it comes: a first
    ping without one would make it forget the cursor."""
    body = about(upstream, SCRIPT)
    proxy.plan(CutAfter(5000), CutAfter(1200))  # the second in the middle of the first frame of the replay
    events = read_as_the_readme_says(f"{proxy.base_url}/chat/streaming", body)
    assert proxy.connections == 3
    assert ("ping", [event for event, _ in events].count("start")) == ("ping", 1)
    assert_whole(events, upstream, body)


def test_requests_sse_with_its_own_reconnection_gets_the_whole_text(
    chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy
) -> None:
    """It repeats the POST with Last-Event-Id by itself."""
    body = about(upstream, SCRIPT)
    proxy.plan(CutAfter(3000), CleanCloseAfter(5000))
    events: list[Event] = []
    with requests_sse.EventSource(
        f"{proxy.base_url}/chat/streaming",
        method="POST",
        json=body,
        headers=new_key(),
        timeout=10,
        reconnection_time=timedelta(milliseconds=100),
    ) as source:
        for event in source:
            events.append((event.type, event.data))
            if event.type == "done":
                break
    assert proxy.connections == 3
    assert_whole(events, upstream, body)


@pytest.mark.parametrize("with_key", [True, False])
def test_fetch_event_source_that_repeats_its_post_gets_the_whole_text(
    chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy, *, with_key: bool
) -> None:
    """Microsoft's fetch-event-source repeats the POST, body and all, with the last id in a header."""
    body = about(upstream, SCRIPT)
    # Without a key only what happens before the first event could cost a second generation.
    early = [CutAfter(0), CutAfter(100)] if with_key else []
    proxy.plan(*early, *(CutAfter(size) for size in (1500, 2500, 3500)), CleanCloseAfter(6000))
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream", **BROWSER_LIKE}
    if with_key:
        headers["Idempotency-Key"] = secrets.token_urlsafe(24)
    events: list[Event] = []
    for _ in range(20):
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        try:
            for event in post_and_read(connection, body, headers):
                events.append((event.event, event.data))
                if event.last_event_id:
                    headers["last-event-id"] = event.last_event_id
            if events and events[-1][0] == "done":
                break
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()
    assert proxy.connections == len(early) + 5
    assert_whole(events, upstream, body)


def post_and_read(connection: http.client.HTTPConnection, body: dict[str, str], headers: dict[str, str]) -> Any:
    """Send the POST and give its events."""
    connection.request("POST", "/v1/chat/streaming", json.dumps(body), headers)
    response = connection.getresponse()
    if not (response.getheader("content-type") or "").startswith("text/event-stream"):
        raise http.client.HTTPException("cut in the headers, which http.client takes for their end")
    assert response.status == 200
    parser = EventParser(headers.get("last-event-id", ""))
    while piece := response.read1(65_536):
        yield from parser.feed(piece)


def test_repeated_post_after_the_end_is_204_and_costs_nothing(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """A client that repeats its POST for ever is told that there is nothing more."""
    body = about(upstream, SCRIPT)
    with httpx.Client(base_url=chatwait.base_url, trust_env=False, timeout=20) as client:
        first = client.post("/chat/streaming", json=body)
        last = [line for line in first.text.splitlines() if line.startswith("id: ")][-1].removeprefix("id: ")
        again = client.post("/chat/streaming", json=body, headers={"Last-Event-ID": last})
    assert (first.status_code, again.status_code, again.content) == (200, 204, b"")
    assert len(asked(upstream, body)) == 1
