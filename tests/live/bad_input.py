"""The rows of bad input: what is sent, and what becomes of it."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass

from tests.live.rawhttp import CHUNKED, JSON, chunks, raw, sized

CANARY = "KilrogCanary"
GOOD = json.dumps({"message": CANARY}).encode()
WAIT = "POST /chat/wait HTTP/1.1"
HEALTH = raw("GET /health HTTP/1.1")


@dataclass(frozen=True)
class Row:
    """A request, and what becomes of it: our `code`, or the server's own answer, or none of an error."""

    data: bytes
    status: int
    code: str | None = None
    closes: bool = False


def json_body(text: str | bytes, *fields: str) -> bytes:
    return sized(WAIT, *(fields or (JSON,)), body=text.encode() if isinstance(text, str) else text)


def values(number: int) -> bytes:
    return json.dumps({"message": CANARY, **{f"{CANARY}{index}": index for index in range(number)}}).encode()


BODIES = {
    "a byte order mark": Row(json_body(b"\xef\xbb\xbf" + GOOD), 400, "invalid_json"),
    "UTF-16, declared": Row(json_body(GOOD.decode().encode("utf-16"), f"{JSON}; charset=utf-16"), 400, "invalid_json"),
    "UTF-32": Row(json_body(GOOD.decode().encode("utf-32")), 400, "invalid_json"),
    "UTF-7 and Latin-1": Row(json_body(f'{{"message": "{CANARY} \xe9"}}'.encode("latin-1")), 400, "invalid_json"),
    "overlong UTF-8": Row(json_body(b'{"message": "' + CANARY.encode() + b'\xc0\xaf"}'), 400, "invalid_json"),
    "a surrogate as UTF-8": Row(json_body(b'{"message": "' + CANARY.encode() + b'\xed\xa0\x80"}'), 400, "invalid_json"),
    "a NUL in a string": Row(json_body(f'{{"message": "{CANARY}\0"}}'), 400, "invalid_json"),
    "a NUL at the end": Row(json_body(GOOD + b"\0"), 400, "invalid_json"),
    "a line end in a string": Row(json_body(f'{{"message": "{CANARY}\r\n"}}'), 400, "invalid_json"),
    "a comment": Row(json_body(GOOD + b"// " + CANARY.encode()), 400, "invalid_json"),
    "JSON lines": Row(json_body(GOOD + b"\n" + GOOD), 400, "invalid_json"),
    "an answer of an event stream": Row(json_body(b"data: " + GOOD + b"\n\n"), 400, "invalid_json"),
    "XML": Row(json_body(f"<message>{CANARY}</message>"), 400, "invalid_json"),
    "objects in objects": Row(json_body('{"message":' * 50_000 + f'"{CANARY}"' + "}" * 50_000), 400, "invalid_json"),
    "many fields": Row(json_body(values(500)), 400, "invalid_request"),
    "very many fields": Row(json_body(values(20_000)), 400, "invalid_request"),
    "many long numbers": Row(
        json_body(f'{{"message": "{CANARY}", "x": [{"9" * 4000}, {"9" * 4000}, {"9" * 4000}]}}'), 400, "invalid_json"
    ),
    "empty lists": Row(
        json_body('{"message": "' + CANARY + '", "context": [' + "[]," * 100_000 + "[]]}"), 400, "invalid_request"
    ),
    "a prototype": Row(
        json_body(f'{{"message": "{CANARY}", "__proto__": {{}}, "__class__": "x"}}'), 400, "invalid_request"
    ),
    "a template": Row(json_body(f'{{"message": "{CANARY}", "{{{{7*7}}}}${{7*7}}": 1}}'), 400, "invalid_request"),
    "a form": Row(
        json_body(f"message={CANARY}", "Content-Type: application/x-www-form-urlencoded"), 415, "unsupported_media_type"
    ),
    "a form with files": Row(
        json_body(
            f'--b\r\nContent-Disposition: form-data; name="message"\r\n\r\n{CANARY}\r\n--b--',
            "Content-Type: multipart/form-data; boundary=b",
        ),
        415,
        "unsupported_media_type",
    ),
    "JSON lines, declared": Row(json_body(GOOD, "Content-Type: application/jsonl"), 415, "unsupported_media_type"),
    "two types in one": Row(
        json_body(GOOD, "Content-Type: text/plain, application/json"), 415, "unsupported_media_type"
    ),
    "gzip": Row(json_body(gzip.compress(GOOD), JSON, "Content-Encoding: gzip"), 415, "unsupported_media_type"),
    "gzip of nothing": Row(json_body(b"", JSON, "Content-Encoding: gzip"), 415, "unsupported_media_type"),
    "gzip only in name": Row(json_body(GOOD, JSON, "Content-Encoding: GZIP"), 415, "unsupported_media_type"),
    "encoded twice": Row(json_body(GOOD, JSON, "Content-Encoding: identity, br"), 415, "unsupported_media_type"),
    "gzip, undeclared": Row(json_body(gzip.compress(GOOD)), 400, "invalid_json"),
}


def chunked(body: bytes, coding: str = CHUNKED, *, code: str = "invalid_json") -> Row:
    return Row(raw(WAIT, JSON, coding, body=body), 400, code, closes=True)


CHUNKS = {
    "crumbs": chunked(chunks(*[b" "] * 30_000), code="invalid_request"),
    "a hexadecimal prefix": chunked(b"0x2\r\n{}\r\n0\r\n\r\n"),
    "a plus": chunked(b"+2\r\n{}\r\n0\r\n\r\n"),
    "an underscore": chunked(b"0_2\r\n{}\r\n0\r\n\r\n"),
    "a bare LF": chunked(b"2\n{}\r\n0\r\n\r\n"),
    "a bare LF in an extension": chunked(b"2;a\n{}\r\n0\r\n\r\n"),
    "an endless extension": chunked(b"2;" + b"a" * 50_000),
    "no CRLF after a chunk": chunked(b"2\r\n{}xx0\r\n\r\n"),
    "a length in the trailers": chunked(b"2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n"),
    "a host in the trailers": chunked(b"2\r\n{}\r\n0\r\nHost: evil.example\r\n\r\n"),
    "endless trailers": chunked(b"2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 50_000),
    "gzip under the chunks": chunked(chunks(gzip.compress(GOOD)), "Transfer-Encoding: gzip, chunked"),
}


def doubtful(*fields: str, body: bytes = b"{}", status: int = 400) -> Row:
    return Row(raw(WAIT, JSON, *fields, body=body), status, closes=True)


SMUGGLING = {
    "two lengths alike": doubtful("Content-Length: 2", "Content-Length: 2"),
    "a list of lengths": doubtful("Content-Length: 2, 2"),
    "a hexadecimal length": doubtful("Content-Length: 0x2"),
    "a length with an underscore": doubtful("Content-Length: 1_0"),
    "a length of other digits": doubtful("Content-Length: \xb2"),
    "a length of nothing": doubtful("Content-Length: "),
    "a space before the colon": doubtful("Content-Length : 2"),
    "chunked and a length": doubtful(CHUNKED, "Content-Length: 2", body=chunks(b"{}")),
    "a length and chunked": doubtful("Content-Length: 2", CHUNKED, body=chunks(b"{}")),
    "chunked with a space before": doubtful("Transfer-Encoding : chunked", body=chunks(b"{}")),
    "chunked with a control": doubtful("Transfer-Encoding: \x0bchunked", body=chunks(b"{}")),
    "chunked twice": doubtful(CHUNKED, CHUNKED, body=chunks(b"{}")),
    "chunked, then identity": doubtful(CHUNKED, "Transfer-Encoding: identity", body=chunks(b"{}")),
    "identity": doubtful("Transfer-Encoding: identity"),
    "another coding": doubtful("Transfer-Encoding: xchunked", body=chunks(b"{}"), status=501),
    "quoted chunked": doubtful('Transfer-Encoding: "chunked"', body=chunks(b"{}"), status=501),
    "chunked in HTTP/1.0": Row(raw("POST /chat/wait HTTP/1.0", JSON, CHUNKED, body=chunks(b"{}")), 400, closes=True),
    "a folded header": doubtful("X: a\r\n Content-Length: 2"),
    "bare LFs": doubtful("X: a\nContent-Length: 2"),
    "bare CRs": doubtful("X: a\rContent-Length: 2"),
    "two hosts": Row(raw("GET /health HTTP/1.1", "Host: evil.example"), 400, closes=True),
    "two types": doubtful("Content-Type: text/plain", "Content-Length: 2"),
    "another expectation": doubtful("Expect: 200-ok", "Content-Length: 2", status=417),
}

LINES = {
    "a lower-case method": Row(raw(f"get /health?{CANARY} HTTP/1.1"), 400, closes=True),
    "a long method": Row(raw(f"{'A' * 21} /health HTTP/1.1"), 400, closes=True),
    "TRACE": Row(raw("TRACE /health HTTP/1.1", f"Cookie: {CANARY}"), 405, "method_not_allowed"),
    "CONNECT": Row(raw("CONNECT evil.example:443 HTTP/1.1"), 404, "not_found", closes=True),
    "CONNECT to a path": Row(raw("CONNECT /health HTTP/1.1"), 405, "method_not_allowed", closes=True),
    "all, of GET": Row(raw("GET * HTTP/1.1"), 400, closes=True),
    "no slash": Row(raw("GET health HTTP/1.1"), 400, closes=True),
    "no target": Row(raw("GET  HTTP/1.1"), 400, closes=True),
    "spaces in the target": Row(raw(f"GET /health {CANARY} HTTP/1.1"), 400, closes=True),
    "bytes beyond ASCII": Row(raw(f"GET /health?\xff{CANARY} HTTP/1.1"), 400, closes=True),
    "HTTP/0.9": Row(b"GET /health\r\n", 400, closes=True),
    "HTTP/2": Row(raw("GET /health HTTP/2.0"), 400, closes=True),
    "HTTP/2's preface": Row(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", 400, closes=True),
    "a TLS hello": Row(bytes.fromhex("16030100c8010000c40303") + b"\r\n" + b"\x5f" * 200, 400, closes=True),
    "SSH": Row(b"SSH-2.0-OpenSSH_9.6\r\n", 400, closes=True),
    "SMTP": Row(b"EHLO evil.example\r\n", 400, closes=True),
    "the PROXY protocol": Row(b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + HEALTH, 400, closes=True),
    "a path of 9 kB": Row(raw(f"GET /{CANARY}{'a' * 9000} HTTP/1.1"), 414, closes=True),
    "a path of 8 kB": Row(raw(f"GET /{CANARY}{'a' * 8000} HTTP/1.1"), 404, "not_found"),
    "an id of 8 kB": Row(raw(f"GET /chat/wait/{'a' * 8000} HTTP/1.1"), 404, "stream_unknown"),
    "a query of 9 kB": Row(raw(f"GET /health?{CANARY}{'a' * 9000} HTTP/1.1"), 414, closes=True),
    "no host": Row(raw("GET /health HTTP/1.1", host=None), 400, "host_not_allowed"),
    "no host in HTTP/1.0": Row(raw("GET /health HTTP/1.0", host=None), 400, "host_not_allowed", closes=True),
    "another's name in the target": Row(raw("GET http://evil.example/health HTTP/1.1"), 400, "host_not_allowed"),
    "a name and a password in the target": Row(
        raw("GET http://localhost@evil.example/ HTTP/1.1"), 400, "host_not_allowed"
    ),
    "another scheme in the target": Row(raw("GET gopher://evil.example/health HTTP/1.1"), 400, "host_not_allowed"),
    "a prefix of the path in a header": Row(raw("GET /nowhere HTTP/1.1", f"SCRIPT_NAME: /{CANARY}"), 404, "not_found"),
    "a path in a header": Row(
        raw("GET /nowhere HTTP/1.1", "PATH_INFO: /health", "X-Original-URL: /health"), 404, "not_found"
    ),
    "another method in a header": Row(
        raw("GET /chat/wait HTTP/1.1", "X-HTTP-Method-Override: POST"), 405, "method_not_allowed"
    ),
}

IDS = [
    "%00",
    "a%00b",
    "%0a",
    "a%0d%0aSet-Cookie:%20x=1",
    "%ff%fe",
    "%e2%80%a8",
    "%",
    "%zz",
    "*",
    "cw_",
    "-1",
    "'%22",
    "%252e",
]
HIDDEN = [
    "/../wsgi.py",
    "/..%2fwsgi.py",
    "/%2e%2e/wsgi.py",
    "/docs/../../wsgi.py",
    "/style.css",
    "/assets",
    "/assets/",
    "/assets/docs.css",
    "/assets/0123456789abcdef/docs.css",
    "/assets/../index.html",
    "/index.html",
    "/docs/",
    "//docs",
    "/./docs",
    "/static/assets/docs.css",
    "/.env",
    "/.git/config",
    "/app/settings.py",
    "/contracts/openapi.yaml",
    "/openapi.yaml/..%2f..%2f.env",
    "/%2fetc%2fpasswd",
    "/..\\wsgi.py",
    "/docs;x=1",
    "/v1/docs",
    "//v1//models",
    "/v1//models",
    "/v1/v1/models",
    "/V1/models",
    "/health%20",
    "/health%00",
]

PATHS = {f"id {name}": Row(raw(f"GET /chat/wait/{name} HTTP/1.1"), 404, "stream_unknown") for name in IDS}
PATHS |= {f"stop {name}": Row(raw(f"DELETE /v1/chat/streaming/{name} HTTP/1.1"), 404, "stream_unknown") for name in IDS}
PATHS |= {
    f"id {name}": Row(raw(f"GET /chat/streaming/{name} HTTP/1.1"), 404, "not_found") for name in ("..%2f..", "a%2fb")
}
PATHS |= {f"file {path}": Row(raw(f"GET {path} HTTP/1.1"), 404, "not_found") for path in HIDDEN}

ROWS = {**BODIES, **CHUNKS, **SMUGGLING, **LINES, **PATHS}

TAKEN: dict[str, tuple[bytes, bool]] = {
    "HTTP/1.0": (raw("GET /health HTTP/1.0"), True),
    "HTTP/1.0, kept alive": (raw("GET /health HTTP/1.0", "Connection: keep-alive"), False),
    "our name in the target": (raw("GET http://localhost/health HTTP/1.1"), False),
    "our name and port in the target": (raw("GET HTTP://LocalHost:81/health?x HTTP/1.1"), False),
    "an upgrade to HTTP/2": (
        raw("GET /health HTTP/1.1", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
        False,
    ),
    "an upgrade to a web socket": (
        raw(
            "GET /health HTTP/1.1",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            "Sec-WebSocket-Version: 13",
        ),
        False,
    ),
    "a query of 8 kB": (raw(f"GET /health?{'a&' * 4000} HTTP/1.1"), False),
    "a query of wrong escapes": (raw("GET /health?%zz=%ff&%00=%0a&&&==;[]=1 HTTP/1.1"), False),
    "an empty encoding": (raw("GET /health HTTP/1.1", "Content-Encoding: "), False),
    "ranges and conditions": (
        raw(
            "GET /health HTTP/1.1", "Range: bytes=0-0,-1,5-2", "If-None-Match: *", "If-Modified-Since: x", "If-Match: x"
        ),
        False,
    ),
    "names of schemes that differ": (
        raw("GET /health HTTP/1.1", "X-Forwarded-Proto: https", "X-Forwarded-Ssl: off"),
        False,
    ),
}
