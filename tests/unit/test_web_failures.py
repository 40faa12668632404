"""Test that a failure is answered in the dialect of its route."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Blueprint, Flask, Response

from app import create_app, errors
from app.errors import Failure
from app.settings import Settings
from app.web import failures
from app.web.current import worker_of
from tests.unit.fakes import FakeUpstream, whole

SETTINGS = Settings(
    openai_base_url="http://model.test/v1", openai_model="m", allowed_hosts=("localhost",), log_level="CRITICAL"
)


def write(failure: Failure, correlation_id: str) -> dict[str, Any]:
    return {"error": {"code": failure.error_code, "id": correlation_id}}


@pytest.fixture
def app() -> Iterator[Flask]:
    """The service, with routes of another dialect."""
    made = create_app(SETTINGS, upstream=FakeUpstream(whole("a")))
    other = Blueprint("other", __name__)
    failures.register(other, write)

    @other.get("/other/<kind>")
    def fail(kind: str) -> str:
        raise errors.Overloaded(retry_after_seconds=3) if kind == "busy" else RuntimeError("secret words")

    made.register_blueprint(other)
    yield made
    worker_of(made).close()


def answer_to(app: Flask, path: str) -> Response:
    """Answer a request of which the contract says nothing: the test client would hold it to that."""
    with app.test_request_context(path):
        return app.full_dispatch_request()


@pytest.mark.parametrize(("kind", "status", "code"), [("busy", 503, "overloaded"), ("bug", 500, "internal_error")])
def test_failure_of_a_blueprint_is_written_by_its_own_dialect(app: Flask, kind: str, status: int, code: str) -> None:
    response = answer_to(app, f"/other/{kind}")

    assert response.status_code == status
    assert response.json == {"error": {"code": code, "id": response.headers["X-Correlation-Id"]}}
    assert response.headers.get("Retry-After") == ("3" if kind == "busy" else None)


def test_failure_of_any_other_route_is_in_chatwaits_own_dialect(app: Flask) -> None:
    response = answer_to(app, "/chat/streaming/cw_unknown")

    assert response.status_code == 404
    assert response.json is not None
    assert response.json["error_code"] == "stream_unknown"
