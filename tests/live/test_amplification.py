"""What a client can make the service spend: CPU and memory stay within 100 times its own, and nobody waits long.

The figures are printed (`-rP`) and recorded as properties.
"""

from __future__ import annotations

import base64
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness.reader import get, open_stream
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream, answer
from tests.live.rawhttp import CHUNKED, JSON, chunks, raw, sized
from tests.live.spender import CLOSED, spend_apart
from tests.live.steps import about, poll, settings

MIB = 1 << 20
SPACE = MIB - 1000
MOST_TIMES = 100
CLOSE = "Connection: close"
WAIT = "POST /chat/wait HTTP/1.1"


def posted(body: bytes) -> bytes:
    assert len(body) <= MIB
    return sized(WAIT, JSON, CLOSE, body=body)


def context(text: str) -> bytes:
    """Fill a context of 100 messages with copies of a text, up to a mebibyte."""
    size = len(json.dumps(text, ensure_ascii=False).encode()) - 2
    turns = [{"role": "user", "content": text * ((SPACE // 100 - 50) // size)}] * 100
    return posted(json.dumps({"message": "Hi", "context": turns}, ensure_ascii=False).encode())


def words(seed: int) -> str:
    return base64.b64encode(random.Random(seed).randbytes(750)).decode()


LARGE: dict[str, Callable[[], bytes]] = {
    "brackets": lambda: posted(b"[" * SPACE),
    "brackets in a field": lambda: posted(b'{"message": ' + b'[{"a":' * (SPACE // 7)),
    "digits": lambda: posted(b'{"message": "Hi", "max_tokens": ' + b"9" * SPACE + b"}"),
    "many long numbers": lambda: posted(b'{"message": "Hi", "x": [' + b",".join([b"9" * 4299] * 240) + b"]}"),
    "digits of a fraction": lambda: posted(b'{"message": "Hi", "temperature": 9.' + b"9" * SPACE + b"}"),
    "halves of characters": lambda: posted(b'{"message": "' + b"\\ud800" * (SPACE // 6) + b'"}'),
    "halves in a name": lambda: posted(b'{"message": "Hi", "' + b"\\ud800" * (SPACE // 6) + b'": 1}'),
    "escapes": lambda: posted(b'{"message": "' + b'\\"' * (SPACE // 2) + b'"}'),
    "one name again and again": lambda: posted(b'{"message": "Hi"' + b',"a":1' * (SPACE // 6) + b"}"),
    "unknown names": lambda: posted(b"{" + b",".join(b'"%x":""' % number for number in range(90_000)) + b"}"),
    "empty lists": lambda: posted(b'{"message": "Hi", "context": [' + b"[]," * (SPACE // 3) + b"[]]}"),
    "empty objects": lambda: posted(b'{"message": "Hi", "context": [' + b"{}," * (SPACE // 3) + b"{}]}"),
    "empty texts": lambda: posted(b"[" + b'"",' * (SPACE // 3) + b'""]'),
    "fractions": lambda: posted(b"[" + b"0.1," * (SPACE // 4) + b"0]"),
    "blanks": lambda: posted(b" " * SPACE),
    "a message of a mebibyte": lambda: posted(b'{"message": "' + b"a" * SPACE + b'"}'),
    "context of one letter": lambda: context("a"),
    "context of spaces": lambda: context(" "),
    "context of line ends": lambda: context("\n "),
    "context of emoji": lambda: context("\U0001f469\u200d\U0001f680"),
    "context of accents": lambda: context("a\u0301\u0323"),
    "context of base64": lambda: context(words(1)),
    "context of brackets": lambda: context('[{"'),
    "chunks of one byte": lambda: raw(WAIT, JSON, CLOSE, CHUNKED, body=chunks(*[b"["] * (MIB // 6))),
    "chunks of 127 bytes": lambda: raw(WAIT, JSON, CLOSE, CHUNKED, body=chunks(*[b"[" * 127] * (MIB // 133))),
    "a head without an end": lambda: raw("GET /health HTTP/1.1", CLOSE)[:-2] + b"X: " + b"x" * 800_000,
    "10,000 headers": lambda: raw("GET /health HTTP/1.1", CLOSE, *(f"X-{number}: y" for number in range(10_000))),
    "endless trailers": lambda: raw(WAIT, JSON, CLOSE, CHUNKED, body=b"0\r\n" + b"a: b\r\n" * 100_000),
}

SMALL: dict[str, Callable[[], bytes]] = {
    "a request": lambda: raw("GET /health HTTP/1.1", CLOSE),
    "as many names as are looked at": lambda: posted(
        b'{"message": "Hi",' + b",".join(b'"%x":1' % number for number in range(1400)) + b"}"
    ),
    "as many chunks as are looked at": lambda: raw(WAIT, JSON, CLOSE, CHUNKED, body=chunks(*[b" "] * 2040)),
    "an unknown stream": lambda: raw("GET /chat/streaming/cw_unknownunknownunkn HTTP/1.1", CLOSE),
    "a long unknown stream": lambda: raw(f"GET /chat/streaming/{'a' * 8000} HTTP/1.1", CLOSE),
    "a long cursor": lambda: raw("GET /chat/wait/x HTTP/1.1", CLOSE, f"Last-Event-ID: {'a' * 8000}"),
    "a cursor of digits": lambda: raw("GET /chat/wait/x HTTP/1.1", CLOSE, f"Last-Event-ID: a.{'9' * 126}"),
    "many cursors": lambda: raw(f"GET /chat/wait/x?{'last_event_id=a.1&' * 440} HTTP/1.1", CLOSE),
    "many preferences": lambda: raw("GET /health HTTP/1.1", CLOSE, *[f"Prefer: {'wait=, ' * 1000}"] * 7),
    "one long preference": lambda: raw("POST /chat/wait HTTP/1.1", CLOSE, JSON, *[f"Prefer: wait{' ' * 8000}=x"] * 7),
    "many types to accept": lambda: sized(
        "POST /chat HTTP/1.1", CLOSE, *[f"Accept: {'a/b;q=0.1,' * 800}"] * 7, "Last-Event-ID: a.1", body=b""
    ),
    "one type in many pieces": lambda: sized(
        "POST /chat HTTP/1.1", CLOSE, f"Accept: a/b{';a=b' * 2000}", "Last-Event-ID: a.1", body=b""
    ),
    "a wrong type in many pieces": lambda: sized(
        "POST /chat HTTP/1.1", CLOSE, f"Content-Type: {';a=' * 2700}", body=b""
    ),
    "a long name": lambda: raw("GET /health HTTP/1.1", CLOSE, host="a" * 8000),
    "a long origin": lambda: sized("POST /chat HTTP/1.1", CLOSE, f"Origin: http://{'[' * 8000}", body=b""),
    "slashes": lambda: raw(f"GET /chat{'/' * 8000} HTTP/1.1", CLOSE),
    "escapes in the path": lambda: raw(f"GET /chat/wait/{'%ff' * 2600} HTTP/1.1", CLOSE),
}


@pytest.fixture(scope="module")
def target(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    """A service of these tests' own: nobody else's requests are in its figures."""
    with ChatWait(**settings(shared_upstream)) as chatwait:
        yield chatwait


REFUSED = {CLOSED, 400, 431}
"""How a large one ends; closed where it is not read to its end, for then the answer may be lost on the way."""


def expected(name: str) -> set[int]:
    """Tell which statuses an input may have: a large one is refused, but for the one that is within every limit."""
    if name in LARGE:
        return {200} if name == "context of spaces" else REFUSED
    return {200, 400, 403, 404, 415, 431}


def spend(chatwait: ChatWait, data: bytes, times: int) -> dict[str, Any]:
    return spend_apart(chatwait.port, times, data)


def cpu_seconds(chatwait: ChatWait) -> float:
    (pid,) = chatwait.worker_pids()
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def rss_bytes(chatwait: ChatWait, name: str = "VmRSS") -> int:
    (pid,) = chatwait.worker_pids()
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def forget_peak(chatwait: ChatWait) -> None:
    (pid,) = chatwait.worker_pids()
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


QUICK = ("unknown names", "chunks of one byte", "a head without an end", "context of base64", "many types to accept")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in (*LARGE, *SMALL)]
)
def test_input_that_is_hostile_costs_no_hundred_times_what_it_cost_the_client(
    target: ChatWait, upstream: ScriptedUpstream, name: str, record_property: pytest.RecordProperty
) -> None:
    """Bad input: memory and CPU. Refused, or answered; always at a bounded price."""
    data = {**LARGE, **SMALL}[name]()
    spend(target, data, 2)  # what the first one allocates for good is no price of the second
    before = rss_bytes(target)
    forget_peak(target)
    times = 20 if name in LARGE else 100
    used = cpu_seconds(target)
    told = spend(target, data, times)
    used = cpu_seconds(target) - used
    peak = max(0, rss_bytes(target, "VmHWM") - before)
    figures = {
        "statuses": told["statuses"],
        "sent_bytes": len(data),
        "client_ms": round(told["cpu_seconds"] / times * 1000, 3),
        "service_ms": round(used / times * 1000, 3),
        "cpu_ratio": round(used / told["cpu_seconds"], 1),
        "peak_kib": peak >> 10,
        "memory_ratio": round(peak / len(data), 1),
    }
    record_property("figures", figures)
    print(f"{name}: {figures}")
    assert set(told["statuses"]) <= expected(name)
    assert used < MOST_TIMES * told["cpu_seconds"]
    assert peak < max(MOST_TIMES * len(data), 4 * MIB)  # no smaller sum could be told from the allocator's own
    assert told["received_bytes"] < times * 8192


@pytest.mark.long
@pytest.mark.timeout(300)
def test_memory_is_back_after_a_thousand_hostile_requests(
    target: ChatWait, upstream: ScriptedUpstream, record_property: pytest.RecordProperty
) -> None:
    """Bad input: "memory held"."""
    names = [name for name in LARGE if "context" not in name]
    held = []
    for _ in range(4):
        for name in names:
            spend(target, LARGE[name](), 10)
        held.append(rss_bytes(target) >> 10)
    record_property("rss_kib", held)
    print(f"KiB held after each {10 * len(names)} requests: {held}")
    assert held[-1] - held[0] < 16 << 10


# What others notice


LONGEST_GAP_MS = 250


class Reader:
    """Read a stream of a hundred tokens a second, and note the longest time between two."""

    def __init__(self, chatwait: ChatWait, upstream: ScriptedUpstream, seconds: float) -> None:
        body = about(upstream, answer(["x"] * int(seconds * 100), gap=0.01))
        self._connection = open_stream(f"{chatwait.base_url}/chat/streaming", json=body)
        self.times: list[float] = []
        self.last = ""

    def read(self) -> None:
        with self._connection as connection:
            for event in connection.events():
                self.last = event.event
                if event.event == "token":
                    self.times.append(event.received_at)

    def longest_gap_ms(self) -> float:
        assert self.last == "done"
        return max(after - before for before, after in zip(self.times, self.times[1:], strict=False)) * 1000


def slowness() -> float:
    """Tell how much longer than its CPU time a piece of work takes here and now, where others work too."""
    begun, used = time.monotonic(), time.thread_time()
    while time.thread_time() - used < 0.1:
        pass
    return (time.monotonic() - begun) / 0.1


def gaps(chatwait: ChatWait, upstream: ScriptedUpstream, name: str = "") -> dict[str, float]:
    """Tell the longest gaps that a reader and a prober see while twenty such requests come, over 2 seconds."""
    data = LARGE[name]() if name else None
    reader = Reader(chatwait, upstream, 2.0)
    probes: list[float] = []
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(reader.read)
        poll(lambda: len(reader.times) > 20, seconds=10, what="tokens")
        spending = pool.submit(spend, chatwait, data, 20) if data is not None else None
        while not reading.done():
            begun = time.monotonic()
            assert get(f"{chatwait.base_url}/health").status == 200
            probes.append(time.monotonic() - begun)
            time.sleep(0.005)  # a prober that never rests would be the load itself
        reading.result()
        if spending:
            assert set(spending.result()["statuses"]) <= expected(name)
    longest = {"reader_ms": reader.longest_gap_ms(), "health_ms": max(probes) * 1000}
    # It widens only what is allowed to gaps that are too long for an idle machine.
    return {**longest, "slowness": slowness() if max(longest.values()) >= LONGEST_GAP_MS else 1.0}


BLOCKING = [
    "context of one letter", "context of emoji", "context of base64", "context of brackets", "context of spaces",
    "empty objects", "unknown names", "halves of characters", "escapes", "chunks of one byte", "a head without an end",
]  # fmt: skip


def rounds(measure: Callable[[], dict[str, float]], times: int) -> dict[str, float]:
    seen = [measure() for _ in range(times)]
    return {name: round(statistics.median(one[name] for one in seen), 1) for name in seen[0]}


@pytest.mark.long
@pytest.mark.parametrize("name", BLOCKING)
def test_mebibyte_of_input_blocks_nobody(
    target: ChatWait, upstream: ScriptedUpstream, name: str, record_property: pytest.RecordProperty
) -> None:
    """Bad input: 1 MiB of context is refused without blocking the others for more than 50 ms; five times for noise.

    What the gaps are without it is measured only where those beside it are too long.
    """
    beside = rounds(lambda: gaps(target, upstream, name), 3)
    record_property("beside", beside)
    print(f"{name}: the longest gaps, median of 3 rounds: {beside} beside 20 such requests")
    allowed = LONGEST_GAP_MS * max(1.0, beside["slowness"])
    if max(beside["reader_ms"], beside["health_ms"]) >= allowed:
        without = rounds(lambda: gaps(target, upstream), 3)
        record_property("without", without)
        assert beside["reader_ms"] < without["reader_ms"] + allowed
        assert beside["health_ms"] < without["health_ms"] + allowed
