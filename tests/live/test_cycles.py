"""Test that what has ended is gone at once: nothing holds itself until the collector comes, which may be much later.

A generation that did would keep its prompt. The worker runs with its collector off, and tells what it has missed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.harness.reader import delete, open_stream, post, read_answer, request
from tests.harness.server import ChatWait
from tests.harness.upstream import (
    Close,
    Done,
    Finish,
    Gate,
    Raw,
    Reset,
    Script,
    ScriptedUpstream,
    Stall,
    Token,
    TruncatedChunk,
    answer,
    error,
)
from tests.harness.valkey import Database
from tests.live.steps import about, begin, log_name, new_key, poll, settings, wait_asked

WERKZEUG = {"cell", "tuple", "set", "function"}
"""Each match of an address leaves these, of a function that calls itself; nothing of a request is in them."""

GOOD = [Token("Par"), Token("is")]
ENDS = {
    "done": answer(["a", "b"]),
    "refused": error(401),
    "failing": error(500),
    "too many": error(429, headers={"retry-after": "60"}),
    "a page": Script(200, {"content-type": "text/html"}, body=b"no"),
    "packed": Script(200, {"content-type": "text/event-stream", "content-encoding": "gzip"}, body=b"no"),
    "an error cut off": Script(before=[Raw(b"HTTP/1.1 401 No\r\nContent-Length: 9\r\n\r\n{"), Close()]),
    "no HTTP": Script(before=[Raw(b"SSH-2.0\r\n"), Close()]),
    "unclear": Script(before=[Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"), Close()]),
    "reset before an answer": Script(before=[Reset()]),
    "reset": Script(steps=[*GOOD, Reset()]),
    "closed": Script(steps=[*GOOD, Close()]),
    "cut in a chunk": Script(steps=[*GOOD, TruncatedChunk(b"data: {")]),
    "no end": Script(steps=GOOD),
    "no JSON": Script(steps=[*GOOD, Raw(b"data: {no\n\n")]),
    "an error inside": Script(steps=[*GOOD, Raw(b'data: {"error":{"message":"no"}}\n\n')]),
    "too long": Script(steps=[Token("x" * 400)] * 10),
    "silent at once": Script(before=[Stall()]),
    "silent": Script(steps=[*GOOD, Stall()]),
    "bytes behind the end": Script(steps=[*GOOD, Finish(), Done()], after=[Raw(b"more")]),
}


@contextlib.contextmanager
def serving(upstream: ScriptedUpstream, **more: Any) -> Iterator[ChatWait]:
    """Run a service whose collector is off."""
    with ChatWait(probe=True, **settings(upstream, TIMEOUT_SECONDS=2, **more)) as service:
        read_answer(f"{service.base_url}/chat/streaming", about(upstream, answer(["a"])))  # what is made only once
        service.uncollected()
        yield service


def missed(service: ChatWait) -> dict[str, int]:
    """Wait until nothing lives, and tell what the collector would have had to do."""
    poll(lambda: service.inside()["live"] == 0, seconds=10, what="all to end")
    return {name: count for name, count in service.uncollected().items() if name not in WERKZEUG}


@pytest.mark.parametrize(
    "shared",
    [pytest.param(False, id="in memory"), pytest.param(True, id="with a Valkey", marks=pytest.mark.long)],
)
def test_what_has_ended_however_it_ended_waits_for_no_collector(
    upstream: ScriptedUpstream, valkey_database: Database, shared: bool
) -> None:
    """Upstream: every way to fail."""
    url = valkey_database.url if shared else None
    with (
        serving(upstream, REDIS_URL=url, MAX_ANSWER_CHARS=1000) as service,
        ThreadPoolExecutor(2 * len(ENDS)) as threads,
    ):

        def ask(script: Script, mode: str) -> None:
            url, body = f"{service.base_url}/chat/{mode}", about(upstream, script)
            post(url, body, timeout=20) if mode == "wait" else read_answer(url, body, timeout=20)

        list(threads.map(ask, [*ENDS.values()] * 2, ["wait"] * len(ENDS) + ["streaming"] * len(ENDS)))
        stop(service, upstream, threads)
        upstream.refuse()
        upstream.close_idle_connections()
        ask(Script(), "streaming")
        upstream.listen_again()

        assert missed(service) == {}


def stop(service: ChatWait, upstream: ScriptedUpstream, threads: ThreadPoolExecutor) -> None:
    """Stop generations before the head of their answer, and in its middle, with a reader and without."""

    def stop_one(script: Script, at: Callable[[dict[str, str]], Any]) -> None:
        body = about(upstream, script)
        stream_id = begin(service.base_url, body)
        at(body)
        url = f"{service.base_url}/chat/streaming/{stream_id}"
        with open_stream(url) as reader:
            assert delete(url).status == 200
            assert [event.event for event in reader.events()][-1] == "cancelled"
        service.wait_for_log("response_complete", stream=log_name(stream_id))

    before = [(Script(before=[Stall()]), lambda body: wait_asked(upstream, body))] * 4
    middle = [(Script(steps=[*GOOD, Gate(f"{n}")]), lambda body, n=n: upstream.wait_reached(f"{n}")) for n in range(4)]
    list(threads.map(stop_one, *zip(*before, *middle, strict=True)))


def test_what_clients_do_wrong_waits_for_no_collector(upstream: ScriptedUpstream) -> None:
    """What they have sent may be a megabyte."""
    with serving(upstream) as service:
        url = f"{service.base_url}/chat/wait"
        for body in ({"message": "Hi", "context": [{"role": "nobody"}]}, {"message": " "}, {"message": "x" * 10_000}):
            assert post(url, body).status == 400
        assert request("POST", f"{service.base_url}/nowhere", json={"message": "x"}).status == 404
        assert request("PUT", url, json={"message": "x"}).status == 405

        assert set(missed(service)) <= {"list"}, "marshmallow's sets of the names of fields"


def test_what_is_refused_waits_for_no_collector(upstream: ScriptedUpstream, valkey_database: Database) -> None:
    """Also with a key, for which Valkey is asked whether it is another's."""
    with serving(upstream, REDIS_URL=valkey_database.url, MAX_ACTIVE_STREAMS=1) as service:
        body = about(upstream, Script(steps=[*GOOD, Gate("held"), Finish(), Done()]))
        url, key = f"{service.base_url}/chat/streaming", new_key()
        with open_stream(url, json=body, headers=key) as first:
            assert first.status == 200
            for headers in (new_key(), new_key(), {}):
                assert post(url, about(upstream, answer(["a"])), headers=headers).status == 503
            with open_stream(url, json=body, headers=key) as second:
                assert second.status == 200
                upstream.open("held")
                assert [event.event for event in second.events()][-1] == "done"

        assert missed(service) == {}
