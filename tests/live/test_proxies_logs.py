"""What real proxies write down with the shipped configurations: enough for an operator, and nothing of the clients."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.document import routes
from tests.harness.net import reserve_port
from tests.harness.proxies import Proxy
from tests.harness.reader import get, open_stream, post, request
from tests.harness.server import ChatWait
from tests.harness.upstream import Script, ScriptedUpstream, Stall, Token, answer
from tests.live.fronts import NAMES, front
from tests.live.rawhttp import talk
from tests.live.steps import about, begin, cursor, log_name, poll

ROUTE = "/chat/streaming/{stream_id}"


def ask_everything(proxy: Proxy, stream_id: str, canary: Callable[[], str]) -> None:
    """Send what must stay out of the log, in every place where a client can put it."""
    url = proxy.base_url
    headers = {
        "User-Agent": canary(),
        "Referer": f"http://example.org/chat/streaming/{canary()}",
        "Cookie": f"session={canary()}",
        "Authorization": f"Bearer {canary()}",
        "Idempotency-Key": canary(),
        "Proxy-Idempotency-Key": canary(),
        "X-Request-ID": canary(),
        "X-Forwarded-For": canary(),
    }
    get(f"{url}/chat/streaming/{stream_id}?last_event_id={stream_id}.1&x={canary()}", headers)
    get(f"{url}/v1/chat/wait/{stream_id}?{canary()}", {**headers, "Prefer": "wait=0"})
    get(f"{url}/chat/streaming/{stream_id}", {**headers, **cursor(stream_id, 1)})
    post(f"{url}/chat/wait", {"message": canary()}, headers=headers)
    for method in ("GET", "DELETE"):
        for base in (url, f"{url}/v1"):
            request(method, f"{base}/chat/completions/chatcmpl-{canary()}?starting_after={canary()}", headers=headers)
            request(method, f"{base}/models/{canary()}%2F{canary()}", headers=headers)
            request(method, f"{base}/responses/{canary()}/{canary()}", headers=headers)
    get(f"{url}/v1/chat/completions/chatcmpl-{stream_id}?stream=true", headers)
    post(f"{url}/v1/chat/completions?{canary()}", {"messages": canary()}, headers=headers)
    get(f"{url}/{canary()}/{canary()}", headers)
    get(f"{url}/%63hat/streaming/{canary()}", headers)
    get(f"{url}/chat/streaming/{canary()}/{canary()}", headers)
    request(canary().upper(), f"{url}/{canary()}", headers=headers)
    for raw in (
        f"GET /{canary()}\x01 HTTP/1.1\r\n{canary()}\r\n\r\n",
        f"{canary()}\r\n\r\n",
        f"GET /{canary()} HTTP/9.9\r\n\r\n",
    ):
        talk(proxy.port, raw.encode())


@pytest.mark.parametrize("name", NAMES)
def test_log_of_a_proxy_tells_routes_and_no_ids(
    name: str, chatwait: ChatWait, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Also when the service is gone, which nginx reports with the request's first line, and for malformed requests."""
    planted: list[str] = []

    def canary() -> str:
        planted.append(f"canary-{secrets.token_hex(8)}")
        return planted[-1]

    upstream.always(answer(["a", "b"]))
    stream_id = begin(chatwait.base_url, {"message": "Hi"})
    chatwait.wait_for_log("response_complete", stream=log_name(stream_id))
    with front(f"{name} shipped", tmp_path, chatwait.port) as proxy:
        ask_everything(proxy, stream_id, canary)
        whole = get(f"{proxy.base_url}/chat/wait/{stream_id}")
        wanted = {"method": "GET", "route": "/chat/wait/{stream_id}", "status": "200"}
        wanted["correlation_id"] = whole.headers["x-correlation-id"]
        poll(lambda: bool(lines_of(proxy, wanted)), seconds=5, what="the line of the last request")
        assert lines_of(proxy, {"method": "GET", "route": ROUTE, "status": "200"})
        assert lines_of(proxy, {"method": "POST", "route": "/chat/wait", "status": "200"})
        assert lines_of(proxy, {"method": "other", "route": "other"})
        assert lines_of(proxy, {"method": "POST", "route": "/v1/chat/completions"})
        for route in ("/chat/completions/{id}", "/models/{id}"):
            for base in ("", "/v1"):
                assert lines_of(proxy, {"method": "DELETE", "route": base + route})
    down = tmp_path / "down"
    down.mkdir()
    with reserve_port(shared=False) as nobody, front(f"{name} shipped", down, nobody.getsockname()[1]) as closed:
        get(f"{closed.base_url}/v1/chat/completions/chatcmpl-{stream_id}?stream=true", {"Referer": canary()})
        get(f"{closed.base_url}/chat/streaming/{stream_id}?last_event_id={stream_id}.1", {"Referer": canary()})
        refused = {
            "route": ROUTE,
            "status": "503",
            **({"upstream_status": "502"} if name == "nginx" else {"ended": "SC"}),
        }
        poll(lambda: bool(lines_of(closed, refused)), seconds=5, what="the line of the refused request")
    for used in (proxy, closed):
        said = used.output
        assert [secret for secret in [*planted, stream_id, stream_id[3:15]] if secret.lower() in said.lower()] == []
        assert "127.0.0.1" not in said, "an address of a client"


@pytest.mark.parametrize("name", NAMES)
def test_log_of_a_proxy_tells_openais_routes_that_are_not_served(name: str, chatwait: ChatWait, tmp_path: Path) -> None:
    """So an operator sees what clients ask for in vain."""
    with front(f"{name} shipped", tmp_path, chatwait.port) as proxy:
        wanted = {base + route for base in ("", "/v1") for route in ("/completions", "/embeddings", "/responses")}
        for route in wanted:
            post(proxy.base_url + route, {})
        poll(
            lambda: wanted == {line["route"] for line in lines_of(proxy, {"method": "POST"})},
            seconds=5,
            what="every line",
        )


@pytest.mark.parametrize("name", NAMES)
def test_log_of_a_proxy_tells_every_route_of_the_contract(name: str, chatwait: ChatWait, tmp_path: Path) -> None:
    """A route that a proxy does not know is `other` in its log: nobody sees how often it is asked for."""
    wanted = {route for _, route in routes()}
    with front(f"{name} shipped", tmp_path, chatwait.port) as proxy:
        for route in wanted:
            get(proxy.base_url + re.sub(r"\{\w+\}", "cw_unknown", route))

        def unknown() -> set[str]:
            return wanted - {line.get("route", "") for line in lines_of(proxy, {"method": "GET"})}

        with contextlib.suppress(AssertionError):
            poll(lambda: not unknown(), seconds=5, what="every line")
        assert unknown() == set()
        assert not lines_of(proxy, {"route": "other"})


def lines_of(proxy: Proxy, wanted: dict[str, str]) -> list[dict[str, str]]:
    """List the lines of the log with these fields; all of them are JSON."""
    parsed = [json.loads(line) for line in proxy.log_lines()]
    return [line for line in parsed if line.items() >= wanted.items()]


@pytest.mark.parametrize(("level", "told"), [("crit", True), ("alert", False)])
def test_error_log_of_nginx_holds_ids_at_any_level_below_alert(level: str, told: bool, tmp_path: Path) -> None:
    """A socket that is not there is "crit"; so is the end of the free ports, on the busiest day."""
    changes = {
        "chatwait-error.log alert": f"chatwait-error.log {level}",
        "server 127.0.0.1:8000 ": f"server unix:{tmp_path}/none; # 127.0.0.1:8000 ",
    }
    with front("nginx shipped", tmp_path, 1, changes=changes) as proxy:
        proxy.check_output = False
        assert get(f"{proxy.base_url}/chat/streaming/cw_canary").status == 503
    assert ("cw_canary" in proxy.output) == told


@pytest.mark.parametrize("name", NAMES)
def test_log_of_a_proxy_shows_a_stream_that_was_cut(
    name: str, chatwait: ChatWait, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Every line is JSON, also that of a client that left: nginx says 499, or 200 when it had begun; haproxy CD."""
    body = about(upstream, Script(steps=[Token("a"), Stall()]))
    with front(f"{name} shipped", tmp_path, chatwait.port) as proxy:
        with open_stream(f"{proxy.base_url}/chat/streaming", json=body) as connection:
            stream_id = connection.headers["x-stream-id"]
            assert next(connection.events()).event == "start"
        poll(lambda: bool(lines_of(proxy, {"route": "/chat/streaming"})), seconds=15, what="its line")
        (line,) = lines_of(proxy, {"route": "/chat/streaming"})
        assert line["method"] == "POST"
        request("DELETE", f"{chatwait.base_url}/chat/streaming/{stream_id}")
