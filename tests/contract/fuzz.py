"""Drive schemathesis over the contract, in this process: its requests are heard like every other's.

Must never import the service's code: it judges it.
"""

from __future__ import annotations

import gc
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from schemathesis import Case, HookContext, Response
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.parameters import ParameterLocation
from schemathesis.engine import Status, events, from_schema
from schemathesis.openapi.checks import RejectedPositiveData

from tests.harness.contract import read_document
from tests.harness.contract_check import Asked
from tests.harness.http1 import Headers

MODEL = "gpt-4o-mini"
NOT_CHECKED = {
    "use_after_free": "DELETE stops a generation; what it has said so far stays readable on purpose",
    "ignored_auth": "there is no sign-in to ignore",
    "object_level_authorization": "whoever holds an id may use it",
}
"""The checks that are off, and why."""
CURSORS = ("LastEventIdHeader", "LastEventIdQuery", "LastEventIdQueryCamel")
CURSOR = re.compile(r"[A-Za-z0-9_-]+\.(0|[1-9][0-9]{0,15})")
OF_STATE = ("stream_unknown", "stream_expired", "cursor_foreign", "cursor_ahead", "idempotency_key_reused")
"""Errors that no schema can foresee: they depend on what is there."""
REFUSALS = {414: "an address", 431: "a header"}
LONGEST_LINE = 8190
"""In bytes; what gunicorn refuses beyond it never reaches the application, and has gunicorn's own answer."""


@dataclass
class Found:
    """What a run of schemathesis has done and found."""

    cases: Counter[str] = field(default_factory=Counter)
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, finished: events.ScenarioFinished) -> None:
        recorder = finished.recorder
        self.cases[finished.phase.value] += len(recorder.cases)
        for case_id, interaction in recorder.interactions.items():
            if interaction.response is not None:
                self.answers[recorder.cases[case_id].value.operation.label, interaction.response.status_code] += 1
        for case_id, nodes in recorder.checks.items():
            for node in nodes:
                self.checks[node.name] += 1
                if node.status == Status.FAILURE and node.failure_info is not None:
                    failure = node.failure_info.failure
                    answer = recorder.interactions[case_id].response
                    self.failures.append(
                        f"{finished.phase.value}: {failure.operation}: {node.name}: {failure}\n"
                        f"  {node.failure_info.code_sample}\n  {answer and answer.content[:1000]!r}"
                    )

    def summary(self) -> str:
        """Say in one line what was done."""
        count = sum(self.cases.values())
        phases = ", ".join(f"{name} {cases}" for name, cases in sorted(self.cases.items()))
        excused = ", ".join(f"{times} × {why}" for why, times in sorted(self.excused.items()))
        return f"{count} requests ({phases}), {sum(self.checks.values())} checks; excused: {excused or 'nothing'}"


def excuse(failure: Failure, case: Case, response: Response) -> str:
    """Tell why a failure is none, by what the contract says in words; empty for one that counts."""
    if why := too_long(response):
        return why
    if isinstance(failure, RejectedPositiveData):
        return _excuse_refusal(case, response.json(), asked(response).cursor)
    if isinstance(failure, AcceptedNegativeData) and case.meta is not None:
        wrong = {place for place, part in case.meta.components.items() if part.mode.is_negative}
        return _excuse_acceptance(wrong, asked(response))
    return ""


def too_long(response: Response) -> str:
    """Tell what of the request is longer than gunicorn takes; empty where that is not why it was refused."""
    sent = response.request
    headers = (f"{name}: {value}" for name, value in asked(response).headers.pairs)
    longest = max(map(len, [f"{sent.method} {sent.path_url} HTTP/1.1", *headers]))
    refused = response.status_code in REFUSALS and longest > LONGEST_LINE
    return f"{REFUSALS[response.status_code]} over {LONGEST_LINE} bytes" if refused else ""


def _excuse_refusal(case: Case, error: dict[str, Any], cursor: str) -> str:
    error = error.get("error", error)  # in OpenAI's shape there is one more level
    code: str = error["error_code"]
    if code in OF_STATE:
        return code
    if code == "cursor_malformed" and CURSOR.fullmatch(cursor) and int(cursor.rpartition(".")[2]) > 2**53:
        return "a number that the pattern takes and that is over 2^53"
    body = case.body if isinstance(case.body, dict) else {}
    floats = [name for name in ("max_tokens", "max_completion_tokens") if isinstance(body.get(name), float)]
    if floats and error.get("fields") == {name: ["Not a valid integer."] for name in floats}:
        return "5.0, which JSON Schema takes for an integer"
    read = ("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n")
    if error.get("fields") and all(name not in read and name.casefold() in read for name in error["fields"]):
        return "a name that differs from a known one only in case"
    return ""


def _excuse_acceptance(wrong: set[ParameterLocation], asked: Asked) -> str:
    """Excuse what the contract says is ignored."""
    ignored = set()
    if asked.headers.get("last-event-id") == "":
        ignored.add(ParameterLocation.HEADER)  # empty is absent
    if not asked.cursor:
        ignored.add(ParameterLocation.QUERY)  # what is wrong in it is an empty cursor, or has another name
    if CURSOR.fullmatch(asked.cursor):
        ignored.add(ParameterLocation.QUERY)  # of several cursors one counts
        if asked.method == "POST":
            ignored |= {ParameterLocation.BODY, ParameterLocation.HEADER}
    return "an empty cursor, or what is ignored beside one" if wrong <= ignored else ""


def asked(response: Response) -> Asked:
    """Tell what was asked, as it went over the wire."""
    sent = response.request
    headers = [(str(name), _text(value)) for name, value in sent.headers.items()]
    return Asked(str(sent.method), str(sent.url), Headers(headers))


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def document(streams: list[str], completions: list[str], cursors: list[str], *, with_cursors: bool) -> dict[str, Any]:
    """Read the contract as schemathesis wants it, with streams that are there for its examples.

    Of an event stream it takes the schema for that of each event. Beside a cursor the rest of a POST is ignored:
    either there are cursors, or there are bodies. A key that comes twice decides too, so that one POST has none.
    """
    found = json.loads(json.dumps(read_document()))  # a copy: YAML's aliases are one object each, and this changes them
    schemas = found["components"]["schemas"]
    data_of = schemas["EventStream"]["x-event-data"]
    schemas["EventStream"] = {"oneOf": [_event(name, data) for name, data in data_of.items()]}
    schemas["ChunkStream"] = {
        "type": "object",
        "required": ["event", "data"],
        "properties": {"event": {"const": "message"}, "data": {"type": "string"}, "id": {"type": "string"}},
        "additionalProperties": False,
    }
    del found["components"]["examples"]["EventStream"]["value"]  # it is that of a whole stream
    # Which models there are is the operator's choice; the contract can only point to where they are listed.
    schemas["ChatRequest"]["properties"]["model"] = {"const": MODEL}
    schemas["ChatCompletionRequest"]["properties"]["model"] = {"const": MODEL}
    # What its dictionaries hold for `id` is for completions.
    found["components"]["parameters"]["ModelId"] |= {"name": "model_id", "schema": {"const": MODEL}}
    found["paths"]["/models/{model_id}"] = found["paths"].pop("/models/{id}")
    parameters = found["components"]["parameters"]
    parameters["StreamId"]["example"] = streams[0]
    parameters["CompletionId"]["example"] = completions[0]
    for name in CURSORS:
        parameters[name]["example"] = cursors[0]
    # Its coverage phase draws no header whose pattern has a dot in the middle, and sends "0" for it.
    parameters["LastEventIdHeader"]["schema"] = {"type": "string", "enum": cursors}
    if with_cursors:
        schemas["ChatRequest"] = {"const": {"message": "Hello"}}
        schemas["ChatCompletionRequest"] = {"const": {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}}
        for body in found["components"]["requestBodies"].values():
            del body["content"]["application/json"]["examples"]
        return found
    without = {
        "/chat": (*CURSORS, "ProxyIdempotencyKey"),
        "/chat/streaming": (*CURSORS, "ProxyIdempotencyKey"),
        "/chat/wait": (*CURSORS, "ProxyIdempotencyKey", "IdempotencyKey"),
        "/chat/completions": (*CURSORS, "ProxyIdempotencyKey", "IdempotencyKey"),
    }
    for path, names in without.items():
        post = found["paths"][path]["post"]
        post["parameters"] = [one for one in post["parameters"] if one["$ref"].rpartition("/")[2] not in names]
    return found


def _event(name: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["event", "data"],
        "properties": {
            "event": {"const": name},
            "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": data},
            "id": {"type": "string"},
            "retry": {"const": 1000},
        },
        "additionalProperties": False,
    }


def run(
    base_url: str,
    *,
    streams: list[str],
    completions: list[str],
    cursors: list[str],
    with_cursors: bool,
    max_examples: int,
    seed: int | None = None,
    seconds: int | None = None,
) -> Found:
    """Run every phase, positive and negative, with every check; without a seed it is the same each time.

    Units: with `seconds` what is random goes on until then. Raises: what schemathesis cannot go on after.
    """
    generation = {"mode": "all", "max-examples": max_examples}
    generation |= {"deterministic": True} if seed is None else {"database": "none"}
    bindings = {"path.stream_id": ("streams", 0.7), "path.id": ("completions", 0.7)}
    if with_cursors:
        bindings |= {"header.Last-Event-ID": ("cursors", 0.5), "query.last_event_id": ("cursors", 0.3)}
    settings = {
        "base-url": base_url,
        "continue-on-failure": True,
        "request-timeout": 20.0,
        "generation": generation,
        "dictionaries": {
            "streams": {"values": streams},
            "completions": {"values": completions},
            "cursors": {"values": cursors},
        },
        "parameters": {
            name: {"dictionary": words, "probability": probability} for name, (words, probability) in bindings.items()
        },
        "checks": {
            "positive_data_acceptance": {"expected-statuses": ["2xx"]},
            **{name: {"enabled": False} for name in NOT_CHECKED},
        },
        "phases": {"stateful": {"max-steps": 5}},
        "output": {"sanitization": {"enabled": False}},  # its guesses hide max_tokens
    }
    settings |= {name: value for name, value in (("seed", seed), ("max-time", seconds)) if value is not None}
    config = schemathesis.Config.from_dict(settings)
    schema = schemathesis.openapi.from_dict(
        document(streams, completions, cursors, with_cursors=with_cursors), config=config
    )
    found = Found()

    @schema.hook
    def filter_failure(context: HookContext, failure: Failure, case: Case, response: Response) -> bool:
        why = excuse(failure, case, response)
        if why:
            found.excused[why] += 1
        return not why

    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            found.add(event)
        elif isinstance(event, events.NonFatalError):
            found.failures.append(f"{event.label}: {event.info.format()}")
        elif isinstance(event, events.FatalError):
            raise event.exception
    gc.collect()  # nobody closes the sessions of its threads, and the service keeps their connections
    return found
