"""Two hundred users, each asking for an answer that names them, over a model's server that does every odd thing.

Whatever it does, nobody gets a word of another's answer. The ways by which that could happen are listed in DESIGN.md,
51, each with its test; here all are tried at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pytest

from load.events import EventParser
from tests.harness.answer import Answer
from tests.harness.script import Step, encode_json
from tests.harness.server import ChatWait
from tests.harness.upstream import (
    Close,
    Done,
    Finish,
    Pause,
    Raw,
    Reset,
    Script,
    ScriptedUpstream,
    Token,
    TruncatedChunk,
    error,
)
from tests.harness.valkey import Valkey
from tests.live.many import Asker, read, read_one, run_all
from tests.live.shared import services
from tests.live.steps import about, cursor, new_key, settings

USERS = 200
AT_ONCE = 25
STRANGER = "an answer that nobody asked for"

EVENTS = {"content-type": "text/event-stream"}
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\n\r\n"


def said(texts: Sequence[str]) -> bytes:
    """Write a body with these texts, and its end."""
    chunks = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return b"".join(b"data: " + encode_json(chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def answered(texts: Sequence[str]) -> bytes:
    """Write a whole answer, with its head."""
    body = said(texts)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def paced(texts: Sequence[str]) -> list[Step]:
    return [*(Token(text, pause=0.004) for text in texts), Finish(), Done()]


def counted(texts: Sequence[str], *, surplus: bytes = b"", **more: str) -> Script:
    """Answer with a length, and with more than that."""
    body = said(texts)
    return Script(headers={"content-length": str(len(body)), **more}, body=body + surplus)


Oddity = Callable[[Sequence[str]], Script]

WHOLE: dict[str, Oddity] = {
    "plain": lambda texts: Script(steps=paced(texts)),
    "counted": counted,
    "a hint before it": lambda texts: Script(before=[Raw(HINTS)], steps=paced(texts)),
    "a hint long before it": lambda texts: Script(before=[Raw(HINTS), Pause(0.1)], steps=paced(texts)),
    "a hint in pieces": lambda texts: Script(
        before=[Raw(HINTS[:11]), Pause(0.01), Raw(HINTS[11:-1]), Pause(0.01), Raw(HINTS[-1:])], steps=paced(texts)
    ),
    "many interim ones": lambda texts: Script(before=[Raw(10 * (CONTINUE + PROCESSING + HINTS))], steps=paced(texts)),
    "a bare continue": lambda texts: Script(before=[Raw(CONTINUE)], steps=paced(texts)),
    "closed behind it": lambda texts: Script(steps=paced(texts), after=[Close()]),
    "timed out behind it": lambda texts: Script(
        steps=paced(texts), after=[Pause(0.02), Raw(b"HTTP/1.1 408 Request Timeout\r\n\r\n"), Close()]
    ),
    "a body longer than announced": lambda texts: counted(texts, surplus=said([STRANGER])),
    "a second answer in one piece with it": lambda texts: counted(texts, surplus=answered([STRANGER])),
    "a second answer behind it": lambda texts: Script(steps=paced(texts), after=[Raw(answered([STRANGER]))]),
    "a second answer soon": lambda texts: Script(steps=paced(texts), after=[Pause(0.02), Raw(answered([STRANGER]))]),
    "a second answer, and closed": lambda texts: Script(steps=paced(texts), after=[Raw(answered([STRANGER])), Close()]),
    "a hint behind it": lambda texts: Script(steps=paced(texts), after=[Pause(0.01), Raw(HINTS)]),
    "half a line behind it": lambda texts: Script(steps=paced(texts), after=[Raw(b"HTTP/1.1 200")]),
    "an empty line behind it": lambda texts: Script(steps=paced(texts), after=[Raw(b"\r\n")]),
    "two framings": lambda texts: Script(headers={"content-length": "7"}, steps=paced(texts)),
}
"""All of it comes, and nothing else."""

PARTS: dict[str, Oddity] = {
    "another protocol": lambda texts: Script(before=[Raw(SWITCHING)], steps=paced(texts)),
    "two lengths": lambda texts: counted(texts, surplus=said([STRANGER]), **{"content-length": "9, 2000"}),
    "an encoding nobody knows": lambda texts: Script(headers={"transfer-encoding": "br, chunked"}, steps=paced(texts)),
    "closed in the middle": lambda texts: Script(steps=[*paced(texts)[:3], Close()]),
    "reset in the middle": lambda texts: Script(steps=[*paced(texts)[:3], Reset()]),
    "a chunk cut short": lambda texts: Script(steps=[*paced(texts)[:3], TruncatedChunk(b"data: {")]),
    "shorter than announced": lambda texts: Script(
        headers={**EVENTS, "content-length": "100000"}, body=said(texts[:3])[:-20], after=[Close()]
    ),
    "refused": lambda texts: error(500),
    "refused, and a hint": lambda texts: Script(status=503, before=[Raw(HINTS)], body=b"{}"),
    "refused, and more": lambda texts: Script(
        status=400, headers={"content-length": "2"}, body=b"{}" + answered(texts)
    ),
}
"""It may fail; what there is of it is the user's own."""


@dataclass
class User:
    """One who asks, and what they got."""

    number: int
    oddity: str
    way: str
    texts: list[str]
    got: str = ""
    status: str = ""

    @property
    def wanted(self) -> str:
        return "".join(self.texts)

    def problem(self) -> str:
        """Tell what is wrong with what they got; empty for nothing."""
        about = f"user {self.number}, {self.oddity}, {self.way}: {self.status}, {self.got[:200]!r}"
        if not self.wanted.startswith(self.got):
            return f"NOT THEIRS: {about}"
        if self.oddity in WHOLE and (self.status, self.got) != ("complete", self.wanted):
            return f"not whole: {about}"
        return ""


async def follow(answer: Answer, asker: Asker, *, tokens: int | None = None) -> None:
    """Read one connection into an answer, up to so many tokens: then it is cut."""
    answer.begin_connection(asker.headers)
    parser = EventParser()
    try:
        async for piece in asker.pieces():
            for event in parser.feed(piece):
                answer.add(event)
                if tokens is not None and answer.tokens >= tokens and not answer.is_complete:
                    asker.reset()
                    return
    finally:
        await asker.close()


def take(user: User, answer: Answer) -> None:
    terminal = answer.verify().terminal
    assert terminal is not None
    user.got, user.status = answer.text, terminal.json["status"]


def take_json(user: User, body: bytes) -> None:
    told = json.loads(body)
    partial_answer = told.get("partial") or {}
    user.got = told["content"] if "content" in told else partial_answer.get("content", "")
    user.status = told.get("status", "failed")


async def ask(user: User, body: dict[str, str], base_urls: Sequence[str]) -> None:
    """Ask in the user's own way, on whichever service."""
    here, there = random.sample([*base_urls, *base_urls], 2)
    match user.way:
        case "streamed":
            take(user, (await read_one(f"{here}/chat/streaming", body)).answer)
        case "waited for":
            take_json(user, (await read_one(f"{here}/chat/wait", body)).body)
        case "cut at each token":
            answer = Answer()
            await follow(answer, await Asker.ask(f"{here}/chat/streaming", body), tokens=1)
            while not answer.is_complete:
                where = f"{random.choice(base_urls)}/chat/streaming/{answer.stream_id}"
                asker = await Asker.ask(where, headers={"Last-Event-ID": answer.last_event_id})
                await follow(answer, asker, tokens=answer.tokens + 1)
            take(user, answer)
        case "begun, and waited for elsewhere":
            begun = await read_one(f"{here}/chat/wait", body, {"Prefer": "wait=0"})
            take_json(user, (await read_one(f"{there}/chat/wait/{begun.headers['x-stream-id']}")).body)
        case "asked twice with one key":
            key = new_key()
            askers = [await Asker.ask(f"{where}/chat/streaming", body, key) for where in (here, there)]
            one, other = [got.answer for got in await asyncio.gather(*map(read, askers))]
            assert one.text == other.text
            take(user, one)
        case "replayed":
            first = await read_one(f"{here}/chat/streaming", body)
            where = f"{there}/chat/streaming/{first.answer.stream_id}"
            take(user, (await read_one(where, headers=cursor(first.answer.stream_id or "", 0))).answer)


WAYS = (
    *("streamed", "waited for", "cut at each token", "begun, and waited for elsewhere"),
    *("asked twice with one key", "replayed"),
)


@contextlib.contextmanager
def one_service(upstream: ScriptedUpstream) -> Iterator[list[ChatWait]]:
    with ChatWait(**settings(upstream, TIMEOUT_SECONDS=5)) as service:
        yield [service]


@pytest.fixture
def running(request: pytest.FixtureRequest, upstream: ScriptedUpstream) -> Iterator[list[ChatWait]]:
    if request.param == "memory":
        with one_service(upstream) as running:
            yield running
        return
    valkey: Valkey = request.getfixturevalue("valkey")
    with services(upstream, valkey.url(valkey.new_database()), TIMEOUT_SECONDS=5) as running:
        yield running


@pytest.mark.parametrize("running", ["memory", "valkey"], indirect=True)
def test_two_hundred_users_get_their_own_answers_whatever_the_upstream_does(
    running: list[ChatWait], upstream: ScriptedUpstream
) -> None:
    dice = random.Random(15)
    oddities = {**WHOLE, **PARTS}
    names = [list(oddities)[number % len(oddities)] for number in range(USERS)]
    dice.shuffle(names)
    users = []
    calls = []
    for number, oddity in enumerate(names):
        name = f"user {number} {secrets.token_hex(8)}"
        user = User(number, oddity, WAYS[number % len(WAYS)], [f"{word} of {name}. " for word in "abcde"])
        users.append(user)
        body = about(upstream, oddities[oddity](user.texts), f"Answer {name}.")
        calls.append(partial(ask, user, body, [service.base_url for service in running]))

    run_all(calls, at_once=AT_ONCE)

    problems = [problem for user in users if (problem := user.problem())]
    assert not problems, f"{len(problems)} of {USERS}:\n" + "\n".join(problems[:20])
