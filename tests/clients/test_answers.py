"""What real clients get of an answer: all that the upstream sent, in its order, and nothing else.

The docstring of a test says what it protects. The numbers of the rules are those of the package's docstring.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clients.programs import KEY as CLIENT_KEY
from tests.clients.programs import Program
from tests.clients.steps import (
    COMPLETION_ID,
    CONTENT_CHUNKS,
    TEXT,
    USAGE,
    about,
    asked,
    choice,
    chunk,
    content_of,
    deltas,
    text_of,
    whole,
)
from tests.harness.script import CREATED
from tests.harness.server import ChatWait
from tests.harness.upstream import (
    Delta,
    Done,
    Event,
    Finish,
    Script,
    ScriptedUpstream,
    Step,
    Token,
    Usage,
    answer,
)
from tests.live.steps import KEY


def test_answer_that_is_not_streamed_is_the_upstreams_with_an_id_of_the_service(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """`stream: false` is asked as JSON. The answer gets an id of the service. No client's key goes on."""
    body = about(upstream, whole({"content": TEXT}))
    saw = client.run("create", chatwait.base_url, request=body)

    assert "raised" not in saw, saw["raised"]
    completion = saw["completion"]
    assert COMPLETION_ID.fullmatch(completion["id"])
    assert (text_of(completion), completion["usage"]) == (TEXT, USAGE)
    assert completion["choices"][0]["finish_reason"] == "stop"
    assert (completion["object"], completion["created"]) == ("chat.completion", CREATED)
    assert completion["provider_field"] == {"kept": True}
    (record,) = asked(upstream, body)
    assert record.headers["authorization"] == f"Bearer {KEY}"
    assert CLIENT_KEY not in json.dumps(record.headers)
    assert record.headers["accept"] == "application/json"


def test_stream_has_each_chunk_of_the_upstream_as_one_chunk_with_one_id(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """One upstream chunk is one frame, never merged (rule 6); nothing but chunks has `data:` (rule 2)."""
    odd = choice(0, {}, None) | {"logprobs": {"content": [], "refusal": None}}
    steps: list[Step] = [
        Delta({"role": "assistant", "content": ""}),
        *map(Token, CONTENT_CHUNKS),
        chunk(odd, x_odd=[1, None]),
    ]
    body = about(upstream, Script(steps=[*steps, Finish(), Done()]))
    saw = client.run("stream", chatwait.base_url, request=body)

    assert "raised" not in saw, saw["raised"]
    chunks = saw["chunks"]
    assert len(chunks) == len(steps) + 1
    assert [delta.get("content") for delta in deltas(chunks)] == ["", *CONTENT_CHUNKS, None, None]
    (completion_id,) = {chunk["id"] for chunk in chunks}
    assert COMPLETION_ID.fullmatch(completion_id)
    assert {(chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks} == {
        ("chat.completion.chunk", CREATED, "scripted")
    }
    assert chunks[-2]["x_odd"] == [1, None]
    assert chunks[-2]["choices"][0]["logprobs"] == {"content": [], "refusal": None}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    (record,) = asked(upstream, body)
    assert CLIENT_KEY not in json.dumps(record.headers)


def test_choices_of_one_stream_keep_their_order_until_the_last_one_has_finished(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """A log is whole when all of its `n` choices have finished, not the first."""
    steps = [
        chunk(choice(0, {"role": "assistant", "content": "A"}), choice(1, {"role": "assistant", "content": "B"})),
        chunk(choice(0, {"content": "a"}, "stop")),
        chunk(choice(1, {"content": "b"})),
        chunk(choice(1, {"content": "b"})),
        chunk(choice(1, {}, "length")),
    ]
    body = about(upstream, Script(steps=[*steps, Done()]), n=2)
    saw = client.run("stream", chatwait.base_url, request=body, then="retrieve")

    assert "raised" not in saw, saw["raised"]
    chunks = saw["chunks"]
    assert (content_of(chunks, 0), content_of(chunks, 1)) == ("Aa", "Bbb")
    assert len(chunks) == len(steps)
    told = [(one["index"], one["message"]["content"], one["finish_reason"]) for one in saw["retrieved"]["choices"]]
    assert told == [(0, "Aa", "stop"), (1, "Bbb", "length")]
    assert asked(upstream, body)[0].json["n"] == 2


TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
    for name in ("weather", "time")
]


def tool_steps() -> list[Event]:
    """Two calls at once, with arguments in pieces that are no JSON for themselves."""

    def piece(index: int, arguments: str, **more: Any) -> Event:
        call = {"index": index, "function": {"arguments": arguments}, **more}
        return chunk(choice(0, {"tool_calls": [call]}))

    def begin(index: int, name: str) -> Event:
        call = {"index": index, "id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": ""}}
        return chunk(choice(0, {"tool_calls": [call]}))

    return [
        chunk(choice(0, {"role": "assistant", "content": None})),
        begin(0, "weather"),
        piece(0, '{"ci'),
        piece(0, 'ty":"Zü'),
        begin(1, "time"),
        piece(1, '{"city"'),
        piece(0, 'rich"}'),
        piece(1, ':"Bern"}'),
        chunk(choice(0, {}, "tool_calls")),
    ]


CALLS = [("call_weather", "weather", '{"city":"Zürich"}'), ("call_time", "time", '{"city":"Bern"}')]


def calls_of(completion: dict[str, Any]) -> list[tuple[str, str, str]]:
    """List the calls of a whole answer."""
    calls = completion["choices"][0]["message"]["tool_calls"]
    return [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]


def test_tool_calls_in_pieces_come_as_they_were_sent_and_the_stored_answer_has_them_joined(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """What adds more than text is a raw record, in its order; JSON joins as the SDK does."""
    steps = tool_steps()
    body = about(upstream, Script(steps=[*steps, Done()]), tools=TOOLS, tool_choice="auto")
    saw = client.run("stream", chatwait.base_url, request=body, then="retrieve")

    assert "raised" not in saw, saw["raised"]
    assert deltas(saw["chunks"]) == [step.data["choices"][0]["delta"] for step in steps]  # type: ignore[index]
    assert calls_of(saw["retrieved"]) == CALLS
    assert saw["retrieved"]["choices"][0]["finish_reason"] == "tool_calls"


def test_accumulator_of_the_sdk_joins_the_calls_of_a_stream(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Ids of calls stay what they are: only the top level's `id` is replaced."""
    body = about(upstream, Script(steps=[*tool_steps(), Done()]), tools=TOOLS)
    saw = client.run("accumulate", chatwait.base_url, request=body)

    assert "raised" not in saw, saw["raised"]
    assert calls_of(saw["completion"]) == CALLS
    assert COMPLETION_ID.fullmatch(saw["completion"]["id"])


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_can_be_read_on_the_chunks(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream, name: str
) -> None:
    """Fields that OpenAI does not know are passed on, and are no text of the answer."""
    steps: list[Step] = [Delta({"role": "assistant", name: "Let "}), Delta({name: "me see."}), Token("Yes."), Finish()]
    body = about(upstream, Script(steps=[*steps, Done()]))
    saw = client.run("stream", chatwait.base_url, request=body, then="retrieve")

    assert "raised" not in saw, saw["raised"]
    assert [delta.get(name) for delta in deltas(saw["chunks"])] == ["Let ", "me see.", None, None]
    if name == "reasoning_content":
        assert saw["reasoning"] == ["Let ", "me see.", None, None]
    message = saw["retrieved"]["choices"][0]["message"]
    assert (message["content"], message[name]) == ("Yes.", "Let me see.")


def test_usage_that_is_asked_for_is_the_last_chunk(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """What the client asks for it gets, as the upstream says it."""
    body = about(upstream, answer(CONTENT_CHUNKS, usage=USAGE), stream_options={"include_usage": True})
    saw = client.run("stream", chatwait.base_url, request=body, naive=False)

    assert "raised" not in saw, saw["raised"]
    *chunks, last = saw["chunks"]
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert all(chunk["choices"] for chunk in chunks)


def test_usage_that_is_not_asked_for_shows_no_chunk_without_choices(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Usage is asked for our books and kept from the client, whose `chunk.choices[0]` would fail."""
    body = about(upstream, answer(CONTENT_CHUNKS, usage=USAGE))
    saw = client.run("stream", chatwait.base_url, request=body, then="retrieve")

    assert "raised" not in saw, saw["raised"]
    assert content_of(saw["chunks"]) == TEXT
    assert all(chunk["choices"] for chunk in saw["chunks"])
    assert asked(upstream, body)[0].json["stream_options"]["include_usage"] is True
    assert saw["retrieved"]["usage"] == USAGE  # JSON of a streamed log always has it


def test_chunk_without_choices_that_is_no_usage_stays(
    client: Program, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Azure's first chunk tells what its filter found."""
    found = [{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}]
    steps: list[Step] = [chunk(prompt_filter_results=found), Token("Hello"), Finish(), Usage(USAGE), Done()]
    body = about(upstream, Script(steps=steps))
    saw = client.run("stream", chatwait.base_url, request=body, naive=False)

    assert "raised" not in saw, saw["raised"]
    first, *rest = saw["chunks"]
    assert (first["choices"], first["prompt_filter_results"]) == ([], found)
    assert all(chunk["choices"] for chunk in rest)
