"""Test how a client's own request is sent on, and what becomes of its answer and of its refusal, over real sockets.

`test_patched` runs this file again where gevent's loop reads the answers.
"""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from typing import Any

import pytest

from app import errors
from app.dialects.completions.request import read_forwarded
from app.errors import Reported
from app.generation.run import Bounds, Generation
from app.settings import Settings
from app.streams.interface import Origin
from app.streams.memory.store import MemoryStore
from app.upstream import answer as answers
from app.upstream import body as bodies
from app.upstream import client as clients
from app.upstream.call import Call
from app.upstream.client import OpenAIUpstream
from app.upstream.interface import Answer, Forwarded, Part, Question
from tests.unit.fakes import PATIENCE_SECONDS
from tests.unit.rawserver import RawServer, Serve, Step, chunk, read_request, reset
from tests.unit.transports import QUESTION, batches_of

pytestmark = pytest.mark.usefixtures("no_proxies", "no_rest")

KEY = "own+key/0123456789abcdef"
ID = "chatcmpl-cwc_0123456789abcdefghijkl"
LIMITS = {"x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-tokens": "6m0s"}
RATE_LIMITS = [f"{name}: {value}" for name, value in LIMITS.items()]
USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
COMPLETION = {
    "id": "chatcmpl-theirs",
    "object": "chat.completion",
    "created": 1_790_000_000,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Grüße"}, "finish_reason": "stop"}],
    "usage": USAGE,
}
WHOLE = json.dumps(COMPLETION).encode()
REFUSED = {"message": "Bad words.", "type": "invalid_request_error", "param": "messages", "code": "bad"}


class Scripted:
    """Answer each request in turn, the last answer for ever, and keep the requests."""

    def __init__(self, *scripts: Sequence[Step]) -> None:
        self.scripts = list(scripts)
        self.requests: list[bytes] = []
        self.has_closed = threading.Event()
        """The client has closed a connection on which it had not got all."""

    def __call__(self, connection: socket.socket, _: int) -> None:
        while request := read_request(connection):
            self.requests.append(request)
            for step in self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]:
                if callable(step):
                    step(connection)
                else:
                    connection.sendall(step)

    def watch(self, connection: socket.socket) -> None:
        """Wait until the client closes the connection."""
        if connection.recv(1) == b"":
            self.has_closed.set()

    @property
    def sent(self) -> list[Any]:
        return [json.loads(request.partition(b"\r\n\r\n")[2]) for request in self.requests]

    def headers(self, number: int = -1) -> dict[str, str]:
        lines = self.requests[number].partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


class Model:
    """An upstream at a server that says what a test tells it."""

    def __init__(self, serve: Serve) -> None:
        self.script = Scripted()
        self.server: RawServer = serve(self.script)
        self.upstream = OpenAIUpstream(base_url=self.server.url.removesuffix("/chat/completions"), api_key=KEY)

    def says(self, *scripts: Sequence[Step] | bytes) -> None:
        self.script.scripts = [[script] if isinstance(script, bytes) else script for script in scripts]

    def ask(self, request: Question | Forwarded) -> Answer:
        return self.upstream.ask(request, Call())

    def refuses(self, request: Question | Forwarded) -> errors.UpstreamError:
        with pytest.raises(errors.UpstreamError) as raised:
            self.ask(request)
        return raised.value


@pytest.fixture
def model(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setattr(bodies, "ERROR_BODY_SECONDS", 0.3)
    made = Model(serve)
    yield made
    made.upstream.close()


def said(
    status: int, *headers: str, body: bytes | object = b"", kind: str = "application/json", length: int | None = None
) -> bytes:
    """Write an answer by hand."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content) if length is None else length}", *headers]
    return "\r\n".join([*lines, *([f"Content-Type: {kind}"] if kind else []), "", ""]).encode() + content


def event(value: object) -> bytes:
    return b"data: %b\n\n" % json.dumps(value).encode()


def delta(text: str = "", *, index: int = 0, reason: str | None = None) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": text} if text else {}, "finish_reason": reason}
    return {"id": "theirs", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def streamed(*events: bytes) -> bytes:
    return said(200, *RATE_LIMITS, body=b"".join(events), kind="text/event-stream")


DONE = b"data: [DONE]\n\n"
ANSWER = streamed(event(delta("Hi")), event(delta(reason="stop")), DONE)


def request(own: dict[str, Any] | None = None, **changes: Any) -> Forwarded:
    """Make a request whose writer adds what the real one adds, unless the client sent it."""
    given = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **(own or {})}

    def write(left_out: Set[str]) -> bytes:
        limit = next((name for name in ("max_completion_tokens", "max_tokens") if name not in left_out), "")
        added: dict[str, Any] = {"stream_options": {"include_usage": True}}
        if limit and "max_tokens" not in given:
            added[limit] = 7
        return json.dumps(
            given | {name: value for name, value in added.items() if name not in given and name not in left_out}
        ).encode()

    return replace(Forwarded("m", write, ID), **changes)


REQUEST = request()
UNSTREAMED = request(is_streamed=False)


def parts_of(answer: Answer) -> list[Part]:
    batches: list[list[Part]] = []
    try:
        assert not batches_of(answer, batches)
    finally:
        answer.close()
    return [part for parts in batches for part in parts]


def failure_of(answer: Answer, got: list[Part] | None = None) -> errors.UpstreamError:
    """Read an answer to its failure. `got` gets the parts before it."""
    batches: list[list[Part]] = []
    with pytest.raises(errors.UpstreamError) as raised:
        batches_of(answer, batches)
    answer.close()
    if got is not None:
        got += [part for parts in batches for part in parts]
    return raised.value


def data_of(parts: Sequence[Part]) -> list[Any]:
    return [json.loads(chunk.data) for part in parts for chunk in part.chunks]


# What is sent


@pytest.mark.parametrize(("is_streamed", "accept"), [(True, "text/event-stream"), (False, "application/json")])
def test_request_is_sent_as_it_was_written_with_our_key(model: Model, is_streamed: bool, accept: str) -> None:
    model.says(ANSWER if is_streamed else said(200, body=WHOLE))
    body = '{"model" : "m",\n"messages":[{"content":"\\u0047rüße 😀"}], "unknown": 1e3}'.encode()

    model.ask(request(write=lambda left_out: body, is_streamed=is_streamed)).close()

    (sent,) = model.script.requests
    assert sent.partition(b"\r\n\r\n")[2] == body
    headers = model.script.headers()
    assert headers["accept"] == accept
    assert headers["accept-encoding"] == "identity"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(body))


def test_request_without_a_key_of_ours_carries_no_authorization(model: Model) -> None:
    model.says(ANSWER)
    upstream = OpenAIUpstream(base_url=model.server.url.removesuffix("/chat/completions"), api_key="")

    upstream.ask(REQUEST, Call()).close()
    upstream.close()

    assert "authorization" not in model.script.headers()


def test_question_after_a_request_asks_for_events_again(model: Model) -> None:
    model.says(said(200, body=WHOLE), ANSWER)
    model.ask(UNSTREAMED).close()
    model.ask(QUESTION).close()

    assert model.script.headers()["accept"] == "text/event-stream"


def test_request_as_clients_send_it_gets_what_the_upstream_has_not_refused(model: Model) -> None:
    settings = Settings(
        openai_base_url="http://model.test/v1",
        openai_model="m",
        allowed_models=("m",),
        default_max_tokens=7,
        named=frozenset({"default_max_tokens"}),
    )
    own = b'{"model":"m","messages":[{"role":"user","content":"Hello"}],"stream":true}'
    model.says(refused("max_tokens"), refused("stream_options"), ANSWER)

    model.ask(request(write=read_forwarded(own, settings).write)).close()

    assert model.script.sent == [
        {**json.loads(own), "stream_options": {"include_usage": True}, "max_tokens": 7},
        {**json.loads(own), "stream_options": {"include_usage": True}, "max_completion_tokens": 7},
        {**json.loads(own), "max_completion_tokens": 7},
    ]


# What a server was found to understand


def refused(name: str, *, words: str = "Unsupported parameter", status: int = 400) -> bytes:
    return said(status, body={"error": {"message": f"{words}: '{name}'", "param": name, "code": "unsupported"}})


@pytest.mark.parametrize("status", [400, 422])
def test_addition_that_is_refused_is_left_out_from_then_on(model: Model, status: int) -> None:
    model.says(refused("stream_options", status=status), ANSWER)

    parts_of(model.ask(REQUEST))
    parts_of(model.ask(REQUEST))
    parts_of(model.ask(QUESTION))

    assert ["stream_options" in body for body in model.script.sent] == [True, False, False, False]


def test_limit_that_we_add_is_called_by_its_other_name_from_then_on(model: Model) -> None:
    model.says(refused("max_tokens"), ANSWER)

    parts_of(model.ask(REQUEST))
    parts_of(model.ask(REQUEST))
    parts_of(model.ask(QUESTION))

    sent = [[name for name in body if name.startswith("max_")] for body in model.script.sent]
    assert sent == [["max_tokens"], *[["max_completion_tokens"]] * 3]


def test_what_a_question_has_learned_holds_for_requests(model: Model) -> None:
    model.says(refused("stream_options"), ANSWER)
    parts_of(model.ask(QUESTION))
    parts_of(model.ask(REQUEST))

    assert "stream_options" not in model.script.sent[-1]


def test_server_that_refuses_both_names_of_the_limit_is_no_loop(model: Model) -> None:
    model.says(refused("max_tokens"), refused("max_completion_tokens"))

    error = model.refuses(REQUEST)

    assert error.reported is not None
    assert error.reported.param == "max_completion_tokens"
    assert len(model.script.requests) == 2


@pytest.mark.parametrize(
    ("own", "name"), [({"stream_options": {"x": 1}}, "stream_options"), ({"max_tokens": 5}, "max_tokens")]
)
def test_parameter_of_the_clients_own_that_is_refused_is_the_clients_answer(
    model: Model, own: dict[str, Any], name: str
) -> None:
    model.says(refused(name), ANSWER)

    error = model.refuses(request(own))

    assert error.reported == Reported(400, f"Unsupported parameter: '{name}'", None, name, "unsupported")
    assert len(model.script.requests) == 1
    parts_of(model.ask(QUESTION))
    assert name in model.script.sent[-1], "a client must not change what other questions get"


def test_refusal_that_only_sounds_like_one_of_our_additions_changes_nothing_for_others(model: Model) -> None:
    """Servers quote the client. So a client could say what is refused."""
    quoted = said(400, body={"error": {"message": "Unknown role 'stream_options'", "code": "bad"}})
    model.says(quoted, quoted, ANSWER)

    error = model.refuses(REQUEST)

    assert error.reported == Reported(400, "Unknown role 'stream_options'", None, None, "bad")
    assert ["stream_options" in body for body in model.script.sent] == [True, False]
    parts_of(model.ask(QUESTION))
    parts_of(model.ask(REQUEST))
    assert ["stream_options" in body for body in model.script.sent[2:]] == [True, True]


def test_what_is_learned_of_models_that_anybody_may_name_is_bounded(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "MOST_MODELS", 3)

    def asks(name: str, *, refuses: bool = False) -> bool:
        """Ask for a model, and tell whether `stream_options` was sent at first."""
        before = len(model.script.requests)
        model.says(*([refused("stream_options")] if refuses else []), ANSWER)
        parts_of(model.ask(request(model=name)))
        return "stream_options" in model.script.sent[before]

    assert asks("used", refuses=True)
    assert asks("forgotten", refuses=True)
    for name in ("a", "b", "c"):
        assert not asks("used")
        assert asks(name)

    assert not asks("used")
    assert asks("forgotten")
    assert len(model.upstream._parameters) == 3


# Streams


def test_stream_is_recorded_under_our_id(model: Model) -> None:
    model.says(ANSWER)
    answer = model.ask(REQUEST)

    parts = parts_of(answer)

    assert data_of(parts) == [{**delta("Hi"), "id": ID}, {**delta(reason="stop"), "id": ID}]
    assert [(part.finish_reason, part.done, part.chars) for part in parts] == [
        (None, False, 2),
        ("stop", False, 0),
        ("stop", True, 0),
    ]
    assert answer.rate_limits == LIMITS


@pytest.mark.parametrize("keeps_usage", [True, False])
def test_chunk_of_the_usage_is_recorded_if_the_client_wants_it(model: Model, keeps_usage: bool) -> None:
    usage = {**delta(), "choices": [], "usage": USAGE}
    model.says(streamed(event(delta("Hi")), event(usage), DONE))

    parts = parts_of(model.ask(request(keeps_usage=keeps_usage)))

    assert ({**usage, "id": ID} in data_of(parts)) is keeps_usage
    assert [part.usage for part in parts if part.usage] == [USAGE]


def test_stream_of_two_choices_has_finished_when_both_have(model: Model) -> None:
    model.says(streamed(event(delta(reason="stop")), event(delta(index=1, reason="length")), DONE))

    reasons = [part.finish_reason for part in parts_of(model.ask(request(choices=2)))]

    assert reasons == [None, "stop", "stop"]


def test_half_a_character_at_the_end_of_a_stream_is_a_record(model: Model) -> None:
    model.says(streamed(event(delta("a\ud83d"))))
    answer = model.ask(REQUEST)
    assert [chunk.text for part in parts_of(answer) for chunk in part.chunks] == ["a"]

    half = answer.pending()

    assert half is not None
    assert [chunk.text for chunk in half.chunks] == ["\ufffd"]
    assert answer.pending() is None


def test_stream_that_breaks_off_is_an_error_behind_what_came(model: Model) -> None:
    model.says([said(200, body=event(delta("Hi")), kind="text/event-stream", length=5_000), reset])
    got: list[Part] = []

    error = failure_of(model.ask(REQUEST), got)

    assert [chunk.text for part in got for chunk in part.chunks] == ["Hi"]
    assert (type(error), error.detail) == (errors.UpstreamError, "The connection to the model's server broke.")
    assert error.reported is None


@pytest.mark.parametrize(
    ("report", "kind", "reported"),
    [
        (REFUSED, errors.UpstreamError, Reported(502, "Bad words.", "invalid_request_error", "messages", "bad")),
        ({"message": "Bad words.", "code": 500}, errors.UpstreamError, None),
        ({"message": "Bad words.", "code": "500"}, errors.UpstreamError, None),
        ({"message": "Bad words.", "code": 429}, errors.UpstreamRateLimited, Reported(429, "Bad words.", code="429")),
        *(
            (
                {"message": "Bad words.", "code": status},
                errors.UpstreamRefused,
                Reported(status, "Bad words.", code=str(status)),
            )
            for status in (400, 404, 413, 422)
        ),
        (
            {"message": "Bad words.", "code": "context_length_exceeded"},
            errors.PromptRefusedAsTooLong,
            Reported(400, "Bad words.", code="context_length_exceeded"),
        ),
        (
            {"message": "Bad words.", "code": "content_filter", "status": 400},
            errors.ContentFiltered,
            Reported(400, "Bad words.", code="content_filter"),
        ),
        ("Bad words.", errors.UpstreamError, None),
        ({"code": "no_words"}, errors.UpstreamError, None),
    ],
)
@pytest.mark.parametrize("is_streamed", [True, False])
def test_error_inside_an_answer_is_told_as_the_upstream_says_it_unless_it_is_its_own_trouble(
    model: Model, is_streamed: bool, report: object, kind: type[errors.UpstreamError], reported: Reported | None
) -> None:
    told = {"error": report}
    model.says(streamed(event(delta("Hi")), event(told)) if is_streamed else said(200, *RATE_LIMITS, body=told))
    answer = model.ask(request(is_streamed=is_streamed))

    error = failure_of(answer)

    assert (type(error), error.reported) == (kind, reported)
    assert error.failure.reported == reported
    assert answer.rate_limits == LIMITS


def test_error_inside_the_answer_to_a_question_is_told_to_nobody(model: Model) -> None:
    model.says(streamed(event(delta("Hi")), event({"error": {**REFUSED, "code": 400}})))

    error = failure_of(model.ask(QUESTION))

    assert (type(error), error.reported) == (errors.UpstreamError, None)


# Answers that are not streamed


def test_answer_that_is_not_streamed_is_one_part_behind_signs_of_life(model: Model) -> None:
    model.says([said(200, *RATE_LIMITS, body=WHOLE[:9], length=len(WHOLE)), WHOLE[9:]])
    answer = model.ask(UNSTREAMED)
    batches: list[list[Part]] = []

    assert batches_of(answer, batches) is False
    answer.close()

    *signs, parts = batches
    assert signs
    assert not any(signs)
    (part,) = parts
    assert data_of(parts) == [{**COMPLETION, "id": ID}]
    assert (part.done, part.finish_reason, part.usage, part.chars) == (True, "stop", USAGE, 5)
    assert part.chunks[0].text == "Grüße"
    assert answer.rate_limits == LIMITS
    assert answer.pending() is None


def test_each_arrival_of_a_slow_answer_is_a_sign_of_life(model: Model) -> None:
    """The server sends the next byte when the last one has been taken."""
    taken = threading.Event()

    def wait(_: socket.socket) -> None:
        assert taken.wait(PATIENCE_SECONDS)
        taken.clear()

    steps: list[Step] = [said(200, length=len(WHOLE))]
    for at in range(len(WHOLE)):
        steps += [WHOLE[at : at + 1], wait]
    model.says(steps)
    answer = model.ask(UNSTREAMED)
    given: list[int] = []

    def take(parts: Sequence[Part]) -> bool:
        given.append(len(parts))
        taken.set()
        return True

    assert answer.receive(take) is False
    answer.close()
    assert given == [0] * len(WHOLE) + [1]


@pytest.mark.parametrize("kind", ["application/json", "APPLICATION/JSON; charset=utf-8", "application/vnd.x+json"])
@pytest.mark.parametrize("status", [200, 201, 299])
def test_any_success_with_json_is_an_answer(model: Model, kind: str, status: int) -> None:
    model.says(said(status, body=WHOLE, kind=kind))

    assert data_of(parts_of(model.ask(UNSTREAMED))) == [{**COMPLETION, "id": ID}]


@pytest.mark.parametrize(
    ("is_streamed", "kind", "why"),
    [
        (False, "text/event-stream", "did not answer with JSON"),
        (False, "text/html", "did not answer with JSON"),
        (False, "application/jsonl", "did not answer with JSON"),
        (False, "", "did not answer with JSON"),
        (True, "application/json", "did not answer with an event stream"),
        (True, "", "did not answer with an event stream"),
    ],
)
def test_answer_of_another_type_is_refused_at_its_head(model: Model, is_streamed: bool, kind: str, why: str) -> None:
    model.says([said(200, *RATE_LIMITS, body=WHOLE, kind=kind, length=50_000), model.script.watch])

    error = model.refuses(request(is_streamed=is_streamed))

    assert type(error) is errors.UpstreamError
    assert why in error.detail
    assert (error.reported, error.rate_limits) == (None, LIMITS)
    assert model.script.has_closed.wait(PATIENCE_SECONDS), "nothing more is read of it"


@pytest.mark.parametrize("is_streamed", [True, False])
def test_answer_that_is_packed_is_refused_at_its_head(model: Model, is_streamed: bool) -> None:
    kind = "text/event-stream" if is_streamed else "application/json"
    packed = said(200, "Content-Encoding: gzip", body=gzip.compress(WHOLE), kind=kind, length=50_000)
    model.says([packed, model.script.watch])

    error = model.refuses(request(is_streamed=is_streamed))

    assert "compressed" in error.detail
    assert model.script.has_closed.wait(PATIENCE_SECONDS)


def test_answer_that_is_not_streamed_is_bounded_while_it_arrives(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that never stops is not read to its end."""

    def go_on(connection: socket.socket) -> None:
        while True:
            connection.sendall(chunk(b" " * 1_000))

    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    monkeypatch.setattr(answers, "MOST_BODY_BYTES", 100_000)
    model.says([head, go_on])
    answer = model.ask(UNSTREAMED)

    error = failure_of(answer)

    assert type(error) is errors.UpstreamError
    assert "larger than 16 MiB" in error.detail
    assert len(answer._body) <= 100_000  # type: ignore[attr-defined]


@pytest.mark.parametrize(("spare", "is_taken"), [(0, True), (-1, False)])
def test_answer_of_exactly_the_bound_is_taken(
    model: Model, monkeypatch: pytest.MonkeyPatch, spare: int, is_taken: bool
) -> None:
    assert answers.MOST_BODY_BYTES == 16 << 20
    monkeypatch.setattr(answers, "MOST_BODY_BYTES", len(WHOLE) + spare)
    model.says(said(200, body=WHOLE))
    answer = model.ask(UNSTREAMED)

    if is_taken:
        assert len(parts_of(answer)) == 1
    else:
        assert "larger" in failure_of(answer).detail


def test_large_answers_that_arrive_together_are_bounded_and_keep_no_small_one_away(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = json.dumps({**COMPLETION, "pad": "x" * 250_000}).encode()
    monkeypatch.setattr(answers, "MOST_ARRIVING_BYTES", len(large) - answers.FREE_BODY_BYTES)
    goes_on = [said(200, body=large, length=300_000), model.script.watch]

    model.says(goes_on)
    first: Any = model.ask(UNSTREAMED)
    assert first.receive(lambda _: len(first._body) < len(large)), "it is here, but for its end"
    model.says(goes_on)
    second = model.ask(UNSTREAMED)
    with pytest.raises(errors.Overloaded):
        second.receive(lambda _: True)
    model.says(said(200, body=WHOLE))
    assert len(parts_of(model.ask(UNSTREAMED))) == 1, "a small one"

    for answer in (first, first, second):
        answer.close()
    model.says(said(200, body=large))
    assert len(parts_of(model.ask(UNSTREAMED))) == 1, "there is room again"


JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([said(200, body=WHOLE[:-20], length=len(WHOLE)), socket.socket.close], "broke"),
        ([said(200, body=WHOLE, length=len(WHOLE) + 1), socket.socket.close], "broke"),
        ([said(200, body=WHOLE[:-20], length=len(WHOLE)), reset], "broke"),
        ([JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(WHOLE), socket.socket.close], "broke"),
        ([JSON_HEAD + b"\r\n" + WHOLE[:-20], socket.socket.close], "sent something other than an answer"),
        ([JSON_HEAD + b"\r\n" + WHOLE[:-1], socket.socket.close], "sent something other than an answer"),
        ([JSON_HEAD + b"\r\n", socket.socket.close], "sent something other than an answer"),
    ],
    ids=["counted", "by one byte", "reset", "chunked", "until close", "without its last brace", "nothing"],
)
def test_answer_that_breaks_off_is_an_error_and_no_short_answer(model: Model, steps: list[Step], why: str) -> None:
    model.says(steps)
    got: list[Part] = []

    error = failure_of(model.ask(UNSTREAMED), got)

    assert type(error) is errors.UpstreamError
    assert why in error.detail
    assert got == []


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'{"choices": 5}', b"raw words", WHOLE + b"x", WHOLE * 2])
def test_json_that_is_no_completion_is_an_error_without_its_words(model: Model, body: bytes) -> None:
    model.says(said(200, body=body))

    error = failure_of(model.ask(UNSTREAMED))

    assert type(error) is errors.UpstreamError
    assert "sent something other than an answer" in error.detail
    assert "raw words" not in str(error.failure)


def test_answer_that_nobody_wants_any_more_is_not_read_on(model: Model) -> None:
    model.says([said(200, body=WHOLE[:20], length=len(WHOLE)), model.script.watch])
    answer = model.ask(UNSTREAMED)
    got: list[Sequence[Part]] = []

    assert answer.receive(lambda parts: bool(got.append(parts))) is True
    answer.close()

    assert got == [[]]
    assert model.script.has_closed.wait(PATIENCE_SECONDS)


def test_answer_that_nobody_wants_at_its_last_byte_is_given_when_it_is_wanted_again(model: Model) -> None:
    model.says(said(200, body=WHOLE))
    answer = model.ask(UNSTREAMED)
    got: list[Sequence[Part]] = []

    assert answer.receive(lambda parts: bool(got.append(parts))) is True
    assert not any(got)
    assert data_of(parts_of(answer)) == [{**COMPLETION, "id": ID}]


def test_connection_is_kept_after_an_answer_that_is_not_streamed(model: Model) -> None:
    model.says(said(200, body=WHOLE))
    for _ in range(3):
        parts_of(model.ask(UNSTREAMED))

    assert model.server.connections == 1


# Refusals


STATUSES: dict[int, tuple[type[errors.UpstreamError], bool, bool]] = {
    400: (errors.UpstreamRefused, False, True),
    404: (errors.UpstreamRefused, False, True),
    413: (errors.UpstreamRefused, False, True),
    422: (errors.UpstreamRefused, False, True),
    429: (errors.UpstreamRateLimited, True, True),
    302: (errors.UpstreamError, True, False),
    401: (errors.UpstreamAuthFailed, False, False),
    402: (errors.UpstreamError, True, False),
    403: (errors.UpstreamAuthFailed, False, False),
    405: (errors.UpstreamError, True, False),
    408: (errors.UpstreamTimeout, True, False),
    409: (errors.UpstreamError, True, False),
    415: (errors.UpstreamError, True, False),
    500: (errors.UpstreamUnavailable, True, False),
    503: (errors.UpstreamUnavailable, True, False),
}
"""Status → the error, whether it is retryable, and whether the client gets the upstream's words."""


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("is_streamed", [True, False])
def test_refusal_is_told_where_the_status_judges_the_request(model: Model, status: int, is_streamed: bool) -> None:
    kind, is_retryable, is_told = STATUSES[status]
    model.says(said(status, "Retry-After: 7", *RATE_LIMITS, body={"error": REFUSED}))

    error = model.refuses(request(is_streamed=is_streamed))

    assert (type(error), error.retryable) == (kind, is_retryable)
    reported = Reported(status, "Bad words.", "invalid_request_error", "messages", "bad")
    assert error.reported == error.failure.reported == (reported if is_told else None)
    assert error.rate_limits == LIMITS
    assert error.retry_after_seconds == (7 if status in (408, 429, 500, 503) else None)
    assert len(model.script.requests) == 1


@pytest.mark.parametrize("status", STATUSES)
def test_refusal_of_a_question_is_what_it_was(model: Model, status: int) -> None:
    kind, _, _ = STATUSES[status]
    model.says(said(status, body={"error": REFUSED}))

    error = model.refuses(QUESTION)

    assert type(error) is (errors.UpstreamError if kind is errors.UpstreamRefused else kind)
    assert error.reported is None


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "context_length_exceeded", errors.PromptRefusedAsTooLong),
        (413, "context_length_exceeded", errors.PromptRefusedAsTooLong),
        (422, "context_length_exceeded", errors.PromptRefusedAsTooLong),
        (400, "content_policy_violation", errors.ContentFiltered),
    ],
)
def test_refusal_that_we_know_keeps_our_error_and_the_upstreams_status(
    model: Model, status: int, code: str, kind: type[errors.UpstreamError]
) -> None:
    model.says(said(status, *RATE_LIMITS, body={"error": {**REFUSED, "code": code}}))

    error = model.refuses(REQUEST)

    assert (type(error), error.retryable) == (kind, False)
    assert error.reported == Reported(status, "Bad words.", "invalid_request_error", "messages", code)
    assert error.rate_limits == LIMITS


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>413 at model.test</body></html>",
        b'{"error": {"message": "Bad words that br',
        b'{"code": 1}',
        b'{"error":' * 900 + b"{}" + b"}" * 900,
        b'{"error": {"message": "' + b"w" * 10_000_000 + b'"}}',
        b"[" * 5_000_000,
    ],
    ids=["nothing", "a page", "broken", "no words", "nested", "huge words", "huge nesting"],
)
@pytest.mark.parametrize("status", [400, 404, 413, 422, 429])
def test_refusal_without_words_that_can_be_read_keeps_its_status_and_has_ours(
    model: Model, status: int, body: bytes
) -> None:
    model.says(said(status, body=body, kind="text/html"))

    error = model.refuses(REQUEST)

    assert error.reported == Reported(status, error.detail, None, None, error.error_code)
    assert error.detail.startswith("The ")


@pytest.mark.parametrize(
    "steps",
    [
        [said(400, "Content-Encoding: gzip", body=gzip.compress(json.dumps({"error": REFUSED}).encode()))],
        [said(400, body=b'{"error": {"mess', length=500), socket.socket.close],
        [said(400, body=b'{"error": {"mess', length=500), reset],
        [said(400, body=b"", length=500), lambda connection: connection.recv(1)],
    ],
    ids=["packed", "cut off", "reset", "silent"],
)
def test_refusal_whose_body_does_not_arrive_keeps_its_status(model: Model, steps: list[Step]) -> None:
    model.says(steps)

    error = model.refuses(REQUEST)

    assert type(error) is errors.UpstreamRefused
    assert error.reported == Reported(400, error.detail, None, None, "upstream_refused")


@pytest.mark.parametrize(
    ("early", "kind"),
    [
        (said(413, body={"error": REFUSED}), errors.UpstreamRefused),
        (said(200, body=WHOLE), errors.UpstreamUnavailable),
        (b"HTTP/1.1 4", errors.UpstreamUnavailable),
        (b"", errors.UpstreamUnavailable),
    ],
    ids=["refusal", "success", "broken off", "nothing"],
)
def test_server_that_refuses_a_large_request_by_its_head_and_closes_has_still_refused_it(
    serve: Serve, early: bytes, kind: type[errors.UpstreamError]
) -> None:
    """It resets the connection while the request is being sent. Nothing but an error may come so early."""

    def answer(connection: socket.socket, _: int) -> None:
        connection.recv(10)
        connection.sendall(early)
        connection.close()  # with unread bytes, which is a reset

    server = serve(answer)
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    upstream = OpenAIUpstream(base_url=server.url.removesuffix("/chat/completions"), api_key=KEY)
    content = b" " * 20_000_000

    with pytest.raises(errors.UpstreamError) as raised:
        upstream.ask(request(write=lambda left_out: content, is_streamed=False), Call())
    upstream.close()

    assert type(raised.value) is kind
    told = Reported(413, "Bad words.", "invalid_request_error", "messages", "bad")
    assert raised.value.reported == (told if kind is errors.UpstreamRefused else None)


def test_key_and_host_of_the_upstream_are_in_no_answer(model: Model) -> None:
    host = f"127.0.0.1:{model.server.port}"
    text = f"{KEY} at {host}, http://{host}/v1 or 127.0.0.1"
    told = dict.fromkeys(["message", "type", "param", "code"], text)
    shown = "[redacted] at [redacted], http://[redacted]/v1 or [redacted]"
    model.says(
        said(400, body={"error": told}),
        streamed(event({"error": told})),
        said(200, body={"error": told}),
    )

    failures = [
        model.refuses(REQUEST).failure,
        failure_of(model.ask(REQUEST)).failure,
        failure_of(model.ask(UNSTREAMED)).failure,
    ]

    assert [failure.reported for failure in failures] == [
        Reported(status, shown, shown, shown, shown) for status in (400, 502, 502)
    ]


def test_password_in_the_address_of_the_upstream_and_either_spelling_of_its_host_are_in_no_answer() -> None:
    upstream = OpenAIUpstream(base_url="http://user:long-password@modèle.test/v1", api_key="")
    upstream.close()

    reported = upstream._reports.read("long-password, modèle.test, xn--modle-6ra.test", 400)

    assert reported == Reported(400, "[redacted], [redacted], [redacted]")


def test_rate_limits_of_a_refusal_are_few_and_harmless(model: Model) -> None:
    many = [f"x-ratelimit-{number}: 1" for number in range(30)]
    model.says(said(400, "x-ratelimit-odd: sk-secret; not harmless", *RATE_LIMITS, "Set-Cookie: a=1", *many))

    limits = model.refuses(REQUEST).rate_limits

    assert len(limits) == 20
    assert limits.items() > LIMITS.items()
    assert "x-ratelimit-odd" not in limits


def test_words_of_the_whole_body_are_read_and_not_what_the_sdk_keeps_of_it(model: Model) -> None:
    model.says(said(400, body={"error": "Bad words.", "param": "p", "code": "c", "type": "t"}))

    assert model.refuses(REQUEST).reported == Reported(400, "Bad words.", "t", "p", "c")


def test_refused_request_is_asked_once_and_its_end_has_the_upstreams_words(model: Model) -> None:
    model.says(said(400, *RATE_LIMITS, body={"error": REFUSED}))
    store = MemoryStore(max_active=10, budget_bytes=10_000_000, retention_seconds=60)
    log, _ = store.create(Origin("c", "m", "2026-01-01T00:00:00.000Z", kind="chunks"))
    bounds = Bounds(silence_seconds=30.0, generation_seconds=60.0, abandoned_seconds=60.0, answer_chars=1000)
    asked = request()

    Generation(log, asked, upstream=model.upstream, bounds=bounds).run()

    assert log.end is not None
    assert log.end.error is not None
    assert log.end.error.error_code == "upstream_refused"
    assert log.end.error.reported == Reported(400, "Bad words.", "invalid_request_error", "messages", "bad")
    assert len(model.script.requests) == 1
    assert asked.rate_limits == LIMITS
