"""Failures are written as their path's clients read them: in ChatWait's own dialect, or in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask, Response

from app import create_app, errors
from app.settings import Settings
from app.web.current import worker_of
from app.web.manners import is_openai
from tests.unit.fakes import FakeUpstream, whole

SETTINGS = Settings(
    openai_base_url="http://model.test/v1", openai_model="m", allowed_hosts=("localhost",), log_level="CRITICAL"
)

OPENAI = [
    "/chat/completions",
    "/chat/completions/cw_x",
    "/completions",
    "/embeddings",
    "/responses",
    "/responses/resp_x/cancel",
    "/models/gpt",
    "/models/org/model",
    "/images/generations",
    "/audio/speech",
]
NATIVE = [
    "/chat",
    "/chat/wait",
    "/chat/streaming/cw_x",
    "/chat/completionsx",
    "/models",
    "/embeddingsx",
    "/health",
    "/",
    "/v1",
    "/v2/embeddings",
    "/chat/completion",
]


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_path_is_of_openai_where_openais_clients_ask(prefix: str) -> None:
    assert [path for path in OPENAI if not is_openai(prefix + path)] == []
    assert [path for path in NATIVE if is_openai(prefix + path)] == []


@pytest.fixture
def app() -> Iterator[Flask]:
    """The service, with two routes that fail."""
    made = create_app(SETTINGS, upstream=FakeUpstream(whole("a")))

    def fail(kind: str) -> str:
        raise errors.Overloaded(retry_after_seconds=3) if kind == "busy" else RuntimeError("secret words")

    made.add_url_rule("/other/<kind>", view_func=fail)
    made.add_url_rule("/embeddings/<kind>", "openai", view_func=fail)
    yield made
    worker_of(made).close()


def answer_to(app: Flask, path: str, *, method: str = "GET", host: str = "localhost") -> Response:
    """Answer a request of which the contract says nothing: the test client would hold it to that."""
    with app.test_request_context(path, method=method, base_url=f"http://{host}"):
        return app.full_dispatch_request()


@pytest.mark.parametrize(("kind", "status", "code"), [("busy", 503, "overloaded"), ("bug", 500, "internal_error")])
def test_failure_on_a_path_of_openais_has_its_shape(app: Flask, kind: str, status: int, code: str) -> None:
    response = answer_to(app, f"/embeddings/{kind}")

    assert response.status_code == status
    told = response.json
    assert told is not None
    assert list(told) == ["error"]
    assert told["error"]["code"] == told["error"]["error_code"] == code
    assert told["error"]["type"] == ("rate_limit_error" if kind == "busy" else "server_error")
    assert told["error"]["correlation_id"] == response.headers["X-Correlation-Id"] == response.headers["x-request-id"]
    assert "secret" not in response.get_data(as_text=True)
    assert response.headers.get("Retry-After") == ("3" if kind == "busy" else None)
    assert "x-should-retry" not in response.headers


@pytest.mark.parametrize(("kind", "status", "code"), [("busy", 503, "overloaded"), ("bug", 500, "internal_error")])
def test_failure_of_any_other_route_is_in_chatwaits_own_dialect(app: Flask, kind: str, status: int, code: str) -> None:
    response = answer_to(app, f"/other/{kind}")

    assert response.status_code == status
    assert response.json is not None
    assert response.json["error_code"] == code
    assert response.headers.get("Retry-After") == ("3" if kind == "busy" else None)
    assert "x-request-id" not in response.headers


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses", "/v1/chat/completions/a/messages"])
def test_route_of_openais_that_is_not_served_is_404_and_names_what_is(app: Flask, path: str) -> None:
    response = answer_to(app, path)

    assert response.status_code == 404
    assert response.json is not None
    assert "POST /v1/chat/completions" in response.json["error"]["message"]
    assert response.headers["x-should-retry"] == "false"


def test_wrong_method_is_405_in_the_paths_manner(app: Flask) -> None:
    response = answer_to(app, "/v1/chat/completions", method="PUT")

    assert (response.status_code, response.headers["Allow"]) == (405, "OPTIONS, POST")
    assert response.json is not None
    assert response.json["error"]["code"] == "method_not_allowed"


def test_foreign_host_is_refused_in_the_paths_manner(app: Flask) -> None:
    response = answer_to(app, "/v1/chat/completions", host="evil.example")

    assert response.status_code == 400
    assert response.json is not None
    assert response.json["error"]["code"] == "host_not_allowed"
