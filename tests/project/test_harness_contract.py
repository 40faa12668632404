"""The judge of all answers: what is right passes, and each rule broken once is found."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.harness.contract import Contract
from tests.harness.contract_check import ASSET_WHY, REFUSED_WHY, Asked, Check, Run
from tests.harness.http1 import Headers
from tests.harness.tap import Tap
from tests.unit.exchanges import ID, OTHER, TEXT, Change, common, hear, of_stream, pieces, totals


@pytest.fixture
def run() -> Run:
    return Run()


def hear_answer(run: Run, headers: Change, **changes: Any) -> list[str]:
    """Let a tap hear the answer of wait mode."""
    created = "2026-11-21T09:00:00.000Z"
    body = {"stream_id": ID, "correlation_id": headers["X-Correlation-Id"], "content": TEXT, "created": created}
    body |= totals() | changes
    return hear(run, "POST", "/v1/chat/wait", 200, headers, json.dumps(body).encode())


def hear_error(
    run: Run, method: str, target: str, status: int, code: str, headers: Change, **changes: Any
) -> list[str]:
    body = {"error_code": code, "message": "a", "detail": "b", "action": "c", "origin": "client", "retryable": False}
    body |= {"correlation_id": headers["X-Correlation-Id"]} | changes
    return hear(run, method, target, status, headers, json.dumps(body).encode())


# Answers


def test_answer_that_keeps_the_contract_passes_and_is_counted(run: Run) -> None:
    assert hear_answer(run, of_stream()) == []
    assert run.seen == {("POST /chat/wait", "200"): 1}


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"X_Correlation_Id": "1"}, "X-Correlation-Id is not one UUID4"),
        ({"X_Correlation_Id": "4f1c2a90-7d0b-1b7e-9c55-0e6a3d1f8b21"}, "X-Correlation-Id is not one UUID4"),
        ({"Cache_Control": None}, "Cache-Control is not 'no-store'"),
        ({"Cache_Control": "no-cache"}, "Cache-Control is not 'no-store'"),
        ({"Content_Type": "text/plain"}, "the content type 'text/plain' is not one of"),
        ({"Content_Type": "application/json; charset=utf-8"}, "is not one of"),
        ({"Content_Encoding": "gzip"}, "Content-Encoding is set"),
        ({"X_Stream_Id": None}, "the header X-Stream-Id is missing"),
        ({"X_Stream_Id": "a.b"}, "the header X-Stream-Id is not of its schema"),
        ({"X_Stream_Id": OTHER, "Location": f"/v1/chat/streaming/{OTHER}"}, "stream_id in the body is that of another"),
        ({"Location": None}, "the header Location is missing"),
        ({"Location": "nowhere"}, "Location does not lead to the stream"),
        ({"Location": f"/v1/chat/wait/{ID}"}, "Location does not lead to the stream"),
    ],
)
def test_wrong_header_is_found(run: Run, headers: Change, found: str) -> None:
    problems = hear_answer(run, of_stream(**headers))

    assert len(problems) == 1
    assert found in problems[0]
    assert "POST /v1/chat/wait was answered 200" in problems[0]
    assert not run.seen


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"surprise": 1}, "not of its schema"),
        ({"usage": {**totals()["usage"], "surprise": 1}}, "not of its schema"),
        ({"tokens": "2"}, "not of its schema"),
        ({"created": "yesterday"}, "not of its schema"),
        ({"reason": "client"}, "not of its schema"),
        ({"status": "cancelled"}, "not of its schema"),
        ({"correlation_id": str(uuid.uuid4())}, "correlation_id in the body is not"),
        ({"characters": 4}, "characters is 4, and there are 5"),
        ({"sha256": "0" * 64}, "sha256 is not that of the content"),
    ],
)
def test_wrong_body_is_found(run: Run, changes: Change, found: str) -> None:
    problems = hear_answer(run, of_stream(), **changes)

    assert len(problems) == 1 and found in problems[0]


@pytest.mark.parametrize(
    ("status", "body", "found"),
    [
        (200, b"{", "the body is not JSON"),
        (200, b"", "the body is not JSON"),
        (201, b"{}", "the contract does not list this status"),
        (418, b"{}", "not of its schema"),
    ],
)
def test_wrong_status_or_no_json_is_found(run: Run, status: int, body: bytes, found: str) -> None:
    problems = hear(run, "POST", "/chat/wait", status, of_stream(Content_Length=len(body)), body)

    assert len(problems) == 1 and found in problems[0]


def test_same_correlation_id_twice_is_found(run: Run) -> None:
    headers = of_stream()
    assert hear_answer(run, headers) == []

    assert "another answer has the same X-Correlation-Id" in hear_answer(run, headers)[0]


def test_missing_vary_of_negotiated_answer_is_found(run: Run) -> None:
    body = b"{}"
    assert "Vary" in hear(run, "POST", "/chat", 200, of_stream(), body)[0]


# Errors


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("POST", "/chat/wait", 400, "message_empty"),
        ("GET", f"/chat/wait/{ID}", 404, "stream_unknown"),
        ("GET", "/health", 400, "host_not_allowed"),
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/docs", 404, "not_found"),
        ("POST", "/nothing", 403, "origin_not_allowed"),
    ],
)
def test_error_that_keeps_the_contract_passes(run: Run, method: str, target: str, status: int, code: str) -> None:
    assert hear_error(run, method, target, status, code, common()) == []


@pytest.mark.parametrize(
    ("method", "target", "status", "code", "changes", "found"),
    [
        ("POST", "/chat/wait", 400, "stream_unknown", {}, "stream_unknown goes with 404"),
        ("POST", "/chat/wait", 404, "not_found", {}, "not_found is none of the codes here"),
        ("GET", "/models", 413, "body_too_large", {}, "body_too_large is none of the codes here"),
        ("GET", "/nothing", 404, "stream_unknown", {}, "stream_unknown is none of the codes here"),
        ("POST", "/chat/wait", 400, "no_such_code", {}, "not of its schema"),
        ("POST", "/chat/wait", 400, "message_empty", {"action": ""}, "not of its schema"),
        ("POST", "/chat/wait", 400, "message_empty", {"trace": "x"}, "not of its schema"),
        ("POST", "/chat/wait", 503, "overloaded", {"retry_after_seconds": 2}, "Retry-After is None"),
        ("POST", "/chat/wait", 502, "upstream_error", {"partial": {"content": "", "tokens": 0}}, "partial without"),
        ("GET", "/nothing", 404, "not_found", {"message": 5}, "not of its schema"),
    ],
)
def test_wrong_error_is_found(
    run: Run, method: str, target: str, status: int, code: str, changes: Change, found: str
) -> None:
    problems = hear_error(run, method, target, status, code, common(), **changes)

    assert len(problems) == 1 and found in problems[0]


def test_retry_after_that_the_body_does_not_say_is_found(run: Run) -> None:
    headers = common(Retry_After="2")

    assert hear_error(run, "POST", "/chat/wait", 503, "overloaded", headers, retry_after_seconds=2) == []
    assert "Retry-After is 2" in hear_error(run, "POST", "/chat/wait", 503, "overloaded", common(Retry_After="2"))[0]
    assert (
        "Retry-After is not of" in hear_error(run, "POST", "/chat/wait", 503, "overloaded", common(Retry_After="x"))[0]
    )


def test_allow_names_exactly_the_methods_of_the_path(run: Run) -> None:
    allow = "GET, HEAD, OPTIONS"

    assert hear_error(run, "PUT", "/health", 405, "method_not_allowed", common(Allow=allow)) == []
    assert "Allow is not" in hear_error(run, "PUT", "/health", 405, "method_not_allowed", common(Allow="GET"))[0]
    assert hear(run, "OPTIONS", "/health", 204, common(Content_Type=None, Allow=allow)) == []
    assert "Allow is not" in hear(run, "OPTIONS", "/health", 204, common(Content_Type=None))[0]
    assert "content type" in hear(run, "PUT", "/health", 200, common(Content_Type="text/html"), b"x")[0]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"Cache_Control": None}, "Cache-Control is not"),
        ({"Cache_Control": "no-cache"}, "Cache-Control is not"),
        ({"Content_Type": "text/plain"}, "an answer without content has a Content-Type"),
    ],
)
def test_wrong_answer_to_options_is_found(run: Run, changes: Change, found: str) -> None:
    headers = common(**({"Content_Type": None, "Allow": "GET, HEAD, OPTIONS"} | changes))

    assert found in hear(run, "OPTIONS", "/health", 204, headers)[0]


@pytest.mark.parametrize(("method", "target", "status"), [("GET", "/nothing", 404), ("PUT", "/health", 405)])
def test_wrong_caching_of_an_error_that_no_operation_has_is_found(
    run: Run, method: str, target: str, status: int
) -> None:
    code = {404: "not_found", 405: "method_not_allowed"}[status]
    headers = common(Allow="GET, HEAD, OPTIONS", Cache_Control="no-cache")

    assert "Cache-Control is not 'no-store'" in hear_error(run, method, target, status, code, headers)[0]


def test_location_without_a_stream_is_found(run: Run) -> None:
    assert hear_error(run, "POST", "/chat/wait", 400, "message_empty", common()) == []

    headers = common(Location=f"/v1/chat/streaming/{ID}")
    assert "Location without" in hear_error(run, "POST", "/chat/wait", 400, "message_empty", headers)[0]


def test_body_where_there_is_none_and_none_where_there_is_one_are_found(run: Run) -> None:
    """On a connection no body can follow what has none; an answer in this process could bring one."""
    check = Check(Contract.read(), run, Asked("HEAD", "/health", Headers([])), 200, Headers([*common().items()]))
    check.feed(b"{}")
    check.end(whole=True)
    page = common(Content_Type="text/html; charset=utf-8", Cache_Control="no-cache", X_ChatWait="page")

    assert "a body where there is none" in run.take_problems()[0]
    assert hear(run, "GET", "/", 200, page, b"x") == []
    assert "no body" in hear(run, "GET", "/", 200, {**page, "X-Correlation-Id": str(uuid.uuid4())})[0]


def test_head_and_204_have_no_body(run: Run) -> None:
    tap = Tap(run)
    raw = "".join(f"{name}: {value}\r\n" for name, value in common(Content_Length=5).items())
    tap.sent(b"HEAD /health HTTP/1.1\r\n\r\n")

    tap.received(f"HTTP/1.1 200 OK\r\n{raw}\r\n".encode())
    assert run.seen == {("HEAD /health", "200"): 1}
    tap.received(b"abcde")
    tap.received(b"\r\n\r\n")

    assert "not an HTTP answer: b'abcde'" in run.take_problems()[0]


def test_preference_that_was_applied_is_named(run: Run) -> None:
    body = json.dumps({"stream_id": ID, "status": "running", "tokens": 0}).encode()
    where = f"/v1/chat/wait/{ID}"

    assert hear(run, "POST", "/chat/wait", 202, of_stream(Location=where, Preference_Applied="wait=1"), body) == []
    assert "Preference-Applied is missing" in hear(run, "POST", "/chat/wait", 202, of_stream(Location=where), body)[0]
    assert "Location does not lead" in hear(run, "POST", "/chat/wait", 202, of_stream(Preference_Applied="a"), body)[0]


def test_refusal_of_gunicorns_own_is_exempt_and_nothing_else_is(run: Run) -> None:
    page = b"<html>\n  <head>\n    <title>Bad Request</title>\n  </head>\n  <body>\n  </body>\n</html>\n"
    own = {"Connection": "close", "Content-Type": "text/html", "Content-Length": len(page)}

    assert hear(run, "GET", "/a b", 400, own, page) == []
    assert run.exempt == {REFUSED_WHY: 1} and not run.seen
    assert "X-Correlation-Id" in hear(run, "GET", "/health", 500, own, page)[0]
    assert "gunicorn's own page" in hear(run, "GET", "/health", 400, own, page.replace(b"head", b"haed"))[0]


ASSET = "/assets/0123456789abcdef/app.js"


def asset(**changes: Any) -> Change:
    return common(
        **{
            "Content_Type": "text/javascript; charset=utf-8",
            "Cache_Control": "public, max-age=31536000, immutable",
            "Vary": "Accept-Encoding",
            **changes,
        }
    )


def test_file_that_a_page_loads_is_exempt_below_its_address_only(run: Run) -> None:
    assert hear(run, "GET", ASSET, 200, asset(), b"x") == []
    assert hear(run, "GET", ASSET, 200, asset(Content_Encoding="gzip", Vary="Accept-Encoding, Origin"), b"x") == []
    assert hear(run, "HEAD", ASSET, 200, asset(Content_Length=5)) == []
    assert run.exempt == {ASSET_WHY: 3} and not run.seen
    for target in ("/app.js", "/assets/app.js", "/assets/0123/app.js", f"/v1{ASSET}", f"{ASSET}/x", f"{ASSET[:-3]}.py"):
        assert "the content type" in hear(run, "GET", target, 200, asset(), b"x")[0], target


@pytest.mark.parametrize(
    ("method", "changes", "found"),
    [
        ("GET", {"X_Correlation_Id": None}, "X-Correlation-Id is not one UUID4"),
        ("GET", {"Content_Type": "text/css; charset=utf-8"}, "'text/css; charset=utf-8' is not one of"),
        ("GET", {"Content_Encoding": "br"}, "'br' is not one of"),
        ("GET", {"Vary": None}, "'' is not one of ('Accept-Encoding'"),
        ("GET", {"Cache_Control": "no-store"}, "Cache-Control is not 'public"),
        ("POST", {}, "'POST' is not one of"),
    ],
)
def test_wrong_head_of_a_file_that_a_page_loads_is_found(run: Run, method: str, changes: Change, found: str) -> None:
    problems = hear(run, method, ASSET, 200, asset(**changes), b"x")

    assert len(problems) == 1 and found in problems[0]


def test_refusal_below_the_address_of_files_is_judged_as_any_other(run: Run) -> None:
    allow = "GET, HEAD, OPTIONS"
    assert hear_error(run, "GET", ASSET, 404, "not_found", common()) == []
    assert hear_error(run, "POST", ASSET, 405, "method_not_allowed", common(Allow=allow)) == []
    assert hear(run, "OPTIONS", ASSET, 204, common(Content_Type=None, Allow=allow)) == []
    assert "Allow is not" in hear_error(run, "POST", ASSET, 405, "method_not_allowed", common(Allow="GET"))[0]
    kept = common(Cache_Control="public, max-age=31536000, immutable")
    assert "Cache-Control is not 'no-store'" in hear_error(run, "GET", ASSET, 404, "not_found", kept)[0]


# What is heard


def test_requests_of_one_connection_are_told_apart(run: Run) -> None:
    tap = Tap(run)
    body = json.dumps({"status": "healthy", "timestamp": "2026-11-21T09:00:00.000Z"}).encode()
    chunked = b"POST /nothing HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\n\r\n\r\r\n0\r\nA: b\r\n\r\n"
    sized = b"PUT /health HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nGET "
    for piece in pieces(sized + chunked + b"GET /v1/health HTTP/1.1\r\n\r\n", 5):
        tap.sent(piece)
    answers = b"HTTP/1.1 100 Continue\r\n\r\n"
    for status, code, allow in ((405, "method_not_allowed", "GET, HEAD, OPTIONS"), (404, "not_found", None)):
        headers = common(Allow=allow)
        error = {"error_code": code, "message": "a", "detail": "b", "action": "c", "origin": "client"}
        error |= {"retryable": False, "correlation_id": headers["X-Correlation-Id"]}
        answers += answer(status, headers, json.dumps(error).encode())
    for piece in pieces(answers + answer(200, common(), body), 11):
        tap.received(piece)

    assert run.take_problems() == []
    assert run.seen == {
        ("PUT (no operation)", "405"): 1,
        ("POST (no operation)", "404"): 1,
        ("GET /health", "200"): 1,
    }


@pytest.mark.parametrize("body", [b'{"status": "healthy", "timestamp": "2026-11-21T09:00:00.000Z"}', b"{}"])
@pytest.mark.parametrize("client_closes", [True, False])
def test_body_that_ends_with_its_connection_is_judged(run: Run, body: bytes, client_closes: bool) -> None:
    tap = Tap(run)
    head = "".join(f"{name}: {value}\r\n" for name, value in common().items())
    tap.sent(b"GET /health HTTP/1.1\r\n\r\n")
    for piece in pieces(f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + body, 7):
        tap.received(piece)
    assert run.take_problems() == []
    tap.closed() if client_closes else tap.received(b"")

    problems = run.take_problems()
    assert (problems == []) == (body != b"{}")
    assert run.seen == ({("GET /health", "200"): 1} if body != b"{}" else {})


def answer(status: int, headers: Change, body: bytes) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value is not None)
    return f"HTTP/1.1 {status} X\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def test_contract_names_what_it_promises() -> None:
    promises = Contract.read().promises()

    assert ("POST /chat/wait", "504") in promises
    assert ("GET /", "200") in promises
    assert not [status for _, status in promises if status == "default"]
