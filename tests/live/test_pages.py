"""The pages and what they load, over the wire: types, caching, policies, packing; and nothing else is there."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from tests.harness.reader import Reply, get, request
from tests.harness.scripts import as_sent
from tests.harness.server import ROOT, ChatWait
from tests.harness.upstream import ScriptedUpstream
from tests.live.rawhttp import HOST, assert_refused, raw, statuses, talk
from tests.live.steps import settings

STATIC = ROOT / "app" / "static"
ASSETS = sorted(path.name for path in (STATIC / "assets").iterdir())
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
LISTED = "https://chat.example.org"
CHAT_POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "connect-src 'self'",
    "worker-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types chatwait-worker",
}
DOCS_POLICY = {policy for policy in CHAT_POLICY if not re.match("(script|connect|worker)-src|.*trusted-types", policy)}
WORKER_POLICY = {policy for policy in CHAT_POLICY if not re.match("[^d].*-src|trusted", policy)}
WORKER_POLICY |= {"connect-src 'self'", "trusted-types 'none'"}


def prefix_of(chatwait: ChatWait) -> str:
    """Give the address below which the assets are, as the page for people says it."""
    (prefix,) = set(re.findall(rb'"(/assets/[0-9a-f]{16})/', get(f"{chatwait.base_url}/docs").body))
    return str(prefix.decode())


def policy_of(reply: Reply) -> list[str]:
    assert len(reply.headers.get_all("content-security-policy")) == 1
    return [part.strip() for part in reply.headers["content-security-policy"].split(";")]


@pytest.mark.parametrize(("path", "policy"), [("/", CHAT_POLICY), ("/docs", DOCS_POLICY)])
def test_page_comes_under_its_policy_and_is_asked_for_each_time(
    chatwait: ChatWait, path: str, policy: set[str]
) -> None:
    reply = get(f"{chatwait.base_url}{path}", {"Accept-Encoding": "gzip, br"})

    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert sorted(policy_of(reply)) == sorted(policy)
    assert b"{{assets}}" not in reply.body


def test_chat_is_marked_as_this_services_page_and_nothing_else_is(chatwait: ChatWait) -> None:
    """Its worker must not take another program's page for it."""
    marked = {path: get(f"{chatwait.base_url}{path}").headers.get("x-chatwait") for path in ("/", "/docs", "/sw.js")}

    assert marked == {"/": "page", "/docs": None, "/sw.js": None}


def test_worker_knows_its_versions_files_and_comes_under_a_policy_of_its_own(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    url = f"{chatwait.base_url}/sw.js"
    reply, packed = get(url), get(url, {"Accept-Encoding": "gzip"})

    assert (reply.status, reply.headers["content-type"]) == (200, TYPES[".js"])
    assert reply.headers["cache-control"] == "no-cache"
    assert sorted(policy_of(reply)) == sorted(WORKER_POLICY)
    assert gzip.decompress(packed.body) == reply.body
    assert f'"{prefix_of(chatwait)}"'.encode() in reply.body
    assert f'"{" ".join(ASSETS)}"'.encode() in reply.body
    assert b"{{" not in reply.body
    assert_refused(request("POST", url), 405, "method_not_allowed")
    assert request("OPTIONS", url).status == 204
    with ChatWait(**settings(upstream)) as other:
        assert get(f"{other.base_url}/sw.js").body == reply.body


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_page_is_apart_from_who_opened_it_where_the_browser_takes_the_origin_for_safe(
    chatwait: ChatWait, path: str
) -> None:
    """A browser sends Sec-Fetch-* over https and to localhost; elsewhere the header would be an error to it."""
    safe = get(f"{chatwait.base_url}{path}", {"Sec-Fetch-Dest": "document"})

    assert safe.headers["cross-origin-opener-policy"] == "same-origin"
    assert "cross-origin-opener-policy" not in get(f"{chatwait.base_url}{path}").headers


def test_what_is_no_page_may_load_nothing(chatwait: ChatWait) -> None:
    paths = ("/openapi.yaml", "/models", "/health", "/nowhere", f"{prefix_of(chatwait)}/docs.css", "/assets/0/x.js")
    for path in paths:
        reply = get(f"{chatwait.base_url}{path}")
        assert policy_of(reply) == ["default-src 'none'", "frame-ancestors 'none'"], path
        assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ASSETS)
def test_asset_is_the_file_with_its_type_and_may_be_kept_for_ever(chatwait: ChatWait, name: str) -> None:
    url = f"{chatwait.base_url}{prefix_of(chatwait)}/{name}"
    reply, head = get(url), request("HEAD", url)

    body = (STATIC / "assets" / name).read_bytes()
    assert (reply.status, reply.body) == (200, as_sent(body.decode()).encode() if name.endswith(".js") else body)
    assert reply.headers["content-type"] == TYPES[Path(name).suffix]
    assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert reply.headers["vary"] == "Accept-Encoding"
    assert "content-encoding" not in reply.headers
    assert (head.status, head.body) == (200, b"")
    varying = ("date", "x-correlation-id")
    assert [pair for pair in head.headers.pairs if pair[0].lower() not in varying] == [
        pair for pair in reply.headers.pairs if pair[0].lower() not in varying
    ]


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("br;q=1.0, GZIP;q=0.001", True),
        ("*", True),
        ("identity", False),
        ("", False),
        ("br, zstd", False),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("*;q=0", False),
        ("x-gzip-2", False),
        ("br, " * 1000 + "gzip", False),  # read for 2,000 characters
    ],
)
def test_asset_is_packed_for_who_takes_it_and_only_then(chatwait: ChatWait, accepted: str, packed: bool) -> None:
    url = f"{chatwait.base_url}{prefix_of(chatwait)}/docs.css"
    reply = get(url, {"Accept-Encoding": accepted})
    head = request("HEAD", url, headers={"Accept-Encoding": accepted})
    plain = (STATIC / "assets" / "docs.css").read_bytes()

    assert reply.headers["vary"] == "Accept-Encoding"
    assert reply.headers.get("content-encoding") == head.headers.get("content-encoding") == ("gzip" if packed else None)
    assert (gzip.decompress(reply.body) if packed else reply.body) == plain
    assert (len(reply.body) < len(plain)) is packed
    assert (int(head.headers["content-length"]), head.body) == (len(reply.body), b"")


@pytest.mark.parametrize("name", ["docs.css/", "docs.css%00", "docs.css%0a", "DOCS.CSS", "docs", "", ".", "none.js"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_name_that_is_no_asset_is_not_found(chatwait: ChatWait, name: str, method: str) -> None:
    reply = request(method, f"{chatwait.base_url}{prefix_of(chatwait)}/{name}")

    assert (reply.status, reply.headers["cache-control"]) == (404, "no-store")
    if method == "GET":
        assert_refused(reply, 404, "not_found")


def test_asset_of_another_tree_is_not_found_and_not_kept(chatwait: ChatWait) -> None:
    """A page of an older version must not get a newer one's modules under an address that is kept for a year."""
    prefix = prefix_of(chatwait)
    others = ["0" * 16, prefix[-16:-1], prefix[-16:] + "0", prefix[-16:].upper() + "A", "docs.css", ".."]
    for other in others:
        assert_refused(get(f"{chatwait.base_url}/assets/{other}/docs.css"), 404, "not_found")


OUTSIDE = ["../index.html", "../docs.html", "../../config.py", "../../../wsgi.py", "..", "assets/docs.css", "/docs.css"]
OUTSIDE += ["..%2findex.html", "%2e%2e/index.html", "..%5cindex.html", "..\\index.html", "%252e%252e%252findex.html"]
OUTSIDE += ["....//index.html", "%2fetc%2fpasswd", "/etc/passwd", "docs.css/../../index.html", "./docs.css"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_path_out_of_the_tree_is_not_found(chatwait: ChatWait, name: str) -> None:
    received = talk(chatwait.port, raw(f"GET {prefix_of(chatwait)}/{name} HTTP/1.1", "Connection: close"))

    assert statuses(received) == [404]
    assert b'"not_found"' in received


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_asset_can_only_be_read(chatwait: ChatWait, method: str) -> None:
    url = f"{chatwait.base_url}{prefix_of(chatwait)}/docs.css"
    reply = request(method, url)

    assert_refused(reply, 405, "method_not_allowed")
    assert set(reply.headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert request("OPTIONS", url).status == 204


def test_address_is_the_same_in_every_process_of_one_version_and_varies_by_origin_where_pages_are_listed(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    with ChatWait(**settings(upstream, CORS_ORIGINS=LISTED, WORKERS="1")) as other:
        assert prefix_of(other) == prefix_of(chatwait)
        reply = get(f"{other.base_url}{prefix_of(other)}/docs.css", {"Origin": LISTED})

    assert {name.strip() for name in reply.headers["vary"].split(",")} == {"Accept-Encoding", "Origin"}
    assert reply.headers["access-control-allow-origin"] == LISTED


def test_host_of_a_stranger_gets_no_asset(chatwait: ChatWait) -> None:
    reply = get(f"http://{HOST}:{chatwait.port}{prefix_of(chatwait)}/docs.css", {"Host": "evil.example"})

    assert_refused(reply, 400, "host_not_allowed")
