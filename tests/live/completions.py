"""What the tests of OpenAI's chat completions do alike: ask, take streams of chunks apart, and resume them as a client
does that knows nothing but the events which came whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from load.events import EventParser
from tests.harness.reader import Connection, Reply, delete, open_stream
from tests.harness.script import CREATED, Script, Step
from tests.harness.upstream import Done, Event, RequestRecord, ScriptedUpstream
from tests.harness.valkey import Database
from tests.live.steps import about, asked

ASK = "/v1/chat/completions"
MODEL = "gpt-4o-mini"
OPENING = b": keepalive\n"

CLIENT = {"Authorization": "Bearer sk-canary-of-a-client-0123456789"}
OTHER_CLIENT = {"Authorization": "Bearer sk-canary-of-another-client-0123"}


# What is asked


def question(upstream: ScriptedUpstream, script: Script, **fields: Any) -> dict[str, Any]:
    """Answer a question of this test's own so; give the request's body. It asks for a stream."""
    message = about(upstream, script)["message"]
    return {"model": MODEL, "messages": [{"role": "user", "content": message}], "stream": True, **fields}


def asked_upstream(upstream: ScriptedUpstream, body: Mapping[str, Any]) -> list[RequestRecord]:
    """List the requests that reached the upstream for this body."""
    return asked(upstream, {"message": body["messages"][-1]["content"]})


def url_of(base_url: str, stream_id: str, query: str = "") -> str:
    return f"{base_url}{ASK}/chatcmpl-{stream_id}{query}"


def ask(base_url: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None, **more: Any) -> Connection:
    """Ask, and give the answer once its head is there."""
    return open_stream(f"{base_url}{ASK}", json=body, headers=headers, **more)


def begin(base_url: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> str:
    """Ask, leave once the head of a stream is there, and give its id."""
    with ask(base_url, body, headers) as connection:
        assert connection.status == 200, connection.body()
        return connection.headers["x-stream-id"]


@contextmanager
def live(base_url: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Iterator[str]:
    """Begin a generation, leave, and erase it in the end, so that it disturbs no other test."""
    stream_id = begin(base_url, body, headers)
    try:
        yield stream_id
    finally:
        delete(url_of(base_url, stream_id), headers)


def generated(base_url: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Taken:
    """Ask, and read the stream to its end."""
    with ask(base_url, body, headers) as connection:
        assert connection.status == 200, connection.body()
        return Taken(connection.headers["x-stream-id"], connection.headers["location"], connection.body())


def error_of(reply: Reply) -> tuple[int, str]:
    """Give an error's status and code."""
    assert reply.headers["content-type"] == "application/json", reply.body
    return reply.status, reply.json["error"]["error_code"]


# What is answered


class Frame(NamedTuple):
    """A frame as it stands on the wire. `id` is empty for an error, and `comment` for all but the last one."""

    data: str
    id: str
    comment: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


FRAME = re.compile(rb"data: ([\x20-\x7f]+)\n(?:id: (\S+)\n)?(?:: (records=[^\n]+)\n)?\n")


def frames_of(body: bytes) -> list[Frame]:
    """Divide a body, without heartbeats, into its frames. Fails where there is anything else."""
    found = list(FRAME.finditer(body))
    assert b"".join(match[0] for match in found) == body, body[-500:]
    return [Frame(*(part.decode() if part else "" for part in match.groups())) for match in found]


def without_heartbeats(body: bytes) -> bytes:
    """Leave out each heartbeat, of which the opening is one."""
    return b"".join(line for line in body.splitlines(keepends=True) if line != OPENING)


class Taken(NamedTuple):
    """A stream as one connection gave it."""

    stream_id: str
    location: str
    body: bytes

    @property
    def frames(self) -> list[Frame]:
        return frames_of(without_heartbeats(self.body))

    @property
    def chunks(self) -> list[Any]:
        """Parse the data of all records."""
        return [frame.json for frame in self.frames if frame.id and frame.data != "[DONE]"]

    @property
    def text(self) -> str:
        """Join the content of choice 0."""
        deltas = [choice["delta"] for chunk in self.chunks for choice in chunk["choices"] if choice["index"] == 0]
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def proof(self) -> str:
        """Give what the last frame says of all records."""
        last = self.frames[-1]
        assert last.data == "[DONE]", last
        return last.comment


def kept(received: bytes) -> tuple[bytes, str]:
    """Give what a client keeps of a body that was cut, without the opening, and the cursor it comes back with.

    It keeps the events up to the last whole one that had an id.
    """
    parser, begun, end, cursor = EventParser(), 0, 0, ""
    for blank in re.finditer(rb"\n\n", received):
        for event in parser.feed(received[begun : blank.end()]):
            if event.id is not None:
                end, cursor = blank.end(), event.last_event_id
        begun = blank.end()
    assert cursor == parser.last_event_id
    return received[:end].removeprefix(OPENING), cursor


def read_bytes(connection: Connection, size: int) -> bytes:
    """Read so many bytes of a body, and no more than that count as read. Raises: Dropped, TimeoutError."""
    received = b""
    if size:
        for piece in connection.pieces():
            received += piece
            if len(received) >= size:
                break
    return received[:size]


def resumed(url: str, cursor: str, headers: Mapping[str, str] | None = None, **more: Any) -> bytes:
    """Read what follows a cursor to the end of the stream, without the opening. Raises: Dropped, TimeoutError."""
    fields = {**(headers or {}), **({"Last-Event-ID": cursor} if cursor else {})}
    with open_stream(url, headers=fields, **more) as connection:
        if connection.status == 204:
            return b""
        assert connection.status == 200, connection.body()
        body = connection.body()
    assert body.startswith(OPENING), body[:100]
    return body.removeprefix(OPENING)


def everything(database: Database) -> bytes:
    """Give all that a Valkey's database holds: the names of its keys, and what stands there."""
    client: Any = database.client
    read = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"stream": client.xrange,
        b"set": client.smembers,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"none": lambda key: None,
    }
    return repr([(key, read[client.type(key)](key)) for key in client.scan_iter(count=1000)]).encode()


# A stream with every kind of record


def chunk(delta: Any, index: int = 0, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """Make a chunk as an upstream sends it. `choice` has further members of the choice."""
    choice = {"index": index, "delta": delta, **more.pop("choice", {}), "finish_reason": reason}
    first = {"id": "chatcmpl-up", "object": "chat.completion.chunk", "created": CREATED, "model": "m"}
    return {**first, "choices": [choice], **more}


def call(index: int, arguments: str, **start: str) -> dict[str, Any]:
    """Make a piece of a tool's call. The first piece has `id` and `name`."""
    if not start:
        return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
    function = {"name": start["name"], "arguments": arguments}
    return {"tool_calls": [{"index": index, "id": start["id"], "type": "function", "function": function}]}


USAGE = {"prompt_tokens": 9, "completion_tokens": 30, "total_tokens": 39}
TEXTS = ["Grü", 'ß "e', "\\\n\u2028", "🙂 \x00\x7f", "data: x\n\nid: cwc_x.9\n\n"]
OTHER_TEXTS = ["two", "ß🙂", '"']
LOGPROBS = {"content": [{"token": "ü", "logprob": -0.5, "bytes": [195, 188], "top_logprobs": []}], "refusal": None}
FILTERED = {"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False}}}]}

EVERY_KIND: list[dict[str, Any]] = [
    {**chunk({}), "choices": [], **FILTERED},
    chunk({"role": "assistant", "content": ""}, error=None),
    chunk({"role": "assistant", "content": None, "refusal": None}, 1),
    *(chunk({"reasoning_content": text}) for text in ("Let ", "me ", 'th"i\u0130nk🙂')),
    *(chunk({"content": text}) for text in TEXTS),
    *(chunk({"content": text}, 1) for text in OTHER_TEXTS),
    chunk(call(0, "", id="call_a", name="weather")),
    chunk(call(1, "", id="call_b", name="time")),
    *(chunk(call(0, text)) for text in ('{"city":"', 'Par\\"is 🙂', '"}')),
    *(chunk(call(1, text)) for text in ("{", "}", " ")),
    chunk({"content": "ü"}, choice={"logprobs": LOGPROBS}),
    chunk({"content": "!", "x_provider": {"id": "inner"}}, provider="Maker", x_trace=[1, 2.50, 1e3, None, {"id": 7}]),
    chunk({"refusal": "No"}, 1),
    chunk({}, 1, "stop"),
    chunk({}, 0, "tool_calls", service_tier="default", usage=None),
    {**chunk({}), "choices": [], "usage": USAGE},
]
"""What the upstream sends: each kind of record, some of them in an envelope from the second of their shape on."""

EVERY_TEXT = "".join([*TEXTS, "ü!"])

ASKED_FOR = {"n": 2, "stream_options": {"include_usage": True}, "logprobs": True}
"""What a client asks for that gets all of it."""


def every_kind(pause: Callable[[], Sequence[Step]] = tuple) -> Script:
    """Write the script of the stream. `pause` gives the steps before each chunk."""
    steps = [step for one in EVERY_KIND for step in (*pause(), Event(one))]
    return Script(steps=[*steps, Done()])


def as_served(sent: Mapping[str, Any], stream_id: str) -> dict[str, Any]:
    """Tell what a client gets of a chunk: with the id of this service, and without `"error": null`."""
    return {name: value for name, value in sent.items() if name != "error"} | {"id": f"chatcmpl-{stream_id}"}
