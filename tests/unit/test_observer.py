"""Test the one door for facts: every listener hears each once, and none can harm another. Test each fact's line."""

from __future__ import annotations

import logging

import pytest

from app.observability import facts, observer
from app.observability.exceptions import describe
from app.observability.facts import Fact
from app.observability.observer import listen, tell
from tests.unit.conftest import Events

STORY = [facts.DrainStarted(generations=2, readers=1), facts.StoreBack(), facts.DrainFinished(readers=0, cut=True)]


@pytest.fixture(autouse=True)
def no_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "_listeners", ())


def test_every_listener_hears_every_fact_once_and_in_order() -> None:
    first: list[Fact] = []
    second: list[Fact] = []
    take = first.append
    listen(take)
    listen(second.append)
    listen(take)
    for fact in STORY:
        tell(fact)

    assert first == second == STORY


def test_listener_that_fails_is_logged_and_harms_neither_the_others_nor_the_one_that_tells(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[Fact] = []

    def fail(fact: Fact) -> None:
        raise ValueError("words")

    listen(fail)
    listen(heard.append)
    for fact in STORY:
        tell(fact)

    assert heard == STORY
    messages = [(record.message, record.exc_info is not None) for record in caplog.records]
    assert messages == [(f"a listener failed on the fact {fact.event}", True) for fact in STORY]


def test_listener_beyond_the_bound_is_refused() -> None:
    for _ in range(observer.MOST_LISTENERS):
        listen([].append)
    with pytest.raises(RuntimeError):
        listen([].append)

    assert len(observer._listeners) == observer.MOST_LISTENERS


# Lines


FAILED = {
    "correlation_id": "c-1",
    "error_type": "overloaded",
    "error_message": "It is full.",
    "detail": "Too many.",
    "recovery_action": "Wait.",
}
ENDED = {
    "status": "cancelled",
    "reason": "client",
    "model": "m",
    "finish_reason": None,
    "tokens": 3,
    "duration_ms": 12,
    "first_token_ms": 5,
    "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4, "source": "estimated"},
    "resumes": 0,
    "rate_limits": {},
    "stream": "0123456789ab",
    "correlation_id": "c-1",
}
STREAM = {"stream": "0123456789ab", "correlation_id": "c-1"}
LINES: list[tuple[Fact, int, str, dict[str, object]]] = [
    (facts.StoreAway(cause="refused: OOM"), logging.ERROR, "store_away", {"cause": "refused: OOM"}),
    (facts.StoreBack(), logging.INFO, "store_back", {}),
    (
        facts.StreamDamaged(stream="0123456789ab", what="its record"),
        logging.ERROR,
        "stream_damaged",
        {"stream": "0123456789ab", "what": "its record"},
    ),
    (facts.StreamCutOff(**STREAM), logging.INFO, "stream_cut_off", STREAM),
    (facts.StreamFenced(**STREAM), logging.INFO, "stream_fenced", STREAM),
    (facts.UpstreamDistrusted(seen="idle"), logging.WARNING, "upstream_distrusted", {"seen": "idle"}),
    (facts.WorkerStarted(version="1.2.3"), logging.INFO, "worker_started", {"version": "1.2.3"}),
    (facts.TreeDamaged(tree="abc"), logging.WARNING, "tree_damaged", {"tree": "abc"}),
    (facts.GenerationEnded(**ENDED), logging.INFO, "response_complete", ENDED),
    (facts.GenerationCutOff(**ENDED), logging.INFO, "response_cut_off", ENDED),
    *(
        (
            facts.GenerationFailed(**FAILED, stream="0123456789ab", origin=origin),
            level,
            "error_occurred",
            {**FAILED, "stream": "0123456789ab"},
        )
        for origin, level in [("service", logging.ERROR), ("upstream", logging.WARNING), ("client", logging.WARNING)]
    ),
    *(
        (
            facts.RequestFailed(**FAILED, status=status, origin=origin),
            level,
            "error_occurred",
            {**FAILED, "status": status},
        )
        for origin, status, level in [
            ("client", 404, logging.INFO),
            ("service", 500, logging.ERROR),
            ("service", 503, logging.WARNING),
            ("upstream", 502, logging.WARNING),
        ]
    ),
]
"""The facts that `tests/live/test_events.py` does not meet, and the levels of errors."""


@pytest.mark.parametrize(("fact", "level", "name", "fields"), LINES, ids=lambda value: getattr(value, "event", None))
def test_fact_is_written_as_its_line(
    events: Events, fact: Fact, level: int, name: str, fields: dict[str, object]
) -> None:
    tell(fact)

    (record,) = events.records
    assert (record.levelno, record.event, list(record.fields.items())) == (level, name, list(fields.items()))


def test_line_of_a_failure_tells_its_cause_last(events: Events) -> None:
    cause = describe(ValueError("words"))
    tell(facts.RequestFailed(**FAILED, status=500, origin="service", exception=cause))

    (record,) = events.records
    assert list(record.fields) == [*FAILED, "status", "exception"]
    assert record.fields["exception"] == {"types": ["ValueError"], "places": []}


def test_line_of_a_level_that_is_not_wanted_is_not_written(events: Events) -> None:
    tell(facts.RecordSent(**STREAM, sequence=1, bytes=1, ms=1))

    assert events.records == []


@pytest.mark.parametrize("name", facts.__all__)
def test_fact_cannot_be_changed(name: str) -> None:
    kind = getattr(facts, name)

    assert kind.__struct_config__.frozen
