"""Test requests for chat completions: what is read of them, and that all else is sent on byte for byte."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Set
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import errors
from app.dialects import opaque_json
from app.dialects.completions import prompt
from app.dialects.completions.fields import LONGEST_NUMBER
from app.dialects.completions.request import ForwardedRequest, read_forwarded
from app.dialects.native.answer import error_body
from app.settings import OPENAI_URL, Settings
from app.tokens import counting as tokens
from app.upstream import client

SETTINGS = Settings(openai_base_url="http://model.test/v1", openai_model="m", allowed_models=("m", "other"))
TO_OPENAI = {"openai_base_url": "", "openai_api_key": "k"}
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
STREAMED = {**ASKED, "stream": True}


def named(**values: int) -> dict[str, Any]:
    """Settings as if the operator had chosen them."""
    return {**values, "named": frozenset(values)}


def read(body: Any, **changes: Any) -> ForwardedRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_forwarded(raw, replace(SETTINGS, **changes))


def refused(body: Any, **changes: Any) -> errors.ChatError:
    with pytest.raises(errors.ChatError) as raised:
        read(body, **changes)
    assert len(json.dumps(error_body(raised.value.failure, "c"))) < 20_000
    return raised.value


def fields_of(body: Any, **changes: Any) -> dict[str, list[str]]:
    error = refused(body, **changes)
    assert type(error) is errors.InvalidRequest
    assert error.fields
    return error.fields


def sent(body: Any, left_out: Set[str] = frozenset(), **changes: Any) -> Any:
    return json.loads(read(body, **changes).write(left_out))


# What is read


def test_request_with_messages_alone_has_its_defaults_and_is_sent_as_it_is() -> None:
    body = b' {"model" : "m",\n"messages":[{"role":"user","content":"Hello"}] } '
    request = read(body)

    assert request == ForwardedRequest(
        model="m",
        choices=1,
        is_streamed=False,
        keeps_usage=False,
        max_tokens=None,
        messages_count=1,
        prompt_tokens=3 + 4 + 1,
        fingerprint=hashlib.sha256(body).hexdigest(),
        body=body,
        additions=(),
    )
    assert request.write() is body
    assert request.held_bytes == len(body)


def test_request_does_not_show_its_body() -> None:
    assert "Hello" not in repr(read(STREAMED, system_prompt="Hello"))


def test_name_that_is_spelled_with_escapes_is_that_name() -> None:
    body = (
        b'{"m\\u006fdel":"\\u006d","messa\\u0067es":[{"c\\u006fntent":"Hello"}],"\\u0073tream":true,"\\u006e":2,'
        b'"max\\u005ftokens":5,"stream_options":{"include\\u005fusage":true}}'
    )
    request = read(body)

    assert (request.model, request.is_streamed, request.choices, request.max_tokens) == ("m", True, 2, 5)
    assert (request.keeps_usage, request.prompt_tokens) == (True, 8)
    assert request.write() is body


@pytest.mark.parametrize(
    ("n", "choices"),
    [
        (b"1", 1),
        (b"2", 2),
        (b"128", 128),
        (b"2.0", 2),
        (b"1.0e2", 100),
        (b"12E+1", 120),
        (b"129", 1),
        (b"1e3", 1),
        (b"0", 1),
        (b"-2", 1),
        (b"2.5", 1),
        (b"1e999", 1),
        (b"9" * 5000, 1),
        (b'"2"', 1),
        (b"true", 1),
        (b"null", 1),
        (b"[2]", 1),
    ],
)
def test_choices_are_counted_and_what_cannot_be_is_left_to_the_upstream(n: bytes, choices: int) -> None:
    body = b'{"model":"m","messages":[{}],"n":' + n + b"}"
    request = read(body)

    assert request.choices == choices
    assert request.write() is body


@pytest.mark.parametrize(("stream", "is_streamed"), [(True, True), (False, False), (None, False)])
def test_stream_is_a_boolean_or_null(stream: bool | None, is_streamed: bool) -> None:
    request = read({**ASKED, "stream": stream})

    assert request.is_streamed is is_streamed
    assert json.loads(request.write())["stream"] is stream


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("top_k", [1, {"a": None}]),
        ("tools", {"no": "list"}),
        ("response_format", {"type": "json_schema"}),
        ("logit_bias", {"50256": -100}),
        ("metadata", {"a": {"b": {}}}),
        ("user", None),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("anything else", "é😀"),
        ("", 1),
    ],
)
def test_all_other_fields_are_sent_as_they_are(name: str, value: Any) -> None:
    body = json.dumps({**ASKED, name: value}).encode()

    assert read(body).write() is body


@pytest.mark.parametrize(
    "message", [{}, {"role": 5}, {"content": 5}, {"content": [5]}, {"tool_calls": None}, {"a": []}]
)
def test_messages_are_not_judged(message: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", "messages": [message, message]}).encode()

    request = read(body)
    assert request.messages_count == 2
    assert request.write() is body


# What is refused


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"model": ["m"]}, "model"),
        ({"model": ""}, "model"),
        ({"model": "x" * 201}, "model"),
        ({"model": "\u0007" * 100_000}, "model"),
        ({"model": "m\ud83d"}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": "a"}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [5]}, "messages.0"),
        ({"messages": [{}, None]}, "messages.1"),
        ({"messages": [{}, {}, []]}, "messages.2"),
        ({"messages": [{}, "a"]}, "messages.1"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream": {}}, "stream"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 5.0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": [5]}, "max_tokens"),
        ({"max_completion_tokens": 5.5}, "max_completion_tokens"),
        ({"max_completion_tokens": False}, "max_completion_tokens"),
        ({"stream": True, "stream_options": {"a": "x" * 10_000}}, "stream_options"),
        ({"Model": "other"}, "Model"),
        ({"MAX_TOKENS": 10**6}, "MAX_TOKENS"),
        ({"me\u017f\u017fages": []}, "me\u017f\u017fages"),
        ({"N": 1}, "N"),
    ],
)
def test_field_that_cannot_be_used_is_named(change: dict[str, Any], wrong: str) -> None:
    assert list(fields_of({**ASKED, **change})) == [wrong]


def test_fields_that_are_missing_or_wrong_are_named_all_at_once() -> None:
    assert list(fields_of({})) == ["model", "messages"]
    assert list(fields_of({"stream": 5, "max_tokens": "a"})) == ["model", "messages", "stream", "max_tokens"]
    assert len(fields_of({**{f"{spelled}": 1 for spelled in spellings("messages")}})) < 30


def spellings(name: str) -> list[str]:
    return [
        "".join(letter.upper() if bits >> place & 1 else letter for place, letter in enumerate(name))
        for bits in range(1, 2 ** len(name))
    ]


def test_number_of_a_million_digits_is_no_limit() -> None:
    assert list(fields_of(b'{"model":"m","messages":[{}],"max_tokens":' + b"9" * 1_000_000 + b"}")) == ["max_tokens"]


def test_model_not_listed_is_not_allowed() -> None:
    assert type(refused({**ASKED, "model": "M"})) is errors.ModelNotAllowed
    assert type(refused({**ASKED, "model": "*"})) is errors.ModelNotAllowed
    assert read({**ASKED, "model": "other"}).model == "other"
    assert read({**ASKED, "model": "é😀"}, allowed_models=("m", "*")).model == "é😀"
    assert read({**ASKED, "model": "é" * 200}, allowed_models=("m", "*")).model == "é" * 200


def test_messages_are_at_most_as_many_as_the_setting_says() -> None:
    body = {"model": "m", "messages": [{}] * 3}

    assert read(body, openai_max_messages=3).messages_count == 3
    assert fields_of(body, openai_max_messages=2) == {"messages": ["Must have at most 2 messages."]}
    assert read({"model": "m", "messages": [{}] * 10_000}).messages_count == 10_000
    assert list(fields_of({"model": "m", "messages": [{}] * 10_001})) == ["messages"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no JSON",
        b'{"model":"m","messages":[{}]',
        b'{"model":"m","messages":[{}],"a":NaN}',
        b'{"model":"m","messages":[{"content":"\xff"}]}',
        b'{"model":"m","messages":[{}],"model":"m"}',
        b'{"model":"m","messages":[{}],"m\\u006fdel":"other"}',
        b'{"model":"m","messages":[{}],"x":1,"x":1}',
        b'{"model":"m","messages":' + b"[" * 600 + b"]" * 600 + b"}",
    ],
)
def test_body_that_is_not_json_is_invalid_json(body: bytes) -> None:
    assert type(refused(body)) is errors.InvalidJson


def test_body_that_is_no_object_is_an_invalid_request() -> None:
    assert fields_of([ASKED]) == {"_schema": ["Not an object."]}


def test_name_that_stands_twice_inside_a_value_is_the_upstreams_to_judge() -> None:
    body = b'{"model":"m","messages":[{"role":"user","role":"user","content":"a","content":"Hello"}],"a":{"b":1,"b":2}}'
    request = read(body)

    assert request.write() is body
    assert request.prompt_tokens == 8


def test_body_with_too_many_values_is_refused_with_a_hint() -> None:
    body = {**ASKED, "x": [1] * 200_000}

    assert read(body)
    error = refused(body, openai_max_messages=10)
    assert type(error) is errors.InvalidRequest
    assert error.detail.endswith("A request has at most 10 messages.")


# Limits that bind if the operator chose them


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_limit_of_an_answer_binds_if_the_operator_chose_it(name: str) -> None:
    for value in (1, 100):
        assert read({**ASKED, name: value}, **named(max_tokens=100)).max_tokens == value
    for value in (101, 0, -1, 10**30, -(10**30)):
        assert list(fields_of({**ASKED, name: value}, **named(max_tokens=100))) == [name]
        assert read({**ASKED, name: value}, max_tokens=100).write() == json.dumps({**ASKED, name: value}).encode()
    assert read({**ASKED, name: 10**30}).max_tokens == 10**18
    assert read({**ASKED, name: None}, **named(max_tokens=100)).max_tokens is None


def test_limit_that_openai_knows_counts_where_both_are_given() -> None:
    both = {**ASKED, "max_tokens": 5, "max_completion_tokens": 6}

    assert read(both).max_tokens == 6
    assert list(fields_of(both, **named(max_tokens=5))) == ["max_completion_tokens"]
    assert list(fields_of({**both, "max_tokens": 7}, **named(max_tokens=6))) == ["max_tokens"]


def test_limit_stays_absent_unless_the_operator_chose_one() -> None:
    assert read(ASKED, default_max_tokens=7).write() == json.dumps(ASKED).encode()
    assert read(ASKED, default_max_tokens=7).max_tokens is None
    request = read(ASKED, **named(default_max_tokens=7))
    assert request.max_tokens == 7
    assert json.loads(request.write()) == {**ASKED, "max_tokens": 7}


@pytest.mark.parametrize(("to", "first", "other"), [({}, 1, 0), (TO_OPENAI, 0, 1)])
def test_limit_of_ours_has_the_name_that_is_not_left_out(to: dict[str, str], first: int, other: int) -> None:
    names = ("max_completion_tokens", "max_tokens")
    chosen = {**to, **named(default_max_tokens=7)}

    assert sent(ASKED, **chosen) == {**ASKED, names[first]: 7}
    assert sent(ASKED, {names[first]}, **chosen) == {**ASKED, names[other]: 7}
    assert sent(ASKED, {names[other]}, **chosen) == {**ASKED, names[first]: 7}
    assert sent(ASKED, set(names), **chosen) == ASKED
    nulls = {**ASKED, names[first]: None, names[other]: None}
    assert sent(nulls, **chosen) == {**nulls, names[first]: 7}
    assert sent(nulls, {names[first]}, **chosen) == {**nulls, names[other]: 7}


def test_limit_of_the_client_is_never_left_out() -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        asked = {**ASKED, name: 3}
        assert sent(asked, {"max_tokens", "max_completion_tokens"}, **named(default_max_tokens=7)) == asked


def test_limit_of_the_prompt_binds_if_the_operator_chose_it() -> None:
    asked = {"model": "m", "messages": [{"content": "a b " * 50}, {"content": [{"type": "text", "text": "a b " * 50}]}]}
    count = 3 + 4 + 4 + 2 * tokens.count("a b " * 50, "m")

    assert read(asked).prompt_tokens == count
    assert read(asked, max_input_tokens=10).prompt_tokens == count
    assert read(asked, **named(max_input_tokens=count)).prompt_tokens == count
    error = refused(asked, **named(max_input_tokens=count - 1))
    assert type(error) is errors.ContextTooLong
    assert error.detail == f"The messages have more than {count - 1} tokens (estimated), the limit of this server."
    error = refused({**asked, "model": "gpt-4o"}, allowed_models=("*",), **named(max_input_tokens=count - 1))
    assert "(estimated)" not in error.detail
    assert type(refused(ASKED, system_prompt="a b " * 50, **named(max_input_tokens=50))) is errors.ContextTooLong


def test_limit_of_the_prompt_judges_no_images() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * 10_000}}
    asked = {
        "model": "m",
        "messages": [{"content": [image, {"type": "text", "text": "Hello"}]}],
        "tools": ["a b " * 99],
    }

    assert read(asked, **named(max_input_tokens=8)).prompt_tokens == 8


# What is added


def test_system_prompt_goes_before_the_messages_whose_bytes_stay() -> None:
    body = b'{"messages" : [ {"content" :"\\u00e9"},{ } ],"model":"m"}'
    request = read(body, system_prompt='Be "brief".\né')

    added = b'{"role":"system","content":"Be \\"brief\\".\\n\\u00e9"},'
    assert request.write({"stream_options", "max_tokens"}) == body.replace(b"[", b"[" + added)
    assert request.messages_count == 3
    assert request.prompt_tokens == 3 + 3 * 4 + 1 + tokens.count('Be "brief".\né', "m")


@pytest.mark.parametrize(
    ("options", "to_others", "to_openai", "keeps_usage"),
    [
        (b"null", b'{"include_usage":true}', b'{"include_usage":true,"include_obfuscation":false}', False),
        (b"{}", b'{"include_usage":true}', b'{"include_usage":true,"include_obfuscation":false}', False),
        (b"{ }", b'{"include_usage":true }', b'{"include_usage":true,"include_obfuscation":false }', False),
        (
            b'{ "a" : 1}',
            b'{"include_usage":true, "a" : 1}',
            b'{"include_usage":true,"include_obfuscation":false, "a" : 1}',
            False,
        ),
        (
            b'{"include_usage" : false }',
            b'{"include_usage" : true }',
            b'{"include_obfuscation":false,"include_usage" : true }',
            False,
        ),
        (
            b'{"include_usage":null}',
            b'{"include_usage":true}',
            b'{"include_obfuscation":false,"include_usage":true}',
            False,
        ),
        (
            b'{"include_usage":true}',
            b'{"include_usage":true}',
            b'{"include_obfuscation":false,"include_usage":true}',
            True,
        ),
        (
            b'{"include_usage":true,"include\\u005fobfuscation":true}',
            b'{"include_usage":true,"include\\u005fobfuscation":true}',
            b'{"include_usage":true,"include\\u005fobfuscation":true}',
            True,
        ),
        (
            b'{"include_obfuscation":null}',
            b'{"include_usage":true,"include_obfuscation":null}',
            b'{"include_usage":true,"include_obfuscation":false}',
            False,
        ),
        (
            b'{"include_usage":true,"include_usage":false,"b":{"include_usage":false}}',
            b'{"include_usage":true,"include_usage":true,"b":{"include_usage":false}}',
            b'{"include_obfuscation":false,"include_usage":true,"include_usage":true,"b":{"include_usage":false}}',
            False,
        ),
        (
            b'{"include_usage":"yes","include_obfuscation":0}',
            b'{"include_usage":"yes","include_obfuscation":0}',
            b'{"include_usage":"yes","include_obfuscation":0}',
            True,
        ),
        (
            b'{"\\ud83d":"\\ude00","include_usage":false}',
            b'{"\\ud83d":"\\ude00","include_usage":true}',
            b'{"include_obfuscation":false,"\\ud83d":"\\ude00","include_usage":true}',
            False,
        ),
        (b"[]", b"[]", b"[]", False),
        (b'"{}"', b'"{}"', b'"{}"', False),
    ],
)
def test_usage_is_asked_for_in_the_clients_own_options(
    options: bytes, to_others: bytes, to_openai: bytes, keeps_usage: bool
) -> None:
    body = b'{"stream":true,"stream_options" : %b ,"messages":[{}],"model":"m"}'

    request = read(body % options)
    assert request.write() == body % to_others
    assert request.keeps_usage is keeps_usage
    assert request.write({"stream_options"}) == body % options
    assert read(body % options, **TO_OPENAI).write() == body % to_openai
    unstreamed = (body % options).replace(b"true", b"false", 1)
    assert read(unstreamed, **TO_OPENAI).write() is unstreamed
    assert read(unstreamed).keeps_usage is False


def test_usage_is_asked_for_where_the_client_has_no_options() -> None:
    assert sent(STREAMED) == {**STREAMED, "stream_options": {"include_usage": True}}
    assert sent(STREAMED, {"stream_options"}) == STREAMED
    assert sent(STREAMED, **TO_OPENAI) == {
        **STREAMED,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
    }
    assert sent(ASKED, **TO_OPENAI) == ASKED


def test_memory_is_counted_for_the_body_and_for_what_is_written() -> None:
    request = read(STREAMED)

    assert request.held_bytes == len(request.body) + len(request.write())


def test_address_of_openai_is_that_of_the_client() -> None:
    assert client.OPENAI_URL == OPENAI_URL


# Byte for byte


@dataclass
class Twin:
    """A request as the client writes it, and as it must be sent. They are written side by side."""

    client: list[bytes] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)

    def both(self, text: bytes) -> None:
        self.client.append(text)
        self.sent.append(text)

    def ours(self, text: bytes, *, instead_of: bytes = b"") -> None:
        self.client.append(instead_of)
        self.sent.append(text)


class Speller:
    """Spells JSON in one of its many ways."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one_of(self, *choices: Any) -> Any:
        return self._random.choice(choices)

    def gap(self) -> bytes:
        return bytes(self._random.choices(b" \t\r\n", k=self.one_of(0, 0, 0, 1, 3)))

    def text(self, text: str) -> bytes:
        short = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
        written = ""
        for letter in text:
            units = letter.encode("utf-16-be", "surrogatepass")
            escaped = "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
            ways = [escaped, escaped.replace("\\u", "\\U").upper().replace("\\U", "\\u")]
            if letter in short:
                ways.append(short[letter])
            if letter not in '"\\' and letter >= " " and not "\ud800" <= letter <= "\udfff":
                ways += [letter] * 5
            written += self.one_of(*ways)
        return f'"{written}"'.encode()

    def number(self) -> bytes:
        return self.one_of(
            b"0", b"-0", b"1.0e2", b"1E+5", b"2.50", b"-1e-7", b"1e999", b"123456789012345678901234567890", b"0.1"
        )

    def value(self, value: Any) -> bytes:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return self.joined(b"[", [self.value(inner) for inner in value], b"]")
        if isinstance(value, dict):
            members = [self.member(name, self.value(inner)) for name, inner in value.items()]
            if members and self.one_of(True, False, False):
                members.append(self._random.choice(members))  # the same name twice
            return self.joined(b"{", members, b"}")
        return self.number() if value is ... else {None: b"null", True: b"true", False: b"false"}[value]

    def member(self, name: str, value: bytes) -> bytes:
        return self.text(name) + self.gap() + b":" + self.gap() + value

    def joined(self, begin: bytes, parts: list[bytes], end: bytes) -> bytes:
        return begin + self.gap() + (b"," + self.gap()).join(part + self.gap() for part in parts) + end


TEXTS = st.text(
    st.characters(exclude_categories=()) | st.sampled_from('"\\/{}[]:,é😀\u2028\x00\ud83d\ude00'), max_size=6
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.just(...) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
READ = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n"}
OTHERS = st.dictionaries(
    st.sampled_from(["temperature", "tools", "response_format", "user", "metadata", "top_k"]) | TEXTS,
    VALUES,
    max_size=4,
)
SEED = st.integers(0, 2**32)
OURS = {"include_usage": b"true", "include_obfuscation": b"false"}


def write_options(twin: Twin, spell: Speller, wanted: list[str]) -> None:
    """Write the client's stream options with what we add: new members first, and ours instead of null and false."""
    names = [name for name in OURS if spell.one_of(True, False)]
    texts = {name: spell.one_of(b"true", b"null", *[b"false"] * (name == "include_usage")) for name in names}
    names += ["x"] * spell.one_of(0, 1)
    missing = [b'"%b":%b' % (name.encode(), OURS[name]) for name in wanted if name not in names]
    twin.both(b"{")
    if missing:
        twin.ours(b",".join(missing) + (b"," if names else b""))
    twin.both(spell.gap())
    for number, name in enumerate(names):
        twin.both(b"," * (number > 0) + spell.gap() + spell.member(name, b""))
        text = texts.get(name, b'{"include_usage":false}')
        if name in wanted and text != b"true":
            twin.ours(OURS[name], instead_of=text)
        else:
            twin.both(text)
        twin.both(spell.gap())
    twin.both(b"}")


@settings(max_examples=500, deadline=None)
@given(
    OTHERS,
    st.lists(
        st.dictionaries(st.sampled_from(["role", "content", "tool_calls"]) | TEXTS, VALUES, max_size=3), min_size=1
    ),
    SEED,
)
def test_sent_is_what_the_client_sent_but_for_our_additions(
    others: dict[str, Any], messages: list[dict[str, Any]], seed: int
) -> None:
    spell = Speller(seed)
    to_openai, system_prompt, limit = spell.one_of(True, False), spell.one_of("", "Be é."), spell.one_of(None, 7)
    left_out = spell.one_of((), ("stream_options",), ("max_tokens",), ("max_completion_tokens",))
    stream = spell.one_of(None, b"true", b"false", b"null")
    options = spell.one_of(None, "null", "object") if stream == b"true" else spell.one_of(None, "null")
    limits = {name: spell.one_of(None, b"null", b"12") for name in ("max_tokens", "max_completion_tokens")}
    wanted = list(OURS) if to_openai else ["include_usage"]
    if stream != b"true" or "stream_options" in left_out:
        wanted = []
    ours = b"{%b}" % b",".join(b'"%b":%b' % (name.encode(), OURS[name]) for name in wanted)
    order = ["max_completion_tokens", "max_tokens"] if to_openai else ["max_tokens", "max_completion_tokens"]
    is_limited = limit is not None and b"12" not in limits.values()
    limit_name = next(name for name in order if name not in left_out) if is_limited else None

    fields = {name: spell.value(value) for name, value in others.items() if name.casefold() not in READ}
    names = [*fields, "model", "messages", *["stream"] * (stream is not None), *["n"] * spell.one_of(0, 1)]
    names += ["stream_options"] * (options is not None) + [name for name, text in limits.items() if text is not None]
    spell._random.shuffle(names)
    twin = Twin()
    twin.both(spell.gap() + b"{")
    for number, name in enumerate(names):
        twin.both(b"," * (number > 0) + spell.gap() + spell.member(name, b""))
        if name == "messages":
            twin.both(b"[")
            if system_prompt:
                twin.ours(b'{"role":"system","content":"Be \\u00e9."},')
            twin.both(spell.value(messages)[1:])
        elif name == "stream_options" and options == "object":
            write_options(twin, spell, wanted)
        elif name == "stream_options" and wanted:
            twin.ours(ours, instead_of=b"null")
        elif name == limit_name:
            twin.ours(b"7", instead_of=b"null")
        else:
            known = {"model": spell.text("m"), "stream": stream, "n": spell.number(), "stream_options": b"null"}
            twin.both({**fields, **known, **limits}[name])
        if number < len(names) - 1:
            twin.both(spell.gap())
    if wanted and options is None:
        twin.ours(b',"stream_options":' + ours)
    if limit_name and limit_name not in names:
        twin.ours(b',"%b":7' % limit_name.encode())
    twin.both(spell.gap() + b"}" + spell.gap())

    changes: dict[str, Any] = {"system_prompt": system_prompt, **(TO_OPENAI if to_openai else {})}
    changes |= named(default_max_tokens=7) if limit else {}
    body = b"".join(twin.client)
    written = read(body, **changes).write(set(left_out))

    assert written == b"".join(twin.sent)
    expected = json.loads(body)
    if system_prompt:
        expected["messages"].insert(0, {"role": "system", "content": system_prompt})
    if wanted:
        expected["stream_options"] = with_ours(expected.get("stream_options"), wanted)
    if limit_name:
        expected[limit_name] = 7
    assert json.loads(written) == expected


def with_ours(options: dict[str, Any] | None, wanted: list[str]) -> dict[str, Any]:
    changed = dict(options or {})
    if not changed.get("include_usage"):
        changed["include_usage"] = True
    if "include_obfuscation" in wanted and changed.get("include_obfuscation") is None:
        changed["include_obfuscation"] = False
    return changed


# Work


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("messages", b"[" + b"{}," * 150_000 + b"{}]"),
        ("messages", b"[" + b"1," * 300_000 + b"1]"),
        ("messages", b'[{"content":[' + b'{"type":"text"},' * 60_000 + b"1]}]"),
        ("model", b'"' + b"\\n" * 4_000_000 + b'"'),
        ("stream", b'"' + b"\\n" * 4_000_000 + b'"'),
        ("max_tokens", b"-" + b"1" * 8_000_000),
        ("n", b"1" * 8_000_000),
        ("n", b"1." + b"1" * 8_000_000),
        ("stream_options", b'{"a":"' + b"\\n" * 4_000_000 + b'"}'),
        ("x", b'"' + b"\\n" * 4_000_000 + b'"'),
    ],
)
def test_hostile_value_is_read_or_refused_in_short_turns(
    monkeypatch: pytest.MonkeyPatch, name: str, value: bytes
) -> None:
    fields = {"model": b'"m"', "messages": b"[{}]", "stream": b"true", name: value}
    body = b"{" + b",".join(b'"%b":%b' % (field.encode(), text) for field, text in fields.items()) + b"}"
    turns: list[None] = []
    read_texts: list[int] = []
    read_text = prompt._read
    monkeypatch.setattr(opaque_json, "let_others_run", lambda: turns.append(None))
    monkeypatch.setattr(prompt, "_read", lambda text: (read_texts.append(len(text)), read_text(text))[1])
    try:
        assert read(body).write()
        passes = 2
    except errors.InvalidRequest:
        passes = 1

    assert len(turns) >= passes * (len(body) // opaque_json.BLOCK_BYTES)
    assert sum(read_texts) <= prompt.COUNTED_BYTES
    assert LONGEST_NUMBER < 4300  # the digits that Python reads at once
