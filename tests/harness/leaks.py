"""Look for what no log may hold: capabilities, keys, the canaries that tests plant, and what was said.

`hear` is told of every request that a test sends, `overhear` of every answer that the scripted upstream gives; `leaks`
then looks through what a service wrote. What is short is not noted: an everyday word would be found in any log.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SHORTEST = 16
LONGEST = 200
BLOCK_BYTES = 8
STREAM_ID = re.compile(r"\bcwc?_[A-Za-z0-9_-]{16,}")
SECRET_HEADERS = ("idempotency-key", "proxy-idempotency-key", "authorization", "cookie")

SECRETS = {
    "OpenAI's key": "sk-canary-0123456789abcdefghij",
    "a bearer token": "Bearer canaryBearer.0123456789~abc",
    "a JWT": "eyJhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOiJ0cnVlIn0.Q2FuYXJ5U2lnbmF0dXJlMDEyMzQ1Njc4OQ",
    "AWS's key id": "AKIACANARY0123456789",
    "AWS's secret key": "CanaryK7MDENG/bPxRfiCYEXAMPLE0123456789a",
    "Google's key": "AIzaCanary0123456789abcdefghijklmnopqrs",
    "a cookie": "Cookie: canary_session=0a1b2c3d4e5f",
}
PEOPLE = {
    "an e-mail address": "canary.person@people.example",
    "a telephone": "+49 171 5550123",
    "a telephone, American": "555-010-4477",
    "a card": "4242 4242 4242 4242",
    "a card, in one": "5105105105105100",
    "an IBAN": "FR14 2004 1010 0505 0001 3M02 606",
    "an IP address": "198.51.100.23",
    "an IP address, version 6": "2001:db8::ca:4a7e",
}
CANARIES = SECRETS | PEOPLE

_lock = threading.Lock()
_heard: dict[str, str] = {}


def hear(headers: Mapping[str, str], body: bytes = b"") -> None:
    """Note what a request holds that no log may: keys, tokens, cookies, and what is said in it."""
    found = {headers.get(name, ""): f"the header {name}" for name in SECRET_HEADERS}
    if body[:1] == b"{":
        try:
            found |= dict.fromkeys(_said(json.loads(body)), "what a client said")
        except (ValueError, RecursionError):
            pass
    _note(found)


def overhear(texts: Iterable[str]) -> None:
    """Note what a model is about to say."""
    _note(dict.fromkeys(texts, "what a model said"))


def _note(found: dict[str, str]) -> None:
    long = {text[:LONGEST]: what for text, what in found.items() if len(text.strip()) >= SHORTEST}
    with _lock:
        for text in long.keys() - _heard.keys():
            _heard[text] = _heard[_in_json(text)] = long[text]


@contextmanager
def forgotten() -> Iterator[None]:
    """Forget what is heard meanwhile: what a generator makes up may be an everyday word, or a request's own id."""
    with _lock:
        before = dict(_heard)
    yield
    with _lock:
        _heard.clear()
        _heard.update(before)


def leaks(lines: Iterable[str]) -> list[str]:
    """List what these lines hold and may not, each once, with the line it stands in."""
    text = "\n".join(lines)
    if not text:
        return []
    with _lock:
        wanted = dict(_heard)
    for name, canary in CANARIES.items():
        wanted[canary] = wanted[_in_json(canary)] = f"the canary of {name}"
    wanted |= dict.fromkeys(STREAM_ID.findall(text), "a stream id")
    may_stand_in = _sieve(text)
    return [
        f"{what} in the log: {_line_of(text, secret)}"
        for secret, what in wanted.items()
        if may_stand_in(secret) and secret in text
    ]


def _in_json(text: str) -> str:
    """Write it as a log in JSON does."""
    return json.dumps(text)[1:-1]


def _sieve(text: str) -> Callable[[str], bool]:
    """Tell of most secrets that they do not stand in a text, without a search: of thousands, in megabytes.

    The text is cut into blocks. A secret of 15 bytes or more covers, wherever it stands, a whole block that begins at
    one of its first eight bytes.
    """
    encoded = text.encode("utf-8", "surrogatepass")
    blocks = {encoded[at : at + BLOCK_BYTES] for at in range(0, len(encoded), BLOCK_BYTES)}

    def may_stand_in(secret: str) -> bool:
        data = secret.encode("utf-8", "surrogatepass")
        if len(data) < 2 * BLOCK_BYTES - 1:
            return True
        return not blocks.isdisjoint([data[at : at + BLOCK_BYTES] for at in range(BLOCK_BYTES)])

    return may_stand_in


def _line_of(text: str, secret: str) -> str:
    at = text.index(secret)
    return text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0][:1000]


def _said(request: Any) -> Iterable[str]:
    if not isinstance(request, dict):
        return
    if isinstance(message := request.get("message"), str):
        yield message
    for part in request["context"] if isinstance(request.get("context"), list) else ():
        if isinstance(part, dict) and isinstance(content := part.get("content"), str):
            yield content
