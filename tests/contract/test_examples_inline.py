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


def test_examples_are_valid() -> None:
    found = list(examples())
    shown = {schema.get("$ref", "").rpartition("/")[2] for _, schema, _ in found}

    assert {"ChatRequest", "Answer", "Error", "EventStream", "Running", "Stopped"} <= shown
    for name, schema, value in found:
        try:
            validator(schema, closed="$ref" in schema and isinstance(value, dict)).validate(value)
        except ValidationError as error:
            pytest.fail(f"the example {name} is not of its schema: {error.message}")


def kinds(code: str) -> list[type[errors.ChatError]]:
    return [kind for kind in errors.walk() if kind.error_code == code]


ERRORS = [name for name, one in EXAMPLES.items() if isinstance(one["value"], dict) and "error_code" in one["value"]]


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
