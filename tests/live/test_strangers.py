"""Strangers: pages of other sites, names that lead here, guessed ids and keys. They get nothing of anybody's."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterator

import pytest

from tests.harness.contract import read_document
from tests.harness.reader import KeptAlive, Reply, get, open_stream, post, read_answer, request
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token, answer
from tests.live.rawhttp import HOST, JSON, assert_ours, assert_refused, raw, sized, statuses, talk
from tests.live.steps import about, asked, begin, live, log_name, new_key, poll, settings

LISTED = "https://chat.example.org"
UNKNOWN = "cw_" + "A" * 22


def contract_routes() -> list[tuple[str, str]]:
    """List every method and path of the contract, with and without /v1."""
    contract = read_document()
    routes = []
    for path, item in contract["paths"].items():
        prefixes = ["", "/v1"] if "servers" not in item else [""]
        routes += [(m.upper(), prefix + path) for m in item if m in ("get", "post", "delete") for prefix in prefixes]
    assert len(routes) > 15
    return routes


ROUTES = contract_routes()
PATHS = sorted({path for _, path in ROUTES})


def ask(chatwait: ChatWait, method: str, path: str, stream_id: str, headers: dict[str, str]) -> Reply:
    data = b'{"message": "Hi"}' if method == "POST" else None
    fields = {"Content-Type": "application/json", **headers} if data else headers
    return request(method, f"{chatwait.base_url}{path.replace('{stream_id}', stream_id)}", data=data, headers=fields)


# Host


FOREIGN_HOSTS = """
    evil.example evil.example:{port} localhost.evil.example 127.0.0.1.evil.example localhost@evil.example
    evil.example@localhost localhost:80:80 localhost,evil.example localhost/x localhost#x localhost. 127.0.0.1.
    127.1 2130706433 0x7f.0.0.1 0.0.0.0 ::1 [::] [::ffff:127.0.0.1] [::1].evil.example %6cocalhost *
""".split()  # noqa: SIM905 - twenty lines less


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_host_of_a_stranger_is_refused_on_every_route(
    chatwait: ChatWait, upstream: ScriptedUpstream, host: str
) -> None:
    """Strangers: DNS rebinding. The page's own origin is then the foreign host too, and no forwarded name helps."""
    named = host.format(port=chatwait.port)
    script = Script(steps=[Token("a"), Gate("on"), Token("b"), Finish(), Done()])
    with live(chatwait.base_url, about(upstream, script)) as stream_id:
        routes = ROUTES if host == "evil.example" else [("GET", "/"), ("POST", "/chat/wait"), ROUTES[-1]]
        for method, path in [*routes, ("OPTIONS", "/chat"), ("GET", "/nowhere"), ("PUT", "/chat")]:
            rebound = {"Origin": f"http://{named}", "Sec-Fetch-Site": "same-origin"}
            forwarded = {"X-Forwarded-Host": "localhost", "Forwarded": "host=localhost", "X-Host": "localhost"}
            reply = ask(chatwait, method, path, stream_id, {"Host": named, **rebound, **forwarded})
            assert_refused(reply, 400, "host_not_allowed")
            assert stream_id not in reply.body.decode()
        upstream.open("on")
        assert get(f"{chatwait.base_url}/chat/wait/{stream_id}").json["content"] == "ab"
    assert len(upstream.completions) == 1


@pytest.mark.parametrize("host", ["localhost:", "LocalHost", "[::1]", "127.0.0.1:65535", "localhost:0"])
def test_host_of_ours_is_answered_whatever_is_forwarded(chatwait: ChatWait, host: str) -> None:
    """Strangers: the other side. A proxy may have another port; a forwarded name is nobody's word."""
    forwarded = {"X-Forwarded-Host": "forwarded.example", "Forwarded": "host=forwarded.example;proto=https"}
    reply = assert_ours(get(f"{chatwait.base_url}/docs", {"Host": host, **forwarded}))
    assert reply.status == 200
    assert b"forwarded.example" not in reply.body


# Origin


FOREIGN_ORIGINS = """
    null https://evil.example http://127.0.0.1:{port}.evil.example http://127.0.0.1 http://127.0.0.1:{other}
    http://localhost:{port} http://[::1]:{port} http://127.0.0.1:{port},http://evil.example 127.0.0.1:{port}
    //127.0.0.1:{port} ftp://127.0.0.1:{port} file:// chrome-extension://abcdefgh http:// http://127.0.0.1:x
    http://127.0.0.1.:{port} http://127.0.0.1:{port}@evil.example * https://chat.example.org
    https://chat.example.org.
""".split()  # noqa: SIM905 - twenty lines less


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_origin_of_a_stranger_may_start_and_stop_nothing(
    chatwait: ChatWait, upstream: ScriptedUpstream, origin: str
) -> None:
    """Strangers. Scheme, host, port and case decide; `null` is what a sandboxed frame says."""
    named = origin.format(port=chatwait.port, other=chatwait.port ^ 1)
    for method, path in ROUTES:
        if method != "GET":
            for site in ({}, {"Sec-Fetch-Site": "same-origin"}):
                reply = ask(chatwait, method, path, UNKNOWN, {"Origin": named, **site})
                assert_refused(reply, 403, "origin_not_allowed")
    assert upstream.completions == []


@pytest.mark.parametrize("origin", ["http://127.0.0.1:{port}", "HTTP://127.0.0.1:{port}", "https://127.0.0.1:{port}"])
@pytest.mark.parametrize("site", ["same-origin", "none", "same-site", "cross-site", "nonsense"])
def test_origin_of_ours_may_start_whatever_the_site_says(
    chatwait: ChatWait, upstream: ScriptedUpstream, origin: str, site: str
) -> None:
    """Strangers: the other side. A proxy in front may speak https where we do not."""
    headers = {"Origin": origin.format(port=chatwait.port), "Sec-Fetch-Site": site}
    assert assert_ours(post(f"{chatwait.base_url}/chat/wait", {"message": "Hi"}, headers=headers)).status == 200


@pytest.fixture(scope="module")
def open_to_one(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    with ChatWait(**settings(shared_upstream, CORS_ORIGINS=LISTED)) as chatwait:
        yield chatwait


@pytest.mark.parametrize("path", PATHS)
def test_options_and_cors_of_every_route(open_to_one: ChatWait, path: str) -> None:
    """Strangers, and OPTIONS everywhere: a preflight says the same to all but for the CORS headers."""
    allowed = {method for method, other in ROUTES if other == path}
    for origin, preflight in (
        (None, None),
        (LISTED, None),
        (LISTED, "POST"),
        ("https://evil.example", "DELETE"),
        ("null", "GET"),
    ):
        headers = {"Origin": origin} if origin else {}
        headers |= {"Access-Control-Request-Method": preflight} if preflight else {}
        reply = assert_ours(ask(open_to_one, "OPTIONS", path, UNKNOWN, headers))
        assert (reply.status, reply.body) == (204, b"")
        assert set(re.split(", *", reply.headers["allow"])) == allowed | {"OPTIONS"} | (
            {"HEAD"} if "GET" in allowed else set()
        )
        assert reply.headers.get("access-control-allow-origin") == (LISTED if origin == LISTED else None)
        assert "Origin" in reply.headers["vary"]
        assert "access-control-allow-credentials" not in reply.headers
        if origin != LISTED:
            assert not [name for name in reply.headers if name.startswith("access-control-")]


def test_reading_from_another_origin_is_answered_but_not_shared(open_to_one: ChatWait) -> None:
    """Strangers: GET needs no origin, but without the header a browser shows a page nothing of the answer."""
    for method, path in ROUTES:
        if method == "GET":
            reply = ask(open_to_one, method, path, UNKNOWN, {"Origin": "https://evil.example"})
            assert not [name for name in reply.headers if name.startswith("access-control-")], path


# HEAD


SAME = ("date", "x-correlation-id", "x-request-id")


@pytest.mark.parametrize("path", PATHS)
def test_head_of_every_route_has_the_status_and_headers_of_get(
    chatwait: ChatWait, upstream: ScriptedUpstream, path: str
) -> None:
    """HEAD everywhere, of a stream that has ended and of one that is not known."""
    ended = post(f"{chatwait.base_url}/chat/wait", {"message": "Hi"}).json["stream_id"]
    for stream_id in (ended, UNKNOWN) if "{" in path else ("",):
        both = [ask(chatwait, method, path, stream_id, {"Accept": "text/html"}) for method in ("GET", "HEAD")]
        assert both[1].body == b""
        assert both[0].status == both[1].status
        # The framing of a stream's body is left out with the body.
        told = [
            {name: value for name, value in reply.headers.items() if name not in (*SAME, "transfer-encoding")}
            for reply in both
        ]
        assert told[0] == told[1]


def test_head_is_no_reader_and_the_abandoned_clock_goes_on(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream
) -> None:
    """HEAD everywhere. Asked again and again, it keeps nothing alive."""
    with ChatWait(**settings(shared_upstream, ABANDONED_SECONDS=2, MAX_READERS=1)) as chatwait:
        stream_id = begin(chatwait.base_url, about(upstream, Script(steps=[Token("a"), Gate("never")])))
        url = f"{chatwait.base_url}/v1/chat"

        def has_ended() -> bool:  # wait mode says 202 while it runs
            return [request("HEAD", f"{url}/{mode}/{stream_id}").status for mode in ("streaming", "wait")] == [200, 200]

        assert not has_ended()
        poll(has_ended, seconds=30, what="its end")
        assert get(f"{url}/wait/{stream_id}").json["reason"] == "abandoned"
        assert len(chatwait.log_of("reader_attached", stream=log_name(stream_id))) == 1, "who began it"


# Ids, keys and names of others


def test_key_of_another_that_is_guessed_short_attaches_to_nothing(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Strangers: the key is compared as a whole, and never told."""
    body, key = about(upstream, answer(["mine"])), secrets.token_urlsafe(24)
    mine = post(f"{chatwait.base_url}/chat/wait", body, headers={"Idempotency-Key": key})
    guesses = [key[:15], key[:16], key[:-1], key + "x", key.swapcase(), "*+-/" * 4, key[:16] + "%", f"{key},{key}"]
    for guess in guesses:
        for path in ("/chat/wait", "/chat/streaming"):
            reply = post(f"{chatwait.base_url}{path}", body, headers={"Idempotency-Key": guess})
            told = reply.body.decode() + repr(reply.headers)
            assert mine.json["stream_id"] not in told
            assert key not in told
            if len(guess) < 16:
                assert_refused(reply, 400, "invalid_request")
    assert len(asked(upstream, body)) == len(guesses)  # each its own generation, but for the short one: and mine
    assert key not in chatwait.output


def test_key_of_another_with_another_request_tells_nothing_of_theirs(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Strangers: 422 says that the key is used, and not for what."""
    body, key = about(upstream, answer(["their answer"]), f"their question {secrets.token_hex(8)}"), new_key()
    theirs = post(f"{chatwait.base_url}/chat/wait", body, headers=key)
    reply = assert_refused(
        post(f"{chatwait.base_url}/chat/wait", {"message": "x"}, headers=key), 422, "idempotency_key_reused"
    )
    told = reply.body.decode() + repr(reply.headers)
    for secret in (theirs.json["stream_id"], theirs.json["correlation_id"], key["Idempotency-Key"], "their"):
        assert secret not in told
    assert "x-stream-id" not in reply.headers


def test_everything_of_one_client_is_in_nothing_of_another(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Strangers: two clients on one worker, every kind of answer; the request's name is in its own lines alone."""
    about(upstream, answer(["said to Anna"]), "asked by Anna")
    anna = {"X-Request-ID": f"anna-{secrets.token_hex(8)}", **new_key()}
    first = post(f"{chatwait.base_url}/chat/wait", {"message": "asked by Anna"}, headers=anna)
    stream_id = first.json["stream_id"]
    url = f"{chatwait.base_url}/chat/streaming"
    read_answer(f"{url}/{stream_id}", headers={"X-Request-ID": anna["X-Request-ID"]})
    named = {"request_id": anna["X-Request-ID"]}
    poll(lambda: len(chatwait.log_of("request_received", **named)) == 2, seconds=10, what="both of Anna's lines")
    its_lines = {line["correlation_id"] for line in chatwait.log_of("request_received", **named)}

    bert = {"X-Request-ID": f"bert-{secrets.token_hex(8)}"}
    with open_stream(url, json={"message": "by Bert"}, headers={**bert, **new_key()}) as connection:
        streamed = connection.reply()
    replies = [
        streamed,
        post(f"{chatwait.base_url}/chat/wait", {"message": "by Bert"}, headers=bert),
        post(f"{chatwait.base_url}/chat/wait", {"message": ""}, headers=bert),
        *(
            get(f"{chatwait.base_url}{path}", bert)
            for path in ("/", "/models", "/ready", "/health", "/docs", "/nowhere")
        ),
        *(request(method, f"{url}/{stream_id[:-1]}", headers=bert) for method in ("GET", "DELETE", "HEAD", "OPTIONS")),
        get(f"{url}/{UNKNOWN}", {**bert, "Last-Event-ID": f"{stream_id[:12]}.0"}),
    ]
    hers = [stream_id, *its_lines, *anna.values(), "Anna", first.json["sha256"], log_name(stream_id)]
    for reply in replies:
        told = reply.body.decode() + repr(reply.headers)
        assert [secret for secret in hers if secret in told] == []
        assert bert["X-Request-ID"] not in told  # it is for the log
    assert len(its_lines) == 2
    chatwait.wait_for_log("request_received", correlation_id=replies[-1].headers["x-correlation-id"])
    for line in chatwait.lines:
        assert stream_id not in line
        assert anna["Idempotency-Key"] not in line
        if anna["X-Request-ID"] in line:
            assert json.loads(line)["correlation_id"] in its_lines


ALPHABET = string.ascii_letters + string.digits + "_-"


def guessed(like: str) -> list[str]:
    """Guess ids: at random, and near to one that is."""
    near = ["A" if like[-1] != "A" else "B", ""]
    return [
        *("cw_" + "".join(secrets.choice(ALPHABET) for _ in range(len(like) - 3)) for _ in range(3)),
        *(like[:-1] + end for end in near), like + "A", like.swapcase(), like[3:], like + "%00",
        like + ".0", log_name(like),
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_id_that_is_guessed_gets_one_answer_however_near_it_is(
    chatwait: ChatWait, upstream: ScriptedUpstream, method: str
) -> None:
    """Strangers: nothing tells a near guess from a far one, nor a stream that runs from none."""
    with live(chatwait.base_url, about(upstream, Script(steps=[Token("a"), Gate("never")]))) as stream_id:
        seen = set()
        for mode in ("wait", "streaming"):
            for guess in guessed(stream_id):
                reply = assert_ours(request(method, f"{chatwait.base_url}/chat/{mode}/{guess}"))
                headers = sorted((name, value) for name, value in reply.headers.items() if name not in SAME)
                body = reply.body.replace(reply.headers["x-correlation-id"].encode(), b"")
                seen.add((reply.status, str(headers), body))
        assert len(seen) == 1
        assert next(iter(seen))[0] == 404
        running = get(f"{chatwait.base_url}/chat/wait/{stream_id}", {"Prefer": "wait=0"})
        assert running.status == 202  # what was guessed at is as it was


def test_methods_of_no_route_answer_nobody(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Strangers, and methods everywhere: what is not in the contract is 405 with what is."""
    with KeptAlive(HOST, chatwait.port) as kept:
        for path in PATHS:
            allowed = {method for method, other in ROUTES if other == path}
            for method in ("PUT", "PATCH", "TRACE", "PROPFIND", "LINK", *({"GET", "POST", "DELETE"} - allowed)):
                reply = kept.request(method, path.replace("{stream_id}", UNKNOWN), headers={"Cookie": "secret=1"})
                assert_refused(reply, 405, "method_not_allowed")
                assert allowed <= set(re.split(", *", reply.headers["allow"]))
                assert b"secret" not in reply.body
    assert upstream.completions == []


def test_target_that_names_the_host_is_judged_for_host_and_origin(chatwait: ChatWait) -> None:
    """RFC 9112, 3.2.2: then the header does not count, for whose page it is neither."""
    body = b'{"message": "Hi"}'
    target = f"http://localhost:{chatwait.port}/chat/wait"
    own = sized(f"POST {target} HTTP/1.1", JSON, "Origin: http://evil.example", body=body)
    foreign = own.replace(b"Host: localhost", b"Host: evil.example")
    root = raw(f"GET http://localhost:{chatwait.port} HTTP/1.1", host="evil.example")

    for asking in (own, foreign):
        received = talk(chatwait.port, asking)
        assert statuses(received) == [403]
        assert b"origin_not_allowed" in received
    assert statuses(talk(chatwait.port, root)) == [200], "the start page, and no way to another host"
