"""A model that does what it is asked for, so that a suite finds its whole interface: it computes nothing.

It plays the scripted upstream of the suites. What they see at it directly, they must see through the service, too.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.harness.script import CREATED, encode_json
from tests.harness.upstream import Done, Event, RequestRecord, Script, Step, error

__all__ = ["MODEL", "obey"]

MODEL = "gpt-5-scripted"
TO_REPEAT = re.compile(r"(?:Repeat this text exactly, nothing else|Say exactly): (.*)", re.DOTALL)
THOUGHT = ["It ", "is ", "a ", "question."]
LONG_THOUGHT = THOUGHT * 20
LIMITS = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59"}


@dataclass
class _Choice:
    """One choice of an answer: what it says in pieces, or which tools it calls."""

    pieces: list[str]
    calls: list[dict[str, Any]]
    finish: str


def obey(record: RequestRecord) -> Script | None:
    """Answer a request for a completion; None for any other request."""
    if record.method != "POST" or not record.path.endswith("/chat/completions"):
        return None
    asked = record.json
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list) or not asked["messages"]:
        return error(400, "messages must be a list of messages.", "invalid_value")
    if "model" not in asked:
        return error(400, "you must provide a model parameter", "missing_required_parameter")
    if asked["model"] != MODEL:
        return error(404, "The model does not exist.", "model_not_found")
    thought = [] if asked.get("reasoning_effort", "none") == "none" else THOUGHT
    if thought and "at length" in json.dumps(asked["messages"][-1]):
        thought = LONG_THOUGHT
    cap = asked.get("max_completion_tokens") or asked.get("max_tokens") or 1000
    thought, cap = thought[:cap], max(cap - len(thought), 0)
    choices = [_choice(asked, cap) for _ in range(asked.get("n") or 1)]
    usage = _usage(asked, thought, choices)
    head = {"id": f"chatcmpl-{record.number}", "created": CREATED, "model": MODEL, "system_fingerprint": "fp_scripted"}
    if asked.get("stream"):
        steps = list(_chunks(asked, head, thought, choices))
        if (asked.get("stream_options") or {}).get("include_usage"):
            steps.append(Event({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}))
        return Script(headers=LIMITS, steps=[*steps, Done()])
    shown = [_whole(asked, index, thought, one) for index, one in enumerate(choices)]
    body = encode_json({**head, "object": "chat.completion", "choices": shown, "usage": usage})
    return Script(headers={"content-type": "application/json", **LIMITS}, body=body)


def _choice(asked: dict[str, Any], cap: int) -> _Choice:
    if calls := _calls(asked):
        return _Choice([], calls, "tool_calls")
    text = _text(asked)
    stops = asked.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.partition(stop)[0]
    pieces = re.findall(r"\S+\s*|\s+", text)
    return _Choice(pieces[:cap], [], "length" if len(pieces) > cap else "stop")


def _text(asked: dict[str, Any]) -> str:
    form = asked.get("response_format") or {}
    if form.get("type") == "json_schema":
        return json.dumps(_value(form["json_schema"]["schema"]), ensure_ascii=False)
    if form.get("type") == "json_object":
        return '{"name": "Ada", "age": 36}'
    content = asked["messages"][-1].get("content")
    said = content if isinstance(content, str) else ""
    wanted = TO_REPEAT.match(said)
    return wanted[1] if wanted else "Paris is one, and the others are all alike."


def _calls(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """List the calls that the request forces; none that it only allows."""
    choice, tools = asked.get("tool_choice"), asked.get("tools") or []
    if isinstance(choice, dict):
        tools = [tool for tool in tools if tool["function"]["name"] == choice["function"]["name"]]
    elif choice != "required":
        return []
    if asked.get("parallel_tool_calls") is False:
        tools = tools[:1]
    return [
        {
            "id": f"call_{index}",
            "type": "function",
            "function": {
                "name": tool["function"]["name"],
                "arguments": json.dumps(_value(tool["function"].get("parameters", {}))),
            },
        }
        for index, tool in enumerate(tools)
    ]


def _value(schema: dict[str, Any]) -> Any:
    """Make a value of a JSON schema."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type", "object"):
        case "object":
            return {name: _value(one) for name, one in schema.get("properties", {}).items()}
        case "array":
            return [_value(schema.get("items", {"type": "string"}))]
        case "string":
            return "Paris"
        case "boolean":
            return True
        case "integer" | "number":
            return 4
    return None


def _logprobs(asked: dict[str, Any], pieces: list[str]) -> dict[str, Any] | None:
    if not asked.get("logprobs"):
        return None
    entries = [
        {"token": piece, "logprob": -0.25, "bytes": list(piece.encode()), "top_logprobs": []} for piece in pieces
    ]
    return {"content": entries, "refusal": None}


def _usage(asked: dict[str, Any], thought: list[str], choices: list[_Choice]) -> dict[str, Any]:
    """Count words. What a conversation's answers had thought counts, too."""
    words = sum(len(json.dumps(message).split()) for message in asked["messages"])
    out = len(thought) + sum(len(one.pieces) + 8 * len(one.calls) for one in choices)
    return {
        "prompt_tokens": words,
        "completion_tokens": out,
        "total_tokens": words + out,
        "completion_tokens_details": {"reasoning_tokens": len(thought)},
    }


def _whole(asked: dict[str, Any], index: int, thought: list[str], choice: _Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(choice.pieces), "refusal": None}
    message["annotations"] = []
    if thought:
        message["reasoning_content"] = "".join(thought)
    if choice.calls:
        message |= {"content": None, "tool_calls": choice.calls}
    logprobs = _logprobs(asked, choice.pieces)
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}


def _chunks(asked: dict[str, Any], head: dict[str, Any], thought: list[str], choices: list[_Choice]) -> Iterator[Step]:
    """Stream an answer. The choices take turns."""

    def chunk(
        index: int, delta: dict[str, Any], finish: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> Step:
        one = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return Event({**head, "object": "chat.completion.chunk", "choices": [one]})

    for index in range(len(choices)):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
        for piece in thought:
            yield chunk(index, {"reasoning_content": piece})
    for turn in itertools.zip_longest(*(choice.pieces for choice in choices)):
        for index, piece in enumerate(turn):
            if piece is not None:
                yield chunk(index, {"content": piece}, logprobs=_logprobs(asked, [piece]))
    for index, choice in enumerate(choices):
        for place, call in enumerate(choice.calls):
            arguments = call["function"]["arguments"]
            begun = {**call, "index": place, "function": {**call["function"], "arguments": ""}}
            yield chunk(index, {"tool_calls": [begun]})
            for at in range(0, len(arguments), 7):
                more = {"index": place, "function": {"arguments": arguments[at : at + 7]}}
                yield chunk(index, {"tool_calls": [more]})
        yield chunk(index, {}, choice.finish)
