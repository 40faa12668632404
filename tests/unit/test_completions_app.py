"""OpenAI's routes through the WSGI door, with an upstream of our own: who gets which answer, what is joined when."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app, errors
from app.platform import clock
from app.settings import Settings
from app.streams.chunk import Chunk
from app.upstream.interface import Forwarded, Part
from app.web import completion_answers
from app.web.current import worker_of
from tests.unit.chunks import CONTENT, enveloped, raw
from tests.unit.fakes import FakeUpstream, Gate

pytestmark = pytest.mark.usefixtures("no_network")

SETTINGS = Settings(
    openai_base_url="http://model.test/v1",
    openai_model="m",
    allowed_models=("m",),
    allowed_hosts=("localhost",),
    log_level="CRITICAL",
)
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
PATH = "/v1/chat/completions"


def said(*chunks: Chunk, reason: str | None = "stop") -> list[Part]:
    return [
        *(Part(chunks=(chunk,), chars=len(chunk.text)) for chunk in chunks),
        Part(finish_reason=reason),
        Part(done=True),
    ]


def content(text: str, **more: Any) -> Chunk:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    chunk = {"object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}
    return raw(text, **chunk)


@pytest.fixture(autouse=True)
def quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "TICK_SECONDS", 0.01)


@pytest.fixture
def make() -> Iterator[Callable[..., FlaskClient]]:
    made: list[Flask] = []

    def build(*scripts: Any) -> FlaskClient:
        made.append(create_app(SETTINGS, upstream=FakeUpstream(*scripts)))
        return made[-1].test_client()

    yield build
    for app in made:
        worker_of(app).close()


def questions_of(client: FlaskClient) -> list[Any]:
    questions: list[Any] = worker_of(client.application).generations._upstream.questions  # type: ignore[attr-defined]
    return questions


@pytest.mark.parametrize(("header", "asked"), [({"X-Stainless-Retry-Count": "0"}, 1), ({}, 3)])
def test_request_of_a_client_that_asks_again_by_itself_is_asked_once(
    make: Callable[..., FlaskClient], monkeypatch: pytest.MonkeyPatch, header: dict[str, str], asked: int
) -> None:
    monkeypatch.setattr("app.generation.run.BACKOFF_SECONDS", 0.001)
    client = make(errors.UpstreamUnavailable())
    response = client.post(PATH, json=ASKED, headers=header)
    assert (response.status_code, response.json["error"]["code"]) == (503, "upstream_unavailable")
    assert "x-should-retry" not in response.headers
    assert len(questions_of(client)) == asked


def test_permanent_refusal_tells_the_sdk_not_to_ask_again(make: Callable[..., FlaskClient]) -> None:
    response = make(errors.UpstreamRefused()).post(PATH, json=ASKED)
    assert response.status_code == 502
    assert response.headers["x-should-retry"] == "false"


def test_head_waits_for_the_first_event_and_no_longer(make: Callable[..., FlaskClient]) -> None:
    gate = Gate()
    client = make([gate, *said()])
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(client.post, PATH, json=ASKED)
        gate.wait_reached()
        assert not answering.done()
        gate.open()
        response = answering.result(20)
    assert response.status_code == 200
    assert response.data.startswith(b": keepalive\ndata: [DONE]\n")


def test_key_belongs_to_who_shows_the_same_credential(make: Callable[..., FlaskClient]) -> None:
    client = make(said(content("a")))
    ids = [
        client.post(PATH, json=ASKED, headers={"Idempotency-Key": "k" * 12 + "abcd", "Authorization": shown}).headers[
            "X-Stream-Id"
        ]
        for shown in ("Bearer a", "Bearer a", "Bearer b")
    ]
    assert ids[0] == ids[1] != ids[2]
    assert len(questions_of(client)) == 2
    assert all(isinstance(question, Forwarded) for question in questions_of(client))


def test_answer_that_is_over_before_it_began_is_an_error(make: Callable[..., FlaskClient]) -> None:
    """`[DONE]` alone would pass for a whole answer."""
    response = make([Part(done=True)]).post(PATH, json=ASKED)
    assert (response.status_code, response.json["error"]["code"]) == (502, "upstream_error")


def test_empty_answer_that_says_why_it_finished_is_whole(make: Callable[..., FlaskClient]) -> None:
    response = make(said()).post(PATH, json=ASKED)
    assert response.status_code == 200
    assert b"data: [DONE]\n" in response.data


@pytest.mark.parametrize("prefix", ["resp_", "ui_", "chatcmpl-"])
def test_cursor_of_another_dialect_is_malformed(make: Callable[..., FlaskClient], prefix: str) -> None:
    client = make(said(content("a")))
    stream_id = client.post(PATH, json=ASKED).headers["X-Stream-Id"]
    cursor = {"Last-Event-ID": f"{prefix}{stream_id}.1"}
    for response in (client.get(f"{PATH}/{stream_id}?stream=true", headers=cursor), client.post(PATH, headers=cursor)):
        assert (response.status_code, response.json["error"]["code"]) == (400, "cursor_malformed")


LONG = [content("a"), *[enveloped(CONTENT, "b")] * completion_answers.MANY_RECORDS]


def test_long_answers_are_joined_one_at_a_time_and_never_for_head(
    make: Callable[..., FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A joined answer takes memory that nobody has counted yet."""
    client = make(said(*LONG))
    path = f"{PATH}/{client.post(PATH, json=ASKED).headers['X-Stream-Id']}"
    join, joining, most = completion_answers.completion, 0, 0
    entered = threading.Event()

    def noting(*arguments: Any) -> bytes:
        nonlocal joining, most
        joining += 1
        most = max(most, joining)
        entered.wait(0.02)  # so that the others come in between, if they may
        joined = join(*arguments)
        joining -= 1
        return joined

    monkeypatch.setattr(completion_answers, "completion", noting)
    head = client.head(path)
    assert (head.status_code, head.data, most) == (200, b"", 0)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(client.get, path) for _ in range(8)]
        texts = {json.loads(answer.result(20).data)["choices"][0]["message"]["content"] for answer in answers}
    assert texts == {"a" + "b" * completion_answers.MANY_RECORDS}
    assert most == 1
