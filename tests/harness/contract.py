"""Read contracts/openapi.yaml: which operations there are, and what it says of each of their answers.

Must never import the service's code: it judges it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

DOCUMENT = Path(__file__).parents[2] / "contracts" / "openapi.yaml"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C reads it in a tenth of the time
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
Validator = Any  # jsonschema_rs has no one type for it


@functools.cache
def read_document() -> dict[str, Any]:
    """Return the document as it stands in its file. Every caller gets the same object: do not change it."""
    found: dict[str, Any] = yaml.load(DOCUMENT.read_text(encoding="utf-8"), LOADER)
    return found


@dataclass(frozen=True)
class Said:
    """What the contract says of one status."""

    headers: Mapping[str, tuple[bool, Validator]]
    content: Mapping[str, Validator | None]
    codes: frozenset[str]
    reported: frozenset[str] = frozenset()
    """The codes of refusals that have the status of the model's server, and not their own."""


@dataclass(frozen=True)
class Operation:
    """What the contract says of one method of one path."""

    name: str
    tag: str
    responses: Mapping[str, Said]


class Contract:
    """Hold the document with every schema compiled, each object closed: a key that it does not name is a failure."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        schemas = document["components"]["schemas"]
        bases = {one["$ref"].rpartition("/")[2] for schema in schemas.values() for one in schema.get("allOf", ())}
        closed = {name: schema if name in bases else _closed(schema) for name, schema in schemas.items()}
        self._components = {"schemas": closed}
        self.statuses: dict[str, int] = schemas["ErrorCode"]["x-status"]
        self.events = {name: self._compile(data) for name, data in schemas["EventStream"]["x-event-data"].items()}
        self.error = self._compile({"$ref": "#/components/schemas/Error"})
        self.openai_error = self._compile({"$ref": "#/components/schemas/OpenAIError"})
        self.chunk = self._compile({"$ref": "#/components/schemas/ChatCompletionChunk"})
        self._paths = [(self._pattern(path, item), item, path) for path, item in document["paths"].items()]
        self._operations = {
            (method, path): self._operation(method, path, item[method])
            for _, item, path in self._paths
            for method in METHODS
            if method in item
        }

    @classmethod
    def read(cls) -> Contract:
        return cls(read_document())

    def find(self, path: str) -> tuple[str, dict[str, str], set[str]] | None:
        """Give the path's template, its parameters and its methods; None for one that the contract has not."""
        for pattern, item, template in self._paths:
            if found := pattern.fullmatch(path):
                return template, found.groupdict(), {method.upper() for method in METHODS if method in item}
        return None

    def operation(self, method: str, template: str) -> Operation | None:
        return self._operations.get((method.lower(), template))

    def promises(self) -> set[tuple[str, str]]:
        """List every operation with each status that it names."""
        operations = self._operations.values()
        return {(one.name, status) for one in operations for status in one.responses if status != "default"}

    def _pattern(self, path: str, item: Mapping[str, Any]) -> re.Pattern[str]:
        servers = [server["url"].rstrip("/") for server in item.get("servers", self._document["servers"])]
        parameters = [self._see(parameter) for parameter in item.get("parameters", ())]
        with_slashes = any(parameter["schema"].get("x-slashes") for parameter in parameters)
        escaped = re.sub(r"\\\{(\w+)\\\}", rf"(?P<\1>{'.+' if with_slashes else '[^/]+'})", re.escape(path))
        return re.compile(f"(?:{'|'.join(map(re.escape, servers))}){escaped}")

    def _operation(self, method: str, path: str, operation: Mapping[str, Any]) -> Operation:
        responses = {status: self._said(self._see(said)) for status, said in operation["responses"].items()}
        return Operation(f"{method.upper()} {path}", operation["tags"][0], responses)

    def _said(self, said: Mapping[str, Any]) -> Said:
        headers = {}
        for name, header in said.get("headers", {}).items():
            header = self._see(header)
            headers[name] = (header.get("required", False), self._compile(header["schema"]))
        content = {
            # What is no JSON is text; its schema says no more.
            media: self._compile(found["schema"]) if media == "application/json" else None
            for media, found in said.get("content", {}).items()
        }
        codes = frozenset(re.findall(r"`(\w+)`", said["description"])) & self.statuses.keys()
        return Said(headers, content, codes, frozenset(said.get("x-reported", ())))

    def _see(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in node:
            found: Any = self._document
            for part in node["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            node = found
        return node

    def _compile(self, schema: Mapping[str, Any]) -> Validator:
        whole = {"allOf": [schema], "components": self._components}
        return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


def _closed(schema: Any) -> Any:
    """Copy a schema so that its objects, and those inside them, take no key that they do not name."""
    if not isinstance(schema, dict):
        return schema
    copy = dict(schema)
    if "properties" in schema:
        copy["properties"] = {name: _closed(inner) for name, inner in schema["properties"].items()}
        if "additionalProperties" not in schema:
            copy["unevaluatedProperties"] = False
    if "items" in schema:
        copy["items"] = _closed(schema["items"])
    return copy
