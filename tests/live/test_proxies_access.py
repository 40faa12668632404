"""Who may ask, and how much, decided by a real proxy in front: the options of the shipped configurations."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.ledger import RequestRecord
from tests.harness.proxies import Proxy
from tests.harness.reader import get, open_stream, post, read_answer, request
from tests.harness.server import ChatWait
from tests.harness.upstream import Script, ScriptedUpstream, Stall, Token, answer
from tests.live.fronts import NAMES, front
from tests.live.steps import about, begin, live, poll, settings
from tests.requirements import require_or_skip

PAGE = "https://page.example.org"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}
BASIC = {"Authorization": "Basic " + base64.b64encode(b"alice:open sesame").decode()}
WRONG = {"Authorization": "Basic " + base64.b64encode(b"alice:sesame").decode()}
TOKEN = {"Authorization": "Bearer let-me-in"}


@pytest.fixture(scope="module")
def chatwait(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    with ChatWait(**settings(shared_upstream, CORS_ORIGINS=PAGE)) as chatwait:
        yield chatwait


def guarded(name: str, directory: Path, port: int) -> Proxy:
    """Put a proxy in front that asks for a user name and a password, made as the configuration says."""
    openssl = shutil.which("openssl")
    require_or_skip("openssl (apt-get install openssl)", openssl is not None)
    made = subprocess.run([str(openssl), "passwd", "-5", "open sesame"], capture_output=True, check=True, timeout=30)
    hashed = made.stdout.decode().strip()
    users = directory / "users"
    users.write_text(f"alice:{hashed}\n", encoding="ascii")
    changes = {"/etc/nginx/chatwait.users": str(users)} if name == "nginx" else {"$5$change$me": hashed}
    return front(f"{name} shipped", directory, port, "basic", changes=changes)


def assert_guards(proxy: Proxy, right: dict[str, str], wrong: dict[str, str], chatwait: ChatWait) -> None:
    """Check every way in, and that a browser's preflight needs no password."""
    url = proxy.base_url
    for headers in ({}, wrong):
        assert get(f"{url}/", headers).status == 401
        assert get(f"{url}/chat/streaming/cw_x", headers).status == 401
        assert post(f"{url}/chat/wait", {"message": "Hi"}, headers=headers).status == 401
        assert request("DELETE", f"{url}/chat/streaming/cw_x", headers=headers).status == 401
    assert get(f"{url}/", right).status == 200
    assert get(f"{url}/chat/streaming/cw_x", right).json["error_code"] == "stream_unknown"
    assert read_answer(f"{url}/chat/streaming", {"message": "Hi"}, headers=right).text == "ab"
    stream_id = begin(chatwait.base_url, {"message": "Hi"})
    assert read_answer(f"{url}/chat/streaming/{stream_id}", headers=right).text == "ab"
    preflight = request("OPTIONS", f"{url}/chat/wait", headers=PREFLIGHT)
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.requirement("core assumption 3")
def test_password_in_front_is_asked_of_all_but_preflights(
    name: str, chatwait: ChatWait, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.always(answer(["a", "b"]))
    with guarded(name, tmp_path, chatwait.port) as proxy:
        assert "ChatWait" in get(proxy.base_url).headers["www-authenticate"]
        assert_guards(proxy, BASIC, WRONG, chatwait)
        assert "alice" not in "".join(proxy.log_lines())


def let_in(record: RequestRecord) -> Script:
    """Let in who has the token, in the header or in a cookie."""
    good = TOKEN["Authorization"] in record.headers.get("authorization", "") or "seat=12" in record.headers.get(
        "cookie", ""
    )
    return Script(status=204 if good else 401, body=b"")


def test_token_service_behind_nginx_decides_and_learns_no_ids(
    chatwait: ChatWait, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """A cookie is what a browser's EventSource can send; a page of another origin may send the header."""
    upstream.always(answer(["a", "b"]))
    with ScriptedUpstream().by(let_in) as tokens:
        changes = {"127.0.0.1:9000": f"127.0.0.1:{tokens.port}"}
        with front("nginx shipped", tmp_path, chatwait.port, "token", changes=changes) as proxy:
            assert_guards(proxy, TOKEN, {"Authorization": "Bearer wrong"}, chatwait)
            asked = len(tokens.requests)
            assert asked
            preflight = request("OPTIONS", f"{proxy.base_url}/chat/wait", headers=PREFLIGHT)
            assert len(tokens.requests) == asked
            assert "Authorization" in preflight.headers["access-control-allow-headers"].split(", ")
            assert "Last-Event-ID" in preflight.headers["access-control-allow-headers"].split(", ")
            cookie = {"Cookie": "seat=12", "Idempotency-Key": "canary-canary-canary", "Last-Event-ID": "cw_canary.1"}
            assert get(f"{proxy.base_url}/chat/streaming/cw_canary?last_event_id=cw_canary.1", cookie).status == 404
            assert tokens.requests[-1].headers["cookie"] == "seat=12"
            assert not any("canary" in str(request) or "cw_" in str(request) for request in tokens.requests)
    assert {request.path for request in tokens.requests} == {"/check"}


@pytest.mark.parametrize("name", NAMES)
def test_client_that_starts_too_much_is_slowed_down_and_may_read_on(
    name: str, chatwait: ChatWait, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.always(answer(["a", "b"]))
    with front(f"{name} shipped", tmp_path, chatwait.port, "limits") as proxy:
        replies = [post(f"{proxy.base_url}/chat/wait", {"message": "Hi"}) for _ in range(45)]
        assert {reply.status for reply in replies[:10]} == {200}
        (refused,) = [reply for reply in replies if reply.status != 200][-1:]
        assert (refused.status, refused.json["error_code"], refused.headers["retry-after"]) == (
            429,
            "rate_limited",
            "2",
        )
        stream_id = replies[0].headers["x-stream-id"]
        for _ in range(45):
            assert get(f"{proxy.base_url}/chat/wait/{stream_id}").status == 200
    assert len(upstream.completions) == len([reply for reply in replies if reply.status == 200])


@pytest.mark.parametrize("name", NAMES)
def test_client_with_too_many_readers_is_refused_and_let_in_again(
    name: str, chatwait: ChatWait, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    with (
        front(f"{name} shipped", tmp_path, chatwait.port, "limits") as proxy,
        live(chatwait.base_url, about(upstream, Script(steps=[Token("a"), Stall()]))) as stream_id,
    ):
        url = f"{proxy.base_url}/chat/streaming/{stream_id}"
        with ExitStack() as stack:
            statuses = [stack.enter_context(open_stream(url)).status for _ in range(22)]
            assert (set(statuses[:20]), statuses[21]) == ({200}, 429)
        poll(lambda: request("HEAD", url).status == 200, seconds=15, what="the proxy to forget them")


def test_two_instances_behind_haproxy_keep_their_clients(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """A key is changed without an interruption: the new instance gets the new clients, the old one keeps its own until
    it is stopped."""
    upstream.always(answer(["a", "b"]))
    with ChatWait(**settings(upstream)) as old, ChatWait(**settings(upstream)) as new:
        changes = {"127.0.0.1:8001": f"127.0.0.1:{new.port}"}
        with front("haproxy shipped", tmp_path, old.port, "two", changes=changes) as proxy:
            url = proxy.base_url
            first = [post(f"{url}/chat/wait", {"message": "Hi"}) for _ in range(8)]
            assert {reply.headers["set-cookie"].split(";")[0][-3:] for reply in first} == {"one", "two"}
            cookies = [{"Cookie": reply.headers["set-cookie"].split(";")[0]} for reply in first]
            for reply, cookie in zip(first, cookies, strict=True):
                again = get(f"{url}/chat/wait/{reply.json['stream_id']}", cookie)
                assert (again.status, again.json["content"]) == (200, "ab")
            proxy.stop()
            proxy.write(proxy.config.replace(" cookie one  #", " cookie one weight 0  #"))
            proxy.start()
            assert {
                post(f"{url}/chat/wait", {"message": "Hi"}).headers["set-cookie"].split(";")[0][-3:] for _ in range(6)
            } == {"two"}
            on_old = next(index for index, cookie in enumerate(cookies) if cookie["Cookie"].endswith("one"))
            stream, cookie = first[on_old].json["stream_id"], cookies[on_old]
            assert get(f"{url}/chat/wait/{stream}", cookie).status == 200
            assert old.stop() == 0
            moved = post(f"{url}/chat/wait", {"message": "Hi"}, headers=cookie)
            assert (moved.status, moved.headers["set-cookie"].split(";")[0][-3:]) == (200, "two")
            assert get(f"{url}/chat/wait/{stream}", cookie).json["error_code"] == "stream_unknown"
