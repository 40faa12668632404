"""One key starts one generation, however often and however it is asked."""

from __future__ import annotations

import json
import secrets

import pytest

from tests.harness.chaos import ChaosProxy, CutAfter
from tests.harness.http1 import Target, Wire
from tests.harness.reader import Dropped, Reply, delete, get, open_stream, post, read_answer, read_resuming
from tests.harness.server import ChatWait
from tests.harness.upstream import Close, Done, Finish, Gate, Script, ScriptedUpstream, Token, answer, error
from tests.live.steps import about, asked, begin, live, log_name, new_key, settings, together, wait_asked


def streaming(chatwait: ChatWait) -> str:
    return f"{chatwait.base_url}/chat/streaming"


def wait(chatwait: ChatWait) -> str:
    return f"{chatwait.base_url}/chat/wait"


def code(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.json["error_code"]


def test_two_posts_at_once_with_one_key_read_one_stream(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Several times, since it is a race."""
    for _ in range(10):
        body, key = about(upstream, answer(["a", "b", "c"], gap=0.01)), new_key()
        both = together(*[lambda body=body, key=key: read_answer(streaming(chatwait), body, headers=key)] * 2)
        assert both[0].stream_id == both[1].stream_id
        assert [got.text for got in both] == ["abc", "abc"]
        assert len(asked(upstream, body)) == 1
        assert len(chatwait.log_of("stream_started", stream=log_name(both[0].stream_id))) == 1


@pytest.mark.requirement("chatwait FR-006")
def test_wait_and_streaming_posts_at_once_with_one_key_get_one_answer(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    body, key = about(upstream, Script(steps=[Token("a"), Gate("on"), Token("b"), Finish(), Done()])), new_key()

    def let_on() -> None:
        upstream.wait_reached("on")
        upstream.open("on")

    streamed, waited, negotiated, _ = together(
        lambda: read_answer(streaming(chatwait), body, headers=key),
        lambda: post(wait(chatwait), body, headers=key),
        lambda: post(f"{chatwait.base_url}/v1/chat", body, headers={**key, "Accept": "application/json"}),
        let_on,
    )
    assert streamed.text == waited.json["content"] == negotiated.json["content"] == "ab"
    assert streamed.stream_id == waited.json["stream_id"] == negotiated.json["stream_id"]
    assert len(asked(upstream, body)) == 1


def test_answer_lost_before_its_headers_is_attached_to_by_the_retry(
    chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy
) -> None:
    """Live and finished, streaming and wait."""
    body, key = about(upstream, Script(steps=[Token("a"), Gate("on"), Token("b"), Finish(), Done()])), new_key()
    proxy.plan(CutAfter(0))
    with pytest.raises(Dropped):
        open_stream(streaming(chatwait), json=body, headers=key, via=proxy.base_url)
    upstream.wait_reached("on")
    with open_stream(streaming(chatwait), json=body, headers=key) as again:
        assert next(again.events()).event == "start"
    upstream.open("on")
    assert read_resuming(chatwait.base_url, json=body, headers=key, via=proxy.base_url).text == "ab"
    proxy.plan(CutAfter(0))
    with pytest.raises(Dropped):
        post(f"{proxy.base_url}/chat/wait", body, headers=key)
    assert post(wait(chatwait), body, headers=key).json["content"] == "ab"
    assert len(asked(upstream, body)) == 1


def test_answer_lost_before_its_headers_without_a_key_starts_another(
    chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy
) -> None:
    """The premise of the test above: it is the key that saves a generation."""
    body = about(upstream, answer(["a"]))
    proxy.plan(CutAfter(0))
    with pytest.raises(Dropped):
        open_stream(streaming(chatwait), json=body, via=proxy.base_url)
    wait_asked(upstream, body, 1)
    assert read_answer(streaming(chatwait), body).text == "a"
    assert len(asked(upstream, body)) == 2


def test_same_key_after_the_end_gives_the_same_answer(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    body, key = about(upstream, answer(["a", "b"])), new_key()
    first = post(wait(chatwait), body, headers=key)
    second = post(wait(chatwait), body, headers=key)
    streamed = read_answer(streaming(chatwait), body, headers=key)

    def told(reply: Reply) -> dict[str, object]:
        return {name: value for name, value in reply.json.items() if name != "correlation_id"}

    assert told(first) == told(second)
    assert first.json["correlation_id"] != second.json["correlation_id"]
    assert (streamed.text, streamed.stream_id) == ("ab", first.json["stream_id"])
    assert len(asked(upstream, body)) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"message": "Something else."},
        {"max_tokens": 17},
        {"temperature": 0.5},
        {"model": "other-model"},
        {"context": [{"role": "user", "content": "before"}]},
    ],
)
def test_key_with_another_request_is_422_live_and_finished(
    chatwait: ChatWait, upstream: ScriptedUpstream, changed: dict[str, object]
) -> None:
    body, key = about(upstream, Script(steps=[Token("a"), Gate("on"), Finish(), Done()])), new_key()
    with live(chatwait.base_url, body, key) as stream_id:
        for _ in range(2):
            for url in (streaming(chatwait), wait(chatwait)):
                assert code(post(url, {**body, **changed}, headers=key)) == (422, "idempotency_key_reused")
            upstream.open("on")
            assert read_answer(f"{streaming(chatwait)}/{stream_id}").text == "a"
    assert len(upstream.completions) == 1


def test_key_with_the_same_request_in_other_words_attaches(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Defaults filled in, in another order, other white space: the request is the same."""
    body, key = about(upstream, answer(["a"])), new_key()
    assert post(wait(chatwait), body, headers=key).json["content"] == "a"
    limits = get(f"{chatwait.base_url}/models").json
    filled = {
        "context": [],
        "max_tokens": limits["limits"]["default_max_tokens"],
        "model": limits["default"],
        **body,
    }
    for data in (json.dumps(filled), json.dumps(body, indent=3)):
        headers = {**key, "Content-Type": "application/json; charset=utf-8"}
        assert post(wait(chatwait), data=data.encode(), headers=headers).json["content"] == "a"
    assert len(asked(upstream, body)) == 1


def test_key_is_case_sensitive_and_another_key_starts_another(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    body, key = about(upstream, answer(["a"])), f"Key-{secrets.token_hex(16)}"
    ids = {
        post(wait(chatwait), body, headers={"Idempotency-Key": one}).json["stream_id"]
        for one in (key, key.lower(), f"{key}x", key)
    }
    assert (len(ids), len(asked(upstream, body))) == (3, 3)


# Failures and refusals


def test_generation_failed_before_its_first_token_frees_its_key(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """The failed one stays readable by its id."""
    body, key = about(upstream, answer(["well"])), new_key()
    upstream.then(error(404))
    failed = post(wait(chatwait), body, headers=key)
    assert code(failed) == (502, "upstream_error")
    assert failed.json["retryable"] is True
    assert post(wait(chatwait), body, headers=key).json["content"] == "well"
    assert read_answer(streaming(chatwait), body, headers=key).text == "well"
    assert len(asked(upstream, body)) == 2
    assert code(get(f"{wait(chatwait)}/{failed.headers['x-stream-id']}")) == (502, "upstream_error")


@pytest.mark.requirement("page US3.2")
def test_key_freed_by_a_failure_may_be_used_for_another_request(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    body, key = about(upstream, error(404)), new_key()
    assert code(post(wait(chatwait), body, headers=key)) == (502, "upstream_error")
    other = about(upstream, answer(["other"]))
    assert post(wait(chatwait), other, headers=key).json["content"] == "other"


@pytest.mark.parametrize(
    ("script", "answered"),
    [
        (error(401), (502, "upstream_auth_failed")),
        (Script(steps=[Token("a"), Close()]), (502, "upstream_error")),
    ],
)
def test_generation_failed_for_good_or_after_a_token_keeps_its_key(
    chatwait: ChatWait, upstream: ScriptedUpstream, script: Script, answered: tuple[int, str]
) -> None:
    body, key = about(upstream, script), new_key()
    replies = [post(wait(chatwait), body, headers=key) for _ in range(3)]
    assert [code(reply) for reply in replies] == [answered] * 3
    assert len({reply.headers["x-stream-id"] for reply in replies}) == 1
    assert len(asked(upstream, body)) == 1


def test_cancelled_generation_keeps_its_key(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    body, key = about(upstream, Script(steps=[Token("a"), Gate("never")])), new_key()
    with live(chatwait.base_url, body, key) as stream_id:
        upstream.wait_reached("never")
        assert delete(f"{streaming(chatwait)}/{stream_id}").json["status"] == "cancelled"
        again = post(wait(chatwait), body, headers=key)
    assert (again.status, again.json["status"], again.json["stream_id"]) == (200, "cancelled", stream_id)
    assert len(asked(upstream, body)) == 1


def test_refused_request_never_binds_its_key(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    body, key = about(upstream, answer(["a"])), new_key()
    refusals: list[tuple[Reply, str]] = [
        (post(wait(chatwait), {"message": ""}, headers=key), "message_empty"),
        (post(wait(chatwait), {"message": "x" * 8001}, headers=key), "message_too_long"),
        (post(streaming(chatwait), {**body, "model": "unlisted"}, headers=key), "model_not_allowed"),
        (post(streaming(chatwait), {**body, "max_tokens": "5"}, headers=key), "invalid_request"),
        (post(streaming(chatwait), data=b"{", headers={**key, "Content-Type": "application/json"}), "invalid_json"),
        (post(wait(chatwait), data=b"{}", headers={**key, "Content-Type": "text/plain"}), "unsupported_media_type"),
        (post(wait(chatwait), body, headers={**key, "Origin": "http://evil.example"}), "origin_not_allowed"),
    ]
    assert [reply.json["error_code"] for reply, _ in refusals] == [wanted for _, wanted in refusals]
    assert post(wait(chatwait), body, headers=key).json["content"] == "a"
    assert len(upstream.completions) == 1


def test_overload_binds_no_key_and_attaching_is_exempt_from_it(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream
) -> None:
    with ChatWait(**settings(shared_upstream, MAX_ACTIVE_STREAMS=1)) as chatwait:
        busy, busy_key = about(upstream, Script(steps=[Token("a"), Gate("on"), Finish(), Done()])), new_key()
        begin(chatwait.base_url, busy, busy_key)
        body, key = about(upstream, answer(["b"])), new_key()
        refused = post(wait(chatwait), body, headers=key)
        assert code(refused) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) > 0
        with open_stream(streaming(chatwait), json=busy, headers=busy_key) as attached:
            assert attached.status == 200
            upstream.open("on")
            assert [event.event for event in attached.events()][-1] == "done"
        assert post(wait(chatwait), body, headers=key).json["content"] == "b"
        assert len(asked(upstream, body)) == len(asked(upstream, busy)) == 1


@pytest.mark.parametrize(
    "key",
    [
        "",
        "x" * 15,
        "x" * 256,
        "x" * 8 + " " + "x" * 8,
        "x" * 8 + "\t" + "x" * 8,
        "é" * 16,
        "x" * 16 + "\xa0",
        "xyz" * 6,
    ],
)
def test_key_malformed_is_400_and_starts_nothing(chatwait: ChatWait, upstream: ScriptedUpstream, key: str) -> None:
    body = about(upstream, answer(["a"]))
    for url in (streaming(chatwait), wait(chatwait)):
        reply = post(url, body, headers={"Idempotency-Key": key})
        assert code(reply) == (400, "invalid_request")
        assert list(reply.json["fields"]) == ["Idempotency-Key"]
    assert asked(upstream, body) == []


@pytest.mark.parametrize("key", ["!" * 13 + "~az", "".join(map(chr, range(33, 127))), "x" * 255])
def test_key_of_any_visible_characters_within_the_lengths_is_taken(
    chatwait: ChatWait, upstream: ScriptedUpstream, key: str
) -> None:
    body, unique = about(upstream, answer(["a"])), secrets.token_hex(8)
    headers = {"Idempotency-Key": (unique + key)[:255] if len(key) > 16 else key}
    assert post(wait(chatwait), body, headers=headers).json["content"] == "a"
    assert post(wait(chatwait), body, headers=headers).json["content"] == "a"
    assert len(asked(upstream, body)) == 1


# Wait mode dropped


def test_wait_dropped_at_ninety_percent_and_asked_again_gets_the_same_text_booked_once(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    texts = [f"{number} " for number in range(10)]
    script = Script(steps=[*map(Token, texts[:9]), Gate("90 %"), Token(texts[9]), Finish(), Done()])
    body, key = about(upstream, script), new_key()
    target = Target.of(wait(chatwait))
    wire = Wire(target.host, target.port)
    fields = {"Host": f"{target.host}:{target.port}", "Content-Type": "application/json", **key}
    wire.send_request("POST", target.path, fields, json.dumps(body).encode())
    upstream.wait_reached("90 %")
    stream_id = begin(chatwait.base_url, body, key)  # tells its name; the client that waits is not told before the end
    name = log_name(stream_id)
    chatwait.wait_for_log("reader_attached", mode="wait", stream=name)
    wire.close()
    chatwait.wait_for_log("reader_left", mode="wait", stream=name)
    assert not chatwait.log_of("response_complete", stream=name)

    upstream.open("90 %")
    again = post(wait(chatwait), body, headers=key)
    assert (again.status, again.json["content"], again.json["tokens"]) == (200, "".join(texts), 10)
    assert again.json["stream_id"] == stream_id
    assert read_answer(streaming(chatwait), body, headers=key).text == "".join(texts)
    assert len(asked(upstream, body)) == 1
    assert len(chatwait.log_of("stream_started", stream=name)) == 1
    assert len(chatwait.log_of("response_complete", stream=name)) == 1
