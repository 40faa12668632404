"""Hold every answer of the service to the contract: status, headers, body, and what they say of one another.

Must never import the service's code: it judges it.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

from tests.harness.contract import Contract, Operation, Said, Validator
from tests.harness.contract_chunks import ChunkCheck
from tests.harness.contract_stream import Broken, FrameCheck
from tests.harness.http1 import Headers

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
ASSET = re.compile(r"(?:/assets/(?:[0-9a-f]{16}/[a-z0-9][a-z0-9_-]*|boot(?=\.js$))|/sw(?=\.js$))\.(css|js|svg|png)")
ASSET_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
}
ASSET_CACHE = "public, max-age=31536000, immutable"
FIXED = ("/assets/boot.js", "/sw.js")
"""At fixed addresses: asked for each time."""
FIXED_CACHE = "no-cache"
ASSET_WHY = "a file that a page loads"
PROBE = "/__probe__"
PROBE_WHY = "the harness's own probe in the worker"
REFUSED_WHY = "gunicorn's own refusal of what is no HTTP request"
REFUSALS = (400, 403, 414, 417, 431, 501)
"""What gunicorn answers by itself to bytes that it cannot read, before the application sees them; its 500 is a bug."""
REFUSAL = re.compile(rb"<html>\n  <head>\n    <title>[A-Za-z -]+</title>.*</html>\n?", re.DOTALL)
CONTENT_TYPES = {
    "application/json": "application/json",
    "text/event-stream": "text/event-stream; charset=utf-8",
    "text/html": "text/html; charset=utf-8",
    "application/yaml": "application/yaml",
}
STREAM_CACHE = "no-cache, no-store, no-transform"
OPENAI = "completions"
"""The tag of the operations whose failures have OpenAI's shape."""
OPENAI_ELSEWHERE = re.compile(
    r"(?:/v1)?/(?:models/.+|(?:chat/completions|completions|embeddings|responses|moderations|images|audio|files|uploads|"
    r"batches|fine_tuning|assistants|threads|vector_stores|conversations|containers|evals|videos|realtime|organization)"
    r"(?:/.*)?)",
    re.DOTALL,
)
"""Addresses of OpenAI's that are not served, and say so in OpenAI's shape."""
REPORTED = (400, 404, 413, 422, 429)
"""A refusal of the model's server keeps these statuses for OpenAI's clients."""
LARGEST_BODY = 64 << 20


@dataclass(frozen=True)
class Asked:
    """What was asked, as far as it can be told: a request that is none has no method."""

    method: str
    target: str
    headers: Headers

    @property
    def path(self) -> str:
        if "://" in self.target:
            return unquote(urlsplit(self.target).path or "/", "latin-1")
        return unquote(urlsplit(f"//x{self.target}").path, "latin-1")

    @property
    def cursor(self) -> str:
        """Give the cursor by the contract's rule: the header, else the query, in the order of its two names."""
        query = parse_qs(urlsplit(self.target if "://" in self.target else f"//x{self.target}").query)
        named = [self.headers.get("last-event-id", "")]
        named += [query.get(name, [""])[0] for name in ("last_event_id", "lastEventId")]
        return next((value for value in named if value), "")

    @property
    def after(self) -> int:
        """Give the record that a client of OpenAI's has: the cursor's, else `starting_after`."""
        query = parse_qs(urlsplit(self.target if "://" in self.target else f"//x{self.target}").query)
        number = self.cursor.rpartition(".")[2] if self.cursor else query.get("starting_after", [""])[0]
        return int(number) if number.isascii() and number.isdigit() else 0


@dataclass
class Run:
    """Keep what one run has seen, and every breach that no test has been failed for yet.

    `handing_over`: a process that shares its streams is being replaced, and may end its connections without an end.
    """

    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    exempt: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    fixed: dict[tuple[str, str], str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    handing_over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def complain(self, problem: str) -> None:
        with self.lock:
            self.problems.append(problem)

    def take_problems(self) -> list[str]:
        with self.lock:
            taken, self.problems = self.problems, []
        return taken


class Check:
    """Judge one answer while it comes: its head at once, each event as it is whole, a body at its end.

    Of one answer only the first breach is reported: what follows it often only follows from it.
    """

    def __init__(self, contract: Contract, run: Run, asked: Asked, status: int, headers: Headers) -> None:
        self._contract, self._run = contract, run
        self._asked, self._status, self._headers = asked, status, headers
        self._body = bytearray()
        self._frames: FrameCheck | ChunkCheck | None = None
        self._operation: Operation | None = None
        self._said: Said | None = None
        self._counted_as = (f"{asked.method} (no operation)", str(status))
        self._parameters: dict[str, str] = {}
        self._exempt = ""
        self._ended = False
        self._guard(self._judge_head)

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the body."""
        if self._frames is not None:
            frames = self._frames
            self._guard(lambda: frames.feed(piece))
        elif len(self._body) < LARGEST_BODY:
            self._body += piece

    def end(self, *, whole: bool | None) -> None:
        """Judge the body. `whole`: False for one that was cut, None when the answer's form does not tell."""
        if self._ended:
            return
        if not self._guard(lambda: self._judge_body(whole)):
            return
        self._ended = True
        with self._run.lock:
            if self._exempt:
                self._run.exempt[self._exempt] += 1
                return
            self._run.seen[self._counted_as] += 1
            self._run.cut += whole is False
            if self._frames is not None:
                self._run.events.update(self._frames.seen)

    def _guard(self, judge: Callable[[], None]) -> bool:
        """Judge a part, and tell whether it keeps the contract; after a breach nothing more is judged."""
        if self._ended:
            return False
        try:
            judge()
        except Broken as problem:
            self._ended = True
            asked = f"{self._asked.method} {self._asked.target[:200]}"
            body = bytes(self._body[:1000])
            self._run.complain(f"{asked} was answered {self._status}: {problem}\n  {self._headers!r}\n  {body!r}")
            return False
        return True

    # The head

    def _judge_head(self) -> None:
        if self._is_refusal():
            self._exempt = REFUSED_WHY  # the body is judged when it is there
            return
        if self._asked.path == PROBE:
            self._exempt = PROBE_WHY
            return
        self._judge_ids()
        if self._status == 200 and (asset := ASSET.fullmatch(self._asked.path)):
            self._judge_asset(asset[1])
            return
        if "content-encoding" in self._headers:
            _fail("Content-Encoding is set")
        found = self._contract.find(self._asked.path)
        if found is None:
            self._judge_elsewhere()
            return
        template, self._parameters, methods = found
        asked_for = "GET" if self._asked.method == "HEAD" else self._asked.method
        self._operation = self._contract.operation(asked_for, template)
        if self._operation is None:
            others = [self._contract.operation(method, template) for method in methods]
            is_openai = any(other is not None and other.tag == OPENAI for other in others)
            self._judge_other_method(methods, is_openai=is_openai)
            return
        listed = str(self._status) if str(self._status) in self._operation.responses else "default"
        self._said = self._operation.responses[listed]
        if listed == "default" and self._status < 400:
            _fail("the contract does not list this status")
        self._counted_as = (f"{self._asked.method} {template}", str(self._status))
        self._judge_headers(self._said)
        self._judge_content_type(self._said.content)
        self._judge_links()
        if self._media == "text/event-stream" and self._asked.method != "HEAD":
            stream_id = self._header("x-stream-id")
            if self._is_openai:
                self._frames = ChunkCheck(self._contract, self._run.fixed, stream_id, self._asked.after)
            else:
                self._frames = FrameCheck(self._contract.events, self._run.fixed, stream_id, self._asked.cursor)

    @property
    def _is_openai(self) -> bool:
        return self._operation is not None and self._operation.tag == OPENAI

    def _is_refusal(self) -> bool:
        no_id = "x-correlation-id" not in self._headers
        return no_id and self._status in REFUSALS and self._headers.get("content-type") == "text/html"

    def _judge_ids(self) -> None:
        ids = self._headers.get_all("x-correlation-id")
        if len(ids) != 1 or not UUID4.fullmatch(ids[0]):
            _fail(f"X-Correlation-Id is not one UUID4: {ids}")
        with self._run.lock:
            if ids[0] in self._run.ids:
                _fail("another answer has the same X-Correlation-Id")
            self._run.ids.add(ids[0])

    def _judge_asset(self, kind: str) -> None:
        """Judge the head of a file that a page loads, which the contract does not tell of: its body is exempt."""
        self._exempt = ASSET_WHY
        told = [self._asked.method, *map(self._header, ("content-type", "content-encoding", "vary"))]
        wanted = [("GET", "HEAD"), (ASSET_TYPES[kind],), ("", "gzip"), ("Accept-Encoding", "Accept-Encoding, Origin")]
        for said, allowed in zip(told, wanted, strict=True):
            if said not in allowed:
                _fail(f"{said!r} is not one of {allowed}")
        self._judge_cache(FIXED_CACHE if self._asked.path in FIXED else ASSET_CACHE)

    def _judge_elsewhere(self) -> None:
        """Judge the answer to a path that the contract has not: an error, or what may be done with a file."""
        if self._asked.path.startswith(("/assets/", "/sw.js")) and self._status in (204, 405):
            self._judge_other_method({"GET"})
        else:
            is_openai = OPENAI_ELSEWHERE.fullmatch(self._asked.path) is not None
            self._judge_error_only({"not_found", "method_not_allowed"}, is_openai=is_openai)

    def _judge_other_method(self, methods: set[str], *, is_openai: bool = False) -> None:
        """Judge the answer to a method that the path has not."""
        allowed = methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
        if self._status in (204, 405) and set(self._headers.get("allow", "").split(", ")) != allowed:
            _fail(f"Allow is not {sorted(allowed)}")
        if self._asked.method == "OPTIONS" and self._status == 204:
            self._judge_cache("no-store")
            self._judge_content_type({})
            return
        self._judge_error_only({"method_not_allowed"}, is_openai=is_openai)

    def _judge_error_only(self, codes: set[str], *, is_openai: bool) -> None:
        # Host and Origin are judged before the path.
        content = {"application/json": self._contract.openai_error if is_openai else self._contract.error}
        self._said = Said({}, content, frozenset(codes | {"host_not_allowed", "origin_not_allowed"}))
        self._judge_content_type(content)
        self._judge_cache("no-store")

    def _judge_headers(self, said: Said) -> None:
        for name, (required, validator) in said.headers.items():
            if name.lower() not in self._headers:
                # Who asks with HEAD waits for nothing, and so no preference applies.
                of_success = name in ("X-Stream-Id", "Location") and self._status < 400
                if required or of_success or (name == "Preference-Applied" and self._asked.method != "HEAD"):
                    _fail(f"the header {name} is missing")
                continue
            value: Any = self._header(name)
            if value.isascii() and value.isdigit() and not validator.is_valid(value):
                value = int(value)
            _validate(validator, value, f"the header {name}")

    def _judge_content_type(self, content: Mapping[str, Any]) -> None:
        if not content:
            if "content-type" in self._headers:
                _fail("an answer without content has a Content-Type")
            return
        if self._header("content-type") != CONTENT_TYPES.get(self._media) or self._media not in content:
            _fail(f"the content type {self._headers.get('content-type')!r} is not one of {sorted(content)}")

    def _judge_links(self) -> None:
        """Judge the headers that follow from the operation: caching, and where the stream is."""
        assert self._operation is not None
        of_stream = "streaming" in self._operation.name or self._operation.name == "POST /chat" or self._is_openai
        if self._media == "text/event-stream" or (self._status == 204 and of_stream):
            self._judge_cache(STREAM_CACHE)
            if self._header("x-accel-buffering") != "no":
                _fail("X-Accel-Buffering is not `no`")
        else:
            self._judge_cache("no-cache" if self._operation.tag == "pages" and self._status == 200 else "no-store")
        if self._operation.name == "POST /chat" and self._status < 300 and "Accept" not in self._header("vary"):
            _fail("Vary does not name Accept")
        if self._is_openai and self._header("x-request-id") != self._header("x-correlation-id"):
            _fail("x-request-id is not X-Correlation-Id")
        stream_id = self._headers.get("x-stream-id")
        if stream_id is None:
            if "location" in self._headers:
                _fail("Location without X-Stream-Id")
            return
        wanted = self._places(stream_id)
        if self._header("location") not in wanted:
            _fail(f"Location does not lead to the stream of X-Stream-Id, {wanted[0].replace(stream_id, '…')}")
        if stream_id != self._stream_of_path(stream_id):
            _fail("X-Stream-Id is not the stream of the path")

    def _places(self, stream_id: str) -> list[str]:
        """List what Location may be. Of a failure only the request's body could tell whether it asked for a stream."""
        if not self._is_openai:
            return [f"/v1/chat/{'wait' if self._status == 202 else 'streaming'}/{stream_id}"]
        place = f"/v1/chat/completions/chatcmpl-{stream_id}"
        if self._media == "text/event-stream" or self._status == 204:
            return [f"{place}?stream=true"]
        return [place] if self._status < 400 else [place, f"{place}?stream=true"]

    def _stream_of_path(self, otherwise: str | None) -> str | None:
        if "id" in self._parameters:
            return self._parameters["id"].removeprefix("chatcmpl-")
        return self._parameters.get("stream_id", otherwise)

    def _judge_cache(self, wanted: str) -> None:
        if self._headers.get_all("cache-control") != [wanted]:
            _fail(f"Cache-Control is not {wanted!r}")

    # The body

    def _judge_body(self, whole: bool | None) -> None:
        if self._frames is not None:
            self._frames.end(whole=bool(whole), handed_over=self._run.handing_over)
            return
        if whole is False or self._exempt in (ASSET_WHY, PROBE_WHY):
            return
        if self._exempt == REFUSED_WHY:
            if not REFUSAL.fullmatch(bytes(self._body)):
                _fail("without X-Correlation-Id, and not gunicorn's own page")
        elif self._asked.method == "HEAD" or self._said is None or not self._said.content:
            if self._body:
                _fail("a body where there is none")
        elif self._media == "application/json":
            self._judge_json(self._said)
        elif not self._body:
            _fail("no body")

    def _judge_json(self, said: Said) -> None:
        try:
            body = json.loads(bytes(self._body))
        except ValueError as problem:
            _fail(f"the body is not JSON ({problem})")
        _validate(said.content["application/json"], body, "the body")
        error = body.get("error", body)
        if error.get("correlation_id", self._header("x-correlation-id")) != self._header("x-correlation-id"):
            _fail("correlation_id in the body is not X-Correlation-Id")
        stream_id = self._headers.get("x-stream-id", self._stream_of_path(None))
        if body.get("stream_id", stream_id) != stream_id:
            _fail("stream_id in the body is that of another stream")
        if self._is_openai and "/completions" in self._operation_name:
            self._judge_completion(body, stream_id)
        if "error_code" in error:
            self._judge_error(error, said, has_partial="partial" in body)
        if "sha256" in body:
            if body["characters"] != len(body["content"]):
                _fail(f"characters is {body['characters']}, and there are {len(body['content'])}")
            if body["sha256"] != hashlib.sha256(body["content"].encode()).hexdigest():
                _fail("sha256 is not that of the content")

    def _judge_completion(self, body: Mapping[str, Any], stream_id: str | None) -> None:
        """Judge whose completion it is, as a whole or as what there is of it beside an error."""
        for completion in (body, body.get("partial", {})):
            if completion.get("id", f"chatcmpl-{stream_id}") != f"chatcmpl-{stream_id}":
                _fail("id in the body is that of another completion")

    def _judge_error(self, body: Mapping[str, Any], said: Said, *, has_partial: bool) -> None:
        code = body["error_code"]
        is_reported = code in said.reported and body["origin"] == "upstream" and self._status in REPORTED
        if self._contract.statuses[code] != self._status and not is_reported:
            _fail(f"{code} goes with {self._contract.statuses[code]}")
        if said.codes and code not in said.codes and not is_reported:
            _fail(f"{code} is none of the codes here: {sorted(said.codes)}")
        if self._is_openai and (self._headers.get("x-should-retry") == "false") == body["retryable"]:
            _fail(f"x-should-retry is {self._headers.get('x-should-retry')}, and retryable {body['retryable']}")
        waits = str(body["retry_after_seconds"]) if "retry_after_seconds" in body else None
        if self._headers.get("retry-after") != waits:
            _fail(f"Retry-After is {self._headers.get('retry-after')}, and retry_after_seconds {waits}")
        if has_partial and "x-stream-id" not in self._headers:
            _fail("partial without a stream")

    @property
    def _operation_name(self) -> str:
        return "" if self._operation is None else self._operation.name

    @property
    def _media(self) -> str:
        return self._headers.get("content-type", "").partition(";")[0]

    def _header(self, name: str) -> str:
        return self._headers.get(name.lower(), "")


def _fail(problem: str) -> NoReturn:
    raise Broken(problem)


def _validate(validator: Validator, value: Any, what: str) -> None:
    if not validator.is_valid(value):
        _fail(f"{what} is not of its schema: {'; '.join(_reasons(validator, value))}")


def _reasons(validator: Validator, value: Any) -> Iterator[str]:
    for error in list(validator.iter_errors(value))[:3]:
        yield f"{'.'.join(map(str, error.instance_path)) or 'it'}: {error.message[:300]}"
