"""Clients' requests reach the upstream byte for byte, and the upstream's chunks reach the client with all they say.

Hundreds that are made up, over real sockets.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.harness import leaks
from tests.harness.net import HOST
from tests.harness.reader import KeptAlive
from tests.harness.server import ChatWait
from tests.harness.upstream import Raw, RequestRecord, Script, ScriptedUpstream, answer
from tests.live.completions import ASK, MODEL, Taken, chunk
from tests.live.steps import settings
from tests.unit.chunk_shapes import SHAPES, spelled

EXAMPLES = 500
many = hypothesis_settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None, print_blob=True
)
ADDED = b'"stream_options":{"include_usage":true}'


class Scene:
    """A service whose upstream is this test's alone."""

    def __init__(self, upstream: ScriptedUpstream, service: ChatWait) -> None:
        self.service = service
        self.sent: list[RequestRecord] = []
        self.script = answer(["a"])
        upstream.by(self._answer)
        self._kept = KeptAlive(HOST, service.port)

    def _answer(self, record: RequestRecord) -> Script:
        self.sent.append(record)
        return self.script

    def ask(self, body: bytes, **headers: str) -> Any:
        self.sent.clear()
        return self._kept.request("POST", ASK, data=body, headers={"Content-Type": "application/json", **headers})

    def close(self) -> None:
        self._kept.close()


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with (
        leaks.forgotten(),  # what is made up may be an everyday word
        ScriptedUpstream(ledger=False) as upstream,
        ChatWait(**settings(upstream, ALLOWED_MODELS="*", LOG_LEVEL="WARNING")) as service,
        closing(Scene(upstream, service)) as scene,
    ):
        yield scene


# Requests

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SPACE = st.sampled_from(["", "", "", " ", "\n", "\t ", "\r\n"])
NUMBER = st.sampled_from(["0", "-0", "1", "0.10", "1e3", "1E-2", "-1.50", "123456789012345678901234567890", "0.7"])


@st.composite
def strings(draw: st.DrawFn) -> str:
    """A string in JSON, each character in any spelling."""
    return spelled(draw(TEXT), draw(st.integers(0, 1000))).decode()


def lists(entries: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(entries, max_size=3).map(lambda found: "[" + ",".join(found) + "]")


@st.composite
def objects(draw: st.DrawFn, names: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> str:
    """An object in JSON, whose names may come twice, as upstreams take them."""
    members = draw(st.lists(st.tuples(names, values, SPACE), max_size=3))
    return "{" + ",".join(f"{name}{space}:{space}{value}" for name, value, space in members) + "}"


LITERAL = st.sampled_from(["true", "false", "null"])
VALUE = st.recursive(
    st.one_of(strings(), NUMBER, LITERAL),
    lambda inner: st.one_of(lists(inner), objects(strings(), inner)),
    max_leaves=6,
)
PARTS = st.sampled_from(
    [
        '[{"type":"text","text":"Hi \\ud83d\\ude00"}]',
        '[{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo=","detail":"low"}}]',
        '[{"type":"input_audio","input_audio":{"data":"UklGRg==","format":"wav"}},{"type":"text","text":""}]',
        '[{"type":"file","file":{"file_id":"file-1"}}]',
        "null",
    ]
)
MESSAGE = st.one_of(
    st.builds('{{"role":"user","content":{}}}'.format, st.one_of(strings(), PARTS)),
    st.builds('{{"content" : {}, "role":"assistant", "reasoning_content":{}}}'.format, strings(), strings()),
    st.builds(
        '{{"role":"assistant","content":null,"tool_calls":[{{"id":"c","type":"function","function":{{"name":"f",'
        '"arguments":{}}}}}]}}'.format,
        strings(),
    ),
    st.builds('{{"role":"tool","tool_call_id":"c","content":{}}}'.format, strings()),
    objects(strings(), VALUE),
)
MESSAGES = st.lists(MESSAGE, min_size=1, max_size=3).map(lambda found: "[" + " ,".join(found) + "]")
KNOWN = {
    "temperature": NUMBER,
    "top_p": NUMBER,
    "n": st.sampled_from(["1", "2", "null", "1.0", '"x"']),
    "max_tokens": st.sampled_from(["1", "100", "null"]),
    "max_completion_tokens": st.sampled_from(["7", "null"]),
    "tools": st.just('[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{}}}}]'),
    "tool_choice": st.sampled_from(['"auto"', '{"type":"function","function":{"name":"f"}}']),
    "response_format": st.just('{"type":"json_schema","json_schema":{"name":"s","schema":{"a":1},"strict":true}}'),
    "logprobs": LITERAL,
    "top_logprobs": NUMBER,
    "stop": st.one_of(strings(), lists(strings())),
    "seed": NUMBER,
    "reasoning_effort": strings(),
    "metadata": objects(strings(), strings()),
    "logit_bias": objects(st.sampled_from(['"50256"', '"1"']), NUMBER),
    "parallel_tool_calls": LITERAL,
    "user": strings(),
    "service_tier": strings(),
    "top_k": NUMBER,
    "chat_template_kwargs": objects(strings(), VALUE),
    "x_unknown": VALUE,
    "": VALUE,
    "\U0001f600": VALUE,
}
OPTIONS = st.sampled_from(
    [
        None,
        "null",
        "{}",
        "{ }",
        '{"include_usage":true}',
        '{"include_usage":false}',
        '{"include_usage" : null, "x":1}',
        '{"include_obfuscation":false}',
        '{"x":{"include_usage":false}}',
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, dict[str, Any]]:
    """A request's body, and what of it matters here."""
    told = {
        "stream": draw(st.sampled_from([None, "true", "true", "true", "false", "null"])),
        "stream_options": draw(OPTIONS),
    }
    fields = {"model": draw(st.sampled_from(['"gpt-4o-mini"', '"maker\\/name:tag"', '"\\u006d"']))}
    fields |= {"messages": draw(MESSAGES)} | {name: value for name, value in told.items() if value is not None}
    names = draw(st.lists(st.sampled_from(sorted(KNOWN)), unique=True, max_size=6))
    fields |= {name: draw(KNOWN[name]) for name in names}
    pairs = draw(st.permutations([*fields.items()]))
    seed = draw(st.integers(0, 1000))
    body = draw(SPACE) + "{" + draw(SPACE)
    body += ",".join(
        f"{draw(SPACE)}{spelled(name, seed + place).decode()}{draw(SPACE)}:{draw(SPACE)}{value}{draw(SPACE)}"
        for place, (name, value) in enumerate(pairs)
    )
    return (body + "}" + draw(SPACE)).encode(), told


def with_usage(options: str | None) -> Any:
    """Tell what the upstream gets as options of a stream."""
    given: dict[str, Any] = json.loads(options or "null") or {}
    return {**given, "include_usage": given.get("include_usage") or True}


def without_ours(sent: bytes, body: bytes, options: str | None) -> bytes:
    """Take what was added out of what was sent."""
    match options:
        case None:
            return sent.replace(b"," + ADDED, b"", 1)
        case "null":
            return sent.replace(b'{"include_usage":true}', b"null", 1)
        case '{"include_usage":false}':
            return sent.replace(b'"include_usage":true', b'"include_usage":false', 1)
        case '{"include_usage" : null, "x":1}':
            return sent.replace(b'"include_usage" : true', b'"include_usage" : null', 1)
        case '{"include_usage":true}':
            return sent
    comma = b"," if options.strip("{} ") else b""
    return sent.replace(b'"include_usage":true' + comma, b"", 1)


@many
@given(request=requests())
def test_request_reaches_the_upstream_byte_for_byte(scene: Scene, request: tuple[bytes, dict[str, Any]]) -> None:
    """But for the usage that our books need of a stream."""
    body, told = request
    scene.script = answer(["a"]) if told["stream"] == "true" else whole(["a"])
    reply = scene.ask(body, Authorization="Bearer client's own")
    assert reply.status == 200, reply.body
    (record,) = scene.sent
    if told["stream"] != "true":
        assert record.body == body
        assert record.headers["accept"] == "application/json"
        return
    assert record.headers["accept"] == "text/event-stream"
    assert without_ours(record.body, body, told["stream_options"]) == body
    wanted = json.loads(body) | {"stream_options": with_usage(told["stream_options"])}
    assert json.loads(record.body) == wanted


def whole(texts: list[str]) -> Script:
    choice = {"index": 0, "message": {"role": "assistant", "content": "".join(texts)}, "finish_reason": "stop"}
    told = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return Script(headers={"content-type": "application/json"}, body=json.dumps(told).encode())


def test_operators_prompt_and_limit_are_added_and_nothing_else(shared_upstream: ScriptedUpstream) -> None:
    """Each into its own place of the client's bytes. What the client says of a limit stands."""
    prompt = 'You are "helpful".\n🙂'
    with (
        ScriptedUpstream(ledger=False) as upstream,
        ChatWait(**settings(upstream, SYSTEM_PROMPT=prompt.replace("\n", " "), DEFAULT_MAX_TOKENS=77)) as service,
        closing(Scene(upstream, service)) as scene,
    ):
        scene.script = whole(["a"])
        for limit in ("", ', "max_tokens": 5', ',"max_completion_tokens":6'):
            body = f'{{"model" : "{MODEL}", "messages":[ {{"role":"user","content":"Hi"}}]{limit} }}'.encode()
            assert scene.ask(body).status == 200
            sent = json.loads(scene.sent[0].body)
            assert sent["messages"][0] == {"role": "system", "content": prompt.replace("\n", " ")}
            added = {"max_tokens": 77} if not limit else {}
            messages = json.loads(body)["messages"]
            assert sent == {**json.loads(body), "messages": [sent["messages"][0], *messages], **added}
            ours = json.dumps(sent["messages"][0], separators=(",", ":")).encode() + b","
            assert scene.sent[0].body.replace(ours, b"", 1).replace(b',"max_tokens":77', b"", 1) == body


# Chunks

WORDS = st.lists(
    st.one_of(
        TEXT.filter(bool),
        st.sampled_from([" token", '"', "\\", "\\u0041", "\n\n", "data: [DONE]\n\n", '"},"x":"', "é", "🙂", "/", "\0"]),
    ),
    max_size=8,
)
BREAKS = st.sampled_from([b"\n\n", b"\r\n\r\n", b"\n\n\n", b"\n: comment\n\n", b"\nevent: message\n\n"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[dict[str, Any]], Script]:
    """The chunks of a stream, and the script that sends them: each server's own spelling, cut anywhere."""
    chunks = list(SHAPES[draw(st.sampled_from(sorted(SHAPES)))](draw(WORDS)))
    if draw(st.booleans()):
        chunks = [one | {"error": None} for one in chunks]
    if draw(st.booleans()):
        chunks.insert(draw(st.integers(0, len(chunks))), chunk({}, x_vendor={"id": 1, "n": [1.5, None]}))
    seed, begin, brk = draw(st.integers(0, 1000)), draw(st.sampled_from([b"data: ", b"data:"])), draw(BREAKS)
    lines = [begin + spelled(one, seed).replace(b"\n", b"").replace(b"\r", b"") + brk for one in chunks]
    data = b"".join(lines) + b"data: [DONE]\n\n"
    cuts = sorted(random.Random(seed).sample(range(1, len(data)), min(5, len(data) - 1)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return chunks, Script(steps=[Raw(piece) for piece in pieces])


def served(chunks: list[dict[str, Any]], stream_id: str, *, keeps_usage: bool) -> list[dict[str, Any]]:
    """Tell what a client gets of these chunks: each with our id, the time of the first, and no error that is none."""
    created = next((one["created"] for one in chunks if one.get("created")), None)
    kept = [one for one in chunks if keeps_usage or one.get("choices") != [] or not isinstance(one.get("usage"), dict)]
    return [
        {name: created if name == "created" and value else value for name, value in one.items() if name != "error"}
        | {"id": f"chatcmpl-{stream_id}"}
        for one in kept
    ]


@many
@given(stream=streams(), asks_usage=st.booleans())
def test_chunks_of_every_server_reach_the_client_with_all_that_they_say(
    scene: Scene, stream: tuple[list[dict[str, Any]], Script], asks_usage: bool
) -> None:
    chunks, scene.script = stream
    options = {"stream_options": {"include_usage": True}} if asks_usage else {}
    messages = [{"role": "user", "content": "Hi"}]
    reply = scene.ask(json.dumps({"model": MODEL, "messages": messages, "stream": True, "n": 2, **options}).encode())
    assert reply.status == 200, reply.body
    taken = Taken(reply.headers["x-stream-id"], "", reply.body)
    assert taken.chunks == served(chunks, taken.stream_id, keeps_usage=asks_usage)
    assert taken.proof.startswith(f"records={len(taken.chunks)} sha256=")
