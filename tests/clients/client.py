"""Use OpenAI's SDK for Python as its users do, and tell what it saw. It runs in the SDK's own environment.

    python client.py SCENARIO ORIGIN '{"request": {…}}'    one scenario, one line of JSON
    python client.py                                       a scenario for each line of stdin: {"scenario", "origin", …}

A scenario that waits for the other side says so before, in a line {"reached": …}. The last line is {"saw": {…}}.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import openai

KEY = "sk-client-0123456789abcdefghijklmnop"
"""No service may send this on."""


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def plain(model: Any) -> Any:
    """Give what came on the wire: fields that the SDK does not know are there, those that it adds are not."""
    return model.model_dump(mode="json", exclude_unset=True)


def told(error: Exception) -> dict[str, Any]:
    """Tell what a user can read from an exception of the SDK's."""
    response = getattr(error, "response", None)
    fields = {name: getattr(error, name, None) for name in ("status_code", "code", "param", "type", "message")}
    return {
        "names": [kind.__name__ for kind in type(error).__mro__],
        "text": str(error),
        "headers": dict(response.headers) if response is not None else {},
        **fields,
    }


def make_client(options: dict[str, Any]) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{options['origin']}/v1",
        api_key=options.get("key", KEY),
        max_retries=options.get("retries", openai.DEFAULT_MAX_RETRIES),
        timeout=options.get("timeout", 60.0),
    )


def create(client: openai.OpenAI, options: dict[str, Any]) -> dict[str, Any]:
    """Ask for a whole answer."""
    completion = client.chat.completions.create(**options["request"])
    return {"completion": plain(completion), "request_id": completion._request_id}


def create_raw(client: openai.OpenAI, options: dict[str, Any]) -> dict[str, Any]:
    """Ask for a whole answer, and look at its headers."""
    raw = client.chat.completions.with_raw_response.create(**options["request"])
    return {"headers": dict(raw.headers), "status": raw.status_code, "completion": plain(raw.parse())}


def stream_raw(client: openai.OpenAI, options: dict[str, Any]) -> dict[str, Any]:
    """Ask for a stream, and look at its headers."""
    raw = client.chat.completions.with_raw_response.create(**options["request"], stream=True)
    return {"headers": dict(raw.headers), "chunks": [plain(chunk) for chunk in raw.parse()]}


def stream(client: openai.OpenAI, options: dict[str, Any]) -> dict[str, Any]:
    """Read a stream to its end, or close it after `leave_after` chunks. `pause_after` chunks it says "chunk".

    Afterwards, whatever happened, it does what `then` says with the id of the last chunk: "retrieve" or "delete".
    """
    saw: dict[str, Any] = {"chunks": [], "texts": [], "reasoning": []}
    chunk_id = ""
    try:
        answer = client.chat.completions.create(**options["request"], stream=True)
        for chunk in answer:
            chunk_id = chunk.id
            saw["chunks"].append(plain(chunk))
            # As in OpenAI's own examples: a chunk without choices would raise.
            delta = chunk.choices[0].delta if options.get("naive", True) else None
            saw["texts"].append(getattr(delta, "content", None))
            saw["reasoning"].append(getattr(delta, "reasoning_content", None))
            if len(saw["chunks"]) == options.get("pause_after"):
                say({"reached": "chunk"})
            if len(saw["chunks"]) == options.get("delete_after"):
                saw["deleted"] = plain(client.chat.completions.delete(chunk_id))
            if len(saw["chunks"]) == options.get("leave_after"):
                answer.close()
                say({"reached": "left", "id": chunk_id})
                break
    except Exception as error:  # noqa: BLE001 (whatever a user would see)
        saw["raised"] = told(error)
    if options.get("then") == "retrieve":
        if options.get("pause_before_then"):
            say({"reached": "then"})
            sys.stdin.readline()
        saw["retrieved"] = plain(client.chat.completions.retrieve(chunk_id))
    return saw


def accumulate(client: openai.OpenAI, options: dict[str, Any]) -> dict[str, Any]:
    """Let the SDK's own helper join the chunks of a stream."""
    with client.chat.completions.stream(**options["request"]) as events:
        for _ in events:
            pass
        return {"completion": plain(events.get_final_completion())}


def retrieve(client: openai.OpenAI, options: dict[str, Any]) -> dict[str, Any]:
    return {"completion": plain(client.chat.completions.retrieve(options["id"]))}


def delete(client: openai.OpenAI, options: dict[str, Any]) -> dict[str, Any]:
    return {"deleted": plain(client.chat.completions.delete(options["id"]))}


def models(client: openai.OpenAI, options: dict[str, Any]) -> dict[str, Any]:
    return {"models": [plain(model) for model in client.models.list()]}


def model(client: openai.OpenAI, options: dict[str, Any]) -> dict[str, Any]:
    return {"model": plain(client.models.retrieve(options["model"]))}


def embeddings(client: openai.OpenAI, options: dict[str, Any]) -> dict[str, Any]:
    return {"embeddings": plain(client.embeddings.create(model="any", input="Hello", encoding_format="float"))}


SCENARIOS: dict[str, Callable[[openai.OpenAI, dict[str, Any]], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        *(create, create_raw, stream, stream_raw, accumulate, retrieve, delete, models, model, embeddings),
    )
}


def run(options: dict[str, Any]) -> None:
    """Play one scenario with a client of its own."""
    saw: dict[str, Any]
    with contextlib.closing(make_client(options)) as client:
        try:
            saw = SCENARIOS[options["scenario"]](client, options)
        except Exception as error:  # noqa: BLE001 (whatever a user would see)
            saw = {"raised": told(error)}
    say({"saw": saw})


def orders() -> Iterator[dict[str, Any]]:
    if len(sys.argv) > 1:
        scenario, origin, *more = sys.argv[1:]
        yield {"scenario": scenario, "origin": origin, **json.loads(more[0] if more else "{}")}
        return
    while line := sys.stdin.readline():
        yield json.loads(line)


if __name__ == "__main__":
    for order in orders():
        run(order)
