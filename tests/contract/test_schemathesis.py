"""Whatever the contract allows or forbids to send, the service answers as the contract says, and never with a 5xx."""

from __future__ import annotations

import importlib
import os
import secrets
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import requests

from tests.contract.situations import IN_ONE_PIECE
from tests.harness.contract import DOCUMENT
from tests.harness.leaks import forgotten
from tests.harness.reader import get, post, read_answer
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream
from tests.live.steps import poll, settings

if TYPE_CHECKING:
    from tests.contract.fuzz import Found

OPERATIONS = 17
FIRST_WORDS = ("POST /chat", "POST /chat/completions", "GET /chat/streaming/{stream_id}", "GET /chat/wait/{stream_id}")
SEED = "CHATWAIT_FUZZ_SEED"
"""An environment variable: another seed for the random requests, or `random` for one by chance.

Without it the seed follows from the contract: who changes that meets new requests, and nobody else does.
"""


@pytest.fixture(scope="module")
def fuzz() -> Any:
    """Import schemathesis where it is used, and not in each process that collects these tests."""
    return importlib.import_module("tests.contract.fuzz")


@pytest.fixture(scope="module")
def chatwait() -> Iterator[ChatWait]:
    """A service whose model answers at once; at its end its output is checked, as of every service here."""
    with ScriptedUpstream(ledger=False) as upstream, ChatWait(**settings(upstream)) as made:
        upstream.by(lambda asked: None if asked.json.get("stream") else IN_ONE_PIECE["answers in one piece"])
        yield made


@pytest.fixture(autouse=True)
def made_up() -> Iterator[None]:
    """What is said here is made up, and no secret; that no stream id is logged is still checked."""
    with forgotten():
        yield


@pytest.fixture
def streams(chatwait: ChatWait) -> list[str]:
    """Have some generations that have ended."""
    return [str(read_answer(f"{chatwait.base_url}/chat/streaming", {"message": "Hi"}).stream_id) for _ in range(3)]


@pytest.fixture
def completions(chatwait: ChatWait) -> list[str]:
    """Have some generations that OpenAI's route began, and that may be erased."""
    asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    answers = [post(f"{chatwait.base_url}/chat/completions", asked) for _ in range(8)]
    return [f"chatcmpl-{answer.headers['x-stream-id']}" for answer in answers]


def judge(chatwait: ChatWait, found: Found, before: dict[str, int], refusals: int = 1) -> None:
    """Check that all was tried, with so many refusals of each question, nothing was found, and nothing is left."""
    print(found.summary())
    assert not found.failures, "\n".join(found.failures[:5])
    assert set(found.cases) == {"examples", "coverage", "fuzzing", "stateful"}
    assert len({operation for operation, _ in found.answers}) == OPERATIONS
    assert not [pair for pair in found.answers if pair[1] >= 500]
    for operation in FIRST_WORDS:
        assert found.answers[operation, 200], operation
        assert found.answers[operation, 400] >= refusals, operation

    assert get(f"{chatwait.base_url}/health").status == 200
    assert post(f"{chatwait.base_url}/chat/wait", {"message": "Hi"}).json["content"] == "Hello, world."
    assert not chatwait.log_of("error_occurred", error_type="internal_error")
    poll(
        lambda: all(now <= before[name] + ROOM[name] for name, now in chatwait.resources().items() if name in ROOM),
        seconds=10,
        what=lambda: f"{before} again: {chatwait.resources()}",
    )


ROOM = {"fds": 8, "threads": 0}
"""How much more there may be: the upstream connections that are kept for the next question."""


@pytest.mark.parametrize(
    ("path", "key", "status", "excused"),
    [
        pytest.param("a" * 9000, "k", 414, "an address over 8190 bytes", id="address"),
        pytest.param("a", "k" * 9000, 431, "a header over 8190 bytes", id="header"),
        pytest.param("a" * 8000, "k", 404, "", id="neither"),
    ],
)
def test_only_what_gunicorn_refuses_for_its_length_is_excused(
    fuzz: Any, chatwait: ChatWait, path: str, key: str, status: int, excused: str
) -> None:
    url = f"{chatwait.base_url}/chat/streaming/{path}"
    answer = requests.get(url, headers={"Idempotency-Key": key}, timeout=10)

    assert answer.status_code == status
    assert fuzz.too_long(fuzz.Response.from_requests(answer, verify=True)) == excused


@pytest.mark.timeout(300)
@pytest.mark.parametrize("with_cursors", [False, pytest.param(True, marks=pytest.mark.long)], ids=["bodies", "cursors"])
def test_contract_holds_for_requests_valid_and_not(
    fuzz: Any, chatwait: ChatWait, streams: list[str], completions: list[str], with_cursors: bool
) -> None:
    before = chatwait.resources()
    cursors = [f"{stream_id}.{sequence}" for stream_id in streams for sequence in range(6)]

    found = fuzz.run(
        chatwait.base_url,
        streams=streams,
        completions=completions,
        cursors=cursors,
        with_cursors=with_cursors,
        max_examples=5,
    )

    judge(chatwait, found, before)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("with_cursors", [False, True], ids=["bodies", "cursors"])
def test_contract_holds_for_random_requests(
    fuzz: Any, chatwait: ChatWait, streams: list[str], completions: list[str], with_cursors: bool
) -> None:
    asked = os.environ.get(SEED) or str(zlib.crc32(DOCUMENT.read_bytes()))
    seed = secrets.randbelow(2**32) if asked == "random" else int(asked)
    print(f"{SEED}={seed}")
    before = chatwait.resources()
    cursors = [f"{stream_id}.{sequence}" for stream_id in streams for sequence in range(6)]

    found = fuzz.run(
        chatwait.base_url,
        streams=streams,
        completions=completions,
        cursors=cursors,
        with_cursors=with_cursors,
        max_examples=100,
        seed=seed,
        seconds=60,
    )

    judge(chatwait, found, before, refusals=0)  # a slow machine may not come to each of them in a minute
