"""The contract is an OpenAPI 3.1 document without loose ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.contract.document import CONTRACT, METHODS, operations, references, resolve, seen_through, walk

ANY: dict[str, Any] = {}
TEXT = {"type": "string", "minLength": 1}
EXTENSION = {"^x-": ANY}
REFERENCE = {"type": "object", "required": ["$ref"], "properties": {"$ref": TEXT}, "additionalProperties": False}


def shape(required: str, optional: dict[str, Any], /, **parts: Any) -> dict[str, Any]:
    """Describe an object of OpenAPI: its required keys by name, and every key with its schema."""
    return {
        "type": "object",
        "required": required.split(),
        "properties": {**optional, **parts},
        "patternProperties": EXTENSION,
        "additionalProperties": False,
    }


def here(name: str) -> dict[str, Any]:
    """Name a shape below."""
    return {"$ref": f"#/$defs/{name}"}


def or_reference(name: str) -> dict[str, Any]:
    return {"if": {"required": ["$ref"]}, "then": REFERENCE, "else": here(name)}


def map_of(item: dict[str, Any], names: str = "^[A-Za-z0-9._/+-]+$") -> dict[str, Any]:
    return {"type": "object", "propertyNames": {"pattern": names}, "additionalProperties": item}


VALUE = {"example": ANY, "examples": map_of(or_reference("example"))}
ABOUT = {"summary": TEXT, "description": TEXT}
SERVERS = {"type": "array", "minItems": 1, "items": shape("url", ABOUT, url=TEXT)}
PARAMETERS = {"type": "array", "items": or_reference("parameter")}
COMPONENTS = {
    "schemas": map_of(here("schema")),
    "responses": map_of(or_reference("response")),
    "parameters": map_of(or_reference("parameter")),
    "examples": map_of(or_reference("example")),
    "requestBodies": map_of(or_reference("body")),
    "headers": map_of(or_reference("header")),
    "links": map_of(here("link")),
}
OPENAPI_31 = {
    **shape(
        "openapi info paths",
        {"security": {"type": "array"}, "components": shape("", COMPONENTS)},
        openapi={"type": "string", "pattern": r"^3\.1\.\d+$"},
        info=shape(
            "title version", ABOUT, title=TEXT, version=TEXT, license=shape("name", {"identifier": TEXT}, name=TEXT)
        ),
        servers=SERVERS,
        tags={"type": "array", "items": shape("name", ABOUT, name=TEXT)},
        paths=map_of(here("path"), "^/"),
    ),
    "$defs": {
        "path": shape(
            "", {method: here("operation") for method in METHODS}, servers=SERVERS, parameters=PARAMETERS, **ABOUT
        ),
        "operation": shape(
            "operationId summary responses",
            ABOUT,
            tags={"type": "array", "items": TEXT},
            operationId=TEXT,
            parameters=PARAMETERS,
            requestBody=or_reference("body"),
            responses=map_of(or_reference("response"), "^([1-5][0-9][0-9]|default)$"),
        ),
        "parameter": shape(
            "name in schema",
            VALUE,
            description=TEXT,
            name=TEXT,
            required={"type": "boolean"},
            schema=here("schema"),
            **{"in": {"enum": ["path", "query", "header", "cookie"]}},
        )
        | {"if": {"properties": {"in": {"const": "path"}}}, "then": {"required": ["required"]}},
        "body": shape("content", ABOUT, required={"type": "boolean"}, content=map_of(here("media"))),
        "response": shape(
            "description",
            ABOUT,
            headers=map_of(or_reference("header")),
            content=map_of(here("media")),
            links=map_of(or_reference("link")),
        ),
        "link": shape("operationId parameters", ABOUT, operationId=TEXT, parameters=map_of(TEXT)),
        "header": shape("schema", VALUE, description=TEXT, required={"type": "boolean"}, schema=here("schema")),
        "media": shape("schema", VALUE, schema=here("schema")),
        "example": shape("value", ABOUT, value=ANY),
        "schema": {"type": ["object", "boolean"]},
    },
}
# fmt: off
KEYWORDS = {
    "$ref", "additionalProperties", "allOf", "const", "default", "description", "else",
    "enum", "examples", "format", "if", "items", "maxItems", "maxLength",
    "maximum", "minItems", "minLength", "minimum", "not", "pattern", "properties", "required",
    "then", "type",
}
# fmt: on
"""Those of JSON Schema 2020-12 that the contract uses; a misspelt one would check nothing."""


@pytest.mark.requirement("plan contract")
def test_contract_has_the_structure_of_openapi() -> None:
    Draft202012Validator.check_schema(OPENAPI_31)
    Draft202012Validator(OPENAPI_31).validate(CONTRACT)


def subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Give a schema and every one inside it."""
    if isinstance(schema, bool):
        return
    yield schema
    inner = [schema[key] for key in ("items", "additionalProperties", "if", "then", "else") if key in schema]
    inner += [*schema.get("allOf", ()), *schema.get("properties", {}).values()]
    for one in inner:
        yield from subschemas(one)


def test_schemas_are_json_schemas_without_misspelt_keywords() -> None:
    holders = [node for node in walk(CONTRACT) if isinstance(node, dict) and isinstance(node.get("schema"), dict)]
    all_schemas = [*CONTRACT["components"]["schemas"].values(), *(holder["schema"] for holder in holders)]

    for schema in all_schemas:
        Draft202012Validator.check_schema(schema)
        for one in subschemas(schema):
            assert {key for key in one if not key.startswith("x-")} <= KEYWORDS
            assert set(one.get("required", ())) <= required_may_be(one)


def required_may_be(schema: dict[str, Any]) -> set[str]:
    """List the properties that a schema knows, its own and those it builds upon; its callers' for an if-then."""
    own = set(schema.get("properties", ()))
    for base in schema.get("allOf", ()):
        own |= required_may_be(seen_through(base))
    return own or set(schema.get("required", ()))


def test_references_lead_somewhere_and_every_component_is_used() -> None:
    used = set(references())
    components = {f"#/components/{kind}/{name}" for kind, all_of in CONTRACT["components"].items() for name in all_of}

    assert all(resolve(reference) is not None for reference in used)
    assert used == components


def test_operations_are_named_once_and_declare_the_parameters_of_their_path() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names))

    tags = {tag["name"] for tag in CONTRACT["tags"]}
    for _, path, operation in operations():
        parameters = [*CONTRACT["paths"][path].get("parameters", ()), *operation.get("parameters", ())]
        in_path = {one["name"] for one in map(seen_through, parameters) if one["in"] == "path"}
        assert in_path == set(re.findall(r"\{(\w+)\}", path))
        assert set(operation["tags"]) <= tags


def test_every_answer_carries_the_correlation_id() -> None:
    for method, path, operation in operations():
        for status, response in operation["responses"].items():
            assert "X-Correlation-Id" in seen_through(response)["headers"], (method, path, status)
