"""Test the JSON of OpenAI's chat completions: what a log's chunks make together, beside what openai-python makes."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import errors
from app.dialects.completions import joining
from app.dialects.completions.answer import completion, deleted, failed_answer, running
from app.dialects.completions.errors import error_body
from app.dialects.completions.models import completion_id, model, stream_id_of
from app.streams.chunk import Chunk
from app.streams.interface import Status
from tests.unit.completions import (
    CREATED,
    LOGS,
    STREAM_ID,
    TEXTS,
    Log,
    chunk_json,
    end_of,
    enveloped,
    piece_of,
    raw,
)
from tests.unit.sdk_joining import Sdk, running_sdk


@pytest.fixture(scope="module")
def sdk() -> Iterator[Sdk]:
    with running_sdk() as running:
        yield running


def written(log: Log, status: Status = "complete", *, at_once: bool = True, **changes: Any) -> bytes:
    """Return the JSON of a log, which is read at once or record by record."""
    step = len(log.records) if at_once else 1
    pieces = [piece_of(at + step, log.records[at : at + step]) for at in range(0, len(log.records), max(step, 1))]
    return completion(STREAM_ID, log.origin, end_of(log, status, **changes), pieces, CREATED)


def joined(log: Log, status: Status = "complete", *, at_once: bool = True, **changes: Any) -> Any:
    """Return the completion of a log, read from its JSON, which is ASCII."""
    return json.loads(written(log, status, at_once=at_once, **changes).decode("ascii"))


def join(*chunks: Any, **changes: Any) -> Any:
    return joined(Log("chunks", [raw(chunk) for chunk in chunks]), **changes)


def message(*deltas: Any) -> Any:
    """Return the message that deltas of choice 0 make, without the members that every message has."""
    found = join(*(chunk_json(delta) for delta in deltas))["choices"][0]["message"]
    return {
        name: value for name, value in found.items() if value is not None and (name, value) != ("role", "assistant")
    }


def without_nulls(value: Any, *hidden: str) -> Any:
    if isinstance(value, dict):
        return {
            name: without_nulls(inner, *hidden)
            for name, inner in value.items()
            if inner is not None and name not in hidden
        }
    return [without_nulls(inner, *hidden) for inner in value] if isinstance(value, list) else value


# A whole answer


def test_completion_of_chunks_has_all_of_openais_members_in_their_order() -> None:
    more: dict[str, Any] = {"service_tier": "default", "system_fingerprint": "fp_1", "obfuscation": "x"}
    answer = join(
        chunk_json({"role": "assistant", "content": "", "refusal": None}, choice={"logprobs": None}, **more),
        chunk_json({"content": "Rom"}, choice={"logprobs": None}, **more),
        chunk_json({"content": "e."}, choice={"logprobs": None}, **{**more, "service_tier": "flex"}),
        chunk_json({}, finish_reason="stop", choice={"logprobs": None}, **more, usage=None),
        {
            **chunk_json({}),
            "choices": [],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "a": 1},
        },
    )

    assert answer == {
        "id": "chatcmpl-cwc_S",
        "object": "chat.completion",
        "created": CREATED,
        "model": "m-1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Rome.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "a": 1},
        "service_tier": "default",
        "system_fingerprint": "fp_1",
    }
    assert list(answer) == [
        "id",
        "object",
        "created",
        "model",
        "choices",
        "usage",
        "service_tier",
        "system_fingerprint",
    ]


def test_completion_has_a_usage_although_the_upstream_told_none_that_clients_get() -> None:
    expected = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}

    assert join(chunk_json({"content": "a"}, usage=None))["usage"] == expected
    assert joined(Log("text", ["a"]))["usage"] == expected


def test_completion_of_a_log_of_text_is_its_text() -> None:
    assert joined(Log("text", ["Hé", "llo"]), finish_reason="length") == {
        "id": "chatcmpl-cwc_S",
        "object": "chat.completion",
        "created": CREATED,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Héllo", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }
    assert joined(Log("text", []))["choices"][0]["message"]["content"] == ""
    assert joined(Log("text", ["a"]), finish_reason=None)["choices"][0]["finish_reason"] == "stop"
    assert joined(Log("text", ["a"]), "failed")["choices"][0]["finish_reason"] is None


def test_completion_that_was_not_streamed_is_the_upstreams_own() -> None:
    answer = '{"id":"chatcmpl-cwc_S", "n": 1.10, "choices" : [ {"message":{"content":"H\\u00e9"}} ]}'
    log = Log("json", [Chunk("Hé", answer)])

    assert written(log) == answer.encode()


def test_completion_of_no_chunks_has_no_choices() -> None:
    for kind in ("chunks", "json"):
        answer = joined(Log(kind, []), "failed")
        assert (answer["choices"], answer["model"], answer["created"]) == ([], "m", CREATED)


@given(LOGS)
def test_completion_is_the_same_whether_a_log_is_read_at_once_or_one_by_one(log: Log) -> None:
    assert joined(log, at_once=False) == joined(log)


@given(LOGS)
def test_completion_does_not_depend_on_how_chunks_are_stored(log: Log) -> None:
    chunks = [record for record in log.records if isinstance(record, Chunk)]
    unpacked = log._replace(records=[Chunk(chunk.text, chunk.data) for chunk in chunks] or log.records)

    assert joined(unpacked) == joined(log)


# Beside openai-python


CALLS = st.lists(st.tuples(st.integers(0, 2), TEXTS), max_size=6)
LOGPROBS = st.lists(st.builds(lambda text: {"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}, TEXTS))


@st.composite
def deltas(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[Any]]:
    """What a server like OpenAI's sends in one choice: its deltas, and the logprobs beside them."""
    found: list[dict[str, Any]] = [{"role": "assistant", "content": draw(st.sampled_from([None, ""])), "refusal": None}]
    names = st.sampled_from(["content", "refusal", "reasoning_content", "reasoning"])
    found += draw(st.lists(st.builds(lambda name, text: {name: text}, names, TEXTS | st.none()), max_size=8))
    known: list[int] = []
    for number, text in draw(CALLS):
        index = min(number, len(known))
        call: dict[str, Any] = {"index": index, "function": {"arguments": text}}
        if index not in known:
            known.append(index)
            call |= {"id": f"call_{index}", "type": "function"}
            call["function"]["name"] = f"f{index}"
        found.append({"tool_calls": [call]})
    if draw(st.booleans()):
        found.append({"function_call": {"name": "f", "arguments": draw(TEXTS)}})
        found.append({"function_call": {"arguments": draw(TEXTS)}})
    if draw(st.booleans()):
        details = [{"type": "reasoning.text", "text": draw(TEXTS), "index": 0, "signature": None} for _ in range(2)]
        found += [{"reasoning_details": [detail]} for detail in details]
        audio = {"id": "a", "data": draw(TEXTS), "expires_at": 5, "transcript": ""}
        found += [{"unknown": [draw(TEXTS)]}, {"audio": audio}, {"audio": {"data": "b"}}]
    logprobs: list[Any] = [None]  # openai-python doubles those of a later choice's first chunk
    for _ in found[1:]:
        kinds = {name: draw(st.none() | LOGPROBS) for name in ("content", "refusal")}
        logprobs.append(draw(st.sampled_from([None, kinds])))
    return found, logprobs


@st.composite
def streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The chunks of an answer of one or two choices, with the usage last."""
    queues: list[list[dict[str, Any]]] = []
    for index in range(draw(st.integers(1, 2))):
        chunks = [
            chunk_json(delta, index, choice={"logprobs": logprobs}, system_fingerprint="fp")
            for delta, logprobs in zip(*draw(deltas()), strict=True)
        ]
        queues.append([*chunks, chunk_json({}, index, finish_reason="stop", system_fingerprint="fp")])
    found = [queue.pop(0) for queue in queues]  # openai-python needs the choices in their order
    while any(queues):
        found.append(draw(st.sampled_from([queue for queue in queues if queue])).pop(0))
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    return [*found, {**chunk_json({}), "choices": [], "usage": usage, "system_fingerprint": "fp"}]


@given(streams(), st.data())
def test_completion_is_what_openai_python_joins(sdk: Sdk, chunks: list[dict[str, Any]], data: st.DataObject) -> None:
    records = []
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
        texts = [value for value in delta.values() if isinstance(value, str) and value != "assistant"]
        texts += [call["function"]["arguments"] for call in delta.get("tool_calls", ())]
        is_packed = data.draw(st.booleans()) and bool(texts)
        records.append(enveloped(chunk, texts[-1], is_text=False) if is_packed else raw(chunk))
    answer = joined(Log("chunks", records))

    theirs = sdk.join(chunks)
    for choice in theirs["choices"]:
        choice["message"].pop("parsed", None)
        for call in choice["message"].get("tool_calls") or []:
            del call["index"]  # a completion that is not streamed has none
            call["function"].pop("parsed_arguments", None)
    # An empty list of logprobs is nothing to openai-python, once it holds none.
    assert without_empty_logprobs(answer) == without_empty_logprobs(theirs)
    assert sdk.check(answer)["choices"], "the SDK's own model accepts it"


def without_empty_logprobs(answer: Any) -> Any:
    for choice in answer["choices"]:
        choice["logprobs"] = {name: tokens for name, tokens in (choice.get("logprobs") or {}).items() if tokens} or None
    return without_nulls(answer)


# Where openai-python would fail, or say nonsense


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([{"role": "assistant", "content": "a"}] * 3, {"content": "aaa"}),
        ([{"role": "tool"}], {"role": "tool"}),
        ([{"content": "a"}, {"content": None}, {"content": "b"}], {"content": "ab"}),
        ([{"content": None}, {"content": "a"}], {"content": "a"}),
        ([{"content": "a"}, {"content": ["b"]}, {"content": 3}, {"content": {"c": 1}}], {"content": "a"}),
        ([{"a": ["b"]}, {"a": "c"}, {"a": None}, {"a": ["d"]}], {"a": ["b", "d"]}),
        ([{"a": []}, {"a": [1]}], {"a": [1]}),
        ([{"a": {"b": 1}}, {"a": "c"}, {"a": {"b": 2}}], {"a": {"b": 2}}),
        ([{"a": 1}, {"a": 2}, {"b": True}, {"b": False}, {"a": "x"}], {"a": 2, "b": False}),
        ([{"type": "a"}, {"type": "b"}], {"type": "b"}),
        ([[], "x", None, 3, {"content": "a"}], {"content": "a"}),
    ],
)
def test_deltas_are_joined_by_their_kind(deltas: list[Any], expected: Any) -> None:
    assert message(*deltas) == expected


def call(arguments: str, **more: Any) -> dict[str, Any]:
    return {**more, "function": {"arguments": arguments}}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([call("a", index=0, id="x"), call("b", index=0)], [call("ab", id="x")]),
        ([call("a", index=0, id="x"), call("b", index=0, id="x")], [call("ab", id="x")]),
        ([call("a", index=0, id=""), call("b", index=0, id="x"), call("", index=0, id="x")], [call("ab", id="x")]),
        ([call("a", index=1), call("b", index=0), call("c", index=1)], [call("b"), call("ac")]),
        ([call("a", index=10**9), call("b", index=7)], [call("b"), call("a")]),
        ([call("a", index=None, id="x"), call("b")], [call("ab", id="x")]),
        (
            [call("a", id="x"), call("b"), call("c", id="y"), call("d"), call("e", id=None)],
            [call("ab", id="x"), call("cde", id="y")],
        ),
        ([call("a", index=-1), call("b", index=-1)], [call("ab")]),
        ([3, None, call("a", index=0)], [call("a")]),
    ],
)
def test_tool_calls_are_joined_by_their_indexes_or_else_by_their_ids(parts: list[Any], expected: Any) -> None:
    assert message(*({"tool_calls": [part]} for part in parts))["tool_calls"] == expected
    assert message({"tool_calls": parts})["tool_calls"] == expected


def test_name_of_a_function_comes_in_parts_or_again_and_again() -> None:
    parts = [{"index": 0, "function": {"name": name}} for name in ("get_", "weather")]
    again = [{"index": 1, "function": {"name": "get_time"}}] * 3

    calls = message(*({"tool_calls": [part]} for part in [*parts, *again]))["tool_calls"]

    assert [entry["function"]["name"] for entry in calls] == ["get_weather", "get_time"]


def test_choices_stand_in_the_order_of_their_indexes_with_all_that_was_said_of_them() -> None:
    answer = join(
        chunk_json({"content": "b"}, 1_000_000_000, choice={"content_filter_results": {"a": 1}}),
        chunk_json({"content": "a"}, 0, finish_reason="stop"),
        {"choices": [{"index": 0, "finish_reason": "", "message": {"content": "z"}, "stop_reason": None}, 3]},
        {"choices": [{"index": 0, "finish_reason": None, "content_filter_results": {"b": 2}}]},
        {"choices": None},
        {"choices": [{"delta": {"content": "c"}}], "error": None},
    )

    assert [choice["index"] for choice in answer["choices"]] == [0, 1_000_000_000]
    assert answer["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "ac", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
        "content_filter_results": {"b": 2},
    }
    assert answer["choices"][1]["finish_reason"] is None


def test_logprobs_are_joined_list_by_list_and_their_numbers_stay_as_they_are() -> None:
    chunks = [
        '{"choices":[{"index":0,"logprobs":{"content":[{"logprob":-0.10}],"refusal":null}}]}',
        '{"choices":[{"index":0,"logprobs":null}]}',
        '{"choices":[{"index":0,"logprobs":{"content":[],"refusal":[{"logprob":-1e400}]}}]}',
        '{"choices":[{"index":0,"logprobs":{"content":[ {"logprob":-3} , 1 ],"refusal":null,"odd":1}}]}',
    ]
    log = Log("chunks", [Chunk("", chunk) for chunk in chunks])

    expected = b'{"content":[{"logprob":-0.10},{"logprob":-3} , 1],"refusal":[{"logprob":-1e400}],"odd":1}'
    assert b'"logprobs":' + expected in written(log)


def test_envelope_in_which_more_than_its_string_counts_is_read_each_time() -> None:
    def texts(*chunks: Any) -> Any:
        return joined(Log("chunks", [enveloped(chunk, "\1") for chunk in chunks]))["choices"][0]

    twice = [chunk_json({"reasoning": "r", "content": "\1"})] * 3
    assert texts(*twice)["message"]["reasoning"] == "rrr"
    tokens = [chunk_json({"content": "\1"}, choice={"logprobs": {"content": [1]}})] * 3
    assert texts(*tokens)["logprobs"] == {"content": [1, 1, 1]}
    listed = [chunk_json({"list": [1], "content": "\1"})] * 3
    assert texts(*listed)["message"]["list"] == [1, 1, 1]


def test_what_stands_beside_the_choices_is_what_came_last_also_behind_an_envelope() -> None:
    first, second = chunk_json({"content": "\1"}, a=1, b=1), chunk_json({"content": "\1"}, a=2)
    records = [enveloped(chunk, "\1") for chunk in (first, second, first, second, first)]

    answer = joined(Log("chunks", records))

    assert (answer["a"], answer["b"]) == (1, 1)
    assert joined(Log("chunks", records[:-1]))["a"] == 2


# Bounds


def test_completion_of_very_many_parts_is_refused_before_it_takes_much_memory() -> None:
    entries = ",".join(f'{{"index":{index}}}' for index in range(60_000))
    hostile = [
        Chunk("", f'{{"choices":[{{"delta":{{"tool_calls":[{entries}]}}}}]}}'),
        Chunk("", f'{{"choices":[{entries},{entries.replace("index", "x")}]}}'),
        Chunk("", json.dumps(dict.fromkeys(map(str, range(150_000)), 1))),
    ]
    for chunk in hostile:
        log = Log("chunks", [chunk] * 3)
        tracemalloc.start()
        try:
            with pytest.raises(errors.UpstreamError, match="too many parts"):
                written(log)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 150e6


@pytest.mark.parametrize(
    "chunk", ['{"a":' + "[" * 5000 + "]" * 5000 + "}", "{", "[]", '{"choices":[{"delta":{"a":tru}}]}']
)
def test_completion_of_what_cannot_be_read_is_refused(chunk: str) -> None:
    with pytest.raises(errors.UpstreamError):
        written(Log("chunks", [Chunk("", chunk)]))


def test_objects_are_joined_down_to_a_depth() -> None:
    def nested(depth: int, text: str) -> dict[str, Any]:
        return {"a": nested(depth - 1, text)} if depth else {"text": text}

    def innermost(depth: int) -> Any:
        found = message(nested(depth, "b"), nested(depth, "c"))
        for _ in range(depth):
            found = found["a"]
        return found["text"]

    assert innermost(joining.DEEPEST - 1) == "bc"
    assert innermost(joining.DEEPEST + 1) == innermost(200) == "c"


def test_joining_a_long_answer_takes_memory_for_its_parts_and_little_more() -> None:
    call = {"index": 0, "id": "x", "function": {"name": "f", "arguments": "a" * 1000}}
    log = Log(
        "chunks", [raw(chunk_json({"tool_calls": [call]}, choice={"logprobs": {"content": ["b" * 1000]}}))] * 4000
    )
    tracemalloc.start()
    try:
        size = len(written(log))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert size > 8_000_000
    assert peak < 6 * size


# Other answers


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_failed_answer_is_the_error_with_the_completion_until_then(status: Status) -> None:
    log = Log("chunks", [raw(chunk_json({"content": "Rom"}))])
    failure = errors.Cancelled().failure
    partial = written(log, status)

    body = json.loads(failed_answer(failure, "c-2", partial))

    assert list(body) == ["error", "partial"]
    assert body["error"] == error_body(failure, "c-2")["error"]
    assert body["partial"]["choices"][0]["message"]["content"] == "Rom"
    assert body["partial"]["choices"][0]["finish_reason"] is None


def test_answer_that_runs_is_read_as_a_completion(sdk: Sdk) -> None:
    body = running(STREAM_ID, Log("chunks", []).origin, CREATED)

    assert (body["id"], body["status"], body["choices"]) == ("chatcmpl-cwc_S", "in_progress", [])
    assert sdk.check(body) == body


def test_answer_to_a_deletion_is_openais() -> None:
    assert deleted(STREAM_ID) == {"id": "chatcmpl-cwc_S", "object": "chat.completion.deleted", "deleted": True}


def test_id_of_a_completion_is_taken_in_both_forms() -> None:
    assert stream_id_of(completion_id("cw_a")) == stream_id_of("cw_a") == "cw_a"
    assert re.fullmatch(r"chatcmpl-cwc_S", completion_id(STREAM_ID))


def test_model_has_the_four_members_that_strict_clients_need() -> None:
    assert model("a/b", 5, "them") == {"id": "a/b", "object": "model", "created": 5, "owned_by": "them"}
    assert model("a/b") == {"id": "a/b", "object": "model", "created": 0, "owned_by": "chatwait"}
