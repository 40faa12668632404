"""What several tests of real clients do alike: write a request, and find what became of it."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

from tests.harness.script import CREATED, encode_json
from tests.harness.upstream import Event, RequestRecord, Script, ScriptedUpstream

__all__ = [
    "COMPLETION_ID",
    "CONTENT_CHUNKS",
    "TEXT",
    "USAGE",
    "about",
    "asked",
    "choice",
    "chunk",
    "content_of",
    "deltas",
    "members",
    "text_of",
    "whole",
]

COMPLETION_ID = re.compile(r"chatcmpl-cwc_[A-Za-z0-9_-]{22}")
USAGE = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}

CONTENT_CHUNKS = ["It ", "is ", "é🙂", "\u2028\r\n", 'data: "x"', " nothing that a log may hold", "."]
"""An answer's text with what could break a frame in two, and with enough to be found in a log."""

TEXT = "".join(CONTENT_CHUNKS)


def about(upstream: ScriptedUpstream, *scripts: Script, **more: Any) -> dict[str, Any]:
    """Answer a request of this test's own so, whatever else is asked meanwhile, and return the request.

    The first script is for the first time that the request is made, and so on; the last one is for all later times.
    """
    said = {"role": "user", "content": f"message {secrets.token_hex(8)}"}
    body: dict[str, Any] = {"model": "scripted", "messages": [said], **more}
    left = list(scripts)

    def by(record: RequestRecord) -> Script | None:
        if not _is_about(record, body):
            return None
        return left.pop(0) if len(left) > 1 else left[0]

    upstream.by(by)
    return body


def asked(upstream: ScriptedUpstream, body: dict[str, Any]) -> list[RequestRecord]:
    """List what the upstream was asked for this request."""
    return [record for record in upstream.completions if _is_about(record, body)]


def _is_about(record: RequestRecord, body: dict[str, Any]) -> bool:
    return isinstance(record.json, dict) and record.json.get("messages") == body["messages"]


def members(body: bytes) -> dict[str, str]:
    """Return the members of a JSON object as they are written: each value is its text."""
    text, decoder = body.decode(), json.JSONDecoder()
    found, at = {}, _skip(text, text.index("{") + 1, " \t\r\n")
    while text[at] != "}":
        name, at = decoder.raw_decode(text, at)
        begin = _skip(text, at, " \t\r\n:")
        _, at = decoder.raw_decode(text, begin)
        found[name] = text[begin:at]
        at = _skip(text, at, " \t\r\n,")
    return found


def _skip(text: str, at: int, what: str) -> int:
    while text[at] in what:
        at += 1
    return at


def content_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """Join the text of one choice."""
    return "".join(delta.get("content") or "" for delta in deltas(chunks, index))


def deltas(chunks: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    """List what the chunks add to one choice."""
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]


def text_of(completion: dict[str, Any], index: int = 0) -> str | None:
    """Return the text of one choice of a whole answer."""
    text: str | None = completion["choices"][index]["message"]["content"]
    return text


def whole(message: dict[str, Any], *, finish: str = "stop", headers: dict[str, str] | None = None) -> Script:
    """Write the script of an answer that is not streamed."""
    completion = {
        "id": "chatcmpl-upstream",
        "object": "chat.completion",
        "created": CREATED,
        "model": "scripted",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "refusal": None, **message}, "finish_reason": finish},
        ],
        "usage": USAGE,
        "provider_field": {"kept": True},
    }
    return Script(headers={"content-type": "application/json", **(headers or {})}, body=encode_json(completion))


def chunk(*choices: dict[str, Any], **more: Any) -> Event:
    """Write a chunk with these choices."""
    head = {"id": "chatcmpl-upstream", "object": "chat.completion.chunk", "created": CREATED, "model": "scripted"}
    return Event({**head, "choices": list(choices), **more})


def choice(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish}
