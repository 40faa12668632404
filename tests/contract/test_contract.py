"""The contract says what the service does, in every form of it: openapi.yaml, events.md and the page for people."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator, ValidationError
from werkzeug.test import TestResponse

from app import clock, create_app, errors, schemas
from app.config import Settings, plain
from app.routes import reading
from tests.harness.events import Event, EventParser
from tests.unit.conftest import no_network, restored_logging  # noqa: F401 - fixtures
from tests.unit.fakes import FakeUpstream, Gate, texts, whole

pytestmark = pytest.mark.usefixtures("no_network")

ROOT = Path(__file__).parents[2]
CONTRACT: dict[str, Any] = yaml.safe_load((ROOT / "contracts" / "openapi.yaml").read_text(encoding="utf-8"))
GRAMMAR = (ROOT / "contracts" / "events.md").read_text(encoding="utf-8")
PAGE = (ROOT / "app" / "static" / "docs.html").read_text(encoding="utf-8")

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
ASSET = re.compile(r"\.(css|js|svg|png|ico|woff2)$")
"""What a page is made of, and no part of the contract."""

SETTINGS = Settings(
    openai_base_url="http://model.test/v1",
    allowed_models=("gpt-4o-mini",),
    allowed_hosts=("localhost",),
    log_level="CRITICAL",
)
ASKED = {"message": "What is the capital of Italy?"}
TEXTS = ("Rome", ".")


# Finding one's way in the document


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


def validator(schema: dict[str, Any], *, closed: bool = False) -> Draft202012Validator:
    """Check against a schema of the document; `closed`, a key that it does not name is an error."""
    whole_schema = {"allOf": [schema], "components": CONTRACT["components"]}
    if closed:
        whole_schema["unevaluatedProperties"] = False
    return Draft202012Validator(whole_schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def named(name: str, *, closed: bool = False) -> Draft202012Validator:
    assert name in CONTRACT["components"]["schemas"]
    return validator({"$ref": f"#/components/schemas/{name}"}, closed=closed)


def check_events(received: list[Event]) -> None:
    """Check the data of events, and what they promise of one another."""
    schema_of = CONTRACT["components"]["schemas"]["EventStream"]["x-event-data"]
    text, sequence, stream_id = "", 0, received[0].json["stream_id"]
    assert received[0].event == "start"
    assert received[0].retry == 1000
    for event in received:
        validator(schema_of[event.event], closed=True).validate(event.json)
        if event.event == "token":
            sequence += event.json["count"]
            text += event.json["content"]
        if event.event == "ping":
            assert event.id is None
        elif event.event != "start":
            assert event.json["sequence"] == sequence + (event.event != "token")
            assert event.id == f"{stream_id}.{event.json['sequence']}"
    end = received[-1].json
    assert end["is_final"]
    check_totals(end, text)
    assert end["tokens"] == sequence


def check_totals(totals: dict[str, Any], text: str) -> None:
    assert totals["characters"] == len(text)
    assert totals["sha256"] == hashlib.sha256(text.encode()).hexdigest()


# The document is valid OpenAPI 3.1

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
        "response": shape("description", ABOUT, headers=map_of(or_reference("header")), content=map_of(here("media"))),
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
    "maximum", "minItems", "minLength", "minimum", "pattern", "properties", "required",
    "then", "type",
}
# fmt: on
"""Those of JSON Schema 2020-12 that the contract uses; a misspelt one would check nothing."""


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


# What it says is what the code does


def test_routes_are_those_of_the_application(app: Flask) -> None:
    served = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS") and not ASSET.search(rule.rule)
    }

    assert served == routes()


def test_error_codes_are_those_of_the_code() -> None:
    code = CONTRACT["components"]["schemas"]["ErrorCode"]

    assert sorted(code["enum"]) == sorted(statuses())
    assert code["x-status"] == statuses()


def test_error_statuses_have_a_response_that_names_their_codes() -> None:
    said: dict[str, int] = {}
    for _, _, operation in operations():
        for status, response in operation["responses"].items():
            codes = re.findall(r"`([a-z_]+)`", seen_through(response)["description"])
            said |= {code: int(status) for code in codes if status >= "400" and status != "default"}
    others = re.findall(r"(\d{3})\s+`(\w+)`", CONTRACT["components"]["responses"]["Error"]["description"])

    assert said | {code: int(status) for status, code in others} == statuses()


def test_limits_are_the_settings_defaults() -> None:
    settings = Settings()
    properties = CONTRACT["components"]["schemas"]["ChatRequest"]["properties"]
    turn = CONTRACT["components"]["schemas"]["ContextMessage"]["properties"]
    models = CONTRACT["paths"]["/models"]["get"]["responses"]["200"]["content"]["application/json"]
    example = models["examples"]["defaults"]["value"]

    assert properties["message"]["maxLength"] == settings.max_message_chars
    assert properties["context"]["maxItems"] == settings.max_context_messages
    assert properties["max_tokens"]["maximum"] == settings.max_tokens
    assert properties["max_tokens"]["default"] == settings.default_max_tokens
    assert properties["model"]["maxLength"] == schemas.LONGEST_MODEL
    assert turn["role"]["enum"] == list(schemas.ROLES)
    assert str(settings.max_input_tokens) in CONTRACT["components"]["schemas"]["ChatRequest"]["description"]
    assert settings.max_body_bytes == 1_048_576  # "1 MiB" in the description of the body
    assert "at most 1 MiB" in CONTRACT["components"]["requestBodies"]["Chat"]["description"]
    assert list(example["limits"].items()) == list(settings.limits.items())
    assert example["default"] == settings.openai_model
    assert set(CONTRACT["components"]["schemas"]["Models"]["properties"]["limits"]["required"]) == set(settings.limits)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(body, id=name)
        for name, body in {
            "message only": ASKED,
            "empty message": {"message": ""},
            "blank message": {"message": " \n"},
            "longest message": {"message": "a " * 4000},
            "message too long": {"message": "a " * 4000 + "a"},
            "message of a number": {"message": 5},
            "no message": {},
            "null": {**ASKED, "model": None},
            "no object": ["Hello"],
            "unknown field": {**ASKED, "stream": True},
            "empty context": {**ASKED, "context": []},
            "longest context": {**ASKED, "context": [{"role": "user", "content": "a"}] * 100},
            "context too long": {**ASKED, "context": [{"role": "user", "content": "a"}] * 101},
            "empty content": {**ASKED, "context": [{"role": "assistant", "content": ""}]},
            "no content": {**ASKED, "context": [{"role": "user"}]},
            "unknown role": {**ASKED, "context": [{"role": "tool", "content": "a"}]},
            "unknown field in context": {**ASKED, "context": [{"role": "user", "content": "a", "name": "b"}]},
            "longest timestamp": {**ASKED, "context": [{"role": "user", "content": "a", "timestamp": "1" * 100}]},
            "timestamp too long": {**ASKED, "context": [{"role": "user", "content": "a", "timestamp": "1" * 101}]},
            "model": {**ASKED, "model": "gpt-4o-mini"},
            "empty model": {**ASKED, "model": ""},
            "fewest tokens": {**ASKED, "max_tokens": 1},
            "no tokens": {**ASKED, "max_tokens": 0},
            "most tokens": {**ASKED, "max_tokens": 16384},
            "too many tokens": {**ASKED, "max_tokens": 16385},
            "tokens in a text": {**ASKED, "max_tokens": "5"},
            "tokens true": {**ASKED, "max_tokens": True},
            "temperature": {**ASKED, "temperature": 2},
            "too hot": {**ASKED, "temperature": 2.1},
            "too cold": {**ASKED, "temperature": -0.1},
        }.items()
    ],
)
def test_request_schema_takes_what_the_service_takes(body: Any) -> None:
    try:
        schemas.read_request(json.dumps(body).encode(), SETTINGS)
    except errors.ClientError:
        taken = False
    else:
        taken = True

    assert named("ChatRequest").is_valid(body) == taken


@pytest.mark.parametrize(
    "cursor",
    [
        "cw_a.0",
        "cw_a.9007199254740992",
        "cw_a.01",
        "cw_a." + "1" * 17,
        "cw_a.-1",
        "cw_a",
        ".1",
        "a.b.1",
        "-1",
        "abc",
        "a" * 126 + ".1",
    ],
)
def test_cursor_schema_takes_what_the_service_takes(client: FlaskClient, cursor: str) -> None:
    code = client.post("/chat/wait", headers={"Last-Event-ID": cursor}).json["error_code"]  # type: ignore[index]

    assert CONTRACT["components"]["schemas"]["Cursor"]["maxLength"] == reading.LONGEST_CURSOR_BYTES
    assert named("Cursor").is_valid(cursor) == (code == "stream_unknown")


def test_idempotency_key_schema_takes_what_the_service_takes(client: FlaskClient) -> None:
    schema = validator(CONTRACT["components"]["parameters"]["IdempotencyKey"]["schema"])

    for key in ("k" * 15, "k" * 16, "k" * 255, "k" * 256, "k" * 16 + " k"):
        status = client.post("/chat/wait", json=ASKED, headers={"Idempotency-Key": key}).status_code
        assert schema.is_valid(key) == (status == 200), key


# The answers have the shapes that it shows


@pytest.fixture(autouse=True)
def quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "TICK_SECONDS", 0.01)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.close()


@pytest.fixture
def upstream() -> FakeUpstream:
    return FakeUpstream(whole(*TEXTS))


@pytest.fixture
def app(upstream: FakeUpstream) -> Iterator[Flask]:
    made = create_app(SETTINGS, upstream=upstream)
    yield made
    made.extensions["chatwait"].close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def check(response: TestResponse, method: str, path: str) -> Any:
    """Check an answer against what the contract says of its status; give back its JSON, if it is that."""
    responses = CONTRACT["paths"][path][method]["responses"]
    said = seen_through(responses.get(str(response.status_code), responses["default"]))
    for name, header in said["headers"].items():
        if seen_through(header).get("required") or name in ("X-Stream-Id", "Location"):
            schema = seen_through(header)["schema"]
            validator(schema).validate(response.headers[name])
    if "content" not in said:
        assert response.data == b""
        return None
    media = said["content"][response.mimetype]
    if response.mimetype != "application/json":
        return None
    validator(media["schema"], closed=True).validate(response.json)
    return response.json


def test_answers_have_their_shape(client: FlaskClient) -> None:
    answer = check(client.post("/chat/wait", json=ASKED), "post", "/chat/wait")
    stream_id = answer["stream_id"]
    again = client.get(f"/v1/chat/wait/{stream_id}")
    preferred = client.post("/chat", json=ASKED, headers={"Accept": "application/json"})
    stopped = client.delete(f"/chat/wait/{stream_id}")

    assert answer["content"] == "".join(TEXTS)
    check_totals(answer, answer["content"])
    assert list(answer) == list(CONTRACT["components"]["examples"]["Answer"]["value"])
    assert check(again, "get", "/chat/wait/{stream_id}")["content"] == answer["content"]
    assert check(preferred, "post", "/chat")["status"] == "complete"
    assert check(stopped, "delete", "/chat/wait/{stream_id}")["status"] == "complete"


def test_events_have_their_shape(client: FlaskClient) -> None:
    response = client.post("/chat/streaming", json=ASKED)
    received = EventParser().feed(response.data)
    last = received[-1].id
    check(response, "post", "/chat/streaming")
    check_events(received)

    seen = client.get(f"/chat/streaming/{response.headers['X-Stream-Id']}", headers={"Last-Event-ID": str(last)})
    resumed = client.post("/chat/streaming", headers={"Last-Event-ID": str(received[1].id)})

    assert seen.status_code == 204
    check(seen, "get", "/chat/streaming/{stream_id}")
    events = EventParser().feed(resumed.data)
    assert events[0].event == "ping"
    named("Ping", closed=True).validate(events[0].json)


def test_failed_and_cancelled_have_their_shape(client: FlaskClient, upstream: FakeUpstream, gate: Gate) -> None:
    upstream.scripts = [[*texts("Rome"), errors.UpstreamError()], [*texts("Rome"), gate]]

    failed = EventParser().feed(client.post("/chat/streaming", json=ASKED).data)
    key = {"Idempotency-Key": "k" * 16}
    running = client.post("/chat/wait", json=ASKED, headers={**key, "Prefer": "wait=0"})
    stream_id = check(running, "post", "/chat/wait")["stream_id"]
    gate.wait_reached()
    stopped = client.delete(f"/chat/streaming/{stream_id}")
    cancelled = client.get(f"/chat/streaming/{stream_id}")

    assert failed[-1].event == "failed"
    check_events(failed)
    assert running.status_code == 202
    assert running.headers["Preference-Applied"] == "wait=0"
    assert running.headers["Location"] == f"/v1/chat/wait/{stream_id}"
    assert check(stopped, "delete", "/chat/streaming/{stream_id}")["status"] == "cancelled"
    received = EventParser().feed(cancelled.data)
    assert received[-1].event == "cancelled"
    check_events(received)
    answer = check(client.get(f"/chat/wait/{stream_id}"), "get", "/chat/wait/{stream_id}")
    assert (answer["status"], answer["reason"]) == ("cancelled", "client")


def test_errors_have_their_shape(client: FlaskClient, upstream: FakeUpstream) -> None:
    upstream.scripts = [[*texts("Rome"), errors.UpstreamError()], errors.UpstreamRateLimited(retry_after_seconds=60)]

    broken = client.post("/chat/wait", json=ASKED)
    limited = client.post("/chat/wait", json=ASKED)
    wrong = client.post("/chat/wait", json={"massage": "Hello"})
    unknown = client.get("/chat/streaming/cw_unknown")

    assert check(broken, "post", "/chat/wait")["partial"] == {"content": "Rome", "tokens": 1}
    assert check(limited, "post", "/chat/wait")["retry_after_seconds"] == 60
    assert limited.headers["Retry-After"] == "60"
    assert check(wrong, "post", "/chat/wait")["fields"].keys() == {"message", "massage"}
    assert check(unknown, "get", "/chat/streaming/{stream_id}")["error_code"] == "stream_unknown"


@pytest.mark.parametrize("path", [path for method, path, _ in operations() if method == "GET" and "{" not in path])
def test_other_answers_have_their_shape(client: FlaskClient, path: str) -> None:
    response = client.get(path)

    assert response.status_code == 200
    check(response, "get", path)


def test_contract_is_served_as_it_is(client: FlaskClient) -> None:
    response = client.get("/openapi.yaml")

    assert response.content_type == "application/yaml"
    assert yaml.safe_load(response.data) == CONTRACT
    home = client.get("/").text
    assert 'href="/docs"' in home and 'href="/openapi.yaml"' in home


# Its examples are true


def examples() -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Give every example with the schema it stands beside."""
    for node in walk(CONTRACT):
        if not isinstance(node, dict) or not isinstance(node.get("schema"), dict):
            continue
        if "example" in node:
            yield str(node["example"])[:40], node["schema"], node["example"]
        for name, example in node.get("examples", {}).items():
            yield name, node["schema"], seen_through(example)["value"]
    for name, schema in CONTRACT["components"]["schemas"].items():
        for example in schema.get("examples", ()):
            yield name, schema, example


def test_examples_are_valid() -> None:
    found = list(examples())
    shown = {schema.get("$ref", "").rpartition("/")[2] for _, schema, _ in found}

    assert {"ChatRequest", "Answer", "Error", "EventStream", "Running", "Stopped"} <= shown
    for name, schema, value in found:
        try:
            validator(schema, closed=isinstance(value, dict)).validate(value)
        except ValidationError as error:
            pytest.fail(f"the example {name} is not of its schema: {error.message}")


def test_example_error_is_one_of_ours() -> None:
    value = CONTRACT["components"]["examples"]["Error"]["value"]
    error = errors.MessageTooLong(value["detail"])

    assert value == error.body(value["correlation_id"])


def test_example_stream_is_a_stream_and_the_example_answer() -> None:
    stream = CONTRACT["components"]["examples"]["EventStream"]["value"]
    answer = CONTRACT["components"]["examples"]["Answer"]["value"]
    received = EventParser().feed(stream.encode("ascii"))

    check_events(received)
    check_totals(answer, answer["content"])
    assert "".join(event.json["content"] for event in received if event.event == "token") == answer["content"]
    assert answer.items() >= {k: v for k, v in received[-1].json.items() if k not in ("sequence", "is_final")}.items()


def test_grammar_shows_the_same_stream_and_every_event_and_cursor_error() -> None:
    stream = CONTRACT["components"]["examples"]["EventStream"]["value"]
    table = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", GRAMMAR, re.MULTILINE)
    listed = re.findall(r"(\d{3}) `(\w+)`", GRAMMAR)
    known = CONTRACT["components"]["schemas"]["EventStream"]["x-event-data"]

    assert stream.rstrip("\n") in GRAMMAR
    assert [name for name, _ in table] == list(known)
    done = dict(table)["done"]
    assert re.findall(r"(?<!\()`(\w+)`", done) == list(EventParser().feed(stream.encode())[-1].json)
    assert {code: int(status) for status, code in listed}.items() <= statuses().items()


# The page for people


class Cells(HTMLParser):
    """Collect the rows of every table's body, and what the page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.loads: set[str] = set()
        self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads |= {str(value) for name, value in attrs if name == "src" or (tag == "link" and name == "href")}
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs)
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page() -> Cells:
    cells = Cells()
    cells.feed(PAGE)
    cells.close()
    return cells


def test_page_needs_nothing_but_the_style(page: Cells) -> None:
    assert page.loads == {"/style.css"}
    assert not page.tags & {"script", "style", "iframe", "img"}


def test_page_shows_every_error_with_its_status_meaning_and_action(page: Cells) -> None:
    rows = [tuple(row) for row in page.rows if len(row) == 4]
    kinds = {kind.error_code: kind for kind in reversed(errors.walk())}  # of two with one code, the first
    expected = [
        (code, str(kind.status), f"{kind.message} {kind.why}", kind.action.replace("`", ""))
        for code, kind in kinds.items()
    ]

    assert sorted(rows) == sorted(expected)


def test_page_shows_the_default_limits(page: Cells) -> None:
    rows = {row[0]: row[1] for row in page.rows if len(row) == 3 and row[1].isdecimal()}

    assert rows == {name: str(plain(value)) for name, value in Settings().limits.items()}


def test_page_shows_every_route(page: Cells) -> None:
    shown = re.findall(r"<code>(GET|POST|DELETE) (/[^<]*)</code>", PAGE)

    assert set(shown) == {(method, path) for method, path, _ in operations()} | {("GET", "/models")}


def test_page_shows_every_event_with_its_keys_and_every_header(page: Cells) -> None:
    rows = {row[0]: row for row in page.rows if row}
    stream = CONTRACT["components"]["examples"]["EventStream"]["value"]
    for event in EventParser().feed(stream.encode()):
        assert all(re.search(rf"\b{key}\b", rows[event.event][2]) for key in event.json), event.event
    assert {"cancelled", "failed"} <= rows.keys()

    parameters = CONTRACT["components"]["parameters"].values()
    headers = {name for response in CONTRACT["components"]["responses"].values() for name in response["headers"]}
    assert {parameter["name"] for parameter in parameters if parameter["in"] == "header"} | headers <= rows.keys()


def test_page_shows_valid_examples() -> None:
    blocks = [html.unescape(block) for block in re.findall(r"<pre><code>(\{.*?\})</code></pre>", PAGE, re.DOTALL)]
    request, answer, error = (json.loads(block) for block in blocks)
    components = CONTRACT["components"]

    assert request == components["requestBodies"]["Chat"]["content"]["application/json"]["examples"]["capital"]["value"]
    assert answer == components["examples"]["Answer"]["value"]
    assert error == components["examples"]["Error"]["value"]
