"""The answers of the application have the shapes that the contract shows."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import errors
from tests.contract.conftest import ASKED, TEXTS
from tests.contract.document import CONTRACT, check_events, check_totals, named, operations, seen_through, validator
from tests.harness.events import EventParser
from tests.unit.fakes import FakeUpstream, Gate, texts

pytestmark = pytest.mark.usefixtures("no_network")


def check(response: TestResponse, method: str, path: str) -> Any:
    """Check an answer against what the contract says of its status; give back its JSON, if it is that."""
    responses = CONTRACT["paths"][path][method]["responses"]
    said = seen_through(responses.get(str(response.status_code), responses["default"]))
    for name, header in said["headers"].items():
        about_a_stream = response.status_code < 300 and name in ("X-Stream-Id", "Location")
        if seen_through(header).get("required") or about_a_stream or name in response.headers:
            schema = seen_through(header)["schema"]
            value = response.headers[name]
            validator(schema).validate(int(value) if schema.get("type") == "integer" else value)
    if "content" not in said:
        assert response.data == b""
        return None
    media = said["content"][response.mimetype]
    if response.mimetype != "application/json":
        return None
    validator(media["schema"], closed=True).validate(response.json)
    return response.json


@pytest.mark.requirement("page entity Streaming Message")
def test_answers_have_their_shape(client: FlaskClient) -> None:
    answer = check(client.post("/chat/wait", json=ASKED), "post", "/chat/wait")
    stream_id = answer["stream_id"]
    again = client.get(f"/v1/chat/wait/{stream_id}")
    preferred = client.post("/chat", json=ASKED, headers={"Accept": "application/json"})
    stopped = client.delete(f"/chat/wait/{stream_id}")

    assert answer["content"] == "".join(TEXTS)
    check_totals(answer, answer["content"])
    assert list(answer) == list(CONTRACT["components"]["examples"]["Answer"]["value"])
    assert check(again, "get", "/chat/wait/{stream_id}")["content"] == answer["content"]
    assert check(preferred, "post", "/chat")["status"] == "complete"
    assert check(stopped, "delete", "/chat/wait/{stream_id}")["status"] == "complete"


def test_events_have_their_shape(client: FlaskClient) -> None:
    response = client.post("/chat/streaming", json=ASKED)
    received = EventParser().feed(response.data)
    last = received[-1].id
    check(response, "post", "/chat/streaming")
    check_events(received)

    seen = client.get(f"/chat/streaming/{response.headers['X-Stream-Id']}", headers={"Last-Event-ID": str(last)})
    resumed = client.post("/chat/streaming", headers={"Last-Event-ID": str(received[1].id)})

    assert seen.status_code == 204
    check(seen, "get", "/chat/streaming/{stream_id}")
    events = EventParser().feed(resumed.data)
    assert (events[0].event, events[0].id) == ("ping", received[1].id)
    named("Ping", closed=True).validate(events[0].json)


def test_failed_and_cancelled_have_their_shape(client: FlaskClient, upstream: FakeUpstream, gate: Gate) -> None:
    upstream.scripts = [[*texts("Rome"), errors.UpstreamError()], [*texts("Rome"), gate]]

    failed = EventParser().feed(client.post("/chat/streaming", json=ASKED).data)
    key = {"Idempotency-Key": "k" * 16}
    running = client.post("/chat/wait", json=ASKED, headers={**key, "Prefer": "wait=0"})
    stream_id = check(running, "post", "/chat/wait")["stream_id"]
    gate.wait_reached()
    stopped = client.delete(f"/chat/streaming/{stream_id}")
    cancelled = client.get(f"/chat/streaming/{stream_id}")

    assert failed[-1].event == "failed"
    check_events(failed)
    assert running.status_code == 202
    assert running.headers["Preference-Applied"] == "wait=0"
    assert running.headers["Location"] == f"/v1/chat/wait/{stream_id}"
    assert check(stopped, "delete", "/chat/streaming/{stream_id}")["status"] == "cancelled"
    received = EventParser().feed(cancelled.data)
    assert received[-1].event == "cancelled"
    check_events(received)
    answer = check(client.get(f"/chat/wait/{stream_id}"), "get", "/chat/wait/{stream_id}")
    assert (answer["status"], answer["reason"]) == ("cancelled", "client")


@pytest.mark.requirement("chatwait errors 1", "tasks T018")
def test_errors_have_their_shape(client: FlaskClient, upstream: FakeUpstream) -> None:
    upstream.scripts = [[*texts("Rome"), errors.UpstreamError()], errors.UpstreamRateLimited(retry_after_seconds=60)]

    broken = client.post("/chat/wait", json=ASKED)
    limited = client.post("/chat/wait", json=ASKED)
    wrong = client.post("/chat/wait", json={"massage": "Hello"})
    unknown = client.get("/chat/streaming/cw_unknown")

    assert check(broken, "post", "/chat/wait")["partial"] == {"content": "Rome", "tokens": 1}
    assert check(limited, "post", "/chat/wait")["retry_after_seconds"] == 60
    assert limited.headers["Retry-After"] == "60"
    assert check(wrong, "post", "/chat/wait")["fields"].keys() == {"message", "massage"}
    assert check(unknown, "get", "/chat/streaming/{stream_id}")["error_code"] == "stream_unknown"


@pytest.mark.parametrize("path", [path for method, path, _ in operations() if method == "GET" and "{" not in path])
def test_other_answers_have_their_shape(client: FlaskClient, path: str) -> None:
    response = client.get(path)

    assert response.status_code == 200
    check(response, "get", path)


def test_contract_is_served_as_it_is(client: FlaskClient) -> None:
    response = client.get("/openapi.yaml")

    assert response.content_type == "application/yaml"
    assert yaml.safe_load(response.data) == CONTRACT
    home = client.get("/").text
    assert 'href="/docs"' in home and 'href="/openapi.yaml"' in home
