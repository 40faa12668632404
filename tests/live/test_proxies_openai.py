"""OpenAI's routes through real proxies: who asks, large bodies, keys for what is sent twice, cuts, and the proxies' own
errors. A scripted server in the service's place tells what arrives."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.harness.http1 import Dropped, Reply, Wire
from tests.harness.ledger import RequestRecord
from tests.harness.net import reserve_port
from tests.harness.proxies import Proxy
from tests.harness.reader import get, open_stream, post, request
from tests.harness.server import ChatWait
from tests.harness.upstream import Close, Gate, Raw, Reset, Script, ScriptedUpstream, Stall, Step, Token, answer
from tests.live.fronts import HTTP_1_0, KINDS, NAMES, front, front_of_two
from tests.live.rawhttp import CHUNKED, chunks, is_read, raw
from tests.live.steps import new_key, poll
from tests.live.test_proxies_access import BASIC, TOKEN, WRONG, guarded, let_in

MEBIBYTE = 1 << 20
OURS = {"error_code", "detail", "action", "correlation_id", "origin", "retryable"}
"""What every error says beside OpenAI's four fields."""
ASK = "/v1/chat/completions"
ROUTES = (
    ASK,
    "/chat/completions",
    f"{ASK}/chatcmpl-cwc_x",
    "/v1/models/maker%2Fname",
    "/v1/embeddings",
    "/completions",
    "/v1/responses/resp_cwc_x/cancel",
)
NATIVE = ("/v1/chat/wait", "/v1/chat/streaming/completions", "/v1/models", "/completion")
SHIPPED = [f"{name} shipped" for name in NAMES]
QUESTION = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
JSON = {"Content-Type": "application/json"}
KEY = {"Authorization": "Bearer sk-canary-of-a-client"}


def whole(_: RequestRecord) -> Script:
    """Answer anything, so that every route can be asked for, as an instance that is ready."""
    return Script(headers={"content-type": "application/json"}, body=b'{"worker": "ready"}')


@pytest.fixture
def service(upstream: ScriptedUpstream) -> ScriptedUpstream:
    return upstream.by(whole)


def assert_openai(reply: Reply, status: int, code: str, kind: str, *, is_final: bool = False) -> None:
    """Check a proxy's own error: OpenAI's four fields and ours in one object, and whether SDKs are to ask again."""
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json"), reply.body
    told = reply.json
    error = told["error"]
    assert told.keys() == {"error"}
    assert error.keys() >= {"message", "type", "param", "code"} | OURS
    assert (error["code"], error["error_code"], error["type"], error["param"]) == (code, code, kind, None)
    assert error["message"].endswith(f"{error['detail']} {error['action']}")
    assert error["retryable"] == (not is_final)
    assert reply.headers.get("x-should-retry") == ("false" if is_final else None)
    assert reply.headers.get("retry-after", "") == str(error.get("retry_after_seconds", ""))
    assert reply.headers["cache-control"] == "no-store"


def assert_native(reply: Reply, status: int, code: str) -> None:
    """Check that a proxy's own error is ChatWait's on its other routes, which know no such header."""
    assert (reply.status, reply.json["error_code"]) == (status, code)
    assert "error" not in reply.json
    assert "x-should-retry" not in reply.headers


# Who asks


@pytest.mark.parametrize("kind", SHIPPED)
def test_authorization_reaches_the_service_on_openais_routes_alone(
    kind: str, service: ScriptedUpstream, tmp_path: Path
) -> None:
    with front(kind, tmp_path, service.port) as proxy:
        for path in (*ROUTES, "/v1/models", "/models"):
            assert post(proxy.base_url + path, QUESTION, headers={**KEY, "Cookie": "a=b"}).status == 200
            assert get(proxy.base_url + path, KEY).status == 200
            assert [record.headers["authorization"] for record in service.requests[-2:]] == [KEY["Authorization"]] * 2
            assert "cookie" not in service.requests[-2].headers
        for path in ("/v1/chat/wait", "/v1/chat/streaming/cw_x", "/completion", "/modelsx", "/"):
            assert get(proxy.base_url + path, KEY).status == 200
            assert "authorization" not in service.requests[-1].headers


@pytest.mark.parametrize("name", NAMES)
def test_password_of_a_proxy_stays_with_it_and_a_wrong_one_is_refused_as_openai_does(
    name: str, service: ScriptedUpstream, tmp_path: Path
) -> None:
    """`basic` uses the header itself, and a preflight has none."""
    with guarded(name, tmp_path, service.port) as proxy:
        for path in ROUTES:
            for headers in ({}, WRONG, KEY):
                refused = post(proxy.base_url + path, QUESTION, headers=headers)
                assert_openai(refused, 401, "unauthorized", "invalid_request_error", is_final=True)
                assert refused.headers["www-authenticate"] == 'Basic realm="ChatWait"'
            assert not service.requests
            assert post(proxy.base_url + path, QUESTION, headers=BASIC).status == 200
            assert request("OPTIONS", proxy.base_url + path).status == 200
            assert not any("authorization" in record.headers for record in service.requests)
            service.reset()
            service.by(whole)
        for path in NATIVE:  # a person's browser asks for the password, and shows what the proxy has always shown
            refused = get(proxy.base_url + path)
            assert (refused.status, refused.headers["content-type"]) == (401, "text/html")
            assert "ChatWait" in refused.headers["www-authenticate"]
            assert "x-should-retry" not in refused.headers


def test_token_that_let_a_client_in_tells_the_service_who_asks(service: ScriptedUpstream, tmp_path: Path) -> None:
    def check(record: RequestRecord) -> Script:
        return Script(status=403, body=b"") if "banned" in str(record.headers) else let_in(record)

    with ScriptedUpstream().by(check) as tokens:
        changes = {"127.0.0.1:9000": f"127.0.0.1:{tokens.port}"}
        with front("nginx shipped", tmp_path, service.port, "token", changes=changes) as proxy:
            for path in ROUTES:
                url = proxy.base_url + path
                assert_openai(post(url, QUESTION), 401, "unauthorized", "invalid_request_error", is_final=True)
                banned = post(url, QUESTION, headers={"Authorization": "Bearer banned"})
                assert_openai(banned, 403, "unauthorized", "invalid_request_error", is_final=True)
                assert post(url, QUESTION, headers=TOKEN).status == 200
                assert service.requests[-1].headers["authorization"] == TOKEN["Authorization"]
            assert len(service.requests) == len(ROUTES)
            for path in NATIVE:
                for headers, status in (({}, 401), ({"Authorization": "Bearer banned"}, 403)):
                    refused = get(proxy.base_url + path, headers)
                    assert (refused.status, refused.headers["content-type"]) == (status, "text/html")


def test_path_prefix_leaves_openais_routes_what_they_need(service: ScriptedUpstream, tmp_path: Path) -> None:
    """As the guide says: with what the shipped configuration says for large bodies."""
    large = "client_max_body_size 33m;\n        proxy_request_buffering off;"
    there = f"    location /talk/ {{\n        proxy_redirect / /talk/;\n        {large}\n        proxy_pass http://chatwait/;"
    changes = {"    location / {\n        proxy_pass http://chatwait;": there}
    with front("nginx shipped", tmp_path, service.port, changes=changes) as proxy:
        body = {"messages": "a" * (20 * MEBIBYTE)}
        assert post(f"{proxy.base_url}/talk{ASK}", body, headers=KEY, timeout=30).status == 200
        (record,) = service.requests
        assert (record.path, record.json == body) == (ASK, True)
        assert record.headers["authorization"] == KEY["Authorization"]


def retrieved(base_url: str, name: str, authorization: dict[str, str]) -> int:
    return get(f"{base_url}{ASK}/{name}", authorization).status


@pytest.mark.parametrize("name", NAMES)
def test_answer_is_given_to_its_client_alone_through_a_proxy(
    name: str, chatwait: ChatWait, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Behind `basic` all users are one client: nobody shows the service who asks."""
    upstream.always(answer(["a", "b"]))
    (tmp_path / "guarded").mkdir()
    question = {**QUESTION, "model": "gpt-4o-mini", "stream": True}
    with front(f"{name} shipped", tmp_path, chatwait.port) as proxy:
        asked = post(proxy.base_url + ASK, question, headers=KEY)
        assert asked.status == 200
        found = [retrieved(proxy.base_url, asked.headers["x-stream-id"], who) for who in (KEY, {}, TOKEN, KEY)]
    assert found == [200, 404, 404, 200]
    with guarded(name, tmp_path / "guarded", chatwait.port) as proxy:
        asked = post(proxy.base_url + ASK, question, headers=BASIC)
        assert retrieved(proxy.base_url, asked.headers["x-stream-id"], BASIC) == 200
    assert [retrieved(chatwait.base_url, asked.headers["x-stream-id"], who) for who in ({}, BASIC)] == [200, 404]


# Errors of their own


@pytest.mark.parametrize("kind", SHIPPED)
def test_proxy_says_in_openais_shape_that_the_service_is_down(kind: str, tmp_path: Path) -> None:
    with (
        reserve_port(shared=False) as nobody,
        front(kind, tmp_path, nobody.getsockname()[1]) as proxy,
        ThreadPoolExecutor(len(ROUTES)) as pool,  # haproxy tries for three seconds
    ):
        told = list(pool.map(lambda path: post(proxy.base_url + path, QUESTION), ROUTES))
        natively = list(pool.map(lambda path: get(proxy.base_url + path), NATIVE))
    for reply in told:
        assert_openai(reply, 503, "unavailable", "server_error")
        assert reply.headers["retry-after"] == "2"
    for reply in natively:
        assert_native(reply, 503, "unavailable")


@pytest.mark.parametrize("kind", SHIPPED)
def test_proxy_says_in_openais_shape_that_an_answer_takes_too_long(
    kind: str, service: ScriptedUpstream, tmp_path: Path
) -> None:
    service.by(lambda _: Script(before=[Stall()]))
    with front(kind, tmp_path, service.port, changes={"630s": "1s"}) as proxy:
        assert_openai(post(proxy.base_url + ASK, QUESTION), 504, "wait_timeout", "server_error")
        assert_native(post(f"{proxy.base_url}/chat/wait", QUESTION), 504, "wait_timeout")


@pytest.mark.parametrize("kind", SHIPPED)
def test_proxy_says_in_openais_shape_that_an_answer_broke_off_before_its_head(
    kind: str, service: ScriptedUpstream, tmp_path: Path
) -> None:
    service.by(lambda _: Script(before=[Raw(b"HTTP/1.1 200"), Reset()]))
    with front(kind, tmp_path, service.port) as proxy:
        told = post(proxy.base_url + ASK, QUESTION)
        assert_openai(told, 503 if kind.startswith("nginx") else 502, "unavailable", "server_error")


@pytest.mark.parametrize("kind", SHIPPED)
def test_proxy_says_in_openais_shape_that_a_client_asks_too_often(
    kind: str, service: ScriptedUpstream, tmp_path: Path
) -> None:
    with front(kind, tmp_path, service.port, "limits") as proxy:
        replies = [post(proxy.base_url + ASK, QUESTION) for _ in range(45)]
        refused = [reply for reply in replies if reply.status != 200]
        assert refused
        assert_openai(refused[-1], 429, "rate_limited", "rate_limit_error")
        assert refused[-1].headers["retry-after"] == "2"
        assert get(f"{proxy.base_url}{ASK}/chatcmpl-cwc_x").status == 200


@pytest.mark.parametrize("kind", SHIPPED)
def test_errors_of_the_service_pass_as_they_are(kind: str, service: ScriptedUpstream, tmp_path: Path) -> None:
    """Also those that a proxy might take for its own."""
    body = b'{"error": {"message": "ours"}}'
    headers = {"content-type": "application/json", "x-should-retry": "false"}
    with front(kind, tmp_path, service.port) as proxy:
        for status in (401, 403, 404, 409, 413, 418, 422, 429, 502, 503, 504):
            script = Script(status=status, headers=headers, body=body)
            service.by(lambda _, script=script: script)  # type: ignore[misc]
            told = post(proxy.base_url + ASK, QUESTION)
            assert (told.status, told.body, told.headers["x-should-retry"]) == (status, body, "false")


# Large bodies


@pytest.mark.parametrize(
    ("name", "options"), [("nginx", []), ("nginx", ["shared"]), ("haproxy", []), ("haproxy", ["shared"])]
)
def test_body_of_33_mebibytes_is_passed_on_while_it_comes(
    name: str, options: list[str], service: ScriptedUpstream, tmp_path: Path
) -> None:
    """The service is asked while the second half is not sent yet, so no proxy holds all of it. nginx writes no file."""
    changes = {"127.0.0.1:8001": f"127.0.0.1:{service.port}"} if options else {}
    if name == "nginx":
        changes["chatwait-error.log alert"] = "chatwait-error.log warn"
    half = b"a" * (33 * MEBIBYTE // 2)
    with front(f"{name} shipped", tmp_path, service.port, *options, changes=changes) as proxy:
        proxy.check_output = False
        for path in (ASK, "/chat/completions"):
            service.close_idle_connections()
            with closing(Wire("127.0.0.1", proxy.port, timeout=30)) as wire:
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2 * len(half)}\r\n\r\n"
                wire.send(head.encode() + half)
                poll(lambda: service.connections_open > 0, seconds=10, what="it to reach the service")
                wire.send(half)
                assert wire.read_reply("POST").status == 200
            assert (
                len([one for one in service.requests if one.method == "POST"][-1].body) == 33 * MEBIBYTE
            )  # no check of health
    assert "temporary file" not in proxy.output


def test_body_of_unknown_length_is_passed_on_without_a_file(service: ScriptedUpstream, tmp_path: Path) -> None:
    changes = {"chatwait-error.log alert": "chatwait-error.log warn"}
    with front("nginx shipped", tmp_path, service.port, "shared", changes=changes) as proxy:
        proxy.check_output = False
        with closing(Wire("127.0.0.1", proxy.port)) as wire:
            wire.send(raw(f"POST {ASK} HTTP/1.1", CHUNKED, body=chunks(*[b"a" * MEBIBYTE] * 3)))
            assert wire.read_reply("POST").status == 200
    assert len(service.requests[-1].body) == 3 * MEBIBYTE
    assert "temporary file" not in proxy.output


@pytest.mark.parametrize("kind", SHIPPED)
def test_body_that_is_too_large_is_refused_by_the_service(kind: str, chatwait: ChatWait, tmp_path: Path) -> None:
    """Its limit is below that of the proxies, and it takes what is on its way: nobody is reset while sending."""
    with front(kind, tmp_path, chatwait.port) as proxy:
        refused = post(proxy.base_url + ASK, data=b"a" * (32 * MEBIBYTE + 1), headers=JSON, timeout=30)
    assert_openai(refused, 413, "body_too_large", "invalid_request_error", is_final=True)
    assert refused.json["error"]["correlation_id"] == refused.headers["x-correlation-id"]


def test_larger_bodies_are_refused_by_nginx_with_a_word_to_sdks(service: ScriptedUpstream, tmp_path: Path) -> None:
    """On other routes the limit is what it was. An SDK does not send it all again."""
    with front("nginx shipped", tmp_path, service.port) as proxy:
        refused = {
            path: post(proxy.base_url + path, data=b"a" * size, timeout=30)
            for path, size in (
                (ASK, 33 * MEBIBYTE + 1),
                ("/v1/embeddings", 17 * MEBIBYTE),
                ("/chat/wait", 17 * MEBIBYTE),
            )
        }
    assert_native(refused.pop("/chat/wait"), 413, "body_too_large")
    for reply in refused.values():
        assert_openai(reply, 413, "body_too_large", "invalid_request_error", is_final=True)
    assert not service.requests


# What a proxy sends twice


def dies_or_refuses(record: RequestRecord) -> Script:
    """Serve as an instance that looks well, and gives no answer or refuses."""
    if record.path == "/ready":
        return whole(record)
    if "die" in record.path:
        return Script(before=[Reset()])
    return Script(status=503, headers={"content-type": "application/json"}, body=b"{}")


@contextmanager
def two(name: str, directory: Path) -> Iterator[tuple[Proxy, list[ScriptedUpstream]]]:
    with (
        ScriptedUpstream().by(dies_or_refuses) as one,
        ScriptedUpstream().by(dies_or_refuses) as other,
        front_of_two(name, directory, one.port, other.port) as proxy,
    ):
        if name == "haproxy":
            poll(lambda: all(service.requests for service in (one, other)), seconds=10, what="the first checks")
        yield proxy, [one, other]


def arrived(services: list[ScriptedUpstream]) -> list[RequestRecord]:
    return [record for service in services for record in service.requests if record.path != "/ready"]


def keys_of(records: list[RequestRecord]) -> set[tuple[str | None, str | None]]:
    return {(record.headers.get("idempotency-key"), record.headers.get("proxy-idempotency-key")) for record in records}


@pytest.mark.parametrize("path", [ASK, "/chat/completions?die", "/v1/chat/wait", "/chat/streaming?die"])
@pytest.mark.parametrize("name", NAMES)
def test_request_that_is_sent_twice_has_the_same_key_of_the_proxy(name: str, path: str, tmp_path: Path) -> None:
    """Never the client's header: to come back with a key means more than to send a request once. The whole request is
    sent again, also when its body came after its head. Another request gets another key."""
    body = json.dumps({"messages": "a" * 10_000}).encode()
    fields = ("Content-Type: application/json", "Proxy-Idempotency-Key: chosen-by-a-client")
    with two(name, tmp_path) as (proxy, services):
        for count in (1, 2):
            with closing(Wire("127.0.0.1", proxy.port)) as wire:
                wire.send(raw(f"POST {path} HTTP/1.1", *fields, f"Content-Length: {len(body)}"))
                poll(lambda wire=wire: is_read(proxy.port, [wire.socket]), seconds=5, what="the head is read")
                wire.send(body)
                reply = wire.read_reply("POST")
            records = arrived(services)
            assert len(records) >= 2 * count
            assert {(record.path, record.body) for record in records} == {(path, body)}
            keys = keys_of(records)
            assert len(keys) == count
            assert {own for own, _ in keys} == {None}
            assert all(len(str(key)) >= 32 for _, key in keys)
            if "die" not in path:
                assert (reply.status, reply.json) == (503, {})
            elif "completions" in path:
                assert_openai(reply, told_dead(name), "unavailable", "server_error")
            else:
                assert_native(reply, told_dead(name), "unavailable")
        assert all(arrived([service]) for service in services)


@pytest.mark.parametrize("path", [ASK, "/v1/chat/wait"])
@pytest.mark.parametrize("name", NAMES)
def test_key_of_a_client_is_left_alone(name: str, path: str, tmp_path: Path) -> None:
    own = new_key()
    with two(name, tmp_path) as (proxy, services):
        post(proxy.base_url + path, QUESTION, headers={**own, "Proxy-Idempotency-Key": "chosen-by-a-client"})
        records = arrived(services)
    assert len(records) >= 2
    assert keys_of(records) == {(own["Idempotency-Key"], None)}


def test_service_begins_once_what_a_proxy_sends_twice(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """For each client, because a key belongs to one. A client's own key counts alone."""
    upstream.always(answer(["a"]))
    question = {**QUESTION, "model": "gpt-4o-mini", "stream": True}
    of_proxy = {"Proxy-Idempotency-Key": secrets.token_hex(16)}

    def begun(headers: dict[str, str]) -> str:
        return post(chatwait.base_url + ASK, question, headers=headers).headers["x-stream-id"]

    own = new_key()
    first = begun({**KEY, **of_proxy})
    assert begun({**KEY, **of_proxy}) == first
    others = [begun({**TOKEN, **of_proxy}), begun({**KEY, **of_proxy, **own})]
    assert begun({**KEY, **own}) == others[1]
    assert len({first, *others}) == 3 == len(upstream.completions)
    odd = post(chatwait.base_url + ASK, question, headers={"Proxy-Idempotency-Key": "a" * 16})
    assert (odd.status, odd.json["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("name", NAMES)
def test_large_body_is_sent_once(name: str, tmp_path: Path) -> None:
    """What is passed on as it comes cannot be sent again. The refusal is the service's own."""
    with two(name, tmp_path) as (proxy, services):
        told = post(proxy.base_url + ASK, {"messages": "a" * MEBIBYTE})
        assert (told.status, told.json) == (503, {})
        assert len(arrived(services)) == 1
        assert_openai(
            post(f"{proxy.base_url}{ASK}?die", {"messages": "a" * MEBIBYTE}),
            told_dead(name),
            "unavailable",
            "server_error",
        )
        assert len(arrived(services)) == 2


def told_dead(name: str) -> int:
    """Tell the status for an instance that gave no answer."""
    return 503 if name == "nginx" else 502


@pytest.mark.parametrize("kind", SHIPPED)
def test_key_that_a_client_makes_for_a_proxy_is_taken_away(
    kind: str, service: ScriptedUpstream, tmp_path: Path
) -> None:
    with front(kind, tmp_path, service.port) as proxy:
        for path in (ASK, "/v1/chat/wait"):
            post(proxy.base_url + path, QUESTION, headers={"Proxy-Idempotency-Key": secrets.token_hex(16)})
            get(proxy.base_url + path, {"Proxy-Idempotency-Key": secrets.token_hex(16)})
    assert keys_of(service.requests) == {(None, None)}


# Cuts

OVER_1_0 = "nginx shipped, over HTTP/1.0"


@pytest.mark.parametrize("kind", [*KINDS, OVER_1_0])
def test_answer_that_is_cut_is_a_broken_one_for_the_client(
    kind: str, service: ScriptedUpstream, tmp_path: Path
) -> None:
    """Behind HTTP/1.0, nginx's default towards us, only a reset tells a cut from an end."""
    is_old = kind in ("nginx plain", OVER_1_0)
    sent = b'data: {"id": "x"}\nid: cwc_x.1\n\n'
    service.by(lambda _: cut_script(sent, is_old=is_old, how=Reset() if is_old else Close()))
    with (
        over(kind, tmp_path, service.port) as proxy,
        open_stream(proxy.base_url + ASK, json=QUESTION) as connection,
    ):
        pieces = connection.pieces()
        assert next(pieces) == sent
        service.open("read")
        with pytest.raises(Dropped):
            b"".join(pieces)


@pytest.mark.parametrize("kind", ["nginx plain", OVER_1_0])
def test_answer_that_is_closed_behind_http_1_0_looks_whole(
    kind: str, service: ScriptedUpstream, tmp_path: Path
) -> None:
    """So the service must reset such a connection. When this fails, nginx has become wiser."""
    service.by(lambda _: cut_script(b"data: {}\n\n", is_old=True, how=Close()))
    service.open("read")
    with over(kind, tmp_path, service.port) as proxy:
        assert post(proxy.base_url + ASK, QUESTION).body == b"data: {}\n\n"


@pytest.mark.parametrize("kind", [*KINDS, OVER_1_0])
def test_answer_that_the_service_cuts_is_a_broken_one_for_the_client(
    kind: str, chatwait: ChatWait, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Here because somebody erases it."""
    upstream.always(Script(steps=[Token("a"), Stall()]))
    question = {**QUESTION, "model": "gpt-4o-mini", "stream": True}
    with (
        over(kind, tmp_path, chatwait.port) as proxy,
        open_stream(proxy.base_url + ASK, json=question, headers={"Host": "localhost"}) as connection,
    ):
        pieces = connection.pieces()
        while b'"a"' not in next(pieces):
            pass
        stream_id = connection.headers["x-stream-id"]
        assert request("DELETE", f"{chatwait.base_url}{ASK}/{stream_id}").status == 200
        with pytest.raises(Dropped):
            b"".join(pieces)


def over(kind: str, directory: Path, port: int) -> Proxy:
    """Put such a proxy in front, also one that asks over HTTP/1.0."""
    return front(kind.partition(",")[0], directory, port, changes=HTTP_1_0 if kind == OVER_1_0 else None)


def cut_script(sent: bytes, *, is_old: bool, how: Step) -> Script:
    """Begin a stream, wait until the test has read it, and cut it."""
    if not is_old:
        return Script(headers={"x-accel-buffering": "no"}, steps=[Raw(sent), Gate("read"), how])
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Accel-Buffering: no\r\nConnection: close\r\n\r\n"
    return Script(before=[Raw(head + sent), Gate("read"), how])
