"""The contract in its three forms, and ways to find something in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from app import errors
from tests.harness.contract import METHODS, read_document

ROOT = Path(__file__).parents[2]
CONTRACT = read_document()
GRAMMAR = (ROOT / "contracts" / "events.md").read_text(encoding="utf-8")
PAGE = (ROOT / "app" / "static" / "docs.html").read_text(encoding="utf-8")


def resolve(reference: str) -> Any:
    """Return what a reference names. Raises: KeyError."""
    assert reference.startswith("#/"), reference
    found: Any = CONTRACT
    for part in reference[2:].split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


def seen_through(node: dict[str, Any]) -> dict[str, Any]:
    return resolve(node["$ref"]) if "$ref" in node else node


def walk(node: Any) -> Iterator[Any]:
    """Give every object and list of the document, the outer ones first."""
    yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        if isinstance(inner, dict | list):
            yield from walk(inner)


def references() -> list[str]:
    return [node["$ref"] for node in walk(CONTRACT) if isinstance(node, dict) and "$ref" in node]


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in CONTRACT["paths"].items():
        for method in METHODS:
            if method in item:
                yield method.upper(), path, item[method]


def routes() -> set[tuple[str, str]]:
    """List every method and path that the contract says the server answers."""
    found = set()
    for method, path, _ in operations():
        for server in CONTRACT["paths"][path].get("servers", CONTRACT["servers"]):
            found.add((method, server["url"].rstrip("/") + path))
    return found


def statuses() -> dict[str, int]:
    return {kind.error_code: kind.status for kind in errors.walk()}


def codes_of(response: dict[str, Any]) -> set[str]:
    """Read the error codes that the description of an answer names."""
    return set(re.findall(r"`([a-z_]+)`", response["description"])) & statuses().keys()


def reported_in(response: dict[str, Any]) -> set[str]:
    """Read the error codes of refusals that an answer may have with the status of the model's server."""
    return set(response.get("x-reported", ()))


def elsewhere() -> set[tuple[str, str]]:
    """List the statuses and codes that any operation can answer."""
    said = CONTRACT["components"]["responses"]["Error"]["description"]
    return set(re.findall(r"(\d{3})\s+`(\w+)`", said))


def validator(schema: dict[str, Any], *, closed: bool = False) -> Draft202012Validator:
    """Check against a schema of the document; `closed`, a key that it does not name is an error."""
    whole_schema = {"allOf": [schema], "components": CONTRACT["components"]}
    if closed:
        whole_schema["unevaluatedProperties"] = False
    return Draft202012Validator(whole_schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def named(name: str) -> Draft202012Validator:
    assert name in CONTRACT["components"]["schemas"]
    return validator({"$ref": f"#/components/schemas/{name}"})
