"""What real clients raise, how often they ask again, and that an error in a stream is never an answer.

The docstring of a test says what it protects. The numbers of the rules are those of the package's docstring.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clients.programs import Program
from tests.clients.steps import CONTENT_CHUNKS, TEXT, about, asked, content_of
from tests.harness.script import encode_json
from tests.harness.server import ChatWait
from tests.harness.upstream import Close, Event, Reset, Script, ScriptedUpstream, Step, Token, answer

TOO_LONG = "This model's maximum context length is 8192 tokens. Please reduce the length of the messages."


def refusal(status: int, *, headers: dict[str, str] | None = None, **error: Any) -> Script:
    """Write an error as OpenAI answers it."""
    shown = {"message": "No.", "type": "invalid_request_error", "param": None, "code": None, **error}
    return Script(
        status=status,
        headers={"content-type": "application/json", **(headers or {})},
        body=encode_json({"error": shown}),
    )


@pytest.mark.parametrize("scenario", ["create", "stream"])
def test_too_long_a_context_is_the_upstreams_own_error_and_is_not_asked_again(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream, scenario: str
) -> None:
    """400 keeps its status and its four fields: `context_length_exceeded` steers clients."""
    error: dict[str, Any] = {"message": TOO_LONG, "param": "messages", "code": "context_length_exceeded"}
    body = about(upstream, refusal(400, **error))
    raised = client.run(scenario, chatwait.base_url, request=body)["raised"]

    assert "BadRequestError" in raised["names"]
    assert (raised["status_code"], raised["code"], raised["param"]) == (400, "context_length_exceeded", "messages")
    assert raised["type"] == "invalid_request_error"
    assert TOO_LONG in raised["message"]
    assert len(asked(upstream, body)) == 1


@pytest.mark.parametrize(
    ("status", "code", "name"),
    [
        (404, "model_not_found", "NotFoundError"),
        (413, "request_too_large", "APIStatusError"),
        (422, "unprocessable", "UnprocessableEntityError"),
        (429, "insufficient_quota", "RateLimitError"),
    ],
)
def test_refusal_of_the_upstream_keeps_its_status_and_code(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream, status: int, code: str, name: str
) -> None:
    """400, 404, 413, 422 and 429 of the upstream keep their status and these four fields."""
    body = about(upstream, refusal(status, message="The model does not exist.", code=code, param="model"))
    raised = client.run("stream", chatwait.base_url, request=body, retries=0)["raised"]

    # openai-node has no class of its own for 413.
    assert name in raised["names"] or (status, "APIError") == (413, raised["names"][0]), raised["names"]
    assert (raised["status_code"], raised["code"], raised["param"]) == (status, code, "model")
    assert "The model does not exist." in raised["message"]


@pytest.mark.parametrize("status", [401, 403])
def test_refused_key_of_the_operator_is_no_fault_of_the_clients_and_is_not_asked_again(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream, status: int
) -> None:
    """401 and 403 → 502, with `x-should-retry: false`: SDKs ask twice more for any other 502."""
    body = about(upstream, refusal(status, message="Incorrect API key provided: sk-har*.", code="invalid_api_key"))
    raised = client.run("stream", chatwait.base_url, request=body)["raised"]

    assert "InternalServerError" in raised["names"]
    assert (raised["status_code"], raised["code"]) == (502, "upstream_auth_failed")
    assert raised["headers"]["x-should-retry"] == "false"
    assert "sk-har" not in json.dumps(raised)
    assert len(asked(upstream, body)) == 1


def test_rate_limit_says_when_to_come_back(client: Program, chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """429 keeps its Retry-After; with it stands nothing that forbids another attempt."""
    body = about(upstream, refusal(429, headers={"retry-after": "7"}, message="Slow down.", code="rate_limit_exceeded"))
    raised = client.run("stream", chatwait.base_url, request=body, retries=0)["raised"]

    assert "RateLimitError" in raised["names"]
    assert raised["headers"]["retry-after"] == "7"
    assert raised["headers"].get("x-should-retry") != "false"
    assert raised["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize(
    ("scenario", "first"),
    [
        pytest.param("stream", refusal(429, headers={"retry-after": "1"}, code="rate_limit_exceeded"), id="429"),
        pytest.param("create", refusal(500, type="server_error"), id="500"),
        pytest.param("stream", refusal(503, type="server_error"), id="503"),
    ],
)
def test_passing_failure_is_asked_again_by_the_sdk_and_by_nobody_else(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream, scenario: str, first: Script
) -> None:
    """A request of a client that asks again by itself is asked upstream once. Otherwise it is asked 3 × 3 times.

    A kept connection that the upstream had closed is no answer: then the request is sent on a new one.
    """
    last = refusal(400, code="at_last")
    body = about(upstream, first, last)
    raised = client.run(scenario, chatwait.base_url, request=body, retries=0)["raised"]
    assert raised["status_code"] in {429, 503}
    assert len(asked(upstream, body)) == 1

    body = about(upstream, first, last)
    raised = client.run(scenario, chatwait.base_url, request=body)["raised"]
    assert raised["code"] == "at_last"
    assert len(asked(upstream, body)) == 2


def test_answer_after_a_passing_failure_is_whole(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """An error before the first event is a real status, which SDKs handle by asking again."""
    body = about(upstream, refusal(503, type="server_error"), answer(CONTENT_CHUNKS))
    saw = client.run("stream", chatwait.base_url, request=body)

    assert "raised" not in saw, saw["raised"]
    assert content_of(saw["chunks"]) == TEXT
    assert len(asked(upstream, body)) == 2


def test_model_that_is_not_allowed_is_refused_here(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """`model` is in ALLOWED_MODELS; refusals of the service have OpenAI's shape, too."""
    body = about(upstream, answer(CONTENT_CHUNKS)) | {"model": "another"}
    raised = client.run("stream", chatwait.base_url, request=body)["raised"]

    assert (raised["status_code"], raised["code"]) == (400, "model_not_allowed")
    assert raised["type"] == "invalid_request_error"
    assert len(asked(upstream, body)) == 0


ENDS: dict[str, list[Step]] = {
    "reset": [Reset()],
    "close": [Close()],
    "end without finish": [],
    "error event": [Event({"error": {"message": "CUDA ran out of memory.", "type": "server_error", "code": 500}})],
    "no JSON": [Event("{")],
}


@pytest.mark.parametrize("end", ENDS)
def test_failure_within_the_stream_is_raised_after_what_came_before(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream, end: str
) -> None:
    """A failure after the head is a frame with `error` and no id, which every SDK raises."""
    steps = [Token("One "), Token("two"), *ENDS[end]]
    body = about(upstream, Script(steps=steps))
    saw = client.run("stream", chatwait.base_url, request=body)

    assert content_of(saw["chunks"]) == "One two"
    raised = saw["raised"]
    assert raised["names"][0] == "APIError", raised
    assert raised["code"] == "upstream_error"
    assert raised["type"] == "server_error"
    assert "The model's answer could not be used." in raised["message"]
    assert len(asked(upstream, body)) == 1


def test_stored_answer_that_failed_is_an_error_and_not_asked_for_again(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """As JSON a failed answer is an error, and no short answer."""
    body = about(upstream, Script(steps=[Token("One "), Token("two"), Reset()]))
    completion_id = client.run("stream", chatwait.base_url, request=body)["chunks"][0]["id"]
    raised = client.run("retrieve", chatwait.base_url, id=completion_id, retries=0)["raised"]

    assert (raised["status_code"], raised["code"]) == (502, "upstream_error")
    assert "APIStatusError" in raised["names"] or "APIError" in raised["names"]
