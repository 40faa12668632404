"""Test errors in OpenAI's shape, and which of them clients should meet by asking again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app import errors
from app.dialects.completions.errors import cancelled_failure, error_body, failure_of, should_retry, status_of
from app.dialects.native.answer import failure_of as native_failure_of
from app.errors import Failure, Reported
from tests.unit.completions import Log, end_of

LOG = Log("text", ["a"])
OURS = ["error_code", "detail", "action", "correlation_id", "origin", "retryable"]


def error(failure: Failure) -> dict[str, Any]:
    body = error_body(failure, "c-1")
    assert list(body) == ["error"]
    found: dict[str, Any] = body["error"]
    return found


@pytest.mark.parametrize("kind", errors.walk(), ids=lambda kind: kind.__name__)
def test_error_has_openais_members_and_then_our_own(kind: type[errors.ChatError]) -> None:
    failure = kind().failure
    found = error(failure)

    assert list(found) == ["message", "type", "param", "code", *OURS]
    assert found["message"] == f"{kind.message} {kind.why} {kind.action}"
    assert (found["code"], found["param"]) == (kind.error_code, None)
    assert [found[name] for name in OURS] == [
        kind.error_code,
        kind.why,
        kind.action,
        "c-1",
        kind.origin,
        kind.retryable,
    ]
    assert (status_of(failure), should_retry(failure)) == (kind.status, kind.retryable)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (errors.InvalidRequest, "invalid_request_error"),
        (errors.NotFound, "invalid_request_error"),
        (errors.Cancelled, "invalid_request_error"),
        (errors.PromptRefusedAsTooLong, "invalid_request_error"),
        (errors.UpstreamRateLimited, "rate_limit_error"),
        (errors.Overloaded, "rate_limit_error"),
        (errors.ShuttingDown, "server_error"),
        (errors.UpstreamAuthFailed, "server_error"),
        (errors.InternalError, "server_error"),
    ],
)
def test_type_is_one_of_three(kind: type[errors.ChatError], expected: str) -> None:
    assert error(kind().failure)["type"] == expected


def test_error_names_the_one_parameter_that_is_wrong_and_puts_what_not_all_have_last() -> None:
    failure = errors.InvalidRequest(fields={"messages.0": ["No."]}, retry_after_seconds=3).failure

    assert error(failure)["param"] == "messages.0"
    assert list(error(failure))[-2:] == ["retry_after_seconds", "fields"]
    assert error(failure)["fields"] == {"messages.0": ["No."]}
    assert error(replace(failure, fields={"a": ["No."], "b": ["No."]}))["param"] is None
    assert error(replace(failure, fields={"_schema": ["No."]}))["param"] is None


def test_error_that_the_upstream_reported_has_its_status_and_its_words() -> None:
    reported = Reported(400, "Too long.", "invalid_request_error", "messages", "context_length_exceeded")
    failure = replace(errors.UpstreamError().failure, reported=reported)

    found = error(failure)

    assert [found[name] for name in ("message", "type", "param", "code")] == [
        "Too long.",
        "invalid_request_error",
        "messages",
        "context_length_exceeded",
    ]
    assert (found["error_code"], found["detail"]) == ("upstream_error", errors.UpstreamError.why)
    assert status_of(failure) == 400
    assert (should_retry(failure), found["retryable"]) == (False, False)


@pytest.mark.parametrize(
    ("status", "kind", "retried"),
    [
        (404, "invalid_request_error", False),
        (413, "invalid_request_error", False),
        (422, "invalid_request_error", False),
        (429, "rate_limit_error", True),
        (503, "server_error", True),
    ],
)
def test_error_that_the_upstream_reported_without_a_type_gets_one(status: int, kind: str, retried: bool) -> None:
    failure = replace(errors.UpstreamError().failure, reported=Reported(status, "No."))

    found = error(failure)
    assert (found["type"], found["param"], found["code"]) == (kind, None, None)
    assert should_retry(failure) is retried
    assert should_retry(replace(failure, retryable=False)) is False


def test_end_that_is_complete_is_no_failure_and_one_that_failed_is_its_error() -> None:
    end = end_of(LOG, "failed")

    assert failure_of(end_of(LOG)) is None
    assert failure_of(end) is end.error is not None


@pytest.mark.parametrize("reason", ["client", "abandoned", "another", None])
def test_end_that_was_cancelled_is_a_409_that_nobody_should_try_again(reason: str | None) -> None:
    failure = cancelled_failure(end_of(LOG, "cancelled", reason=reason))

    assert failure == failure_of(end_of(LOG, "cancelled", reason=reason))
    assert (failure.error_code, status_of(failure), should_retry(failure)) == ("cancelled", 409, False)


def test_end_that_was_cancelled_says_why() -> None:
    details = {
        cancelled_failure(end_of(LOG, "cancelled", reason=reason)).detail for reason in ("client", "abandoned", "x")
    }

    assert len(details) == 3


def test_end_that_a_stop_of_the_service_cancelled_is_the_failure_that_it_is_natively() -> None:
    end = end_of(LOG, "cancelled", reason="shutdown")

    assert failure_of(end) == native_failure_of(end)
    assert should_retry(cancelled_failure(end))


def test_message_names_the_wrong_fields_because_sdks_show_nothing_else() -> None:
    failure = errors.InvalidRequest(fields={"n": ["Must be a number."], "_schema": ["Odd."]}).failure
    message = error_body(failure, "c-1")["error"]["message"]
    assert message.endswith(" n: Must be a number.")
    assert "Odd" not in message
