"""What is no stream through real proxies: every answer of ours as it is, and the proxy's own in the same shape."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.certificates import make_certificate
from tests.harness.net import reserve_port
from tests.harness.proxies import Proxy
from tests.harness.reader import get, post, read_resuming, request
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token, answer, error
from tests.live.fronts import KINDS, NAMES, both, front, need
from tests.live.rawhttp import send_anything
from tests.live.steps import about, asked, cursor, live, new_key, poll, settings
from tests.requirements import require_or_skip

MEBIBYTE = 1 << 20
OURS = {"error_code", "message", "detail", "action", "correlation_id", "origin", "retryable"}
"""What every error says."""
SHIPPED = [f"{name} shipped" for name in NAMES]


@pytest.fixture(params=KINDS)
def through(request: pytest.FixtureRequest, chatwait: ChatWait, tmp_path: Path) -> Iterator[Proxy]:
    with front(request.param, tmp_path, chatwait.port) as proxy:
        yield proxy


@pytest.fixture(params=SHIPPED)
def shipped(request: pytest.FixtureRequest, chatwait: ChatWait, tmp_path: Path) -> Iterator[Proxy]:
    with front(request.param, tmp_path, chatwait.port) as proxy:
        yield proxy


def test_answers_without_a_body_pass_a_proxy(through: Proxy, upstream: ScriptedUpstream) -> None:
    """HEAD, the 204 after the end, and the 202 with its Location."""
    body = about(upstream, Script(steps=[Token("a"), Gate("on"), Finish(), Done()]))
    first = post(f"{through.base_url}/v1/chat/wait", body, headers={"Prefer": "wait=0"})
    assert (first.status, first.headers["preference-applied"]) == (202, "wait=0")
    stream_id = first.json["stream_id"]
    assert first.headers["location"] == f"/v1/chat/wait/{stream_id}"
    head = request("HEAD", f"{through.base_url}/chat/streaming/{stream_id}")
    assert (head.status, head.headers["x-stream-id"], head.body) == (200, stream_id, b"")
    upstream.open("on")
    whole = get(f"{through.base_url}{first.headers['location']}")
    assert (whole.status, whole.json["content"]) == (200, "a")
    ended = get(f"{through.base_url}/chat/streaming/{stream_id}", cursor(stream_id, 2))
    assert (ended.status, ended.body, ended.headers["x-stream-id"]) == (204, b"", stream_id)


def test_errors_of_ours_pass_a_proxy_as_they_are(through: Proxy, upstream: ScriptedUpstream) -> None:
    """Also a 502 of ours, which a proxy might take for its own."""
    url = through.base_url
    upstream.always(error(401))
    refused = [
        (404, "not_found", get(f"{url}/nothing")),
        (404, "stream_unknown", get(f"{url}/chat/streaming/cw_unknown")),
        (502, "upstream_auth_failed", post(f"{url}/chat/wait", {"message": "Hi"})),
        (405, "method_not_allowed", request("PUT", f"{url}/chat/wait")),
        (400, "message_empty", post(f"{url}/chat/wait", {"message": ""})),
        (415, "unsupported_media_type", post(f"{url}/chat/wait", data=b"hi", headers={"Content-Type": "text/plain"})),
    ]
    for status, code, reply in refused:
        assert (reply.status, reply.json["error_code"]) == (status, code)
        assert reply.json["correlation_id"] == reply.headers["x-correlation-id"]
    assert "POST" in refused[3][2].headers["allow"]


@pytest.mark.parametrize("size", [MEBIBYTE + 1, 6 * MEBIBYTE])
def test_body_that_is_too_large_is_refused_by_us_behind_the_shipped_configuration(shipped: Proxy, size: int) -> None:
    refused = post(f"{shipped.base_url}/chat/wait", {"message": "a" * size}, timeout=30)
    assert (refused.status, refused.json["error_code"]) == (413, "body_too_large")
    assert refused.json["correlation_id"] == refused.headers["x-correlation-id"]


def test_body_that_is_too_large_for_nginx_too_is_refused_in_our_shape(chatwait: ChatWait, tmp_path: Path) -> None:
    changes = {"client_max_body_size 16m": "client_max_body_size 1k"}
    with front("nginx shipped", tmp_path, chatwait.port, changes=changes) as proxy:
        refused = post(f"{proxy.base_url}/chat/wait", {"message": "a" * 5000})
        assert (refused.status, refused.json["error_code"], "x-correlation-id" in refused.headers) == (
            413,
            "body_too_large",
            False,
        )
        assert refused.json.keys() >= OURS


@pytest.mark.parametrize("buffer", ["8k", "1m"])
def test_largest_body_goes_through_nginx_without_touching_its_disk(
    chatwait: ChatWait, tmp_path: Path, buffer: str
) -> None:
    """nginx warns when it writes a body to a file; with the shipped buffer, no message gets there."""
    body = {"message": "a", "context": [{"role": "user", "content": "b" * 1_048_000}]}
    assert MEBIBYTE - 1000 < len(json.dumps(body)) <= MEBIBYTE
    changes = {"chatwait-error.log alert": "chatwait-error.log warn", "buffer_size 1m": f"buffer_size {buffer}"}
    with front("nginx shipped", tmp_path, chatwait.port, changes=changes) as proxy:
        proxy.check_output = False
        refused = post(f"{proxy.base_url}/chat/wait", body, timeout=30)
        assert refused.json["error_code"] in ("context_too_long", "invalid_request")
    assert ("is buffered to a temporary file" in proxy.output) == (buffer == "8k")


def test_host_and_origin_arrive_as_the_client_sent_them(through: Proxy, upstream: ScriptedUpstream) -> None:
    """By default nginx puts the service's own address in the place of the host, and a page's POST looks foreign."""
    replaced = through.kind == "nginx plain"
    upstream.always(answer(["a"]))
    strange = get(f"{through.base_url}/models", {"Host": "evil.example"})
    assert strange.status == (200 if replaced else 400)
    page = {"Origin": f"http://127.0.0.1:{through.port}"}
    asked_by_page = post(f"{through.base_url}/chat/wait", {"message": "Hi"}, headers=page)
    assert asked_by_page.status == (403 if replaced else 200)


def test_headers_that_only_a_proxy_should_set_change_nothing(through: Proxy) -> None:
    """A proxy on the service's own machine is not believed either: it may pass any client's headers on."""
    for headers in ({"SCRIPT_NAME": "/x"}, {"X-Forwarded-Proto": "http", "X-Forwarded-Ssl": "on"}):
        assert get(f"{through.base_url}/health", headers).status == 200


SECRETS = {
    "Authorization": "Basic canary-1",
    "Cookie": "session=canary-2",
    "X-Forwarded-For": "canary-3",
    "SCRIPT_NAME": "/canary-4",
}


@pytest.mark.parametrize("kind", SHIPPED)
def test_what_let_a_client_in_is_not_passed_on(kind: str, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """A scripted server in the service's place tells what arrives."""
    with front(kind, tmp_path, upstream.port) as proxy:
        kept = {"Last-Event-ID": "cw_x.5", "Idempotency-Key": "k" * 20, "Prefer": "wait=3", "X-Request-ID": "mine"}
        told = post(f"{proxy.base_url}/v1/chat/completions", {"message": "Hi"}, headers={**SECRETS, **kept})
        assert told.status == 200
        (record,) = upstream.completions
        assert record.headers.pop("authorization") == SECRETS["Authorization"], "OpenAI's routes need it"
        assert "canary" not in json.dumps(record.headers)
        assert {name: record.headers[name.lower()] for name in kept} == kept
        assert record.headers["host"] == f"127.0.0.1:{proxy.port}"
        post(f"{proxy.base_url}/v1/chat/wait", {"message": "Hi"}, headers=SECRETS)
        assert "canary" not in json.dumps(upstream.requests[-1].headers)


@pytest.mark.parametrize("kind", SHIPPED)
def test_proxy_says_in_our_shape_that_the_service_is_down(kind: str, tmp_path: Path) -> None:
    with reserve_port(shared=False) as nobody, front(kind, tmp_path, nobody.getsockname()[1]) as proxy:
        told = post(f"{proxy.base_url}/chat/wait", {"message": "Hi"})
    assert (told.status, told.headers["retry-after"], told.headers["cache-control"]) == (503, "2", "no-store")
    assert told.json.keys() >= OURS
    assert (told.json["error_code"], told.json["retryable"], told.json["retry_after_seconds"]) == (
        "unavailable",
        True,
        2,
    )


def test_client_that_asks_while_the_service_is_down_is_answered_when_it_is_back(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """What the proxies say in its place tells a client to come again, and when."""
    need(*NAMES)
    service = ChatWait(**settings(upstream))
    with (
        both(tmp_path, service.port) as (nginx, haproxy),
        ThreadPoolExecutor(2) as pool,
    ):
        asking = [
            pool.submit(read_resuming, proxy.base_url, json={"message": "Hi"}, max_attempts=60)
            for proxy in (nginx, haproxy)
        ]
        for proxy in (nginx, haproxy):
            poll(lambda proxy=proxy: '"503"' in proxy.output, seconds=15, what="a refusal")
        with service:
            answers = [future.result(60) for future in asking]
    assert [got.text for got in answers] == ["Hello, world."] * 2
    assert all("answered 503" in got.drops for got in answers)
    assert len(upstream.completions) == 2


@pytest.mark.parametrize("kind", SHIPPED)
def test_wait_that_a_proxy_ends_is_taken_up_again_with_the_same_key(
    kind: str, chatwait: ChatWait, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    body, key = about(upstream, Script(steps=[Token("a"), Gate("on"), Token("b"), Finish(), Done()])), new_key()
    changes = {"630s": "1s"}
    with front(kind, tmp_path, chatwait.port, changes=changes) as proxy:
        url = f"{proxy.base_url}/chat/wait"
        late = post(url, body, headers=key)
        assert (late.status, late.json["error_code"], late.json["retryable"]) == (504, "wait_timeout", True)
        assert late.json.keys() >= OURS
        upstream.open("on")
        again = post(url, body, headers=key)
        assert (again.status, again.json["content"]) == (200, "ab")
    assert len(asked(upstream, body)) == 1


def test_path_prefix_works_for_programs_when_nginx_rewrites_location(
    chatwait: ChatWait, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    there = "    location /talk/ {\n        proxy_redirect / /talk/;\n        proxy_pass http://chatwait/;"
    changes = {"    location / {\n        proxy_pass http://chatwait;": there}
    with (
        front("nginx shipped", tmp_path, chatwait.port, changes=changes) as proxy,
        live(chatwait.base_url, about(upstream, Script(steps=[Token("a"), Gate("on"), Finish(), Done()]))) as stream_id,
    ):
        waited = get(f"{proxy.base_url}/talk/chat/wait/{stream_id}", {"Prefer": "wait=0"})
        assert waited.status == 202
        assert waited.headers["location"].endswith(f"/talk/v1/chat/wait/{stream_id}")
        upstream.open("on")
        assert get(f"{proxy.base_url}/talk/v1/chat/wait/{stream_id}").json["content"] == "a"


@pytest.mark.parametrize("kind", SHIPPED)
@pytest.mark.requirement("core assumption 1")
def test_stream_over_tls_and_http_2_is_passed_on_token_by_token(
    kind: str, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """With the name and the port that a browser sees: the page's POST must not pass for a foreign one."""
    curl = shutil.which("curl")
    require_or_skip("curl (apt-get install curl)", curl is not None)
    made = make_certificate(tmp_path, "DNS:chat.example.org")
    body = about(upstream, Script(steps=[Token("one"), Gate("on"), Token("two"), Finish(), Done()]))
    with (
        reserve_port(shared=False) as secure,
        ChatWait(**settings(upstream, ALLOWED_HOSTS="chat.example.org,127.0.0.1")) as chatwait,
    ):
        port = secure.getsockname()[1]
        if kind.startswith("nginx"):
            changes = {
                "listen 443 ": f"listen 127.0.0.1:{port} ",
                "/etc/ssl/certs/chatwait.pem": str(made.public),
                "/etc/ssl/private/chatwait.key": str(made.private),
            }
        else:
            changes = {"bind :443 ": f"bind 127.0.0.1:{port} ", "/etc/haproxy/chatwait.pem": str(made.both)}
        with front(kind, tmp_path, chatwait.port, "tls", changes=changes) as proxy:
            insecure = request("POST", f"{proxy.base_url}/chat/wait", json=body, headers={"Host": "chat.example.org"})
            assert (insecure.status, insecure.headers["location"]) == (308, "https://chat.example.org/chat/wait")
            origin = f"https://chat.example.org:{port}"
            command = [str(curl), "-sN", "--http2", "--insecure", "--max-time", "30", "-w", "%{http_version}"]
            command += ["--resolve", f"chat.example.org:{port}:127.0.0.1", "-H", "Content-Type: application/json"]
            command += ["-H", f"Origin: {origin}", "-d", json.dumps(body), f"{origin}/chat/streaming"]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as reading:
                assert reading.stdout is not None
                lines = []
                while not (lines and '"content":"one"' in lines[-1]):
                    lines.append(reading.stdout.readline().decode())
                    assert lines[-1], lines
                upstream.open("on")
                rest = reading.stdout.read().decode()
            assert rest.endswith("\n\n2"), rest
            assert "event: done" in rest
            assert len(asked(upstream, body)) == 1
            send_anything(port, b"no handshake\r\n\r\n")
            poll(lambda: len(proxy.log_lines()) >= 3, seconds=5, what="the line of the failed handshake")
            assert "127.0.0.1" not in proxy.output
