"""Test the tree of errors: each complete, in the contract's tables, and silent about what it must not tell."""

from __future__ import annotations

import json
import re

import pytest

from app import errors
from app.dialects.native.answer import error_body

ALL = errors.walk()

# The codes of contracts/openapi.yaml, and what retrying may help with: code → (status, origin, retryable).
CLIENT = {
    "invalid_json": (400, False),
    "invalid_request": (400, False),
    "message_empty": (400, False),
    "message_too_long": (400, False),
    "model_not_allowed": (400, False),
    "host_not_allowed": (400, False),
    "origin_not_allowed": (403, False),
    "cursor_malformed": (400, False),
    "cursor_foreign": (400, False),
    "cursor_ahead": (409, False),
    "cancelled": (409, False),
    "stream_unknown": (404, False),
    "stream_expired": (410, False),
    "idempotency_key_reused": (422, False),
    "not_found": (404, False),
    "method_not_allowed": (405, False),
    "request_timeout": (408, True),
    "body_too_large": (413, False),
    "unsupported_media_type": (415, False),
}
SERVICE = {
    "overloaded": (503, True),
    "shutting_down": (503, True),
    "store_unavailable": (503, True),
    "producer_lost": (503, True),
    "internal_error": (500, True),
}
UPSTREAM = {
    "upstream_error": (502, True),
    "upstream_refused": (502, False),
    "upstream_unavailable": (503, True),
    "upstream_rate_limited": (429, True),
    "upstream_auth_failed": (502, False),
    "content_filtered": (502, False),
    "upstream_timeout": (504, True),
}
TABLE = {
    **{code: (status, "client", retryable) for code, (status, retryable) in CLIENT.items()},
    **{code: (status, "service", retryable) for code, (status, retryable) in SERVICE.items()},
    **{code: (status, "upstream", retryable) for code, (status, retryable) in UPSTREAM.items()},
}

KEYS = ["error_code", "message", "detail", "action", "correlation_id", "origin", "retryable"]


def test_walk_finds_every_class_that_is_defined() -> None:
    def below(kind: type[errors.ChatError]) -> set[type[errors.ChatError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    assert set(ALL) == below(errors.ChatError) - {errors.ChatError, errors.ClientError, errors.ServiceError}
    assert len(ALL) == len(set(ALL))


def test_errors_have_the_codes_of_the_contract_and_no_others() -> None:
    assert {kind.error_code for kind in ALL} - {"context_too_long"} == set(TABLE)


@pytest.mark.parametrize("code", TABLE)
@pytest.mark.requirement("core FR-010", "chatwait errors 2")
def test_error_has_status_origin_and_retryable_of_the_contract(code: str) -> None:
    kinds = [kind for kind in ALL if kind.error_code == code]

    assert [(kind.status, kind.origin, kind.retryable) for kind in kinds] == [TABLE[code]]
    assert errors.status_of(code) == TABLE[code][0]


def test_context_too_long_is_a_400_whoever_says_it() -> None:
    kinds = {kind.origin: kind for kind in ALL if kind.error_code == "context_too_long"}

    assert set(kinds) == {"client", "upstream"}
    assert {kind.status for kind in kinds.values()} == {400}
    assert not any(kind.retryable for kind in kinds.values())


def test_errors_of_one_code_have_one_status() -> None:
    for kind in ALL:
        assert errors.status_of(kind.error_code) == kind.status


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
@pytest.mark.requirement("core constitution V", "core SC-005", "core UX-002")
def test_error_says_what_happened_why_and_what_to_do(kind: type[errors.ChatError]) -> None:
    body = error_body(kind().failure, "c-1")

    assert list(body) == KEYS
    for part in ("message", "detail", "action"):
        text = body[part]
        assert re.fullmatch(r"[A-Z].{10,200}[.]", text), (part, text)
    assert len({body["message"], body["detail"], body["action"]}) == 3
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", body["error_code"])
    assert body["correlation_id"] == "c-1"


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
@pytest.mark.requirement("chatwait errors 3")
def test_error_names_no_host_key_id_or_place_in_the_program(kind: type[errors.ChatError]) -> None:
    text = json.dumps(error_body(kind().failure, ""))

    for secret in (
        r"https?://",
        r"\bsk-",
        r"\bcw_",
        r"\d+\.\d+\.\d+\.\d+",
        r"\.py\b",
        "localhost",
        "Traceback",
        "openai\\.",
    ):
        assert not re.search(secret, text), secret


def test_error_given_a_detail_tells_it_instead_of_its_own() -> None:
    error = errors.MessageTooLong("It has 9120 characters; this server takes at most 8000.")

    assert (
        error_body(error.failure, "")["detail"]
        == str(error)
        == "It has 9120 characters; this server takes at most 8000."
    )
    assert error_body(errors.MessageTooLong().failure, "")["detail"] == errors.MessageTooLong.why


def test_error_with_retry_after_and_fields_puts_them_last() -> None:
    error = errors.InvalidRequest(retry_after_seconds=0, fields={"message": ["Missing."]})

    body = error_body(error.failure, "")

    assert list(body) == [*KEYS, "retry_after_seconds", "fields"]
    assert (body["retry_after_seconds"], body["fields"]) == (0, {"message": ["Missing."]})


def test_error_codes_drawn_in_the_module_are_those_defined() -> None:
    drawn = set(re.findall(r"[├└]── \w+ +(\d{3}) (\w+)", errors.__doc__ or ""))

    assert drawn == {(str(kind.status), kind.error_code) for kind in ALL if kind is not errors.UpstreamError}
