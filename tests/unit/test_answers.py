"""Test a log as a response: the event stream, and the answer that the client waits for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask, Response, g

from app import create_app, errors
from app.dialects.native.headers import Cursor
from app.settings import Settings
from app.streams.interface import Origin
from app.web.answers import SHORT_BYTES, events, waited
from app.web.current import worker_of
from load.events import EventParser
from tests.unit.ends import end_with
from tests.unit.fakes import FakeUpstream, whole

SETTINGS = Settings(openai_base_url="http://model.test/v1", openai_model="m", log_level="CRITICAL")


@pytest.fixture
def app() -> Iterator[Flask]:
    made = create_app(SETTINGS, upstream=FakeUpstream(whole("a")))
    yield made
    worker_of(made).close()


@contextmanager
def asking(app: Flask, method: str = "GET", **headers: str) -> Iterator[None]:
    """Stand in the view of a request."""
    with app.test_request_context("/", method=method, headers=headers):
        g.correlation_id = "c-2"
        yield


def log_of(app: Flask, *chunks: str, end: str | None = None) -> Any:
    log, _ = worker_of(app).store.create(Origin("c-1", "m", "2026-11-21T09:00:00.000Z"))
    for chunk in chunks:
        log.append(chunk)
    if end:
        log.finish(end_with(end))
    return log


def cursor(log: Any, sequence: int) -> Cursor:
    return Cursor(log.stream_id, sequence)


def names(response: Response) -> list[str]:
    return [event.event for event in EventParser().feed(response.get_data())]


# The event stream


def test_stream_is_the_log_under_the_headers_of_an_event_stream(app: Flask) -> None:
    log = log_of(app, "a", end="done")
    with asking(app):
        response = events(log, None)

        assert names(response) == ["start", "token", "done"]
    assert dict(response.headers) == {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache, no-store, no-transform",
        "X-Accel-Buffering": "no",
        "X-Stream-Id": log.stream_id,
        "Location": f"/v1/chat/streaming/{log.stream_id}",
    }
    assert log.end_read


def test_stream_from_a_cursor_is_what_follows_it(app: Flask) -> None:
    log = log_of(app, "a", "b", end="done")
    with asking(app):
        (back, token, _) = EventParser().feed(events(log, cursor(log, 1)).get_data())

    assert (back.event, back.id) == ("ping", f"{log.stream_id}.1")
    assert (token.json["sequence"], token.json["content"]) == (2, "b")


def test_stream_of_which_all_was_seen_is_204_and_counts_as_read(app: Flask) -> None:
    log = log_of(app, "a", end="done")
    with asking(app):
        response = events(log, cursor(log, 2))

        assert (response.status_code, response.get_data()) == (204, b"")
    assert response.headers["Location"] == f"/v1/chat/streaming/{log.stream_id}"
    assert log.end_read


@pytest.mark.parametrize(("sequence", "end"), [(2, None), (3, "done")])
def test_cursor_ahead_of_its_log_is_refused_in_both_modes(app: Flask, sequence: int, end: str | None) -> None:
    log = log_of(app, "a", end=end)
    for answered in (events, waited):
        with asking(app), pytest.raises(errors.CursorAhead):
            answered(log, cursor(log, sequence))


def test_stream_needs_a_place_unless_it_was_admitted_or_is_a_head(app: Flask) -> None:
    log = log_of(app, "a", end="done")
    worker_of(app).readers._limit = 0

    with asking(app), pytest.raises(errors.Overloaded):
        events(log, None)
    with asking(app):
        assert events(log, None, is_admitted=True).status_code == 200
    with asking(app, "HEAD"):
        assert events(log, None).status_code == 200


def test_stream_keeps_its_place_until_its_reader_begins(app: Flask) -> None:
    log = log_of(app, "a", end="done")
    worker_of(app).readers._limit = 1
    with asking(app):
        events(log, None)
        with pytest.raises(errors.Overloaded):
            events(log, None)
        g.pop("place")
        events(log, None)


# The answer that the client waits for


def test_answer_of_a_log_that_has_ended_is_its_text_and_its_totals(app: Flask) -> None:
    log = log_of(app, "a", "é", end="done")
    with asking(app):
        response = waited(log)

    body = json.loads(response.get_data())
    assert (response.status_code, body["status"], body["content"], body["tokens"]) == (200, "complete", "aé", 2)
    assert body["correlation_id"] == "c-2"
    assert (response.headers["X-Stream-Id"], response.headers["Location"]) == (
        log.stream_id,
        f"/v1/chat/streaming/{log.stream_id}",
    )
    assert log.end_read


def test_answer_is_waited_for(app: Flask) -> None:
    log = log_of(app, "a")

    def end() -> None:
        while not log.readers:
            threading.Event().wait(0.001)
        log.append("b")
        log.finish(end_with())

    ending = threading.Thread(target=end)
    ending.start()
    with asking(app):
        response = waited(log)
    ending.join()

    assert json.loads(response.get_data())["content"] == "ab"
    assert (log.readers, worker_of(app).readers.count) == (0, 0)


def test_answer_that_does_not_come_in_the_preferred_time_is_202(app: Flask) -> None:
    log = log_of(app, "a")
    with asking(app, Prefer="respond-async, wait=0"):
        response = waited(log)

    assert response.status_code == 202
    assert json.loads(response.get_data()) == {"stream_id": log.stream_id, "status": "running", "tokens": 1}
    assert response.headers["Preference-Applied"] == "wait=0"
    assert response.headers["Location"] == f"/v1/chat/wait/{log.stream_id}"
    assert not log.end_read


def test_answer_that_is_there_needs_no_preference_and_names_none(app: Flask) -> None:
    log = log_of(app, "a", end="done")
    with asking(app, Prefer="wait=0"):
        response = waited(log)

    assert response.status_code == 200
    assert "Preference-Applied" not in response.headers


def test_head_waits_for_nothing_and_reads_nothing(app: Flask) -> None:
    live, ended = log_of(app, "a"), log_of(app, "a", end="done")
    with asking(app, "HEAD"):
        assert waited(live).status_code == 202
        assert waited(ended).status_code == 200
    assert not ended.end_read


def test_answer_of_a_stream_that_was_stopped_names_the_reason(app: Flask) -> None:
    log = log_of(app, "a", end="cancelled")
    with asking(app):
        body = json.loads(waited(log).get_data())

    assert (body["status"], body["reason"]) == ("cancelled", "client")


# Failures


def failed(app: Flask, failure: errors.ChatError | None, *chunks: str, reason: str | None = None) -> Any:
    log = log_of(app, *chunks)
    status: Any = "failed" if failure else "cancelled"
    log.finish(
        lambda totals: replace(
            end_with()(totals), status=status, reason=reason, error=failure.failure if failure else None
        )
    )
    return log


def test_failure_is_answered_with_its_status_and_the_text_until_then(app: Flask) -> None:
    log = failed(app, errors.UpstreamRateLimited(retry_after_seconds=7), "a", "b")
    with asking(app):
        response = waited(log)

    body = json.loads(response.get_data())
    assert (response.status_code, body["error_code"]) == (429, "upstream_rate_limited")
    assert response.headers["Retry-After"] == "7"
    assert (list(body)[-1], body["partial"]) == ("partial", {"content": "ab", "tokens": 2})
    assert body["correlation_id"] == "c-2"


def test_failure_without_text_has_an_empty_partial_and_no_retry_after(app: Flask) -> None:
    log = failed(app, errors.UpstreamTimeout())
    with asking(app):
        response = waited(log)

    assert response.status_code == 504
    assert "Retry-After" not in response.headers
    assert json.loads(response.get_data())["partial"] == {"content": "", "tokens": 0}


def test_answer_that_a_stop_of_the_service_cut_is_worth_asking_again(app: Flask) -> None:
    log = failed(app, None, "a", reason="shutdown")
    with asking(app):
        response = waited(log)

    body = json.loads(response.get_data())
    assert (response.status_code, body["error_code"], body["retryable"]) == (503, "shutting_down", True)
    assert response.headers["Retry-After"] == "5"
    assert body["partial"]["content"] == "a"


# Long answers


LONG = ['"\\\n\x01é😀 "' * 500] * 12


@pytest.mark.parametrize("is_failed", [False, True])
def test_long_answer_is_written_in_pieces_that_are_the_same_json(app: Flask, *, is_failed: bool) -> None:
    log = failed(app, errors.UpstreamError(), *LONG) if is_failed else log_of(app, *LONG, end="done")
    readers = worker_of(app).readers
    with asking(app):
        response = waited(log)
        assert response.is_streamed
        pieces = iter(response.response)
        first = next(pieces)
        assert readers.count == 1, "its connection counts as a reader"
        rest: list[Any] = list(pieces)

    assert len(rest) > 2
    text = (first + b"".join(rest)).decode("ascii")
    body = json.loads(text)
    assert (body["partial"] if is_failed else body)["content"] == "".join(LONG)
    assert text == json.dumps(body)
    assert readers.count == 0
    assert "Content-Length" not in response.headers
    assert response.status_code == (502 if is_failed else 200)


@pytest.mark.parametrize(("chunk", "is_streamed"), [("a", False), ("\x01", True)])
def test_answer_is_long_by_what_is_written(app: Flask, chunk: str, *, is_streamed: bool) -> None:
    """A character that is escaped takes six bytes."""
    log = log_of(app, chunk * (SHORT_BYTES // 4), end="done")
    with asking(app):
        assert waited(log).is_streamed is is_streamed


def test_long_answer_needs_a_place_unless_it_was_admitted_or_is_a_head(app: Flask) -> None:
    log = log_of(app, *LONG, end="done")
    worker_of(app).readers._limit = 0

    with asking(app), pytest.raises(errors.Overloaded):
        waited(log)
    with asking(app):
        assert waited(log, is_admitted=True).is_streamed
    with asking(app, "HEAD"):
        assert waited(log).status_code == 200
