"""Compare all the events of one service's life with `events.jsonl`: names, fields, their order, and fixed values."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.harness.reader import Answer, delete, get, open_stream, post, read_answer, request
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Reset, Script, ScriptedUpstream, Stall, Token, Usage, error
from tests.live.rawhttp import send_anything
from tests.live.steps import about, begin, log_name, new_key, poll, read_on, settings

GOLDEN = Path(__file__).with_name("events.jsonl")
MEASURED = ("timestamp", "duration_ms", "first_token_ms", "delay_ms")
TOLD_ELSEWHERE = ("version",)


def test_events_of_a_whole_life_are_those_of_the_golden_list() -> None:
    """Logs: every event's name, level, fields and their order stay as they are, from the start to the drain."""
    with ScriptedUpstream() as upstream:
        with ChatWait(**settings(upstream, LOG_LEVEL="DEBUG", DRAIN_SECONDS=1)) as chatwait:
            live(chatwait, upstream)
        told = [line for line in chatwait.log if line["logger"] == "app" and line.get("route") != "/health"]

    lines = [json.dumps(line) for line in by_stream(plain(with_chunks_joined(told)))]
    assert lines == GOLDEN.read_text(encoding="utf-8").splitlines(), "\n".join(lines)


def live(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Take a service through what can happen to its streams and requests, one thing after the other, to its end."""
    url = chatwait.base_url
    stream, wait = f"{url}/chat/streaming", f"{url}/chat/wait"
    numbers = itertools.count(1)

    def asking(script: Script) -> dict[str, str]:
        return about(upstream, script, f"message {next(numbers)}")

    def left(stream_id: str) -> None:
        chatwait.wait_for_log("reader_left", stream=log_name(stream_id))

    def reading(pool: ThreadPoolExecutor, script: Script) -> Future[Answer]:
        """Read an answer, and return when its reader is there."""
        before = len(chatwait.log_of("reader_attached"))
        answer = pool.submit(read_answer, stream, asking(script))
        poll(lambda: len(chatwait.log_of("reader_attached")) > before, seconds=5, what="the reader has attached")
        return answer

    # A stream that is read, left and resumed, and then read by its key.
    usage = {"prompt_tokens": 31, "completion_tokens": 3, "total_tokens": 34}
    steps = [Token("Hé"), Gate("rest"), Token(" there"), Token("!"), Finish(), Usage(usage), Done()]
    body = asking(Script(headers={"x-ratelimit-limit-requests": "60"}, steps=steps))
    key, whole = new_key(), Answer()
    with open_stream(stream, json=body, headers={"X-Request-ID": "request-1", **key}) as connection:
        whole.begin_connection(connection.headers)
        for event in connection.events():
            whole.add(event)
            if whole.tokens:
                break
    left(whole.stream_id or "")
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(read_on, whole, url)
        chatwait.wait_for_log("reader_attached", after=1)
        upstream.open("rest")
        rest.result().verify()
    assert post(wait, body, headers=key).status == 200
    assert get(f"{stream}/{whole.stream_id}?last_event_id={whole.last_event_id}").status == 204

    # One that is waited for, and asked for again after a refusal that may pass.
    upstream.then(error(503, "busy", "busy"), Script(steps=[Token("a"), Finish("length"), Done()]))
    assert post(wait, {"message": "Hello"}).status == 200

    # Failures: before the first chunk, in the middle, and of an upstream that is never well.
    assert post(wait, asking(error(401, "no"))).status == 502
    with ThreadPoolExecutor(1) as pool:
        failing = reading(pool, Script(steps=[Gate("break"), Token("a"), Token("b"), Reset()]))
        upstream.open("break")
        failed = failing.result()
    assert failed.terminal is not None and failed.terminal.event == "failed"
    assert post(wait, asking(error(503, "busy"))).status == 503

    # One that is stopped, and one that somebody waits for no longer.
    cancelled = begin(url, asking(Script(steps=[Stall()])))
    left(cancelled)
    assert delete(f"{stream}/{cancelled}").status == 200
    assert delete(f"{stream}/{cancelled}").status == 200
    running = post(wait, asking(Script(steps=[Gate("end"), Finish(), Done()])), headers={"Prefer": "wait=1"})
    assert running.status == 202
    upstream.open("end")
    chatwait.wait_for_log("response_complete", stream=log_name(running.json["stream_id"]))

    # Requests that are refused, also those that nobody could read.
    headers = {"Content-Type": "application/json"}
    post(wait, data=b'{"message": ', headers=headers)
    post(wait, {"message": "  "})
    post(wait, {"message": "Hello", "temperature": "hot"})
    post(wait, {"message": "Hello"}, headers={"Origin": "https://evil.example"})
    post(wait, data=b"Hello", headers={"Content-Type": "text/plain"})
    get(f"{url}/nowhere")
    get(f"{url}/health", {"Host": "evil.example"})
    get(f"{stream}/cw_unknown", {"X-Request-ID": "not one"})
    get(f"{stream}/cw_unknown?last_event_id=5")
    request("PUT", wait)
    request("BREW", wait)
    send_anything(chatwait.port, b"GET / HTTP/9.9\r\n\r\n")

    # One that the drain cuts.
    with ThreadPoolExecutor(1) as pool:
        cut = reading(pool, Script(steps=[Stall()]))
        assert chatwait.stop() == 0
        terminal = cut.result().terminal
    assert terminal is not None and terminal.event == "cancelled"


def with_chunks_joined(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the lines of each stream's chunks: how many there are is a matter of the machine's speed."""
    last: dict[str, dict[str, Any]] = {}
    for line in told:
        if line["event"] == "chunks_sent":
            before = last.get(line["stream"])
            if before is not None:
                assert line["first"] == before["last"] + 1
                line |= {name: before[name] + line[name] for name in ("bytes", "ms")} | {"first": before["first"]}
            last[line["stream"]] = line
    joined = [id(line) for line in last.values()]
    return [line for line in told if line["event"] != "chunks_sent" or id(line) in joined]


def plain(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put a sign for what is measured or held elsewhere, and a number for each id, in the order of appearance."""
    names: dict[str, str] = {}
    for line in told:
        for kind in ("correlation_id", "stream"):
            if line.get(kind) is not None:
                line[kind] = names.setdefault(line[kind], f"{kind} {sum(n.startswith(kind) for n in names.values())}")
        for name in (*MEASURED, *TOLD_ELSEWHERE):
            if line.get(name) is not None:
                line[name] = "#"
        if "ms" in line:
            line["ms"] = ["#" for _ in line["ms"]] if isinstance(line["ms"], list) else "#"
        if "exception" in line:
            line["exception"]["places"] = "#" if line["exception"]["places"] else []
    return told


def by_stream(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tell one story after the other: of a stream, of a request, of the service. Only within one is the order fixed."""

    def story(line: dict[str, Any]) -> str:
        return str(line.get("stream") or line["correlation_id"])

    begun = list(dict.fromkeys(map(story, told)))
    return sorted(told, key=lambda line: begun.index(story(line)))
