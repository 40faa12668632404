"""What the specification of ChatWait asks for and no other test shows: both modes alike, no sign-in, room to grow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app import errors
from tests.harness.reader import Answer, Reply, delete, get, open_stream, post, read_answer, request
from tests.harness.script import Event as Sent
from tests.harness.server import ChatWait
from tests.harness.upstream import Close, Raw, Reset, Script, ScriptedUpstream, Stall, Token, answer, error
from tests.live.steps import about, asked, begin, copy_of_service, live, new_key, poll, settings

TRIES = 3  # a busy machine may be late now and then, not each time
OURS = ("stream_id", "correlation_id", "created", "first_token_ms", "duration_ms")
"""What differs from one generation to the next, whatever the mode."""


# Both modes alike


@pytest.mark.requirement("chatwait FR-001", "chatwait FR-002", "chatwait FR-006", "chatwait story")
@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.requirement("core FR-001")
def test_same_request_in_both_modes_gets_the_same_answer(
    chatwait: ChatWait, upstream: ScriptedUpstream, prefix: str
) -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}
    body = about(upstream, answer([" Ro", "me", " 🙂\n"], finish="length", usage=usage)) | {
        "context": [{"role": "user", "content": "Which city?"}],
        "max_tokens": 3,
        "temperature": 0,
        "model": "other-model",
    }
    waited = post(f"{chatwait.base_url}{prefix}/chat/wait", body)
    streamed = read_answer(f"{chatwait.base_url}{prefix}/chat/streaming", body)
    assert streamed.terminal is not None
    told = {**streamed.terminal.json, "content": streamed.text}
    del told["sequence"], told["is_final"]
    assert waited.status == streamed.status == 200
    assert {name: value for name, value in waited.json.items() if name not in OURS} == {
        name: value for name, value in told.items() if name not in OURS
    }
    first, second = asked(upstream, body)
    assert first.body == second.body


BUG = """
from app.upstream.decoder import ChunkDecoder

decode = ChunkDecoder.decode

def decode_with_a_bug(self, data):
    return 1 // 0 if b"BUG" in data else decode(self, data)

ChunkDecoder.decode = decode_with_a_bug
"""

MOST = 4
REFUSED: dict[str, dict[str, Any]] = {
    "invalid_json": {"data": b"{", "headers": {"Content-Type": "application/json"}},
    "invalid_request": {"json": {"message": "Hi", "mesage": "Hi"}},
    "message_empty": {"json": {"message": " "}},
    "message_too_long": {"json": {"message": "x" * 8001}},
    "context_too_long": {"json": {"message": "Hi", "context": [{"role": "user", "content": "a b " * 40_000}]}},
    "model_not_allowed": {"json": {"message": "Hi", "model": "none"}},
    "host_not_allowed": {"json": {"message": "Hi"}, "headers": {"Host": "evil.example"}},
    "origin_not_allowed": {"json": {"message": "Hi"}, "headers": {"Origin": "https://evil.example"}},
    "body_too_large": {"data": b"x" * (1 << 20) + b"x", "headers": {"Content-Type": "application/json"}},
    "unsupported_media_type": {"data": b"Hi", "headers": {"Content-Type": "text/plain"}},
    "cursor_malformed": {"json": {"message": "Hi"}, "headers": {"Last-Event-ID": "abc"}},
    "stream_unknown": {"json": {"message": "Hi"}, "headers": {"Last-Event-ID": "cw_0123456789abcdefghijkl.1"}},
}
FAILED = {
    "upstream_unavailable": error(503, headers={"retry-after": "60"}),
    "upstream_rate_limited": error(429, headers={"retry-after": "60"}),
    "upstream_auth_failed": error(401),
    "content_filtered": error(400, "no", "content_policy_violation"),
    "context_too_long": error(400, "too long", "context_length_exceeded"),
    "upstream_error": Script(steps=[Token("Par"), Token("is"), Close()]),
    "upstream_error, reset": Script(steps=[Token("Par"), Reset()]),
    "upstream_error, malformed": Script(steps=[Token("Par"), Raw(b"data: {oh no\n\n")]),
    "upstream_error, inside": Script(steps=[Token("Par"), Sent({"error": {"message": "no"}})]),
    "upstream_timeout": Script(steps=[Token("Par"), Stall()]),
    "internal_error": Script(steps=[Token("Par"), Sent("BUG")]),
}
ELSEWHERE = {
    "not_found",  # below: there is no mode at a path that is none
    "method_not_allowed",
    "cursor_foreign",
    "cursor_ahead",
    "stream_expired",
    "idempotency_key_reused",
    "overloaded",
    "request_timeout",  # half a minute: tests/live/test_requests.py
    "shutting_down",  # tests/live/test_endings.py, both modes
    "store_unavailable",  # tests/live/test_shared_faults.py
    "producer_lost",  # tests/live/test_shared_death.py
    "cancelled",  # in contracts/examples: only OpenAI's routes have it
    "upstream_refused",  # the same
}


@pytest.fixture(scope="module")
def faulty(shared_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatWait]:
    """A service with a bug, little room, a short memory and little patience: every error can be had from it."""
    root = copy_of_service(tmp_path_factory.mktemp("faulty"), BUG)
    more = {"MAX_ACTIVE_STREAMS": MOST, "RETENTION_SECONDS": 1, "TIMEOUT_SECONDS": 2}
    with ChatWait(root=root, **settings(shared_upstream, **more)) as chatwait:
        yield chatwait


def in_both_modes(chatwait: ChatWait, **sent: Any) -> list[Reply]:
    return [request("POST", f"{chatwait.base_url}/chat/{mode}", **sent) for mode in ("wait", "streaming")]


def assert_alike(waited: Reply, streamed: Reply, code: str) -> None:
    """Check that two refusals are one, and that it says in three parts what anybody can act upon."""
    assert (waited.status, waited.json["error_code"]) == (streamed.status, streamed.json["error_code"])
    assert waited.json["error_code"] == code
    assert {**waited.json, "correlation_id": 0} == {**streamed.json, "correlation_id": 0}
    assert waited.headers.get("retry-after") == streamed.headers.get("retry-after")
    assert_three_parts(waited.json)


def assert_three_parts(told: dict[str, Any]) -> None:
    """Check what happened, why, and what to do: three sentences, and nothing of the inside."""
    parts = [told["message"], told["detail"], told["action"]]
    assert len(set(parts)) == 3
    for part in parts:
        assert part[0].isupper() and part.endswith((".", "}.")) and len(part.split()) >= 3, part
        for inside in ("Traceback", "Error:", "Exception", "Errno", 'File "', "127.0.0.1", ".py", "cw_", "sk-"):
            assert inside not in part


@pytest.mark.requirement("chatwait FR-004", "chatwait FR-006", "chatwait scenario 4", "chatwait edge 3")
@pytest.mark.requirement("chatwait errors 1", "chatwait errors 2", "chatwait errors 3", "chatwait clarification 1")
@pytest.mark.requirement("core SC-005", "core UX-002", "core FR-010", "core constitution V", "core US2.3", "core US2.4")
@pytest.mark.requirement("plan principle V", "plan design 4", "tasks T018", "tasks US2 test")
@pytest.mark.parametrize("code", REFUSED)
def test_refusal_is_the_same_in_both_modes(faulty: ChatWait, upstream: ScriptedUpstream, code: str) -> None:
    waited, streamed = in_both_modes(faulty, **REFUSED[code])
    assert_alike(waited, streamed, code)
    assert 400 <= waited.status < 500
    assert upstream.completions == []


@pytest.mark.requirement("chatwait FR-006", "chatwait errors 1", "chatwait errors 2", "chatwait errors 3")
@pytest.mark.requirement("core SC-005", "core UX-002", "core FR-008", "core FR-010", "core US2.1", "core US2.2")
@pytest.mark.requirement("tasks T019", "tasks T020", "page FR-006", "page SC-006", "page US3.4")
@pytest.mark.parametrize("name", FAILED)
def test_failure_is_the_same_in_both_modes(faulty: ChatWait, upstream: ScriptedUpstream, name: str) -> None:
    """In wait mode its status says so; on a stream, whose status is 200, the same body stands in `failed`."""
    body = about(upstream, FAILED[name])
    waited = post(f"{faulty.base_url}/chat/wait", body)
    streamed = read_answer(f"{faulty.base_url}/chat/streaming", body)
    assert streamed.terminal is not None
    assert (streamed.status, streamed.terminal.event) == (200, "failed")
    told = dict(waited.json)
    partial = told.pop("partial", {"content": "", "tokens": 0})
    assert {**told, "correlation_id": 0} == {**streamed.terminal.json["error"], "correlation_id": 0}
    assert (waited.status, told["error_code"]) == (errors.status_of(told["error_code"]), name.partition(",")[0])
    assert (waited.status == 429) == (name == "upstream_rate_limited")
    assert partial == {"content": streamed.text, "tokens": streamed.tokens}
    assert_three_parts(told)


def about_cursors(chatwait: ChatWait, upstream: ScriptedUpstream) -> dict[str, list[Reply]]:
    """Have what a path with a stream in it can be answered, in both modes."""
    url, headers = f"{chatwait.base_url}/chat", new_key()
    with live(chatwait.base_url, about(upstream, Script(steps=[Token("a"), Stall()]))) as other:
        body = about(upstream, answer(["a", "b"]))
        stream_id = begin(chatwait.base_url, body, headers)

        def ask(cursor: str = "") -> list[Reply]:
            fields = {"Last-Event-ID": cursor} if cursor else {}
            return [get(f"{url}/{mode}/{stream_id}", fields) for mode in ("wait", "streaming")]

        got = {
            "cursor_foreign": ask(f"{other}.1"),
            "cursor_ahead": ask(f"{stream_id}.99"),
            "idempotency_key_reused": in_both_modes(chatwait, json={"message": "Another"}, headers=headers),
        }
        gone = f"{url}/streaming/{stream_id}"  # asked with HEAD: a reader would keep it
        poll(lambda: request("HEAD", gone).status == 410, seconds=20, what="the stream to expire")
        return got | {"stream_expired": ask()}


@pytest.mark.requirement("chatwait FR-006", "chatwait errors 1", "core SC-005", "core UX-002")
def test_refusal_about_a_stream_is_the_same_in_both_modes(faulty: ChatWait, upstream: ScriptedUpstream) -> None:
    got = about_cursors(faulty, upstream)
    got["not_found"] = [get(f"{faulty.base_url}{path}") for path in ("/chat/wait/a/b", "/chat/streaming/a/b")]
    got["method_not_allowed"] = [request("PUT", f"{faulty.base_url}/chat/{mode}") for mode in ("wait", "streaming")]
    bodies = [about(upstream, Script(steps=[Token("a"), Stall()])) for _ in range(MOST)]
    ids = [begin(faulty.base_url, body) for body in bodies]
    try:
        got["overloaded"] = in_both_modes(faulty, json={"message": "One more"})
    finally:
        for stream_id in ids:
            delete(f"{faulty.base_url}/chat/streaming/{stream_id}")
    for code, (waited, streamed) in got.items():
        assert_alike(waited, streamed, code)
        assert waited.status == errors.status_of(code)
    assert got.keys() <= ELSEWHERE


@pytest.mark.requirement("core SC-005")
def test_walk_of_the_errors_leaves_none_out() -> None:
    walked = REFUSED.keys() | {name.partition(",")[0] for name in FAILED} | ELSEWHERE
    assert walked == {kind.error_code for kind in errors.walk()}


# A dialogue, and the time between its tokens


@pytest.mark.requirement("chatwait scenario 5", "chatwait FR-005", "chatwait FR-011", "chatwait extensibility 1")
@pytest.mark.requirement("chatwait extensibility 2", "chatwait entity Conversation Context", "chatwait clarification 4")
@pytest.mark.requirement("chatwait entity Chat Message", "page FR-003")
@pytest.mark.parametrize("mode", ["wait", "streaming"])
def test_dialogue_reaches_the_model_turn_by_turn_in_its_roles_and_order(
    chatwait: ChatWait, upstream: ScriptedUpstream, mode: str
) -> None:
    """Twelve turns, alike texts and an empty one among them; timestamps stay here."""
    roles = ["system", *["user", "assistant"] * 5]
    context = [{"role": role, "content": f"turn {at // 2}"} for at, role in enumerate(roles)]
    context += [{"role": "user", "content": "é🙂"}, {"role": "assistant", "content": ""}]
    stamped = [{**turn, "timestamp": "2026-11-21T09:00:00Z"} for turn in context]
    body = about(upstream, answer(["Rome."]))
    assert post(f"{chatwait.base_url}/chat/{mode}", {**body, "context": stamped}).status == 200
    assert asked(upstream, body)[0].json["messages"] == [*context, {"role": "user", "content": body["message"]}]


@pytest.mark.requirement("chatwait FR-007", "chatwait clarification 3", "page SC-002")
def test_token_is_with_its_reader_within_a_tenth_of_a_second(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """ChatWait allows 200 ms a token, the page 100 ms; from the model's sending to the client's receiving."""
    for _ in range(TRIES):
        body = about(upstream, answer([f"word{at} " for at in range(60)], gap=0.03))
        arrived: list[float] = []
        with open_stream(f"{chatwait.base_url}/chat/streaming", json=body) as connection:
            got = Answer()
            got.begin_connection(connection.headers)
            for event in connection.events():
                got.add(event)
                arrived += [event.received_at] * (got.tokens - len(arrived))
        sent = [at for _, at in asked(upstream, body)[0].tokens]
        assert len(sent) == len(arrived) == 60
        late = sorted(came - went for came, went in zip(arrived, sent, strict=True))[56]  # 95 of 100
        if late < 0.1:
            break
    assert late < 0.1


# No sign-in


@pytest.mark.requirement("chatwait FR-010", "chatwait constraint 1", "core assumption 3", "core scope 6")
def test_no_credentials_are_needed_and_those_that_come_change_nothing(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    body = about(upstream, answer(["a", "b"]))
    for headers in ({}, {"Authorization": "Bearer sk-somebody-elses", "Cookie": "session=1"}):
        started = post(f"{chatwait.base_url}/chat/wait", body, headers=headers)
        stream_id = started.json["stream_id"]
        for path in (f"/chat/streaming/{stream_id}", f"/chat/wait/{stream_id}", "/models", "/health", "/ready", "/"):
            reply = get(f"{chatwait.base_url}{path}", headers)
            assert (reply.status, "www-authenticate" in reply.headers) == (200, False)
            assert "set-cookie" not in reply.headers
        assert delete(f"{chatwait.base_url}/chat/wait/{stream_id}", headers).status == 200
    mine, theirs = asked(upstream, body)
    assert mine.headers["authorization"] == theirs.headers["authorization"] != "Bearer sk-somebody-elses"
    assert mine.body == theirs.body


# Room to grow


@pytest.mark.requirement("chatwait FR-008", "chatwait extensibility 3", "chatwait extensibility 4", "core edge 2")
def test_old_request_means_the_same_beside_every_new_field_and_version(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """A message alone, at every address; then with each optional field at its default."""
    old = about(upstream, answer(["yes"]))
    for path in ("/chat", "/chat/wait", "/chat/streaming", "/v1/chat", "/v1/chat/wait", "/v1/chat/streaming"):
        assert post(f"{chatwait.base_url}{path}", old).status == 200
    limits = get(f"{chatwait.base_url}/models").json
    assert limits == get(f"{chatwait.base_url}/v1/models").json
    for field in ({"context": []}, {"model": limits["default"]}, {"max_tokens": 4096}):
        assert post(f"{chatwait.base_url}/chat/wait", {**old, **field}).status == 200
    sent = [record.body for record in asked(upstream, old)]
    assert (len(sent), len(set(sent))) == (9, 1)


@pytest.mark.requirement("chatwait FR-004", "chatwait FR-008", "chatwait extensibility 3")
@pytest.mark.parametrize("field", ["session_id", "stream", "user", "Message", "contxt"])
def test_field_of_a_future_version_is_refused_by_name(
    chatwait: ChatWait, upstream: ScriptedUpstream, field: str
) -> None:
    """Taken for nothing it would be believed to work."""
    waited, streamed = in_both_modes(chatwait, json={"message": "Hi", field: "x"})
    assert_alike(waited, streamed, "invalid_request")
    assert list(waited.json["fields"]) == [field]
    assert upstream.completions == []


@pytest.mark.requirement("core scope 7", "core edge 5", "chatwait errors 2", "page scope 6")
def test_many_requests_of_one_client_are_not_limited_here(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """No rate limiting of ours: the upstream's is passed on (429, above), and one client may ask as fast as it can."""
    with ThreadPoolExecutor(10) as pool:
        began = time.monotonic()
        replies = list(pool.map(lambda _: post(f"{chatwait.base_url}/chat/wait", {"message": "Hi"}), range(100)))
        assert time.monotonic() - began < 60
    assert {reply.status for reply in replies} == {200}


@pytest.mark.requirement("core assumption 4", "core scope 4")
def test_message_is_plain_text_and_passed_on_as_it_is(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Markup is text like any other, in both directions; parts, pictures and voice are refused."""
    text = '# Title\n\n**bold** <b>html</b> <script>alert(1)</script> [link](file:///etc/passwd) \\n "quoted" \t 日本'
    body = about(upstream, answer([text]), text)
    assert read_answer(f"{chatwait.base_url}/chat/streaming", body).text == text
    assert asked(upstream, body)[0].json["messages"] == [{"role": "user", "content": text}]
    for parts in ([{"type": "text", "text": "Hi"}], {"type": "input_audio"}, 5):
        refused = post(f"{chatwait.base_url}/chat/wait", {"message": parts})
        assert (refused.status, list(refused.json["fields"])) == (400, ["message"])


@pytest.mark.requirement("tasks T031", "tasks stop 1", "chatwait constraint 3", "chatwait constraint 1")
def test_whole_way_from_a_start_to_a_clean_stop_works(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream
) -> None:
    """Start, health, models, both modes, log, stop: the check that the tasks end with."""
    with ChatWait(**settings(shared_upstream)) as chatwait:
        assert get(f"{chatwait.base_url}/health").json["status"] == "healthy"
        assert get(f"{chatwait.base_url}/ready").status == 200
        streamed = read_answer(f"{chatwait.base_url}/chat", {"message": "Hi"})
        waited = post(f"{chatwait.base_url}/chat/wait", {"message": "Hi"})
        assert streamed.text == waited.json["content"] == "Hello, world."
        assert chatwait.stop() == 0
        assert len(chatwait.log_of("response_complete", status="complete")) == 2
    assert not chatwait.is_running
