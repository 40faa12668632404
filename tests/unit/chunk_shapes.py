"""Streams of chunks as providers write them, for the tests of what is made of their bytes."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["SHAPES", "Shape", "spelled"]

Shape = Callable[[Sequence[str]], Iterator[dict[str, Any]]]
"""Texts → the chunks of one answer that has them."""

USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


def spelled(value: Any, seed: int) -> bytes:
    """Write JSON as one of many servers would, always in its own way: with spaces or none, and with any escapes."""
    rng = random.Random(seed)
    comma, colon = rng.choice([(",", ":"), (",", ":"), (", ", ": "), ("\n,\t", ":\r\n")])
    escapes = rng.random() < 0.5

    def write(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + comma.join(write(name) + colon + write(entry) for name, entry in value.items()) + "}"
        if isinstance(value, list):
            return "[" + comma.join(map(write, value)) + "]"
        if isinstance(value, str) and escapes:
            chosen = random.Random(f"{seed} {value!r}").choice
            return '"' + "".join(chosen(_spellings(char)) for char in value) + '"'
        return json.dumps(value, ensure_ascii=False)

    return write(value).encode("utf-8")


def _spellings(char: str) -> list[str]:
    """Return the ways to write a character in JSON."""
    code = ord(char)
    ways = [json.dumps(char)[1:-1], json.dumps(char)[1:-1].upper().replace("\\U", "\\u")] if code > 127 else []
    if code < 128:
        ways = [json.dumps(char)[1:-1], f"\\u{code:04x}"]
    if code >= 32 and char not in '"\\':
        ways += [char] * 4
    return [*ways, "\\/"] if char == "/" else ways


def _chunk(delta: dict[str, Any], *, index: int = 0, reason: str | None = None, **others: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
    chunk = {"id": "chatcmpl-Bq1", "object": "chat.completion.chunk", "created": 1748300000, "model": "gpt-4o-mini"}
    return {**chunk, "service_tier": "default", "system_fingerprint": "fp_1", "choices": [choice], **others}


def openai(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    yield _chunk({"role": "assistant", "content": "", "refusal": None}, usage=None)
    for text in texts:
        yield _chunk({"content": text}, usage=None)
    yield _chunk({}, reason="stop", usage=None)
    yield {**_chunk({}), "choices": [], "usage": USAGE}


def obfuscated(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, chunk in enumerate(openai(texts)):
        yield chunk | {"obfuscation": "k" * (number % 7) + str(number)}


def azure(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    safe = {"hate": {"filtered": False, "severity": "safe"}}
    begin = {"choices": [], "created": 0, "id": "", "model": "", "object": ""}
    yield begin | {"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": safe}]}
    for chunk in openai(texts):
        for choice in chunk["choices"]:
            choice["content_filter_results"] = safe if choice["delta"].get("content") else {}
        yield chunk


def vllm(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    chunk = {"id": "chatcmpl-7f", "object": "chat.completion.chunk", "created": 1748300001, "model": "m"}

    def made(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**chunk, "choices": [choice | ({"stop_reason": None} if reason else {"token_ids": None})]}

    yield made({"role": "assistant", "content": ""})
    yield from (made({"content": text}) for text in texts)
    yield made({"content": ""}, "length")
    yield {**chunk, "choices": [], "usage": USAGE}


def llama_cpp(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The names are in order, and the time goes on."""

    def made(delta: dict[str, Any], number: int, reason: str | None = None) -> dict[str, Any]:
        chunk = {
            "choices": [{"finish_reason": reason, "index": 0, "delta": delta}],
            "created": 1750000000 + number // 3,
        }
        return {
            **chunk,
            "id": "chatcmpl-Xy",
            "model": "q",
            "system_fingerprint": "b1",
            "object": "chat.completion.chunk",
        }

    yield made({"role": "assistant", "content": None}, 0)
    yield from (made({"content": text}, number) for number, text in enumerate(texts))
    yield made({}, len(texts), "stop") | {"timings": {"predicted_n": 4, "predicted_ms": 20.5}}


def deepseek(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    yield _chunk({"role": "assistant", "content": None, "reasoning_content": ""})
    for text in texts:
        yield _chunk({"content": None, "reasoning_content": text})
    for text in texts:
        yield _chunk({"content": text, "reasoning_content": None})
    yield _chunk({"content": "", "reasoning_content": None}, reason="stop", usage=USAGE)


def openrouter(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    for text in texts:
        details = [{"type": "reasoning.text", "text": text, "format": "unknown", "index": 0}]
        delta = {"role": "assistant", "content": "", "reasoning": text, "reasoning_details": details}
        yield _chunk(delta, provider="Together")
    for text in texts:
        yield _chunk({"role": "assistant", "content": text}, provider="Together", native_finish_reason=None)
    yield _chunk({"role": "assistant", "content": ""}, reason="stop", provider="Together", native_finish_reason="eos")
    yield _chunk({"role": "assistant", "content": ""}, usage={**USAGE, "cost": 0.00012}, provider="Together")


def mistral(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    chunk = {"id": "cmpl-e", "object": "chat.completion.chunk", "created": 1748300002, "model": "mistral-small-latest"}
    for text in ("", *texts):
        yield {**chunk, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], "p": "abc"}
    last = {"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}
    yield {**chunk, "choices": [last], "usage": USAGE}


def tools(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Calls side by side. Their ids stay."""
    for number in range(2):
        function = {"name": "weather", "arguments": ""}
        call = {"index": number, "id": f"call_{number}", "type": "function", "function": function}
        yield _chunk({"role": "assistant", "content": None, "tool_calls": [call]}, error=None)
        for text in texts:
            yield _chunk({"tool_calls": [{"index": number, "function": {"arguments": text}}]}, error=None)
    both = [{"index": number, "function": {"arguments": text}} for number, text in enumerate(texts[:2])]
    yield _chunk({"tool_calls": both})
    yield _chunk({}, reason="tool_calls")


def legacy_function(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    for text in texts:
        yield _chunk({"function_call": {"arguments": text}})
    yield _chunk({}, reason="function_call")


def two(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    for text, index in itertools.product(texts, (0, 1)):
        yield _chunk({"content": text}, index=index)
    yield _chunk({}, index=1, reason="length")
    for text in texts:
        yield _chunk({"content": text})
    yield _chunk({}, reason="stop")


def logprobs(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    for text in texts:
        chunk = _chunk({"content": text})
        chunk["choices"][0]["logprobs"] = {
            "content": [{"token": text, "logprob": -0.25, "bytes": None}],
            "refusal": None,
        }
        yield chunk
    yield _chunk({}, reason="stop")


def refusal(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    yield _chunk({"role": "assistant", "content": None, "refusal": ""})
    for text in texts:
        yield _chunk({"refusal": text})
    yield _chunk({}, reason="stop")


def bare(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Without id, index and time, and with the string last."""
    for text in texts:
        yield {"choices": [{"delta": {"role": "assistant", "content": text}}]}
    yield {"choices": [{"finish_reason": "stop"}]}


SHAPES: dict[str, Shape] = {
    shape.__name__: shape
    for shape in (
        openai,
        obfuscated,
        azure,
        vllm,
        llama_cpp,
        deepseek,
        openrouter,
        mistral,
        tools,
        legacy_function,
        two,
        logprobs,
        refusal,
        bare,
    )
}
