"""The examples in the documents are true, and those of contracts/examples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import ValidationError

from app import errors
from app.dialects.native.answer import error_body
from load.events import EventParser
from tests.contract import documents
from tests.contract.document import (
    CONTRACT,
    codes_of,
    operations,
    reported_in,
    seen_through,
    statuses,
    validator,
    walk,
)
from tests.harness.contract import Contract
from tests.harness.contract_stream import FrameCheck

EXAMPLES: dict[str, Any] = CONTRACT["components"]["examples"]


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


def is_open(schema: dict[str, Any]) -> bool:
    """Tell whether an object may have members that the schema does not name, as a request of OpenAI's may."""
    return bool(seen_through(schema).get("additionalProperties"))


def test_examples_are_valid() -> None:
    found = list(examples())
    shown = {schema.get("$ref", "").rpartition("/")[2] for _, schema, _ in found}

    assert {"ChatRequest", "Answer", "Error", "EventStream", "Running", "Stopped"} <= shown
    assert {"ChatCompletionRequest", "ChatCompletion", "ChunkStream", "OpenAIError", "Model"} <= shown
    for name, schema, value in found:
        is_closed = "$ref" in schema and isinstance(value, dict) and not is_open(schema)
        try:
            validator(schema, closed=is_closed).validate(value)
        except ValidationError as error:
            pytest.fail(f"the example {name} is not of its schema: {error.message}")


def kinds(code: str) -> list[type[errors.ChatError]]:
    return [kind for kind in errors.walk() if kind.error_code == code]


ERRORS = [name for name, one in EXAMPLES.items() if isinstance(one["value"], dict) and "error_code" in one["value"]]


OPENAI_ERRORS = [name for name, one in EXAMPLES.items() if isinstance(one["value"], dict) and "error" in one["value"]]
OWN = ("error_code", "detail", "action", "correlation_id", "origin", "retryable", "retry_after_seconds", "fields")


@pytest.mark.parametrize("name", OPENAI_ERRORS)
def test_example_error_of_openai_is_one_of_ours_and_says_all_of_it_in_its_message(name: str) -> None:
    error = EXAMPLES[name]["value"]["error"]
    more = {key: error[key] for key in ("retry_after_seconds", "fields") if key in error}
    failures = [kind(error["detail"], **more).failure for kind in kinds(error["error_code"])]
    is_reported = error["origin"] == "upstream" and error["code"] != error["error_code"]
    own = {key: value for key, value in error.items() if key in OWN}
    ours = [error_body(failure, error["correlation_id"]) for failure in failures]
    for one in ours:
        del one["message"]
        one["retryable"] = one["retryable"] and (not is_reported or "retry_after_seconds" in error)

    assert list(error)[:4] == ["message", "type", "param", "code"]
    assert set(error) <= {"message", "type", "param", "code", *OWN}
    assert own in ours
    if not is_reported:
        faults = "".join(f" {field}: {told[0]}" for field, told in error.get("fields", {}).items() if field[0] != "_")
        assert error["message"] in [f"{one.message} {one.detail} {one.action}{faults}" for one in failures]
        assert error["code"] == error["error_code"]


@pytest.mark.parametrize("name", ERRORS)
def test_example_error_is_one_of_ours(name: str) -> None:
    value = dict(EXAMPLES[name]["value"])
    partial = value.pop("partial", None)
    more = {key: value[key] for key in ("retry_after_seconds", "fields") if key in value}
    ours = [
        error_body(kind(value["detail"], **more).failure, value["correlation_id"])
        for kind in kinds(value["error_code"])
    ]

    assert value in ours
    assert partial is None or value["origin"] == "upstream" or value["error_code"] == "producer_lost"


def test_examples_are_there_for_every_answer_and_every_error_code_it_may_have() -> None:
    for method, path, operation in operations():
        for status, reference in operation["responses"].items():
            response = seen_through(reference)
            codes = codes_of(response)
            for media in response.get("content", {}).values():
                shown = [seen_through(one)["value"] for one in media["examples"].values()]
                assert shown, (method, path, status)
                if media["schema"] == {"$ref": "#/components/schemas/Error"}:
                    assert {value["error_code"] for value in shown} == codes, (method, path, status)
                    of_status = {statuses()[code] for code in codes}
                    assert status == "default" or of_status == {int(status)}, (method, path, status)
                if media["schema"] == {"$ref": "#/components/schemas/OpenAIError"}:
                    errors_shown = {value["error"]["error_code"] for value in shown}
                    assert errors_shown == codes | reported_in(response), (method, path, status)
                    assert status == "default" or {statuses()[code] for code in codes} <= {int(status)}


def test_documents_show_the_exchanges_of_the_examples() -> None:
    for path, text in documents.current():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python -m tests.contract.golden"


def test_example_stream_is_a_stream_and_the_example_answer() -> None:
    stream = CONTRACT["components"]["examples"]["EventStream"]["value"]
    answer = CONTRACT["components"]["examples"]["Answer"]["value"]
    received = EventParser().feed(stream.encode("ascii"))

    check = FrameCheck(Contract.read().events, {}, received[0].json["stream_id"], cursor="")
    check.feed(stream.encode("ascii"))
    check.end(whole=True)
    assert answer["characters"] == len(answer["content"])
    assert answer["sha256"] == hashlib.sha256(answer["content"].encode()).hexdigest()
    assert "".join(event.json["content"] for event in received if event.event == "token") == answer["content"]
    assert answer.items() >= {k: v for k, v in received[-1].json.items() if k not in ("sequence", "is_final")}.items()
