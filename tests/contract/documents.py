"""Write the golden exchanges into the documents that show them, so that there is one truth."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from app.errors import status_of
from tests.contract.golden import EXAMPLES, ROOT, Golden

CONTRACT = ROOT / "contracts" / "openapi.yaml"
GRAMMAR = ROOT / "contracts" / "events.md"
PAGE = ROOT / "app" / "static" / "docs.html"

INLINE = {
    "ChatRequest": "createChatWait/200",
    "Answer": "createChatWait/200",
    "AnswerCancelled": "showChatWait/200-cancelled",
    "Running": "showChatWait/202",
    "Stopped": "cancelChatStreaming/200",
    "StoppedTooLate": "cancelChatStreaming/200-had_ended",
    "EventStream": "streams/done",
    "EventStreamResumed": "streams/resumed_while_it_runs",
    "EventStreamCancelled": "streams/cancelled",
    "EventStreamFailed": "streams/failed_after_one_token",
    "ChatCompletionRequest": "createChatCompletion/200-events",
    "ChatCompletion": "createChatCompletion/200-json",
    "ChatCompletionOfChunks": "showChatCompletion/200",
    "ChatCompletionRunning": "createChatCompletion/202",
    "ChatCompletionDeleted": "deleteChatCompletion/200",
    "ChunkStream": "streams/chunks",
    "ChunkStreamResumed": "streams/chunks_resumed_while_they_come",
    "ChunkStreamFailed": "streams/chunks_failed",
    "OpenAIReported": "createChatCompletion/400-upstream_refused",
    "OpenAIReportedFilter": "createChatCompletion/400-content_filtered",
    "OpenAIReportedContext": "showChatCompletion/400-context_too_long-upstream",
    "OpenAIReportedModel": "createChatCompletion/404-upstream_refused",
    "OpenAIReportedSize": "createChatCompletion/413-upstream_refused",
    "OpenAIReportedField": "createChatCompletion/422-upstream_refused",
    "Model": "showModel/200",
    "Models": "showModels/200",
    "Health": "showHealth/200",
    "Ready": "showReady/200",
    "ReadyStopping": "showReady/503",
    "Page": "showHome/200",
    "Docs": "showDocs/200",
    "Contract": "showContract/200",
    "context_too_long_for_the_model": "showChatWait/400-context_too_long-upstream",
    "overloaded_by_readers": "showChatStreaming/503-overloaded",
}
"""The examples of openapi.yaml, and the exchange that each is taken from; the errors' come after them."""

OPERATIONS = {
    "": ("any", "createChatWait", "showChatWait"),
    "openai_": ("any", "createChatCompletion", "showChatCompletion", "showModel"),
}
"""Where the example of an error is looked for, in this order, by what stands before its name: there are two shapes."""

_PRE = re.compile(r'(<pre data-example="([\w/-]+?)(?:#(\w+))?"><code>)(.*?)(</code></pre>)', re.DOTALL)
_WIDTH = 76


def golden(name: str) -> Golden:
    return Golden.read(EXAMPLES / f"{name}.http")


def inline() -> dict[str, str]:
    """Map every example of openapi.yaml to its exchange."""
    codes: dict[str, str] = {}
    for prefix, operations in OPERATIONS.items():
        for operation in operations:
            shape = "-openai" if operation == "any" and prefix else ""
            for path in sorted((EXAMPLES / operation).glob("*.http")):
                found = re.fullmatch(rf"([45]\d\d)-(\w+){shape}", path.stem)
                # With another status it is a refusal of the model's server, in its own words.
                if found and int(found[1]) == status_of(found[2]):
                    codes.setdefault(prefix + found[2], f"{operation}/{path.stem}")
    return INLINE | codes


def value_of(name: str, exchange: Golden) -> Any:
    """Give what openapi.yaml shows of an exchange: its request's or its answer's body."""
    if name.endswith("Request"):
        return json.loads(exchange.body_sent)
    kind = exchange.headers.get("content-type", "")
    if kind.startswith("application/json"):
        return json.loads(exchange.body)
    return yaml.safe_load(exchange.body.removesuffix("…")) if kind == "application/yaml" else exchange.body


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def contract() -> str:
    """Give openapi.yaml with the service's version, and with its examples, which are its end, written anew."""
    version = json.loads(golden("showHealth/200").body)["version"]
    text = re.sub(r'(?<=\n  version: ")[^"]*', version, CONTRACT.read_text(encoding="utf-8"), count=1)
    head, mark, _ = text.partition("\n  examples:\n")
    if not mark:
        raise ValueError("openapi.yaml has no examples at its end")
    shown = {
        name: {"summary": f"contracts/examples/{source}.http", "value": value_of(name, golden(source))}
        for name, source in inline().items()
    }
    written = yaml.dump(shown, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return head + mark + re.sub(r"^(?=.)", "    ", written, flags=re.MULTILINE)


def grammar() -> str:
    """Give events.md with its example written anew."""
    text = GRAMMAR.read_text(encoding="utf-8")
    stream = golden("streams/done").body.removesuffix("\n")
    return re.sub(r"(?<=## An example\n\n```\n).*?(?=\n```)", lambda _: stream, text, count=1, flags=re.DOTALL)


def page() -> str:
    """Give docs.html with its examples written anew."""

    def shown(found: re.Match[str]) -> str:
        text = html.escape(excerpt(golden(found[2]), found[3] or ""), quote=False)
        return f"{found[1]}{text}{found[5]}"

    return _PRE.sub(shown, PAGE.read_text(encoding="utf-8"))


def excerpt(exchange: Golden, part: str) -> str:
    """Give a part of an exchange for people to read: the request as a command, the body sent, or the answer."""
    parts: dict[str, Callable[[Golden], str]] = {
        "curl": curl,
        "sent": lambda one: one.request.partition("\n\n")[2],
        "body": lambda one: pretty(one.body),
        "answer": lambda one: f"{one.answer.partition(chr(10) * 2)[0]}\n\n{pretty(one.body)}".strip("\n"),
        "": lambda one: f"{one.request}\n\n{one.answer}".strip("\n"),
    }
    return parts[part](exchange)


def curl(exchange: Golden) -> str:
    """Write a request as a command."""
    head, _, body = exchange.request.partition("\n\n")
    first, *lines = head.split("\n")
    method, path, _ = first.split(" ")
    streams = "text/event-stream" in exchange.answer
    method_flag = "" if method == ("POST" if body else "GET") else f" -X {method}"
    words = [f"curl -s{'N' if streams else ''}{method_flag} 'localhost:8000{path}'"]
    words += [f"-H '{line}'" for line in lines if not line.startswith("Host: ")]
    if body:
        words.append(f"-d '{body}'")
    return " \\\n  ".join(words)


def pretty(body: str) -> str:
    """Break a line of JSON where it is long; a stream stays as it is."""
    if not body.startswith("{"):
        return body.strip("\n")
    content = json.loads(body)
    lines: list[str] = []
    for name, value in content.items():
        item = f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
        if lines and len(lines[-1]) + len(item) + 3 <= _WIDTH:
            lines[-1] += f", {item}"
        else:
            lines.append(item)
    return "{" + ",\n ".join(lines) + "}"


def write() -> Iterator[str]:
    """Write the documents anew; tell which of them changed."""
    for path, text in current():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            yield path.relative_to(ROOT).as_posix()


def current() -> Iterator[tuple[Path, str]]:
    """Give each document with the text that the golden exchanges make of it."""
    yield CONTRACT, contract()
    yield GRAMMAR, grammar()
    yield PAGE, page()
