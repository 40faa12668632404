"""Test the map from what the SDK raises and upstreams answer to our errors, row by row."""

from __future__ import annotations

import email.utils
import json
import time
from typing import Any

import httpx2
import openai
import pytest

from app import errors
from app.dialects.native.answer import error_body
from app.upstream import failures

RAW = "raw words of the upstream at https://internal.example:8443 with sk-secret12345678"
REQUEST = httpx2.Request("POST", "https://internal.example/v1/chat/completions")


def response(status: int, headers: dict[str, str] | None = None) -> httpx2.Response:
    return httpx2.Response(status, headers=headers, request=REQUEST)


def status_error(status: int, body: object = None, headers: dict[str, str] | None = None) -> openai.APIStatusError:
    """Build the exception that the SDK raises for a status."""
    kinds = {
        400: openai.BadRequestError,
        401: openai.AuthenticationError,
        403: openai.PermissionDeniedError,
        404: openai.NotFoundError,
        409: openai.ConflictError,
        422: openai.UnprocessableEntityError,
        429: openai.RateLimitError,
    }
    kind = kinds.get(status, openai.InternalServerError if status >= 500 else openai.APIStatusError)
    return kind(RAW, response=response(status, headers), body=body)


def sdk_classes(root: type[openai.OpenAIError] = openai.OpenAIError) -> list[type[openai.OpenAIError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in sdk_classes(child))]


def build(kind: type[openai.OpenAIError]) -> openai.OpenAIError:
    """Construct any class of the SDK's, without caring for what its constructor wants."""
    error = kind.__new__(kind)
    Exception.__init__(error, RAW)
    if isinstance(error, openai.APIError):
        error.message, error.request, error.body = RAW, REQUEST, {"message": RAW}
        error.code = error.param = error.type = None
    if isinstance(error, openai.APIStatusError):
        status = getattr(kind, "status_code", None)
        error.status_code = status if isinstance(status, int) else 418
        error.response = response(error.status_code)
    return error


@pytest.mark.parametrize("kind", sdk_classes(), ids=lambda kind: kind.__name__)
@pytest.mark.requirement("core FR-008", "tasks T019")
def test_every_exception_class_of_the_sdk_is_mapped_without_its_words(kind: type[openai.OpenAIError]) -> None:
    error = failures.from_sdk(build(kind))

    assert isinstance(error, errors.UpstreamError)
    shown = json.dumps(error_body(error.failure, "c"))
    assert "raw words" not in shown
    assert "internal.example" not in shown
    assert "sk-secret" not in shown


@pytest.mark.parametrize(
    ("kind", "mapped"),
    [
        (openai.APITimeoutError, errors.UpstreamTimeout),
        (openai.APIConnectionError, errors.UpstreamUnavailable),
        (openai.ContentFilterFinishReasonError, errors.ContentFiltered),
        (openai.APIResponseValidationError, errors.UpstreamError),
        (openai.LengthFinishReasonError, errors.UpstreamError),
        (openai.OpenAIError, errors.UpstreamError),
        (openai.APIError, errors.UpstreamError),
    ],
)
def test_exception_class_of_the_sdk_has_the_error_of_the_table(
    kind: type[openai.OpenAIError], mapped: type[errors.UpstreamError]
) -> None:
    assert type(failures.from_sdk(build(kind))) is mapped


def test_exception_class_that_the_sdk_may_grow_is_an_upstream_error() -> None:
    class New(openai.OpenAIError):
        pass

    assert type(failures.from_sdk(New(RAW))) is errors.UpstreamError


TOO_LONG = {"message": "This model's maximum context length is 8192 tokens.", "code": "context_length_exceeded"}
POLICY = {"message": "Rejected", "code": "content_policy_violation"}


@pytest.mark.parametrize(
    ("status", "body", "code", "our_status", "retryable"),
    [
        *((status, None, "upstream_unavailable", 503, True) for status in (500, 502, 503, 504, 529, 599)),
        (429, None, "upstream_rate_limited", 429, True),
        (401, None, "upstream_auth_failed", 502, False),
        (403, None, "upstream_auth_failed", 502, False),
        (400, POLICY, "content_filtered", 502, False),
        (400, {"error": POLICY}, "content_filtered", 502, False),
        (
            400,
            {"message": "x", "code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}},
            "content_filtered",
            502,
            False,
        ),
        (400, TOO_LONG, "context_too_long", 400, False),
        (400, {"error": TOO_LONG}, "context_too_long", 400, False),
        (
            400,
            "the request exceeds the available context size, try increasing it",
            "context_too_long",
            400,
            False,
        ),
        (413, TOO_LONG, "context_too_long", 400, False),
        (422, {"message": "prompt is too long"}, "context_too_long", 400, False),
        (400, {"message": "bad"}, "upstream_error", 502, True),
        *((status, None, "upstream_error", 502, True) for status in (301, 302, 307, 402, 404, 405, 409, 413, 418, 422)),
        (408, None, "upstream_timeout", 504, True),
    ],
)
def test_status_of_the_upstream_has_the_error_of_the_table(
    status: int, body: Any, code: str, our_status: int, retryable: bool
) -> None:
    error = failures.from_sdk(status_error(status, body))

    assert (error.error_code, error.status, error.retryable) == (code, our_status, retryable)
    assert error.origin == "upstream"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 422, 429, 500, 503])
@pytest.mark.parametrize("body", [RAW, {"message": RAW}, {"error": {"message": RAW, "code": RAW}}, [RAW], 5, None])
def test_body_of_an_upstream_error_is_never_passed_on(status: int, body: Any) -> None:
    shown = json.dumps(error_body(failures.from_sdk(status_error(status, body)).failure, "c"))

    for word in ("raw words", "internal.example", "sk-secret"):
        assert word not in shown


def test_body_of_any_size_and_depth_is_read_within_bounds() -> None:
    deep: dict[str, Any] = {"message": "x"}
    for _ in range(100):
        deep = {"error": deep}

    for body in (deep, {"message": "x" * 10_000_000}, {"code": ["x"] * 100_000}, {"innererror": "text"}):
        assert failures.from_sdk(status_error(400, body)).error_code == "upstream_error"


# Errors inside a stream


@pytest.mark.parametrize(
    "report", [{"message": RAW, "code": 429}, {"code": "server_error"}, RAW, ["x"], 5, None, {"message": "\ud83d"}]
)
def test_report_inside_a_stream_is_an_upstream_error_without_its_words(report: object) -> None:
    error = failures.from_report(report)

    assert type(error) is errors.UpstreamError
    assert "raw words" not in json.dumps(error_body(error.failure, "c"))


def test_report_inside_a_stream_that_the_prompt_is_too_long_says_so() -> None:
    assert type(failures.from_report(TOO_LONG)) is errors.PromptRefusedAsTooLong


def test_report_of_a_policy_inside_a_stream_is_content_filtered() -> None:
    assert type(failures.from_report(POLICY)) is errors.ContentFiltered


# Retry-After


def http_date(seconds_from_now: float) -> str:
    return email.utils.formatdate(time.time() + seconds_from_now, usegmt=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        (" 7 ", 7),
        ("1.2", 2),
        ("0.001", 1),
        ("3600", 3600),
        ("007", 7),
        # absurd, negative, absent, garbage
        ("3601", None),
        ("999999999", None),
        ("99999999999999999999", None),
        ("-1", None),
        ("-0.5", None),
        ("", None),
        ("   ", None),
        ("soon", None),
        ("1e3", None),
        ("0x10", None),
        ("\u0667", None),
        ("7 seconds", None),
        ("inf", None),
        ("nan", None),
        ("1,2", None),
        ("Wed, 99 Foo 2026 07:28:00 GMT", None),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
        ("x" * 100_000, None),
    ],
)
def test_retry_after_in_seconds_is_read_or_dropped(value: str, seconds: int | None) -> None:
    read = failures.retry_after_seconds({"retry-after": value})

    assert read == seconds
    assert read is None or type(read) is int


def test_retry_after_as_a_date_is_turned_into_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.5)

    def read(seconds: int) -> int | None:
        date = email.utils.formatdate(1_800_000_000 + seconds, usegmt=True)
        return failures.retry_after_seconds({"retry-after": date})

    assert (read(1), read(120), read(3600)) == (1, 120, 3600)
    assert (read(0), read(-60), read(3602), read(10**8)) == (None, None, None, None)


def test_retry_after_that_is_absent_is_none() -> None:
    assert failures.retry_after_seconds({}) is None


@pytest.mark.parametrize("status", [429, 500, 503, 529, 408])
def test_retry_after_of_the_upstream_is_passed_on(status: int) -> None:
    error = failures.from_sdk(status_error(status, None, {"Retry-After": "7"}))

    assert error_body(error.failure, "c")["retry_after_seconds"] == 7


# Parameters that a server does not know


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (
            {
                "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead.",
                "param": "max_tokens",
                "code": "unsupported_parameter",
            },
            "max_tokens",
        ),
        ({"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}, "max_tokens"),
        ({"message": "Unrecognized request argument supplied: max_completion_tokens"}, "max_completion_tokens"),
        ({"message": "Unrecognized request argument supplied: stream_options"}, "stream_options"),
        ({"error": {"message": "Unknown field: stream_options"}}, "stream_options"),
        ({"message": "stream_options: extra fields not permitted"}, "stream_options"),
        ("Extra inputs are not permitted: stream_options", "stream_options"),
        ({"message": "Unsupported value", "param": "temperature"}, "temperature"),
        ({"message": "Unsupported value: 'messages[0].role' with max_tokens", "param": "messages[0].role"}, None),
        ({"message": "max_tokens is too large: 9999"}, None),
        ({"message": "Unknown model"}, None),
        ({}, None),
        (None, None),
        ("", None),
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_refused_parameter_is_named_when_the_upstream_says_so(status: int, body: Any, name: str | None) -> None:
    assert failures.refused_parameter(status_error(status, body)) == name


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_refused_parameter_of_any_other_status_is_none(status: int) -> None:
    error = status_error(status, {"message": "Unknown parameter", "param": "max_tokens"})

    assert failures.refused_parameter(error) is None
    assert failures.refused_parameter(build(openai.APIConnectionError)) is None
