"""Test how the JSON of a request is checked and cut into members without an object per value."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import errors
from app.dialects import opaque_json
from app.dialects.opaque_json import BLOCK_BYTES, MOST_NAMES, Opaque, blocks, last_value, read_object

MOST = 100_000
MIB = 1_048_576


def read(body: bytes, most: int = MOST) -> Opaque:
    return read_object(body, most=most, hint="A hint.")


def refused(body: bytes, most: int = MOST) -> errors.ChatError:
    with pytest.raises(errors.ChatError) as raised:
        read(body, most)
    return raised.value


def values(body: bytes) -> dict[str, bytes | None]:
    found = read(body)
    return {name: found.value(name) for name in found.spans}


# Members


@pytest.mark.parametrize(
    ("body", "members"),
    [
        (b"{}", {}),
        (b" \r\n\t{ \n} ", {}),
        (b'{"a":1}', {"a": b"1"}),
        (
            b' { "a" : 1.0e2 , "b":\t[ 1 , {} ]\n,"c":{"a":{"a":2}}}\n',
            {"a": b"1.0e2", "b": b"[ 1 , {} ]", "c": b'{"a":{"a":2}}'},
        ),
        (b'{"\\u0061":1,"\\"}":"\\"}{","":null}', {"a": b"1", '"}': b'"\\"}{"', "": b"null"}),
        ('{"é😀":"é😀","\\u00e9":true}'.encode(), {"é😀": '"é😀"'.encode(), "é": b"true"}),
        (b'{"a":"\\\\","b":"\\\\\\"","c":-0}', {"a": b'"\\\\"', "b": b'"\\\\\\""', "c": b"-0"}),
        (b'{"a":{"b":1,"b":2}}', {"a": b'{"b":1,"b":2}'}),
        (b'{"a":"\\ud83d","b":"\\uD83D\\ude00"}', {"a": b'"\\ud83d"', "b": b'"\\uD83D\\ude00"'}),
        (b'{"a":"\\\\ud83d"}', {"a": b'"\\\\ud83d"'}),
        (b'{"a":1e999,"b":' + b"9" * 5000 + b"}", {"a": b"1e999", "b": b"9" * 5000}),
    ],
)
def test_members_are_the_bytes_of_the_body(body: bytes, members: dict[str, bytes]) -> None:
    assert values(body) == members


def test_end_is_where_the_last_value_ends() -> None:
    body = b' {"a" : [1 ] \n } '

    assert body[: read(body).end] == b' {"a" : [1 ]'
    assert read(b" { } ").end == 2


@pytest.mark.parametrize("text", [b'"\\ud83d"', b'"\\uDC00"', b'"\\ud83d\\ud83d\\ude00"', b'["x", "\\ud83dx"]'])
def test_half_a_surrogate_pair_is_readable_as_another_character_in_the_same_place(text: bytes) -> None:
    body = b'{"a":' + text + b',"b":1}'
    found = read(body)

    assert found.value("a") == text
    assert len(found.readable) == len(body)
    start, end = found.spans["a"]
    assert json.loads(found.readable[start:end])
    assert "\\ud" not in found.readable.decode().lower()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5), st.booleans(), st.sampled_from([None, 1]))
def test_members_of_any_object_are_what_another_reader_finds(
    value: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()

    assert {name: json.loads(raw or b"") for name, raw in values(body).items()} == value


@pytest.mark.parametrize("shift", range(8))
@pytest.mark.parametrize(
    "escape", [b"\\\\", b'\\"', b"\\u00e9", b"\\ud83d\\ude00", b"\\ud83d", "é".encode(), "😀".encode()]
)
def test_block_may_end_anywhere(monkeypatch: pytest.MonkeyPatch, shift: int, escape: bytes) -> None:
    monkeypatch.setattr(opaque_json, "BLOCK_BYTES", 8)
    text = b'"' + b"x" * shift + escape * 9 + b'{["'
    body = b'{"a":' + text + b',"b":"]","a2":"\\ud83d"}'

    assert values(body) == {"a": text, "b": b'"]"', "a2": b'"\\ud83d"'}


# What is refused


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \r\n\t ",
        b"no JSON",
        b"{",
        b'{"a": "b"',
        b'{"a": "b',
        b'{"a": "b"} x',
        b'{"a": "b"}{"a": "b"}',
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": [1,]}',
        b'{"a": "\n"}',
        b'{"a": "\xff"}',
        b'{"\xff": 1}',
        b'{"a": ["\xed\xa0\x80"]}',
        b'{"a": "\xe2\x82',
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        b'{"a": NaN}',
        b'{"a": [Infinity]}',
        b'{"a": -Infinity}',
        b'{"a": 01}',
        b'{"a": 1.}',
        b'{"a": +1}',
        b'{"a": .5}',
        b'{"a": 1e}',
        b'{"a": "\\x"}',
        b'{"a": "\\u12g4"}',
        b'{"a": "\\ud83"}',
        b'{"a": tru}',
        b'{"a": 1, "a": 2}',
        b'{"a": 1, "a": 1}',
        b'{"a": 1, "\\u0061": 1}',
        b'{"a": 12, "b": {}, "a": 1}',
        b'{"b": "\\ud83d", "a": 1, "a": 1}',
        '{"é": 1, "\\u00e9": 1}'.encode(),
        '{"😀": 1, "\\ud83d\\ude00": 1}'.encode(),
        b'{"a": 1 "b": 2}',
        b'{"a" 1}',
        b"{1: 2}",
        b'{"a": [1}',
        b'{"a": {"b": 1]}',
        b"[1, 2",
        b'["a" 1]',
        b"\x00",
        b"{\x0b}",
        b"GET / HTTP/1.1\r\n\r\n",
        b"[" * 501 + b"]" * 501,
        b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"a": ' + b" " * 20_001 + b"1}",
    ],
)
def test_body_that_is_not_json_is_invalid_json(body: bytes) -> None:
    assert type(refused(body)) is errors.InvalidJson


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"5", b"null", b"true", b'[{"a": 1}]', b'"\\ud83d"'])
def test_body_that_is_no_object_is_an_invalid_request(body: bytes) -> None:
    error = refused(body)

    assert type(error) is errors.InvalidRequest
    assert error.fields == {"_schema": ["Not an object."]}


def test_error_tells_the_place() -> None:
    assert refused(b'{\n "\xc3\xa9" 1}').detail == "The JSON is not valid at line 2, column 6."
    assert refused(b"{").detail == "The JSON is not complete."
    assert refused(b" ").detail == "The body is empty."
    assert refused(b'{"a": 1, "a": 2}').detail == "An object has the same name twice."
    assert refused(b'{"a": "\xff"}').detail == "The body is not UTF-8."
    assert refused(b"[" * 600).detail == "The body is nested too deeply."


def test_body_of_500_levels_is_taken() -> None:
    value = b"[" * 499 + b"]" * 499

    assert values(b'{"a":' + value + b"}") == {"a": value}


def test_brackets_inside_strings_are_no_levels() -> None:
    assert read(b'{"a":"' + b"[" * 1000 + b'\\"' + b"{" * 1000 + b'"}')


def test_values_are_counted_outside_of_strings() -> None:
    texts = [b'",,[[{{::"', b"1", b'"a"', b"{}", b"[1, 2]"]
    body = b'{"a":[' + b",".join(texts) + b"]}"
    # { a : [ 5 values with 4 commas, of which 2 strings, {} and [1, 2] have 2, 2 and 3, ] }
    count = 4 + 4 + 2 + 2 + 3 + 2

    assert read(body, most=count)
    error = refused(body, most=count - 1)
    assert type(error) is errors.InvalidRequest
    assert error.detail == "The body has far more values than a request can have. A hint."


def test_names_are_bounded_in_number_and_length() -> None:
    names = [b'"%d":{"x":1}' % number for number in range(MOST_NAMES)]
    assert len(values(b"{" + b",".join(names) + b"}")) == MOST_NAMES
    assert type(refused(b"{" + b",".join([*names, b'"x":1']) + b"}")) is errors.InvalidRequest
    assert len(values(b'{"' + b"\\u0061" * 1000 + b'":1}')) == 1
    assert type(refused(b'{"' + b"a" * 1001 + b'":1}')) is errors.InvalidRequest


@given(st.binary(max_size=60) | st.text('{}[]:,"\\ud8a1 \n', max_size=40).map(str.encode))
def test_bytes_are_taken_if_they_are_an_object_of_json_and_have_no_name_twice(body: bytes) -> None:
    def once(pairs: list[tuple[str, Any]]) -> Any:
        return tuple(pairs)

    def never(constant: str) -> Any:
        raise ValueError(constant)

    try:
        pairs = json.loads(body.decode(), object_pairs_hook=once, parse_constant=never)
    except ValueError:
        pairs = None
    is_taken = isinstance(pairs, tuple) and len({name for name, _ in pairs}) == len(pairs)

    try:
        read(body)
    except errors.ClientError:
        assert not is_taken
    else:
        assert is_taken


# The last value of a name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a":false}', b"false"),
        (b'{ "a" : false }', b"false"),
        (b'{"b":{"a":1},"a":false,"c":["a",{"a":1}]}', b"false"),
        (b'{"a":1,"\\u0061":false,"b":2}', b"false"),
        (b'{"b":"a","a":{"a":[1,2]}}', b'{"a":[1,2]}'),
        (b'{"\\"a":"\\"","a":"x\\",","c":1}', b'"x\\","'),
    ],
)
def test_last_value_of_a_name_is_found(text: bytes, value: bytes) -> None:
    start, end = last_value(text, "a")

    assert text[start:end] == value


def test_last_value_of_a_name_that_is_not_there_is_a_key_error() -> None:
    for text in (b"{}", b'{"b":{"a":1}}', b'{"b":"a"}'):
        with pytest.raises(KeyError):
            last_value(text, "a")


# Work


def test_blocks_let_others_run_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[None] = []
    monkeypatch.setattr(opaque_json, "let_others_run", lambda: turns.append(None))
    body = b"x" * (3 * BLOCK_BYTES + 1)

    assert b"".join(blocks(body)) == body
    assert len(turns) == 3
    assert [len(block) for block in blocks(body)] == [BLOCK_BYTES] * 3 + [1]
    turns.clear()
    assert read(b'{"a": 1}')
    assert turns == []


SIZE = 32 * MIB
HOSTILE: dict[str, Callable[[], bytes]] = {
    "arrays": lambda: b'{"a":' + b"[" * SIZE,
    "objects": lambda: b'{"a":' * (SIZE // 5),
    "closed": lambda: b'{"a":1' + b"]" * SIZE,
    "colons": lambda: b'{"a":1' + b":" * SIZE,
    "quotes": lambda: b'"' * SIZE,
    "numbers": lambda: b'{"a":[' + b"1," * (SIZE // 2) + b"1]}",
    "strings": lambda: b'{"a":[' + b'"",' * (SIZE // 3) + b"1]}",
    "empty": lambda: b'{"a":[' + b"[]," * (SIZE // 3) + b"1]}",
    "names": lambda: b"{" + b'"":1,' * (SIZE // 5) + b'"":1}',
    "few names": lambda: b"{" + b",".join(b'"%d":1' % number for number in range(30_000)) + b"}",
    "escapes": lambda: b'{"a":"' + b"\\n" * (SIZE // 2) + b'"}',
    "escaped quotes": lambda: b'{"a":"' + b'\\"' * (SIZE // 2) + b'"}',
    "backslashes": lambda: b'{"a":"' + b"\\\\" * (SIZE // 2) + b'"}',
    "halves": lambda: b'{"a":"' + b"\\ud83d" * (SIZE // 6) + b'"}',
    "emoji": lambda: b'{"a":"' + "😀".encode() * (SIZE // 4) + b'"}',
    "digits": lambda: b'{"a":' + b"1" * SIZE + b"}",
    "spaces": lambda: b" " * SIZE,
    "space between": lambda: b'{"a":' + b" " * SIZE + b"1}",
    "name": lambda: b'{"' + b"\\n" * (SIZE // 2) + b'":1}',
    "open string": lambda: b'{"a":"' + b"x" * SIZE,
}
TAKEN = {"escapes", "escaped quotes", "backslashes", "halves", "emoji", "digits"}


@pytest.mark.parametrize("shape", HOSTILE)
def test_hostile_body_is_read_in_small_blocks_and_makes_no_object_for_each_value(
    monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    body = HOSTILE[shape]()
    sizes: list[int] = []
    turns: list[None] = []
    marks: list[int] = []
    look, follow = opaque_json._Scan._look, opaque_json._Scan._follow
    monkeypatch.setattr(
        opaque_json._Scan, "_look", lambda scan, block: (sizes.append(len(block)), look(scan, block))[1]
    )
    monkeypatch.setattr(
        opaque_json._Scan, "_follow", lambda scan, found: (marks.append(len(found)), follow(scan, found))[1]
    )
    monkeypatch.setattr(opaque_json, "let_others_run", lambda: turns.append(None))
    tracemalloc.start()
    try:
        if shape in TAKEN:
            assert list(read(body).spans) == ["a"]
        else:
            assert isinstance(refused(body), errors.InvalidJson | errors.InvalidRequest)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert max(sizes) <= BLOCK_BYTES + 2
    assert len(turns) >= len(sizes) - 2
    assert sum(marks) <= MOST + BLOCK_BYTES, "each mark is followed by itself"
    # A block in pieces, or the body as it can be read, or its longest name. One object a value would be 10 times that.
    assert peak <= 2.5 * SIZE + 16 * MIB
