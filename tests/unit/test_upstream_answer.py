"""Test what becomes of an answer's bytes as they come: parts in batches, and errors, against real sockets.

`test_patched` runs this file again where gevent's loop is what takes them.
"""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from app import errors
from app.upstream.call import Call
from app.upstream.client import OpenAIUpstream
from app.upstream.interface import Answer, Part, Question
from tests.unit.fakes import PATIENCE_SECONDS
from tests.unit.rawserver import (
    CHUNKED,
    LAST,
    Serve,
    Step,
    chunk,
    saying,
)
from tests.unit.transports import QUESTION, batches_of, event

pytestmark = pytest.mark.usefixtures("no_proxies", "no_rest")


@pytest.fixture
def ask(serve: Serve) -> Iterator[Callable[..., Answer]]:
    made: list[OpenAIUpstream] = []

    def ask(*steps: Step) -> Answer:
        url = serve(saying(steps)).url.removesuffix("/chat/completions")
        made.append(OpenAIUpstream(base_url=url, api_key="k"))
        return made[-1].ask(QUESTION, Call())

    yield ask
    for upstream in made:
        upstream.close()


TOKEN = b'data: {"choices":[{"delta":{"content":"Hello"}}]}\n\n'


def test_tokens_that_come_together_are_given_together(ask: Callable[..., Answer]) -> None:
    batches: list[list[Part]] = []
    answer = ask(CHUNKED + chunk(event("a")) + chunk(event("b") + event("c")) + chunk(b"data: [DONE]\n\n") + LAST)

    assert batches_of(answer, batches) is False

    assert batches == [[Part("a"), Part("b"), Part("c"), Part(done=True)]]
    answer.close()


@pytest.mark.parametrize(
    ("last", "kind", "detail"),
    [
        (b"data: no JSON\n\n", errors.UpstreamError, "sent something other than an answer"),
        (b'data: {"error":{"message":"raw","code":"content_policy_violation"}}\n\n', errors.ContentFiltered, ""),
        (b'data: {"error":{"message":"raw words"}}\n\n', errors.UpstreamError, ""),
    ],
    ids=["broken", "policy", "reported"],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_batch_before_an_error_is_given_first_and_the_error_is_told_for_what_it_is(
    ask: Callable[..., Answer], last: bytes, kind: type[errors.ChatError], detail: str, at_once: bool
) -> None:
    batches: list[list[Part]] = []
    events = chunk(event("a") + event("b") + last + event("c"))
    answer = ask(CHUNKED + events) if at_once else ask(CHUNKED, events, LAST)

    with pytest.raises(errors.ChatError) as raised:
        batches_of(answer, batches)
    answer.close()

    assert [part for parts in batches for part in parts] == [Part("a"), Part("b")]
    assert type(raised.value) is kind
    assert detail in (raised.value.detail or "")
    assert "broke" not in (raised.value.detail or "")


def test_request_is_held_once_while_its_answer_is_waited_for_and_not_at_all_while_it_comes(serve: Serve) -> None:
    """What was sent is megabytes for each generation, beside the question that it was made of."""
    size = 4 << 20
    question = Question([{"role": "user", "content": "x" * size}], "m", 256, None)
    here, go = threading.Event(), threading.Event()
    server = serve(
        saying([lambda _: here.set(), lambda _: go.wait(PATIENCE_SECONDS), CHUNKED + chunk(TOKEN), lambda c: c.recv(1)])
    )
    upstream = OpenAIUpstream(base_url=server.url.removesuffix("/chat/completions"), api_key="k")
    tracemalloc.start()
    try:
        with ThreadPoolExecutor(1) as threads:
            asking = threads.submit(upstream.ask, question, Call())
            assert here.wait(PATIENCE_SECONDS)
            waiting = tracemalloc.get_traced_memory()[0]
            go.set()
            answer = asking.result(PATIENCE_SECONDS)
            answering = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    answer.close()
    upstream.close()

    assert waiting < 2 * size, "it may have to be sent once more"
    assert answering < 0.5 * size
