"""Test the JSON of ChatWait's own dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app import errors
from app.dialects.native.answer import answer, around_text, failed_answer, running, stopped, text_bytes
from app.streams.interface import End, Origin
from app.streams.memory.store import MemoryStore
from app.tokens.usage import Usage
from tests.unit.ends import end_with, terminal_of
from tests.unit.readings import log_of


@pytest.mark.requirement("tasks T012")
def test_answer_folds_a_log_in_the_order_of_the_contract() -> None:
    store = MemoryStore(max_active=1, budget_bytes=100_000, retention_seconds=60)
    log, _ = store.create(Origin("c-1", "m", "2026-11-21T09:00:00.000Z"))
    log.append("Rome.")
    end = End(
        status="cancelled",
        records=1,
        characters=5,
        sha256="x",
        usage=Usage(1, 2, 3, "provider"),
        finish_reason=None,
        first_token_ms=1,
        duration_ms=2,
        reason="client",
    )

    folded = answer(log.stream_id, log.origin, end, "c-2", text=log.text())

    assert list(folded) == [
        "stream_id",
        "correlation_id",
        "status",
        "model",
        "content",
        "finish_reason",
        "tokens",
        "usage",
        "created",
        "first_token_ms",
        "duration_ms",
        "characters",
        "sha256",
        "reason",
    ]
    assert (folded["stream_id"], folded["correlation_id"]) == (log.stream_id, "c-2")
    assert (folded["content"], folded["reason"]) == ("Rome.", "client")
    assert (folded["created"], folded["usage"]) == (
        "2026-11-21T09:00:00.000Z",
        {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "source": "provider"},
    )


def test_answer_of_a_failure_is_its_error_with_the_text_until_then() -> None:
    end: Any = log_of("a", "b").end
    failure = errors.Overloaded(retry_after_seconds=2).failure

    body = failed_answer(failure, end, "c-2", text="ab")

    assert list(body)[-2:] == ["retry_after_seconds", "partial"]
    assert (body["error_code"], body["correlation_id"]) == ("overloaded", "c-2")
    assert body["partial"] == {"content": "ab", "tokens": 2}


@pytest.mark.parametrize(("end", "status"), [("done", "complete"), ("cancelled", "cancelled"), ("failed", "failed")])
def test_answer_to_a_stop_tells_how_the_log_ended_or_that_it_runs(end: str, status: str) -> None:
    log = log_of("a", end=False)
    assert stopped(log.stream_id, log.end, log.head) == running(log.stream_id, 1)
    log.finish(end_with(end))

    assert stopped(log.stream_id, log.end, log.head) == {"stream_id": log.stream_id, "status": status, "tokens": 1}
    assert terminal_of(log).content["status"] == status


@pytest.mark.parametrize("text", ["", "a", '"\\\n\0', "é😀", "\u2028", "\0text\0", "content"])
def test_parts_of_an_answer_join_to_the_same_json(text: str) -> None:
    def body(text: str) -> dict[str, Any]:
        return {"before": "content", "content": text, "after": ["é"]}

    before, after = around_text(body)

    assert before + text_bytes(text[:1]) + text_bytes(text[1:]) + after == json.dumps(body(text)).encode()
