"""Test the way from the upstream's chunks to records: nothing is lost, whichever way a chunk takes."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.streams.chunk import LONGEST_ENVELOPE_BYTES, MOST_ENVELOPES, Chunk
from app.upstream import recorder as module
from app.upstream.contents import MOST_ENTRIES
from app.upstream.decoder import LONGEST_VALUE_BYTES, NODES, ODD_NODES, BrokenStream, ChunkDecoder, ErrorReported
from app.upstream.halves import MOST_HELD, ODD_VALUES
from app.upstream.interface import Part
from app.upstream.recorder import MOST_FINISHED, MOST_NAMES, SPARE_DEPTH, Recorder, whole_answer
from app.upstream.spellings import Spellings
from tests.unit.chunk_shapes import SHAPES, USAGE, openai, spelled, two

ID = "chatcmpl-cwc_0123456789abcdefghijkl"
TEXTS = [
    " token",
    "a",
    "b",
    " c",
    '"',
    "\\",
    "\\\\",
    "\n",
    "\0",
    "\x7f",
    "\u2028",
    "é",
    "😀",
    "/",
    ",",
    ":",
    "content",
    "}",
]
NASTY = [
    *TEXTS,
    '"},"logprobs":null',
    '{"index":0,"delta":{"content":"',
    "\\u0041",
    "\\ud83d",
    "[DONE]",
    "x",
    "y",
    "1748300000",
]


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def delta(index: int = 0, reason: str | None = None, **fields: Any) -> bytes:
    return json.dumps({"choices": [{"index": index, "delta": fields, "finish_reason": reason}]}).encode()


def arguments(text: str, call: int = 0, index: int = 0) -> bytes:
    return delta(index, tool_calls=[{"index": call, "function": {"arguments": text}}])


def recorder(*, choices: int = 1, keeps_usage: bool = True) -> Recorder:
    return Recorder(ID, choices=choices, keeps_usage=keeps_usage)


def decode(events: Iterable[bytes], *, choices: int = 1, keeps_usage: bool = True) -> list[Part]:
    made = recorder(choices=choices, keeps_usage=keeps_usage)
    parts = [made.decode(event) for event in events]
    pending = made.pending()
    return [*parts, *([pending] if pending else [])]


def chunks_of(parts: Iterable[Part]) -> list[Chunk]:
    return [chunk for part in parts for chunk in part.chunks]


def records(*events: bytes) -> list[Any]:
    return [json.loads(chunk.data) for chunk in chunks_of(decode(events))]


def text_of(parts: Iterable[Part]) -> str:
    return "".join(chunk.text for chunk in chunks_of(parts))


def enveloped(parts: Iterable[Part]) -> list[bool]:
    return [chunk.envelope is not None for chunk in chunks_of(parts)]


def expected(chunks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What becomes of chunks on the wire: our id, the first chunk's time, and no error that is none."""
    chunks = list(chunks)
    created = next((chunk["created"] for chunk in chunks if chunk.get("created")), None)
    found = []
    for chunk in chunks:
        made = {name: value for name, value in chunk.items() if name != "error"} | {"id": ID}
        if made.get("created"):
            made["created"] = created
        found.append(made)
    return found


# Streams of every shape

STREAMS = st.tuples(
    st.sampled_from(sorted(SHAPES)),
    st.lists(st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=8),
    st.integers(0, 30),
)


@settings(max_examples=500)
@given(STREAMS)
def test_recorder_given_any_stream_loses_nothing_and_is_one_line_of_ascii(
    stream: tuple[str, list[str], int],
) -> None:
    shape, texts, seed = stream
    sent = list(SHAPES[shape](texts))
    events = [spelled(chunk, seed) for chunk in sent]

    parts = decode(events, choices=2 if shape == "two" else 1)

    assert all(re.fullmatch("[\\x20-\\x7f]+", chunk.data) for chunk in chunks_of(parts))
    assert [json.loads(chunk.data) for chunk in chunks_of(parts)] == expected(sent)
    decoder = ChunkDecoder()
    decoded = [decoder.decode(event) for event in events]
    assert [text_of([part]) for part in parts] == [part.text for part in decoded]
    assert [part.usage for part in parts] == [part.usage for part in decoded]
    assert not any(part.text or part.done for part in parts)
    assert sum(map(bool, (part.finish_reason for part in parts))) == 1


@settings(max_examples=500)
@given(STREAMS, st.data())
def test_recorder_given_any_stream_makes_the_same_records_of_decoded_chunks_and_of_recognized_ones(
    stream: tuple[str, list[str], int], data: st.DataObject
) -> None:
    """Several ways to write follow one another, and chunks of the stream come again."""
    shape, texts, seed = stream
    sent = list(SHAPES[shape](texts))
    again = data.draw(st.lists(st.integers(0, 1000), max_size=20))
    sent += [sent[place % len(sent)] for place in again if sent]
    events = [spelled(chunk, seed + number // 7) for number, chunk in enumerate(sent)]

    recognized = decode(events, choices=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spellings, "learn", lambda *_: None)
        decoded = decode(events, choices=2)

    assert recognized == decoded


FEW = {
    "openai": (103, 5),
    "azure": (104, 6),
    "vllm": (103, 5),
    "llama_cpp": (102, 4),
    "deepseek": (202, 6),
    "mistral": (102, 4),
    "bare": (101, 3),
    "refusal": (102, 4),
    "tools": (204, 8),
    "two": (302, 7),
}
"""How many of so many chunks are decoded: two of each shape, and what stands alone."""
ALL = {"obfuscated": (103, 103), "logprobs": (101, 101), "legacy_function": (101, 101), "openrouter": (202, 104)}
"""Chunks that differ in more than one string, or in one that is not looked for."""


@pytest.mark.parametrize("shape", SHAPES)
def test_recorder_decodes_only_what_it_has_not_seen_before(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"t{number}" for number in range(100)]
    read: list[bytes] = []
    original = module._read
    monkeypatch.setattr(module, "_read", lambda data: (read.append(data), original(data))[1])

    parts = decode(map(compact, SHAPES[shape](texts)), choices=2 if shape == "two" else 1)

    assert (len(chunks_of(parts)), len(read)) == (FEW | ALL)[shape]


def test_recorder_given_a_shape_twice_keeps_the_first_raw_and_the_others_in_one_envelope() -> None:
    first, second, third = chunks_of(decode(map(compact, list(openai(["a", "b", "c"]))[1:4])))

    assert first.envelope is None
    assert second.envelope is third.envelope
    assert second == Chunk("b", "b", second.envelope)
    assert second.envelope is not None and second.envelope.is_text


@pytest.mark.parametrize(
    ("made", "is_text"),
    [
        (lambda text: delta(content=text), True),
        (lambda text: delta(refusal=text), True),
        (lambda text: delta(reasoning_content=text), False),
        (lambda text: delta(reasoning=text, content=""), False),
        (arguments, False),
        (lambda text: delta(1, content=text), False),
        (lambda text: delta(1, refusal=text), False),
        (lambda text: delta(None, content=text), True),  # type: ignore[arg-type]
    ],
)
def test_recorder_given_a_string_of_any_field_puts_it_in_an_envelope(made: Any, is_text: bool) -> None:
    texts = [made(text) for text in ("a", 'b"', "é")]

    chunks = chunks_of(decode(texts))

    assert [chunk.text for chunk in chunks] == (["a", 'b"', "é"] if is_text else ["", "", ""])
    assert [chunk.value for chunk in chunks[1:]] == ['b"', "é"]
    assert [chunk.envelope is not None and chunk.envelope.is_text for chunk in chunks] == [False, is_text, is_text]
    assert [json.loads(chunk.data) for chunk in chunks] == [{"id": ID, **json.loads(event)} for event in texts]


@pytest.mark.parametrize(
    "made",
    [
        lambda text: delta(content=text, reasoning="r"),
        lambda text: delta(content=text, refusal="r"),
        lambda text: delta(content="", other=text),
        lambda text: delta(content=text, function_call={"arguments": "a"}),
        lambda text: delta(function_call={"arguments": text}),
        lambda text: delta(content=text, reason="stop"),
        lambda text: delta(tool_calls=[{"function": {"arguments": text}}, {"index": 1}]),
        lambda text: delta(tool_calls=[{"function": {"arguments": text}}, None]),
        lambda text: compact({"choices": [{"delta": {"content": text}}, {"index": 1}]}),
        lambda text: compact({"choices": [{"delta": {"content": text}}], "usage": USAGE}),
        lambda text: compact({"choices": [{"delta": {"content": text}}], "x": "y" * LONGEST_ENVELOPE_BYTES}),
        lambda text: compact({"choices": [{"delta": {"content": text}}], "x": "é" * (LONGEST_ENVELOPE_BYTES // 4)}),
        lambda text: delta(content=""),
    ],
)
def test_recorder_given_a_chunk_with_more_than_one_thing_to_say_keeps_it_raw(made: Any) -> None:
    events = [made("a"), made("b"), made("b")]

    parts = decode(events)

    assert enveloped(parts) == [False, False, False]
    assert records(*events) == [{"id": ID, **json.loads(event)} for event in events]


def test_recorder_given_an_envelope_as_large_as_one_may_be_uses_it() -> None:
    for more, is_in_envelope in ((0, True), (1, False)):
        around = len(chunks_of(decode([compact({"choices": [{"delta": {"content": "a"}}], "x": ""})]))[0].data) - 1
        event = compact({"choices": [{"delta": {"content": "a"}}], "x": "y" * (LONGEST_ENVELOPE_BYTES - around + more)})

        assert enveloped(decode([event, event])) == [False, is_in_envelope]


def test_recorder_given_many_shapes_keeps_the_further_ones_raw() -> None:
    shapes = [[delta(content=text, x=number) for text in "abc"] for number in range(MOST_ENVELOPES + 2)]

    found = enveloped(decode(itertools.chain(*shapes)))

    assert found == [False, True, True] * MOST_ENVELOPES + [False] * 6


def test_recorder_given_shapes_that_never_come_again_still_learns_one_that_does() -> None:
    events = [event for number in range(500) for event in (delta(content="a", x=number),)]

    assert enveloped(decode([*events, delta(content="b"), delta(content="c")])) == [False] * 501 + [True]


# What of a chunk is changed


def test_recorder_replaces_the_id_where_it_stands_and_no_other() -> None:
    sent = (
        b'{"choices":[{"id":"1","delta":{"tool_calls":[{"id":"call_1","function":{"arguments":""}}]}}],"id":"1","x":1}'
    )

    (chunk,) = chunks_of(decode([sent]))

    assert chunk.data == sent.decode().replace('"id":"1","x"', f'"id":"{ID}","x"')


def test_recorder_given_a_chunk_without_id_puts_ours_first() -> None:
    assert chunks_of(decode([b'{"choices":[]}']))[0].data == f'{{"id":"{ID}","choices":[]}}'


@pytest.mark.parametrize("said", [b"null", b"false", b'""', b"{}", b"0"])
def test_recorder_leaves_out_an_error_that_is_none(said: bytes) -> None:
    assert records(b'{"choices":[],"error":' + said + b"}") == [{"id": ID, "choices": []}]


@pytest.mark.parametrize(
    ("times", "kept"),
    [
        (["1750000001", "1750000002", "3"], ["1750000001"] * 3),
        (["0", "17", "0", "18"], ["0", "17", "0", "17"]),
        (["null", "17", "18.5"], ["null", "17", "17"]),
        (["17.25", "18"], ["17.25", "17.25"]),
        (['"17"', "17", "18"], ['"17"', "17", "17"]),
        (["1" * 300, "17", "18"], ["1" * 300, "17", "17"]),
    ],
)
def test_recorder_gives_every_chunk_the_first_time(times: list[str], kept: list[str]) -> None:
    parts = decode(f'{{"created": {time}, "choices": []}}'.encode() for time in times)

    assert [chunk.data for chunk in chunks_of(parts)] == [
        f'{{"id":"{ID}","created":{time},"choices":[]}}' for time in kept
    ]


def test_recorder_given_one_name_twice_keeps_the_last_as_other_parsers_do() -> None:
    sent = b'{"id":"1","choices":[],"choices":[{"delta":{"content":"a","content":"b"},"index":1,"index":0}],"id":"2"}'

    (part,) = decode([sent])

    assert text_of([part]) == "b"
    assert json.loads(part.chunks[0].data) == json.loads(sent) | {"id": ID}


def test_recorder_keeps_values_as_they_were_written() -> None:
    numbers = b"[1.0, 1e5,1E400,-0, 12345678901234567890123]"
    sent = b'{"id":1,"a":' + numbers + b',\n"b":"\\/\\u0041\xc3\xa9\\\\\xc3\xa9",\t"\xc3\xa9":"\x7f"}'

    (chunk,) = chunks_of(decode([sent]))

    assert chunk.data == (
        f'{{"id":"{ID}","a":[1.0, 1e5,1E400,-0, 12345678901234567890123],'
        '"b":"\\/\\u0041\\u00e9\\\\\\u00e9","\\u00e9":"\\u007f"}'
    )


@pytest.mark.parametrize("text", NASTY)
def test_recorder_given_a_text_that_stands_elsewhere_too_finds_the_right_one(text: str) -> None:
    """The same bytes are a name, a value before and behind, and part of another string."""
    made = {"choices": [{"a": text, text + "!": text, "delta": {"b": [text], "content": text, "c": text}, "d": text}]}
    others = [
        made | {"choices": [made["choices"][0] | {"delta": made["choices"][0]["delta"] | {"content": other}}]}
        for other in ("x", "longer", text)
    ]
    sent = [made, made, *others]

    parts = decode(compact(chunk) for chunk in sent)

    assert [json.loads(chunk.data) for chunk in chunks_of(parts)] == expected(sent)
    assert enveloped(parts)[1:] == [True] * 4


@pytest.mark.parametrize("time", ["1748300000", "1"])
def test_recorder_given_a_time_that_stands_elsewhere_too_finds_the_right_one(time: str) -> None:
    """llama.cpp's time goes on, and these digits are in other places besides."""

    def chunk(now: str, text: str) -> dict[str, Any]:
        choice = {"index": 0, "delta": {"content": text}, "x": int(time), "y": time, "created": int(time)}
        around = {"seed": int("2" + time), "id": time, "choices": [choice], "system": "a" + time}
        return around | {"created": int(now), "z": {"created": int(time)}}

    later = time[:-1] + "2"
    sent = [chunk(time, "a"), chunk(time, "b"), chunk(later, "c"), chunk(time, time), chunk(later, later)]
    changed = chunk(later, "d") | {"seed": 5}

    parts = decode(compact(chunk) for chunk in [*sent, changed, changed])

    assert [json.loads(chunk.data) for chunk in chunks_of(parts)] == expected([*sent, changed, changed])
    assert enveloped(parts) == [False, True, True, True, True, False, True]


def test_recorder_given_a_prefix_and_a_suffix_around_something_else_decodes_it() -> None:
    made = recorder()
    around = [b'{"choices":[{"delta":{"content":"', b'"}}]}']
    texts = [b"a", b"b", b'c","content":"d', b'c"}},{"delta":{"content":"e', b"f", b'","refusal":"g']
    events = [texts.pop(0).join(around) for _ in range(6)]

    parts = [made.decode(event) for event in events]

    assert [text_of([part]) for part in parts] == ["a", "b", "d", "ce", "f", "g"]
    assert [json.loads(chunk.data) for chunk in chunks_of(parts)] == expected(map(json.loads, events))
    for broken in (b'c" d', b'c",', b"c\\", b"\n", b"\\x", b'c"]'):
        with pytest.raises(BrokenStream):
            made.decode(broken.join(around))
    for cut in (around[0][:-1] + around[1], around[0] + around[1][1:], around[0], around[1]):
        with pytest.raises(BrokenStream):
            made.decode(cut)


# What a part tells besides


def test_recorder_counts_what_the_model_wrote_in_all_choices_and_fields() -> None:
    calls = [{"function": {"arguments": "12345"}}, {"function": {"arguments": "6"}}, {"function": None}, {}]
    first = {"content": "é", "refusal": "ab", "reasoning_content": "c", "reasoning": "def", "tool_calls": calls}
    second = {"index": 1, "delta": {"content": "xyz", "function_call": {"name": "no", "arguments": "{}"}}}

    (part,) = decode([compact({"choices": [{"delta": first}, second]})])

    assert part.chars == 1 + 2 + 1 + 3 + 6 + 3 + 2
    assert text_of([part]) == "éab"


@pytest.mark.parametrize(
    "odd",
    [
        {"reasoning": {"text": "a"}},
        {"reasoning_content": 5},
        {"tool_calls": "a"},
        {"tool_calls": {"function": {"arguments": "a"}}},
        {"tool_calls": [5]},
        {"tool_calls": [{"function": "a"}]},
        {"tool_calls": [{"function": {"arguments": {"a": 1}}}]},
        {"function_call": "auto"},
        {"tool_calls": None},
        {"content": "", "audio": {"data": "AAAA"}},
        {"content": 5},
        {"content": {"text": "a"}},
        {"content": True, "refusal": ["a"]},
        {"content": []},
        {"content": ["a", 5, None, {"text": "a"}, {"type": 5, "text": "a"}, {"type": "image_url", "text": "a"}]},
        {"content": [{"type": "text", "text": 5, "thinking": "a"}, {"type": "thinking", "thinking": [5, "a", {}]}]},
    ],
)
def test_recorder_given_what_only_some_provider_writes_passes_it_on(odd: dict[str, Any]) -> None:
    event = delta(**odd)

    (part,) = decode([event])

    assert json.loads(part.chunks[0].data) == {"id": ID, **json.loads(event)}
    assert part.chars == 0


@pytest.mark.parametrize(
    ("content", "text", "chars"),
    [
        ([{"type": "text", "text": "ab"}], "ab", 2),
        ([{"type": "text", "text": "a"}, {"type": "other", "text": "-"}, {"type": "text", "text": "b"}], "ab", 2),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "abc"}, {"text": "d"}]}], "", 4),
        ([{"type": "thinking", "thinking": "abc"}, {"type": "thinking", "text": "d"}], "", 4),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "abc"}]}, {"type": "text", "text": "é"}], "é", 4),
    ],
)
def test_recorder_given_a_content_that_is_a_list_takes_its_text_and_counts_its_thoughts(
    content: Any, text: str, chars: int
) -> None:
    """Mistral's models that reason write this, and then text as all others do."""
    events = [delta(content=content), delta(content=content), delta(1, content=content), delta(content="c")]

    parts = decode(events)

    assert [chunk.text for chunk in chunks_of(parts)] == [text, text, "", "c"]
    assert [part.chars for part in parts] == [chars, chars, chars, 1]
    assert [json.loads(chunk.data) for chunk in chunks_of(parts)] == expected(map(json.loads, events))
    whole = whole_answer(compact({"choices": [{"message": {"content": content, "refusal": "no"}}]}), ID)
    assert (whole.chunks[0].text, whole.chars) == (text or "no", chars + 2)


def test_recorder_given_many_parts_of_a_content_reads_the_first_of_them() -> None:
    part = {"type": "text", "text": "a"}
    for content in ([part] * 200, [{"type": "thinking", "thinking": [part] * 200}] * 200):
        (read,) = decode([delta(content=content)])

        assert read.chars == MOST_ENTRIES


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": 5},
        {"choices": "a"},
        {"choices": {"index": 0, "delta": {"content": "a"}}},
        {"choices": [5, None, "a", []]},
        {"choices": [{"delta": None}]},
        {"choices": [{"delta": "a"}]},
        {"choices": [{"delta": ["a"]}]},
        {"choices": [], "usage": "many"},
        {"choices": [], "object": 5, "created": "now", "model": None, "id": 5},
    ],
)
def test_recorder_given_values_of_odd_types_passes_them_on(odd: dict[str, Any]) -> None:
    (part,) = decode([compact(odd)])

    assert json.loads(part.chunks[0].data) == odd | {"id": ID}
    assert (part.chunks[0].text, part.chars, part.finish_reason) == ("", 0, None)
    assert part.usage == odd.get("usage")


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"index": "0"}, None),
        ({"index": None}, None),
        ({"index": 0.5, "finish_reason": False}, None),
        ({"index": {}, "finish_reason": 0}, None),
        ({"index": [0], "finish_reason": 1}, "unknown"),
        ({"index": "0", "finish_reason": {"type": "stop"}}, "unknown"),
        ({"index": "0", "finish_reason": "stop"}, "stop"),
        ({"index": 1, "finish_reason": 1}, "unknown"),
    ],
)
def test_recorder_given_a_choice_with_odd_values_takes_its_text(odd: dict[str, Any], reason: str | None) -> None:
    """A choice without a number is the first one, and what is no word may be a reason, too."""
    events = [compact({"choices": [{"delta": {"content": text}, **odd}]}) for text in ("a", "b\n", "c")]

    parts = decode(events)

    text = "" if odd["index"] == 1 else "ab\nc"
    assert (text_of(parts), [part.finish_reason for part in parts]) == (text, [reason] * 3)
    assert [json.loads(chunk.data) for chunk in chunks_of(parts)] == expected(map(json.loads, events))
    assert text_of(decode([delta(content="\ud83d"), compact({"choices": [odd]})])) == "\ufffd"


@pytest.mark.parametrize("beside", [5, None, {}, "a"])
def test_recorder_given_one_choice_beside_something_else_leaves_out_neither(beside: Any) -> None:
    events = [compact({"choices": [{"delta": {"content": text}}, beside]}) for text in "abc"]

    parts = decode(events)

    assert text_of(parts) == "abc"
    assert [json.loads(chunk.data) for chunk in chunks_of(parts)] == expected(map(json.loads, events))


def test_recorder_given_many_calls_and_choices_counts_the_first_of_them() -> None:
    many = MOST_ENTRIES + 50
    calls = [{"function": {"arguments": "a"}}] * many

    (part,) = decode([delta(tool_calls=calls)])
    for odd in ({}, {"index": "0"}):
        (others,) = decode([compact({"choices": [{"delta": {"content": "a"}, **odd}] * many})])

        assert part.chars == others.chars == MOST_ENTRIES
        assert len(json.loads(others.chunks[0].data)["choices"]) == many


@pytest.mark.parametrize("keeps_usage", [True, False])
def test_recorder_keeps_the_chunk_of_the_usage_only_if_it_was_asked_for(keeps_usage: bool) -> None:
    alone, beside = {"choices": [], "usage": USAGE}, {"choices": [{"delta": {}}], "usage": USAGE}
    filtered, none = {"choices": [], "prompt_filter_results": []}, {"choices": [], "usage": None}
    sent = [filtered, beside, none, alone]

    parts = decode(map(compact, sent), keeps_usage=keeps_usage)

    assert [part.usage for part in parts] == [None, USAGE, None, USAGE]
    assert [json.loads(chunk.data) for chunk in chunks_of(parts)] == expected(sent[: 4 if keeps_usage else 3])


def test_recorder_tells_the_first_choices_finish_reason_when_all_have_finished() -> None:
    parts = decode(map(compact, two(["a"])), choices=2)

    assert [part.finish_reason for part in parts] == [None, None, None, None, "stop"]
    turned = [delta(0, "stop"), delta(1, content="a"), delta(1, "length")]
    assert [part.finish_reason for part in decode(turned, choices=2)] == [None, None, "stop"]
    together = compact({"choices": [{"index": 1, "finish_reason": "b"}, {"index": 0, "finish_reason": "a"}]})
    assert [part.finish_reason for part in decode([together], choices=2)] == ["a"]


def test_recorder_given_no_word_of_choice_0_tells_the_last_finish_reason() -> None:
    parts = decode([delta(1, "stop"), delta(2, "length")], choices=2)

    assert [part.finish_reason for part in parts] == [None, "length"]


def test_recorder_given_one_choice_that_finishes_twice_waits_for_the_other() -> None:
    parts = decode([delta(0, "stop"), delta(0, "stop"), delta(1, "stop")], choices=2)

    assert [part.finish_reason for part in parts] == [None, None, "stop"]


@pytest.mark.parametrize("more", [delta(1, content="more"), delta(1, content="m"), arguments("more", index=1)])
def test_recorder_given_more_of_a_finished_choice_takes_it_for_unfinished(more: bytes) -> None:
    before = [delta(1, content="a"), delta(1, content="b"), delta(1, content="c")]

    parts = decode([*before, delta(1, "stop"), more, delta(0, "stop"), delta(1, "length")], choices=2)

    assert [part.finish_reason for part in parts if part.finish_reason] == ["stop"]
    assert parts[-1].finish_reason == "stop"


def test_recorder_given_more_choices_than_it_tells_apart_still_ends() -> None:
    parts = decode([delta(index, "stop") for index in range(MOST_FINISHED + 10)], choices=MOST_FINISHED + 10)

    assert [part.finish_reason for part in parts].index("stop") == MOST_FINISHED - 1


@pytest.mark.parametrize("data", [b"[DONE]", b" [DONE]", b"[DONE] \t"])
def test_recorder_given_done_says_so(data: bytes) -> None:
    assert decode([data]) == [Part(done=True)]
    assert decode([delta(content="\ud83d"), data])[1] == Part(done=True)


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([delta(0, content="a"), delta(0, "stop")], "stop"),
        ([delta(0, "stop"), delta(1, "length")], "stop"),
        ([delta(1, "length"), delta(0, "stop")], "stop"),
        ([delta(1, "length")], "length"),
        ([delta(0, "stop"), delta(0, content="")], "stop"),
        ([delta(0, "stop"), compact({"choices": [], "usage": USAGE})], "stop"),
        ([], None),
        ([delta(0, content="a")], None),
        ([delta(0, "stop"), delta(1)], None),
        ([delta(1), delta(0, "stop")], None),
        ([delta(0, "stop"), delta(0, content="a")], None),
        ([delta(1, content=text) for text in "abc"] + [delta(0, "stop")], None),
    ],
)
def test_recorder_given_done_after_fewer_choices_than_were_asked_for_tells_if_they_have_finished(
    events: list[bytes], reason: str | None
) -> None:
    """Some servers ignore `n`."""
    *before, end = decode([*events, b"[DONE]"], choices=3)

    assert end == Part(done=True, finish_reason=reason)
    assert not any(part.finish_reason for part in before), "without [DONE] the answer is not whole"


# Halves of characters


def halves(text: str) -> str:
    units = text.encode("utf-16-le")
    return "".join(units[at : at + 2].decode("utf-16-le", "surrogatepass") for at in range(0, len(units), 2))


FIELDS = {
    "content": lambda text: delta(content=text),
    "refusal": lambda text: delta(refusal=text),
    "reasoning_content": lambda text: delta(reasoning_content=text),
    "reasoning": lambda text: delta(reasoning=text, content=None),
    "call 0": lambda text: arguments(text, 0),
    "call 1": lambda text: arguments(text, 1),
    "function_call": lambda text: delta(function_call={"arguments": text}),
    "choice 1": lambda text: delta(1, content=text),
    "call of choice 1": lambda text: arguments(text, 0, 1),
}


def said(chunk: Any) -> list[tuple[str, str]]:
    """Return what a chunk adds to each string, by the names of FIELDS."""
    found = []
    for choice in chunk["choices"]:
        made, index = choice["delta"], choice.get("index", 0)
        for name, value in made.items():
            if isinstance(value, str):
                found.append((name if index == 0 else f"choice {index}", value))
        for call in made.get("tool_calls", ()):
            name = "call of choice 1" if index else f"call {call['index']}"
            found.append((name, call["function"]["arguments"]))
        if "function_call" in made:
            found.append(("function_call", made["function_call"]["arguments"]))
    return found


@given(
    st.dictionaries(st.sampled_from(sorted(FIELDS)), st.lists(st.sampled_from("a😀é𝒳")).map("".join), max_size=4),
    st.data(),
)
def test_recorder_given_utf16_halves_of_several_strings_in_any_cuts_joins_each(
    texts: dict[str, str], data: st.DataObject
) -> None:
    left = {name: halves(text) for name, text in texts.items() if text}
    events = []
    while left:
        name = data.draw(st.sampled_from(sorted(left)))
        cut = data.draw(st.integers(1, len(left[name])))
        events.append(FIELDS[name](left[name][:cut]))
        left[name] = left[name][cut:]
        if not left[name]:
            del left[name]

    parts = decode(events)

    joined = dict.fromkeys((name for name in texts if texts[name]), "")
    for chunk in chunks_of(parts):
        for name, value in said(json.loads(chunk.data)):
            joined[name] += value
    assert joined == {name: text for name, text in texts.items() if text}
    assert len(chunks_of(parts)) == len(events)
    assert sum(part.chars for part in parts) == sum(map(len, texts.values()))


@given(st.lists(st.text(st.sampled_from("a😀\ud83d\ude00\udc00\ud800"), max_size=4), max_size=6), st.booleans())
def test_recorder_given_halves_makes_of_them_the_text_that_the_decoder_makes(texts: list[str], ends: bool) -> None:
    events = [*(delta(content=text) for text in texts), *([delta(reason="stop")] if ends else [])]
    decoder = ChunkDecoder()
    decoded = [decoder.decode(event).text for event in events]

    parts = decode(events)

    half = decoder.pending()
    assert text_of(parts) == "".join(decoded) + ("" if half is None else half.text)
    assert "".join(value for chunk in chunks_of(parts) for _, value in said(json.loads(chunk.data))) == text_of(parts)
    assert sum(part.chars for part in parts) == len(text_of(parts))


def test_recorder_given_halves_in_two_chunks_gives_the_later_one_the_character() -> None:
    parts = decode([delta(content="a\ud83d"), delta(), delta(reasoning="r"), delta(content="\ude00b")])

    assert [[chunk.text for chunk in part.chunks] for part in parts] == [["a"], [""], [""], ["😀b"]]
    assert [part.chars for part in parts] == [1, 0, 1, 2]


def test_recorder_while_a_half_is_held_recognizes_nothing_and_then_again() -> None:
    texts = ["a", "b", "c\ud83d", "d", "e\ud83d", "\ude00", "f"]

    parts = decode(delta(content=text) for text in texts)

    assert [chunk.text for chunk in chunks_of(parts)] == ["a", "b", "c", "\ufffdd", "e", "😀", "f"]


@pytest.mark.parametrize("name", FIELDS)
def test_recorder_given_a_half_that_nothing_completes_replaces_it_before_the_finish(name: str) -> None:
    about = {"created": 17, "model": "m"}
    event = compact(json.loads(FIELDS[name]("a")) | about).replace(b'"a"', b'"a\\ud83d"')
    end = delta(1 if "1" in name and name != "call 1" else 0, "stop", content="")
    other = delta(5, "stop", content="")

    parts = decode([event, other, end], choices=9)

    assert [len(part.chunks) for part in parts] == [1, 1, 2]
    before, last = parts[2].chunks
    assert said(json.loads(before.data)) == [(name, "\ufffd")]
    assert json.loads(before.data).items() >= {"id": ID, "object": "chat.completion.chunk", **about}.items()
    assert before.text == ("\ufffd" if name in ("content", "refusal") else "")
    assert json.loads(last.data)["choices"][0]["finish_reason"] == "stop"
    assert parts[2].chars == 1


def test_recorder_given_the_last_string_with_a_half_replaces_it_there() -> None:
    parts = decode([delta(content="a\ud83d"), delta(reason="stop", content="\ude00b\ud83d")])

    assert [chunk.text for chunk in chunks_of(parts)] == ["a", "😀b\ufffd"]


def test_recorder_at_its_end_shows_pending_halves_once() -> None:
    made = recorder()
    for event in (delta(content="\ud83d"), arguments("\ud83d", 3), delta(1, content="\ud83d")):
        assert made.decode(event).chars == 0

    pending = made.pending()

    assert pending is not None
    assert pending.chars == 3
    assert [chunk.text for chunk in pending.chunks] == ["\ufffd", "", ""]
    assert said(json.loads(pending.chunks[1].data)) == [("call 3", "\ufffd")]
    assert made.pending() is None


def test_recorder_holds_so_many_halves_and_replaces_the_others_at_once() -> None:
    parts = decode(delta(index, content="\ud83d") for index in range(MOST_HELD + 5))

    assert [part.chars for part in parts] == [0] * MOST_HELD + [1] * 5 + [MOST_HELD]


@pytest.mark.parametrize(
    ("event", "kept"),
    [
        (b'{"choices":[],"x":"\xff\xfe"}', {"x": "\ufffd\ufffd"}),
        (b'{"choices":[],"x":"\xed\xa0\xbd"}', {"x": "\ufffd\ufffd\ufffd"}),
        (
            b'{"choices":[],"x":["\\ud83d",{"\\ude00":"a\\ud83d\\ud83d\\ude00"}]}',
            {"x": ["\ufffd", {"\ufffd": "a\ufffd😀"}]},
        ),
        (b'{"choices":[],"x":"\\\\ud83d"}', {"x": "\\ud83d"}),
        (b'{"choices":[],"x":[NaN,-Infinity,1.5]}', {"x": [None, None, 1.5]}),
    ],
)
def test_recorder_given_what_only_some_parsers_take_makes_json_of_it(event: bytes, kept: dict[str, Any]) -> None:
    assert records(event) == [{"id": ID, "choices": [], **kept}]


# What is no chunk


@pytest.mark.parametrize(
    ("event", "reported"),
    [
        (b'{"error": {"message": "m", "code": 500}}', {"message": "m", "code": 500}),
        (b'{"error": "text"}', "text"),
        (b'{"object": "error", "message": "m", "code": 1}', "m"),
        (b'{"object": "error"}', None),
        (b'{"choices": [{"delta": {"content": "a"}}], "error": {"message": "m"}}', {"message": "m"}),
        (b'{"error": {"message": "a\\ud83d"}}', {"message": "a\ufffd"}),
        (b'{"choices": 5, "error": "m"}', "m"),
        (b'{"choices": [{"delta": 5}], "error": {"message": "m"}}', {"message": "m"}),
        (b'{"object": "error", "message": "m", "choices": 5}', "m"),
    ],
)
def test_recorder_given_an_error_in_the_stream_raises_it(event: bytes, reported: Any) -> None:
    with pytest.raises(ErrorReported) as raised:
        decode([event])

    assert raised.value.error == reported


BROKEN = [
    b"",
    b"no JSON",
    b"<html>",
    b"[1]",
    b'"text"',
    b"5",
    b"null",
    b"NaN",
    b'{"choices": [{"delta": {"content": "cut',
    b'{"usage": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'{"choices": [], "a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    b"\xff\xfe",
    b'{"choices": 5, "a": cut}',
    b'{"choices": [5]} 5',
]


@pytest.mark.parametrize("event", BROKEN)
def test_recorder_given_no_chunk_says_that_the_stream_is_broken(event: bytes) -> None:
    with pytest.raises(BrokenStream) as raised:
        decode([event])

    assert len(str(raised.value)) < 100


NAMES = ["choices", "delta", "index", "finish_reason", "usage", "error", "message", "object", "id", "created", "model"]
FIELD_NAMES = ["content", "refusal", "reasoning", "reasoning_content", "tool_calls", "function_call"]
ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from([*NAMES, *FIELD_NAMES, "function", "arguments"]), inner)
        | st.dictionaries(st.sampled_from(FIELD_NAMES), st.none() | ANY_TEXT | inner)
    ),
    max_leaves=12,
)
CHOICES = st.lists(
    st.fixed_dictionaries(
        {"delta": st.dictionaries(st.sampled_from(FIELD_NAMES), ANY_TEXT | JSON)},
        optional={"index": st.integers(0, 2) | JSON, "finish_reason": st.none() | ANY_TEXT},
    )
)
CHUNKS = st.fixed_dictionaries({"choices": CHOICES}, optional={"usage": JSON, "error": st.none(), "created": JSON})


@settings(max_examples=300)
@given(st.lists(JSON | CHUNKS, max_size=3))
def test_recorder_given_any_json_takes_every_object_and_reports_what_the_decoder_does(values: list[Any]) -> None:
    made, decoder = recorder(), ChunkDecoder()
    for value in values:
        event = json.dumps(value).encode()
        outcomes: list[Any] = []
        for decode_one in (decoder.decode, made.decode):
            try:
                outcomes.append(decode_one(event).usage)
            except (BrokenStream, ErrorReported) as error:
                outcomes.append(type(error))
        if outcomes[0] is BrokenStream and isinstance(value, dict):
            is_error = value.get("error") or (value.get("object") == "error" and type(value.get("choices")) is not list)
            outcomes[0] = ErrorReported if is_error else value.get("usage")
        assert repr(outcomes[1]) == re.sub("[\ud800-\udfff]", "\ufffd", repr(outcomes[0]))


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_recorder_given_any_bytes_raises_nothing_else(events: list[bytes]) -> None:
    made = recorder()
    for event in events:
        with contextlib.suppress(BrokenStream, ErrorReported):
            made.decode(event)


# Bounds


def test_recorder_given_raw_chunks_without_end_says_that_they_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RAW_BYTES", 1000)
    made = recorder()
    size = len(made.decode(delta(x="a" * 100)).chunks[0].data)
    for _ in range(1000 // size - 1):
        made.decode(delta(x="a" * 100))

    with pytest.raises(BrokenStream, match="too large altogether"):
        made.decode(delta(x="a" * 100))


def test_recorder_counts_replacements_as_raw_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    event, end = delta(content="\ud83d"), delta(reason="stop")
    size = sum(len(chunk.data) for chunk in chunks_of(decode([event, end])))
    for room in (size, size - 1):
        monkeypatch.setattr(module, "MOST_RAW_BYTES", room)
        made = recorder()
        made.decode(event)
        with contextlib.nullcontext() if room == size else pytest.raises(BrokenStream):
            made.decode(end)

    monkeypatch.setattr(module, "MOST_RAW_BYTES", len(chunks_of(decode([event]))[0].data))
    assert len(chunks_of(decode([event]))) == 2, "the end of an answer must not fail"


def test_recorder_given_chunks_in_an_envelope_does_not_count_them_as_raw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RAW_BYTES", 1000)

    assert len(decode(delta(content="a") for _ in range(1000))) == 1000


@pytest.mark.parametrize("name", ["usage", "error"])
def test_recorder_given_a_long_value_of_any_shape_builds_nothing_of_it(name: str) -> None:
    event = b'{"%b":[' % name.encode() + b"[]," * 300_000 + b"[]]}"
    try:
        value: Any = recorder().decode(event).usage
    except ErrorReported as report:
        value = report.error

    assert isinstance(value, str)
    assert len(value) == LONGEST_VALUE_BYTES


@pytest.mark.parametrize(
    ("head", "many", "tail", "most"),
    [
        (b'{"choices":[', b"{},", b"{}]}", NODES),
        (b'{"choices":[],"x":1', b',"a" :1', b"}", MOST_NAMES),
        (b'{"choices":[],"x":["\\ud800"', b",[]", b"]}", ODD_NODES),
        (b'{"choices":[],"x":["\\ud800"', b",1", b"]}", ODD_VALUES),
    ],
)
def test_recorder_given_more_than_may_be_built_says_that_the_stream_is_broken(
    head: bytes, many: bytes, tail: bytes, most: int
) -> None:
    assert len(decode([head + many * (most - 10) + tail])) == 1
    with pytest.raises(BrokenStream):
        decode([head + many * most + tail])


def test_recorder_leaves_others_room_to_read_what_is_nested_deeply() -> None:
    """Whoever reads a record later may be called from deeper down than this."""

    def event(depth: int) -> bytes:
        return b'{"choices":[],"x":' + b"[" * depth + b"]" * depth + b"}"

    def deeper(levels: int, data: str) -> Any:
        return json.loads(data) if levels == 0 else deeper(levels - 1, data)

    deepest = max(depth for depth in range(300, 1000, 20) if _is_taken(event(depth)))

    assert deeper(SPARE_DEPTH - 30, chunks_of(decode([event(deepest)]))[0].data)
    json.loads(event(deepest + 20))  # would have been read, were it not for the room


def _is_taken(event: bytes) -> bool:
    try:
        decode([event])
    except BrokenStream:
        return False
    return True


# Whole answers

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 17,
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "é😀", "refusal": None}, "finish_reason": "stop"},
        {"index": 1, "message": {"content": None, "tool_calls": [{"id": "c", "function": {"arguments": "{}"}}]}},
    ],
    "usage": USAGE,
    "error": None,
}


@pytest.mark.parametrize("seed", range(8))
def test_whole_answer_is_one_record_as_it_was_written(seed: int) -> None:
    part = whole_answer(spelled(ANSWER, seed), ID)

    (chunk,) = part.chunks
    assert json.loads(chunk.data) == expected([ANSWER])[0]
    assert re.fullmatch("[\x20-\x7f]+", chunk.data)
    assert chunk.envelope is None
    assert (chunk.text, part.chars, part.finish_reason, part.usage, part.done) == ("é😀", 4, "stop", USAGE, True)


@pytest.mark.parametrize(
    ("message", "text", "chars"),
    [
        ({"content": "a"}, "a", 1),
        ({"content": None, "refusal": "no"}, "no", 2),
        ({"content": "", "refusal": "no"}, "no", 2),
        ({"content": "a", "refusal": "no", "reasoning_content": "abc", "reasoning": "d"}, "a", 7),
        ({"content": None, "tool_calls": [{"function": {"arguments": "abc"}}] * 2}, "", 6),
        ({"content": None, "function_call": {"arguments": "abc"}}, "", 3),
        ({}, "", 0),
        (None, "", 0),
        (5, "", 0),
        ({"content": 5, "refusal": ["a"], "reasoning": {"a": 1}, "tool_calls": "a"}, "", 0),
    ],
)
def test_whole_answer_tells_the_text_and_how_much_was_written(message: Any, text: str, chars: int) -> None:
    part = whole_answer(compact({"choices": [{"message": message}]}), ID)

    assert (part.chunks[0].text, part.chars) == (text, chars)
    assert part.chunks[0].data == compact({"id": ID, "choices": [{"message": message}]}).decode()


def test_whole_answer_without_choices_says_nothing() -> None:
    part = whole_answer(b'{"choices":[]}', ID)

    assert (part.chunks[0].text, part.finish_reason, part.chars, part.done) == ("", None, 0, True)


def test_whole_answer_with_halves_and_bytes_that_are_no_text_has_replacements() -> None:
    part = whole_answer(b'{"choices":[{"message":{"content":"a\\ud83d\\ud83d\\ude00\xff"}}],"x":NaN}', ID)

    assert part.chunks[0].text == "a\ufffd😀\ufffd"
    assert json.loads(part.chunks[0].data)["choices"][0]["message"]["content"] == "a\ufffd😀\ufffd"


@pytest.mark.parametrize(
    ("body", "reported"),
    [
        (b'{"error": {"message": "m"}}', {"message": "m"}),
        (b'{"error": "m", "choices": []}', "m"),
        (b'{"object": "error", "message": "m"}', "m"),
        (b'{"object": "error", "message": "m", "choices": null}', "m"),
    ],
)
def test_whole_answer_that_is_an_error_raises_it(body: bytes, reported: Any) -> None:
    with pytest.raises(ErrorReported) as raised:
        whole_answer(body, ID)

    assert raised.value.error == reported


@pytest.mark.parametrize(
    "body",
    [*BROKEN, b"{}", b'{"choices": null}', b'{"choices": {}}', b'{"choices": "a"}'],
)
def test_whole_answer_that_is_none_says_that_it_is_broken(body: bytes) -> None:
    if b'"delta"' in body and not body.endswith(b"cut"):
        return  # a choice without message says nothing, and is one
    with pytest.raises(BrokenStream) as raised:
        whole_answer(body, ID)

    assert len(str(raised.value)) < 100


def test_whole_answer_looks_at_so_many_choices_and_calls_and_builds_no_others() -> None:
    answer = {"message": {"content": "a", "tool_calls": [{"function": {"arguments": "b"}}] * (MOST_ENTRIES + 9)}}

    part = whole_answer(compact({"choices": [answer] * (MOST_ENTRIES + 9)}), ID)

    assert part.chars == MOST_ENTRIES * (MOST_ENTRIES + 1)


def test_whole_answer_may_have_many_names_in_its_choices_only() -> None:
    many = b',"a":1' * (MOST_NAMES + 10)

    assert whole_answer(b'{"choices":[{"x":1' + many + b"}]}", ID)
    with pytest.raises(BrokenStream):
        whole_answer(b'{"choices":[]' + many + b"}", ID)


def test_whole_answer_that_grows_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    body = compact({"choices": [{"message": {"content": "é" * 100}}]})
    monkeypatch.setattr(module, "MOST_RAW_BYTES", 400)

    with pytest.raises(BrokenStream, match="too large"):
        whole_answer(body, ID)


@pytest.mark.parametrize("bare", [{"message": "boom", "code": 500}, {"message": "boom", "code": None, "choices": None}])
def test_bare_error_is_none_of_the_chunks(bare: dict[str, Any]) -> None:
    """As some servers send it, in an event that is named `error`."""
    with pytest.raises(ErrorReported) as reported:
        decode([json.dumps(bare).encode()])
    assert reported.value.error == "boom"


def test_chunk_with_a_message_and_choices_is_no_error() -> None:
    assert chunks_of(decode([json.dumps({"message": "x", "code": 1, "choices": []}).encode()]))
