"""The embedded model, for real: what a new user has after `make run`, with neither key nor base URL."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from app import local_model
from tests.harness.chaos import ChaosProxy, CutAfter
from tests.harness.http1 import get, post
from tests.harness.reader import read_answer, read_resuming
from tests.harness.server import ChatWait
from tests.live.embedded import PATIENCE_SECONDS, embedded_service

pytestmark = pytest.mark.timeout(300)

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def embedded() -> Iterator[ChatWait]:
    with embedded_service() as chatwait:
        yield chatwait


@pytest.mark.requirement("chatwait story", "chatwait scenario 1", "chatwait scenario 5", "chatwait FR-005")
def test_wait_mode_answers_a_dialogue_of_two_turns(embedded: ChatWait) -> None:
    first = post(f"{embedded.base_url}/chat/wait", json={"message": QUESTION}, timeout=PATIENCE_SECONDS).json
    assert "Paris" in first["content"]
    assert first["model"] == local_model.MODEL_ID
    assert first["usage"]["source"] == "provider"

    context = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": first["content"]}]
    second = post(
        f"{embedded.base_url}/chat/wait",
        json={"message": "And of Italy?", "context": context},
        timeout=PATIENCE_SECONDS,
    ).json
    assert second["status"] == "complete"
    assert "Rome" in second["content"]
    assert second["sha256"] == hashlib.sha256(second["content"].encode()).hexdigest()


@pytest.mark.requirement("core US1.2", "chatwait scenario 2", "chatwait scenario 5")
def test_streaming_answers_a_dialogue_of_two_turns_with_the_same_text(embedded: ChatWait) -> None:
    first = read_answer(f"{embedded.base_url}/chat/streaming", json={"message": QUESTION}, timeout=PATIENCE_SECONDS)
    assert "Paris" in first.text
    assert (
        first.text
        == post(f"{embedded.base_url}/chat/wait", json={"message": QUESTION}, timeout=PATIENCE_SECONDS).json["content"]
    )

    context = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": first.text}]
    second = read_answer(
        f"{embedded.base_url}/chat/streaming",
        json={"message": "And of Italy?", "context": context},
        timeout=PATIENCE_SECONDS,
    )
    assert "Rome" in second.text


@pytest.mark.parametrize(
    ("question", "words"),
    [("Hello", ["Hello", "Hi"]), ("What is 2+2?", ["4", "four"]), (QUESTION, ["Paris"])],
)
@pytest.mark.requirement("core US1.1", "core US1 test", "tasks US1 test")
def test_question_of_the_specifications_is_answered_in_sense(
    embedded: ChatWait, question: str, words: list[str]
) -> None:
    """What the specifications ask as their first example; each token numbered, the last frame final."""
    got = read_answer(f"{embedded.base_url}/chat/streaming", json={"message": question}, timeout=PATIENCE_SECONDS)
    assert any(word in got.text for word in words), got.text
    assert got.tokens >= 2
    final = [event.json["is_final"] for event in got.events if event.event in ("token", "done")]
    assert final == [False] * (len(final) - 1) + [True]


@pytest.mark.requirement("chatwait edge 1")
def test_streaming_survives_cuts_of_a_real_answer(embedded: ChatWait) -> None:
    request = {"message": "Write three sentences about the sea.", "max_tokens": 60}
    with ChaosProxy("127.0.0.1", embedded.port) as proxy:
        proxy.plan(CutAfter(900), CutAfter(1400), CutAfter(700))
        answer = read_resuming(proxy.base_url, json=request, timeout=PATIENCE_SECONDS)
        assert proxy.connections >= 4

    assert answer.text == post(f"{embedded.base_url}/chat/wait", json=request, timeout=PATIENCE_SECONDS).json["content"]


def test_models_names_the_embedded_model_and_limits_that_fit_it(embedded: ChatWait) -> None:
    models = get(f"{embedded.base_url}/models").json

    assert models["default"] == local_model.MODEL_ID
    limits = models["limits"]
    assert limits["max_tokens"] + limits["max_input_tokens"] < local_model.CONTEXT_TOKENS_PER_SLOT


@pytest.mark.requirement("core edge 2")
def test_conversation_too_long_for_the_model_is_refused_in_words(embedded: ChatWait) -> None:
    reply = post(f"{embedded.base_url}/chat/wait", json={"message": "word " * 1590 + "\u4e2d" * 40})
    assert reply.status == 400
    assert reply.json["error_code"] in ("message_too_long", "context_too_long")
