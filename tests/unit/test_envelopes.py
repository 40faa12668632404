"""Test how a chunk is opened at its one string, and how its shape is found again by its bytes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.streams.chunk import MOST_ENVELOPES, Envelope
from app.upstream.envelopes import MOST_SEEN, Envelopes, Opened, opened
from app.upstream.json_line import members_of, one_line
from app.upstream.spellings import LONGEST_SPELLING_BYTES, MOST_PLACES, Spellings
from tests.unit.chunk_shapes import SHAPES, spelled

ENVELOPE = Envelope("p", "s", True)


def shape(number: int) -> Opened:
    return Opened(f"{number}", "s", b'"a"')


def learned(data: bytes, value: str, field: str = "content") -> Spellings:
    spellings = Spellings()
    string = json.dumps(value).encode()
    assert spellings.learn(ENVELOPE, data, string, (field, value)) is not None
    return spellings


def found(spellings: Spellings, data: bytes) -> str | None:
    match = spellings.find(data)
    return None if match is None else match[1]


# One line of ASCII

TEXT = st.text(st.sampled_from('"\\é😀\u2028\n\x7fa/') | st.characters(exclude_categories=["Cs"]), max_size=10)


@given(
    st.recursive(TEXT | st.floats(allow_nan=False), lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner)),
    st.integers(0, 30),
)
def test_any_json_becomes_one_line_of_ascii_that_says_the_same(value: Any, seed: int) -> None:
    written = spelled(value, seed)

    line = one_line(written)

    assert json.loads(line) == json.loads(written)
    assert re.fullmatch("[\x20-\x7f]*", line)


# A chunk opened


def test_opened_chunk_is_what_stands_around_its_string() -> None:
    chunk = members_of(b'{"id": "1", "choices": [ {"delta" : {"content": "a\\u0062", "x": [1, "\xc3\xa9"]} } ]}')

    assert opened(chunk, "content") == Opened(
        '{"id":"1","choices":[{"delta":{"content":"', '","x":[1, "\\u00e9"]}}]}', b'"a\\u0062"'
    )


def test_opened_call_is_what_stands_around_its_arguments() -> None:
    chunk = members_of(b'{"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "a"}}]}}]}')

    assert opened(chunk, "tool_calls") == Opened(
        '{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"', '"}}]}}]}', b'"a"'
    )


@pytest.mark.parametrize("calls", ['[{"function":{"arguments":"a"}},{}]', '[{"function":{"arguments":"a"}},null]'])
def test_opened_call_beside_another_is_none(calls: str) -> None:
    assert opened(members_of(f'{{"choices":[{{"delta":{{"tool_calls":{calls}}}}}]}}'.encode()), "tool_calls") is None


# Shapes


def test_shape_is_an_envelope_from_its_second_time_on() -> None:
    envelopes = Envelopes()

    assert envelopes.of(shape(1), is_text=False) is None
    second = envelopes.of(shape(1), is_text=False)
    assert second == Envelope("1", "s", False)
    assert envelopes.of(shape(1), is_text=False) is second


def test_shapes_that_came_once_are_remembered_up_to_a_bound() -> None:
    envelopes = Envelopes()
    for number in range(MOST_SEEN + 1):
        assert envelopes.of(shape(number), is_text=True) is None

    assert envelopes.of(shape(1), is_text=True) is not None
    assert envelopes.of(shape(0), is_text=True) is None


def test_envelopes_of_one_answer_are_bounded() -> None:
    envelopes = Envelopes()
    made = [[envelopes.of(shape(number), is_text=True) for _ in range(3)][2] for number in range(MOST_ENVELOPES + 3)]

    assert [envelope is None for envelope in made] == [False] * MOST_ENVELOPES + [True] * 3


# Spellings


def test_spelling_finds_the_string_of_a_chunk_and_nothing_in_an_empty_one() -> None:
    spellings = learned(b'{"choices":[{"delta":{"content":"a"}}]}', "a")

    assert found(spellings, b'{"choices":[{"delta":{"content":"b\\n\xc3\xa9"}}]}') == "b\né"
    for other in (b'""', b'"b", "c":"d"', b'"\\ud800"', b'"\xff"', b'"b', b'b"', b'"\n"', b"5", b"", b'"'):
        assert found(spellings, b'{"choices":[{"delta":{"content":' + other + b"}}]}") is None
    for other in (b"", b'{"choices":[{"delta":{"content":"}}]}', b'{"choices":[{"delta":{"content":"'):
        assert found(spellings, other) is None


def test_spelling_is_forgotten_when_all_are() -> None:
    data = b'{"choices":[{"delta":{"content":"a"}}],"created":15}'
    spellings = learned(data, "a")
    assert found(spellings, data) == "a"

    spellings.clear()

    assert found(spellings, data) is None
    assert found(spellings, data.replace(b"15", b"16")) is None


def test_spelling_of_a_string_that_stands_in_too_many_places_before_is_not_learned() -> None:
    for places, is_learned in ((MOST_PLACES - 1, True), (MOST_PLACES, False)):
        data = b'{"x":[' + b'"a",' * places + b'1],"choices":[{"delta":{"content":"a"}}]}'

        assert (Spellings().learn(ENVELOPE, data, b'"a"', ("content", "a")) is not None) is is_learned


def test_spelling_with_too_much_around_the_string_is_not_learned() -> None:
    around = len(b'{"choices":[{"delta":{"content":}}]}')
    for spaces, is_learned in ((LONGEST_SPELLING_BYTES - around, True), (LONGEST_SPELLING_BYTES - around + 1, False)):
        data = b'{"choices":[{"delta":{' + b" " * spaces + b'"content":"a"}}]}'

        assert (Spellings().learn(ENVELOPE, data, b'"a"', ("content", "a")) is not None) is is_learned


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("text", ["a", "x", "content", ",", '"', "\\", ": ", "}", "é", "0", "index"])
def test_spelling_of_any_shape_has_the_string_and_nothing_else_in_it(name: str, text: str) -> None:
    """Another string between the two ends is another chunk's string, and nothing else of the chunk changes."""
    for chunk in SHAPES[name]([text]):
        data = json.dumps(chunk).encode()
        spellings = Spellings()
        spelling = spellings.learn(ENVELOPE, data, json.dumps(text).encode(), ("content", text))
        if spelling is None:
            continue

        other = json.loads(spelling[0][:-1] + b'"another"' + spelling[1][1:])

        choice, changed = chunk["choices"][0], other["choices"][0]
        assert changed == choice | {"delta": choice["delta"] | {"content": "another"}}
        assert other | {"choices": []} == chunk | {"choices": []}


AROUND = [
    b'{"created":%b,"choices":[{"delta":{"content":"a"}}],"id":"1750000000"}',
    b'{"id":"1750000000","choices":[{"delta":{"content":"a"}}],"created":%b}',
    b'{"x":{"created":1750000000},"choices":[{"created":1750000000,"delta":{"content":"a"}}],"created" : %b }',
]


@pytest.mark.parametrize("around", AROUND)
def test_spelling_takes_another_time_and_no_other_change(around: bytes) -> None:
    spellings = learned(around % b"1750000000", "a")

    assert found(spellings, around % b"1750000009") == "a"
    assert found(spellings, around % b"1750000019") == "a", "the time may change again"
    for other in (b"0750000000", b"175000000", b"17500000000", b"175000000.", b"-175000000", b'1,"a":1234', b"null"):
        assert found(spellings, around % other) is None
    for other in (b"1750000000", b"1750000009"):
        changed = (around % other).replace(b'"1750000000"', b'"1750000001"').replace(b"[{", b'[{"y":1,')
        assert found(spellings, changed) is None


@pytest.mark.parametrize("time", [b"0", b"-1", b"1.5", b"null", b'"17"'])
def test_spelling_without_a_time_that_says_something_is_only_itself(time: bytes) -> None:
    data = b'{"created":%b,"choices":[{"delta":{"content":"a"}}]}'
    spellings = learned(data % time, "a")

    assert found(spellings, data % time) == "a"
    assert found(spellings, data % (b"9" * len(time))) is None
