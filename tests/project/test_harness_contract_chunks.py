"""The judge of OpenAI's chat completions: what is right passes, and each rule broken once is found."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

import pytest

from tests.harness.contract_check import Run
from tests.unit.exchanges import Change, common, hear, of_events

ID = "cwc_Wm4rT8bYx1QnZe6uJk3o9A"
OTHER = "cwc_AAAAAAAAAAAAAAAAAAAAAA"
OF_TEXT = "cw_p3Vd8KxQm1ZsT7yHbN0e2w"
PLACE = f"/v1/chat/completions/chatcmpl-{ID}"
STREAM = f"{PLACE}?stream=true"
ALIVE = ": keepalive\n"


@pytest.fixture
def run() -> Run:
    return Run()


def data(stream_id: str = ID, **changes: Any) -> str:
    chunk = {
        "id": f"chatcmpl-{stream_id}",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [],
    }
    return json.dumps({**chunk, **changes})


def chunk(number: int | None, content: str | None = None, stream_id: str = ID) -> str:
    at = "" if number is None else f"id: {stream_id}.{number}\n"
    return f"data: {content or data(stream_id)}\n{at}\n"


def digest(*contents: str) -> str:
    return hashlib.sha256("".join(f"{content}\n" for content in contents).encode()).hexdigest()


def done(records: int, sha256: str, number: int | None = None, stream_id: str = ID) -> str:
    number = records + 1 if number is None else number
    return f"data: [DONE]\nid: {stream_id}.{number}\n: records={records} sha256={sha256}\n\n"


def error(**changes: Any) -> str:
    fields = {
        "message": "a b c",
        "type": "server_error",
        "param": None,
        "code": "upstream_error",
        "error_code": "upstream_error",
        "detail": "b",
        "action": "c",
        "correlation_id": str(uuid.uuid4()),
        "origin": "upstream",
        "retryable": True,
    }
    return json.dumps({"error": {**fields, **changes}})


TWO = digest(data(), data())
CHUNKS = chunk(1) + chunk(2)
GOOD = ALIVE + CHUNKS + done(2, TWO)


def of_chunks(stream_id: str = ID, **changes: Any) -> Change:
    headers = of_events(X_Stream_Id=stream_id, Location=f"/v1/chat/completions/chatcmpl-{stream_id}?stream=true")
    headers["x-request-id"] = headers["X-Correlation-Id"]
    return {**headers, **{name.replace("_", "-"): value for name, value in changes.items()}}


def hear_chunks(run: Run, body: str, *, asked: str = "", target: str = STREAM, **headers: Any) -> list[str]:
    return hear(run, "GET", target, 200, of_chunks(**headers), body.encode("latin-1"), asked=asked)


def test_stream_that_keeps_the_contract_passes_and_is_counted(run: Run) -> None:
    assert hear_chunks(run, GOOD) == []
    assert hear_chunks(run, ALIVE + chunk(2) + done(2, TWO), asked=f"Last-Event-ID: {ID}.1\r\n") == []
    assert hear_chunks(run, ALIVE + chunk(2) + done(2, TWO), target=f"{STREAM}&starting_after=1") == []
    assert run.seen == {("GET /chat/completions/{id}", "200"): 3}
    assert run.events == {"keepalive": 3, "chunk": 4, "[DONE]": 3}

    other = f"data: {error()}\n\n"
    assert hear_chunks(Run(), ALIVE + CHUNKS + other + done(2, TWO)) == []
    assert hear_chunks(Run(), ALIVE + ": unresumable\n" + CHUNKS + ": resumable\n" + ALIVE + done(2, TWO)) == []


def test_stream_of_text_has_a_last_chunk_without_a_number(run: Run) -> None:
    finish = data(OF_TEXT, choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    proof = digest(data(OF_TEXT))
    body = ALIVE + chunk(1, stream_id=OF_TEXT) + chunk(None, finish) + done(1, proof, stream_id=OF_TEXT)
    target = f"/v1/chat/completions/{OF_TEXT}?stream=true"

    assert hear_chunks(run, body, target=target, stream_id=OF_TEXT) == []
    assert "something other than [DONE] follows" in hear_chunks(
        run, body.replace("data: [DONE]", f"data: {data(OF_TEXT)}\nid: {OF_TEXT}.2\n\ndata: [DONE]"),
        target=target, stream_id=OF_TEXT,
    )[0]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "found"),
    [
        pytest.param("", "ends cleanly without [DONE]", id="nothing"),
        pytest.param(ALIVE + CHUNKS, "ends cleanly without [DONE]", id="no end"),
        pytest.param(GOOD[:-1], "ends in the middle of a frame", id="half a frame"),
        pytest.param(CHUNKS + done(2, TWO), "begins with a frame", id="no heartbeat"),
        pytest.param(": unresumable\n" + GOOD, "begins with b': unresumable'", id="unresumable first"),
        pytest.param(ALIVE + "\n" + CHUNKS, "a blank line without a frame", id="a blank line after a heartbeat"),
        pytest.param(ALIVE + ": ping\n", "the contract has no comment", id="another comment"),
        pytest.param(ALIVE + ": resumable\n", "comes out of turn", id="resumable first"),
        pytest.param(ALIVE + ": unresumable\n: unresumable\n", "comes out of turn", id="unresumable twice"),
        pytest.param(ALIVE + "event: chunk\n" + chunk(1), "not a frame", id="an event"),
        pytest.param("retry: 1000\n" + GOOD, "begins with a frame", id="retry"),
        pytest.param(ALIVE + chunk(2), "a chunk has the number 2 behind 0", id="a hole"),
        pytest.param(ALIVE + chunk(1) + chunk(1), "a chunk has the number 1 behind 1", id="a repetition"),
        pytest.param(ALIVE + chunk(1, stream_id=OTHER), "the id of a chunk is of another stream", id="a foreign id"),
        pytest.param(
            ALIVE + chunk(1, data(OTHER)), "the id of a chunk is not that of the stream", id="a foreign chunk"
        ),
        pytest.param(ALIVE + chunk(1, '{"choices":[]}'), "a chunk is not of its schema", id="a chunk without an id"),
        pytest.param(ALIVE + chunk(1, "{"), "not a frame", id="no object"),
        pytest.param(ALIVE + chunk(1, '{"id"}'), "the data is not JSON", id="no JSON"),
        pytest.param(ALIVE + chunk(1, data(error=None)), "a record has a member `error`", id="an error that is null"),
        pytest.param(ALIVE + chunk(1) + chunk(2, data(created=2)), "got another time of creation", id="another time"),
        pytest.param(ALIVE + chunk(None), "a chunk has no id", id="a chunk without a number"),
        pytest.param(ALIVE + chunk(1, data(model="\xe9").replace("\\u00e9", "\xe9")), "not a frame", id="not ASCII"),
        pytest.param(ALIVE + chunk(None, error(code=5)), "an error is not of its schema", id="a wrong error"),
        pytest.param(
            ALIVE + chunk(None, error()) + chunk(1), "something other than [DONE] follows", id="more after it"
        ),
        pytest.param(ALIVE + CHUNKS + done(2, "0" * 64), "sha256 is not that of the records", id="sha256"),
        pytest.param(ALIVE + CHUNKS + done(1, TWO, 3), "[DONE] says 1 records, and its number is 3", id="records"),
        pytest.param(ALIVE + CHUNKS + done(1, TWO, 2), "[DONE] has the number 2 behind 2", id="an end too early"),
        pytest.param(GOOD + ALIVE, "something follows [DONE]", id="a heartbeat after the end"),
        pytest.param(GOOD + chunk(3), "something follows [DONE]", id="a chunk after the end"),
        pytest.param(GOOD.replace("\n", "\r\n"), "the contract has no comment", id="CRLF"),
        pytest.param(ALIVE + CHUNKS + done(2, TWO).replace(": records", ": n"), "not a frame", id="no proof"),
    ],
)
def test_wrong_stream_is_found(run: Run, body: str, found: str) -> None:
    problems = hear_chunks(run, body)

    assert len(problems) == 1 and found in problems[0]


def test_stream_may_not_end_early_even_where_its_process_is_replaced(run: Run) -> None:
    run.handing_over = True
    assert "ends cleanly without [DONE]" in hear_chunks(run, ALIVE + CHUNKS)[0]


def test_readers_that_get_different_ends_are_found_unless_they_may_not_be_stored(run: Run) -> None:
    assert hear_chunks(run, GOOD) == []
    other = ALIVE + chunk(1) + done(1, digest(data()))

    assert "another reader of this stream got another end" in hear_chunks(run, other)[0]
    assert hear_chunks(run, other.replace(ALIVE, ALIVE + ": unresumable\n")) == []


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"Location": PLACE}, "Location does not lead to the stream"),
        ({"Location": f"/v1/chat/streaming/{ID}"}, "the header Location is not of its schema"),
        ({"x_request_id": str(uuid.uuid4())}, "x-request-id is not X-Correlation-Id"),
        ({"x_request_id": None}, "the header x-request-id is missing"),
        ({"Cache_Control": "no-store"}, "Cache-Control is not"),
        ({"stream_id": OTHER}, "X-Stream-Id is not the stream of the path"),
    ],
)
def test_wrong_header_is_found(run: Run, headers: Change, found: str) -> None:
    assert found in hear_chunks(run, GOOD, **headers)[0]


# JSON


def hear_json(
    run: Run, status: int, body: Change, target: str = PLACE, method: str = "GET", **headers: Any
) -> list[str]:
    told = common(X_Stream_Id=ID, Location=PLACE, **headers)
    told.setdefault("x-request-id", told["X-Correlation-Id"])
    if "error" in body:
        body["error"]["correlation_id"] = told["X-Correlation-Id"]
    return hear(run, method, target, status, told, json.dumps(body).encode())


def failed(**changes: Any) -> Change:
    body: Change = json.loads(error(**changes))
    return body


def test_answer_of_another_completion_is_found(run: Run) -> None:
    mine: Change = {"id": f"chatcmpl-{ID}", "choices": []}
    theirs = {**mine, "id": f"chatcmpl-{OTHER}"}

    assert hear_json(run, 200, mine) == []
    assert hear_json(run, 502, {**failed(), "partial": mine}) == []
    assert "id in the body is that of another" in hear_json(run, 200, theirs)[0]
    assert "id in the body is that of another" in hear_json(run, 502, {**failed(), "partial": theirs})[0]


def test_status_of_a_refusal_may_be_the_models_and_no_other(run: Run) -> None:
    refused = {"error_code": "upstream_refused", "retryable": False}
    told = {"x_should_retry": "false"}

    assert hear_json(run, 404, failed(**refused), **told) == []
    assert hear_json(run, 400, failed(**refused), **told) == []
    assert "upstream_refused goes with 502" in hear_json(run, 409, failed(**refused), **told)[0]
    assert "upstream_refused goes with 502" in hear_json(run, 404, failed(**refused, origin="service"), **told)[0]
    assert "upstream_error goes with 502" in hear_json(run, 404, failed())[0]


def test_failure_says_whether_to_try_again(run: Run) -> None:
    cancelled = {"error_code": "cancelled", "code": "cancelled", "origin": "client", "retryable": False}

    assert hear_json(run, 409, failed(**cancelled), x_should_retry="false") == []
    assert "x-should-retry is None" in hear_json(run, 409, failed(**cancelled))[0]
    assert "x-should-retry is false" in hear_json(run, 502, failed(), x_should_retry="false")[0]
    assert "the header x-should-retry is not of its schema" in hear_json(run, 502, failed(), x_should_retry="true")[0]


@pytest.mark.parametrize("target", ["/v1/embeddings", "/responses", "/v1/models/a/b", "/v1/chat/completions/a/b"])
def test_address_of_openai_that_is_not_served_says_so_in_openais_shape(run: Run, target: str) -> None:
    headers = common()
    fields = {"error_code": "not_found", "message": "a", "detail": "b", "action": "c", "origin": "client"}
    fields |= {"retryable": False, "correlation_id": headers["X-Correlation-Id"]}
    assert "is not of its schema" in hear(run, "POST", target, 404, headers, json.dumps(fields).encode())[0]

    headers = {**common(), "x-should-retry": "false"}
    fields |= {"type": "invalid_request_error", "param": None, "code": "not_found"}
    fields["correlation_id"] = headers["X-Correlation-Id"]
    headers["x-request-id"] = headers["X-Correlation-Id"]
    assert hear(run, "GET", target, 404, headers, json.dumps({"error": fields}).encode()) == []
