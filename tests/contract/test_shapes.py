"""The answers of the application have the shapes that the contract shows.

That each is of its schema, with its headers, totals and frames, is seen to by `tests.harness.contract_run`, here as in
every test: what is read of an answer is judged.
"""

from __future__ import annotations

import pytest
import yaml
from flask.testing import FlaskClient

from app import errors
from load.events import EventParser
from tests.contract.conftest import ASKED, TEXTS
from tests.contract.document import CONTRACT, operations
from tests.unit.fakes import FakeUpstream, Gate, texts

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.mark.requirement("page entity Streaming Message")
def test_answers_have_their_shape(client: FlaskClient) -> None:
    answer = client.post("/chat/wait", json=ASKED).json
    stream_id = answer["stream_id"]
    again = client.get(f"/v1/chat/wait/{stream_id}")
    preferred = client.post("/chat", json=ASKED, headers={"Accept": "application/json"})
    stopped = client.delete(f"/chat/wait/{stream_id}")

    assert answer["content"] == "".join(TEXTS)
    assert list(answer) == list(CONTRACT["components"]["examples"]["Answer"]["value"])
    assert again.json["content"] == answer["content"]
    assert preferred.json["status"] == "complete"
    assert stopped.json["status"] == "complete"


def test_events_have_their_shape(client: FlaskClient) -> None:
    response = client.post("/chat/streaming", json=ASKED)
    received = EventParser().feed(response.data)
    last = received[-1].id

    seen = client.get(f"/chat/streaming/{response.headers['X-Stream-Id']}", headers={"Last-Event-ID": str(last)})
    resumed = client.post("/chat/streaming", headers={"Last-Event-ID": str(received[1].id)})

    assert (seen.status_code, seen.data) == (204, b"")
    events = EventParser().feed(resumed.data)
    assert (events[0].event, events[0].id) == ("ping", received[1].id)


def test_failed_and_cancelled_have_their_shape(client: FlaskClient, upstream: FakeUpstream, gate: Gate) -> None:
    upstream.scripts = [[*texts("Rome"), errors.UpstreamError()], [*texts("Rome"), gate]]

    failed = EventParser().feed(client.post("/chat/streaming", json=ASKED).data)
    key = {"Idempotency-Key": "key-" * 4}
    running = client.post("/chat/wait", json=ASKED, headers={**key, "Prefer": "wait=0"})
    stream_id = running.json["stream_id"]
    gate.wait_reached()
    stopped = client.delete(f"/chat/streaming/{stream_id}")
    cancelled = client.get(f"/chat/streaming/{stream_id}")

    assert failed[-1].event == "failed"
    assert running.status_code == 202
    assert running.headers["Preference-Applied"] == "wait=0"
    assert running.headers["Location"] == f"/v1/chat/wait/{stream_id}"
    assert stopped.json["status"] == "cancelled"
    received = EventParser().feed(cancelled.data)
    assert received[-1].event == "cancelled"
    answer = client.get(f"/chat/wait/{stream_id}").json
    assert (answer["status"], answer["reason"]) == ("cancelled", "client")


@pytest.mark.requirement("chatwait errors 1", "tasks T018")
def test_errors_have_their_shape(client: FlaskClient, upstream: FakeUpstream) -> None:
    upstream.scripts = [[*texts("Rome"), errors.UpstreamError()], errors.UpstreamRateLimited(retry_after_seconds=60)]

    broken = client.post("/chat/wait", json=ASKED)
    limited = client.post("/chat/wait", json=ASKED)
    wrong = client.post("/chat/wait", json={"massage": "Hello"})
    unknown = client.get("/chat/streaming/cw_unknown")

    assert broken.json["partial"] == {"content": "Rome", "tokens": 1}
    assert limited.json["retry_after_seconds"] == 60
    assert limited.headers["Retry-After"] == "60"
    assert wrong.json["fields"].keys() == {"message", "massage"}
    assert unknown.json["error_code"] == "stream_unknown"


@pytest.mark.parametrize("path", [path for method, path, _ in operations() if method == "GET" and "{" not in path])
def test_other_answers_have_their_shape(client: FlaskClient, path: str) -> None:
    response = client.get(path)

    assert response.status_code == 200
    assert response.data


def test_contract_is_served_as_it_is(client: FlaskClient) -> None:
    response = client.get("/openapi.yaml")

    assert response.content_type == "application/yaml"
    assert yaml.safe_load(response.data) == CONTRACT
    assert 'href="/docs"' in client.get("/").text
    assert 'href="/openapi.yaml"' in client.get("/docs").text
