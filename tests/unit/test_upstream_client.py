"""Test what is asked of the model's server and how its answers are read, through respx; the network is blocked."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import httpx2
import pytest
import respx

from app import errors
from app.dialects.native.answer import error_body
from app.upstream.call import Call
from app.upstream.client import OpenAIUpstream
from app.upstream.interface import Part, Question

pytestmark = pytest.mark.usefixtures("no_network")

URL = "http://model.test:8080/v1"
OPENAI = "https://api.openai.com/v1"
MESSAGES = [{"role": "user", "content": "Grüße \U0001f600"}]
QUESTION = Question(MESSAGES, "m", 256, None)
STREAM = (
    b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
EVENT_STREAM = {"content-type": "text/event-stream; charset=utf-8"}


def streamed(*pieces: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    """Answer with a body that has not been read yet, as one from the network."""
    return httpx.Response(200, headers={**EVENT_STREAM, **(headers or {})}, content=iter(pieces or (STREAM,)))


def refusal(message: str, *, param: str | None = None, status: int = 400) -> httpx.Response:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": "unsupported_parameter"}
    return httpx.Response(status, json={"error": error})


class Server:
    """A respx router in the place of the model's server."""

    def __init__(self, base_url: str) -> None:
        self.router = respx.Router()
        self.route = self.router.post(f"{base_url}/chat/completions")
        self.route.mock(side_effect=lambda request: streamed())

    @property
    def requests(self) -> list[httpx.Request]:
        return [call.request for call in self.route.calls]

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(request.content) for request in self.requests]

    def answer(self, *answers: httpx.Response | Exception | Callable[[], httpx.Response]) -> None:
        """Answer the next requests so, the last for ever."""
        left = list(answers)

        def answer(request: httpx.Request) -> httpx.Response:
            chosen = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(chosen, Exception):
                raise chosen
            return chosen if isinstance(chosen, httpx.Response) else chosen()

        self.route.mock(side_effect=answer)


class Mocked(httpx2.BaseTransport):
    """What respx answers in httpx's terms, in those of httpx2."""

    def __init__(self, router: respx.Router) -> None:
        self._router = router

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        asked = httpx.Request(request.method, str(request.url), headers=request.headers.raw, content=request.read())
        try:
            answer = self._router.handler(asked)
        except httpx.TransportError as error:
            raise getattr(httpx2, type(error).__name__)(str(error), request=request) from error
        content = answer.content if answer.is_stream_consumed else answer.iter_raw()
        return httpx2.Response(answer.status_code, headers=answer.headers.raw, content=content)


@pytest.fixture
def clients() -> Iterator[Callable[..., tuple[OpenAIUpstream, Server]]]:
    made: list[OpenAIUpstream] = []

    def make(base_url: str = URL, api_key: str = "test-key") -> tuple[OpenAIUpstream, Server]:
        server = Server(base_url or OPENAI)
        made.append(OpenAIUpstream(base_url=base_url, api_key=api_key, transport=Mocked(server.router)))
        return made[-1], server

    yield make
    for upstream in made:
        upstream.close()


Clients = Callable[..., tuple[OpenAIUpstream, Server]]


def parts_of(upstream: OpenAIUpstream, question: Question = QUESTION) -> list[Part]:
    return [part for parts in batches_of(upstream, question) for part in parts]


def batches_of(upstream: OpenAIUpstream, question: Question = QUESTION) -> list[list[Part]]:
    """Read an answer to its end, as it is given."""
    answer = upstream.ask(question, Call())
    batches: list[list[Part]] = []

    def take(parts: Sequence[Part]) -> bool:
        batches.append(list(parts))
        return True

    try:
        assert not answer.receive(take)
        return batches
    finally:
        answer.close()


def taking(got: list[Part]) -> Callable[[Sequence[Part]], bool]:
    """Keep all the parts."""

    def take(parts: Sequence[Part]) -> bool:
        got.extend(parts)
        return True

    return take


@pytest.mark.requirement("tasks T010")
def test_the_network_is_blocked_where_a_mock_does_not_bite() -> None:
    upstream = OpenAIUpstream(base_url=URL, api_key="")

    with pytest.raises(AssertionError, match="must not use the network"):
        upstream.ask(QUESTION, Call())
    upstream.close()


@pytest.mark.parametrize(
    ("base_url", "count"),
    [("http://model.test/v1", 0), ("https://model.test/v1", 1), ("HTTPS://model.test", 1), ("", 1)],
)
def test_certificates_are_loaded_where_they_are_needed(
    monkeypatch: pytest.MonkeyPatch, base_url: str, count: int
) -> None:
    loaded: list[ssl.SSLContext] = []
    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda: loaded.append(create()) or loaded[-1])
    OpenAIUpstream(base_url=base_url, api_key="k").close()
    assert len(loaded) == count


# What is sent


@pytest.mark.requirement("core FR-003", "plan decision 2", "tasks T013", "tasks pattern 2")
def test_question_is_sent_as_asked_and_read_to_its_end(clients: Clients) -> None:
    upstream, server = clients()

    parts = parts_of(upstream)

    assert parts == [Part("Hi"), Part(finish_reason="stop"), Part(done=True)]
    assert server.bodies == [
        {
            "model": "m",
            "messages": MESSAGES,
            "stream": True,
            "max_tokens": 256,
            "stream_options": {"include_usage": True},
        }
    ]


@pytest.mark.requirement("core dependency 1", "page dependency 5")
def test_question_is_sent_with_the_key_and_asks_for_an_unpacked_event_stream(clients: Clients) -> None:
    upstream, server = clients(api_key="test-key")
    parts_of(upstream)
    headers = server.requests[0].headers

    assert headers["authorization"] == "Bearer test-key"
    assert headers["accept"] == "text/event-stream"
    assert headers["accept-encoding"] == "identity"
    assert headers["content-type"] == "application/json"


def test_question_without_a_key_carries_no_authorization(clients: Clients) -> None:
    upstream, server = clients(api_key="")
    parts_of(upstream)

    assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize("temperature", [0.0, 0.7, 2.0])
def test_question_with_a_temperature_sends_it(clients: Clients, temperature: float) -> None:
    upstream, server = clients()
    parts_of(upstream, Question(MESSAGES, "m", 1, temperature))

    assert server.bodies[0]["temperature"] == temperature


@pytest.mark.parametrize("base_url", ["", OPENAI])
def test_question_to_openai_itself_limits_completion_tokens(clients: Clients, base_url: str) -> None:
    upstream, server = clients(base_url)
    parts_of(upstream)

    assert server.bodies[0]["max_completion_tokens"] == 256
    assert "max_tokens" not in server.bodies[0]


def test_environment_of_the_sdk_does_not_change_where_and_what_is_asked(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.test/v1")
    for base_url in ("", URL):
        upstream, server = clients(base_url, api_key="")
        parts_of(upstream)
        assert len(server.requests) == 1
        assert "authorization" not in server.requests[0].headers


# What a server was found to understand


def test_refused_stream_options_are_left_out_from_then_on(clients: Clients) -> None:
    upstream, server = clients()
    server.answer(refusal("Unrecognized request argument supplied: stream_options"), lambda: streamed())

    assert parts_of(upstream)[0].text == "Hi"
    parts_of(upstream)

    assert ["stream_options" in body for body in server.bodies] == [True, False, False]


@pytest.mark.parametrize(
    ("base_url", "first", "then"),
    [(URL, "max_tokens", "max_completion_tokens"), (OPENAI, "max_completion_tokens", "max_tokens")],
)
def test_refused_token_limit_is_called_by_its_other_name_from_then_on(
    clients: Clients, base_url: str, first: str, then: str
) -> None:
    upstream, server = clients(base_url)
    server.answer(refusal(f"Unsupported parameter: '{first}'", param=first), lambda: streamed())

    parts_of(upstream)
    parts_of(upstream)

    sent = [[name for name in body if name.startswith("max_")] for body in server.bodies]
    assert sent == [[first], [then], [then]]
    assert [body[sent[i][0]] for i, body in enumerate(server.bodies)] == [256] * 3


def test_everything_refused_in_turn_is_learned_in_one_asking(clients: Clients) -> None:
    upstream, server = clients()
    server.answer(
        refusal("Unsupported parameter: 'max_tokens'", param="max_tokens"),
        refusal("Unknown: stream_options", status=422),
        lambda: streamed(),
    )

    assert parts_of(upstream)[0].text == "Hi"
    assert len(server.requests) == 3
    assert "stream_options" not in server.bodies[2]
    assert "max_completion_tokens" in server.bodies[2]


def test_server_that_refuses_both_names_of_the_limit_is_an_error_and_not_a_loop(clients: Clients) -> None:
    upstream, server = clients()
    server.answer(refusal("Unsupported", param="max_tokens"), refusal("Unsupported", param="max_completion_tokens"))

    with pytest.raises(errors.UpstreamError):
        upstream.ask(QUESTION, Call())
    assert len(server.requests) == 2


def test_server_that_refuses_a_temperature_is_an_error(clients: Clients) -> None:
    upstream, server = clients()
    server.answer(refusal("Unsupported value", param="temperature"))

    with pytest.raises(errors.UpstreamError):
        upstream.ask(Question(MESSAGES, "m", 1, 0.5), Call())
    assert len(server.requests) == 1


def test_parameters_are_learned_for_each_model_by_itself(clients: Clients) -> None:
    upstream, server = clients()
    server.answer(refusal("Unknown: stream_options"), lambda: streamed())
    parts_of(upstream)

    parts_of(upstream, Question(MESSAGES, "other", 1, None))

    assert "stream_options" in server.bodies[2]


@pytest.mark.parametrize("refused", ["stream_options", "max_tokens"])
def test_two_first_questions_at_once_both_learn_what_is_refused(clients: Clients, refused: str) -> None:
    upstream, server = clients()
    both_asked = threading.Barrier(2)

    def answer(request: httpx.Request) -> httpx.Response:
        if refused in json.loads(request.content):
            both_asked.wait(20)  # neither hears of the refusal before the other has asked
            return refusal(f"Unsupported parameter: '{refused}'", param=refused)
        return streamed()

    server.route.mock(side_effect=answer)
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(parts_of, upstream) for _ in range(2)]
        answers = [future.result(30) for future in asked]

    assert [parts[0].text for parts in answers] == ["Hi", "Hi"]


def test_other_errors_are_not_asked_again_for_what_another_question_learns(clients: Clients) -> None:
    upstream, server = clients()
    both_asked = threading.Barrier(2)

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if body["temperature"]:
            both_asked.wait(20)
            learned.result(20)
            return httpx.Response(503)
        if "stream_options" in body:
            both_asked.wait(20)
            return refusal("Unknown: stream_options")
        return streamed()

    server.route.mock(side_effect=answer)
    with ThreadPoolExecutor(2) as threads:
        learned = threads.submit(parts_of, upstream, Question(MESSAGES, "m", 1, 0.0))
        failed = threads.submit(parts_of, upstream, Question(MESSAGES, "m", 1, 0.5))
        with pytest.raises(errors.UpstreamUnavailable):
            failed.result(30)
    assert len(server.requests) == 3


# What comes back


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, json={"error": {"message": "raw words", "code": 500}}),
        httpx.Response(200, json={"choices": [{"message": {"content": "raw words"}}]}),
        httpx.Response(200, html="<html>raw words</html>"),
        httpx.Response(200, content=b"data: raw words\n\n"),
        httpx.Response(200),
        httpx.Response(204),
    ],
    ids=["error", "json", "html", "untyped", "empty", "no content"],
)
@pytest.mark.requirement("page assumption 1")
def test_answer_that_is_no_event_stream_is_an_upstream_error(clients: Clients, answer: httpx.Response) -> None:
    upstream, server = clients()
    server.answer(answer)

    with pytest.raises(errors.UpstreamError) as raised:
        upstream.ask(QUESTION, Call())

    assert type(raised.value) is errors.UpstreamError
    assert "raw words" not in json.dumps(error_body(raised.value.failure, "c"))
    assert answer.is_closed


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.UpstreamError),
        (401, errors.UpstreamAuthFailed),
        (404, errors.UpstreamError),
        (408, errors.UpstreamTimeout),
        (429, errors.UpstreamRateLimited),
        (500, errors.UpstreamUnavailable),
        (529, errors.UpstreamUnavailable),
        (302, errors.UpstreamError),
    ],
)
def test_status_of_the_upstream_is_asked_for_once_and_mapped(
    clients: Clients, status: int, kind: type[errors.UpstreamError]
) -> None:
    upstream, server = clients()
    headers = {"retry-after": "7", "location": "http://elsewhere.test/"}
    server.answer(httpx.Response(status, headers=headers, text="raw words"))

    with pytest.raises(errors.UpstreamError) as raised:
        upstream.ask(QUESTION, Call())

    assert type(raised.value) is kind
    assert len(server.requests) == 1, "retries are the generation's, redirects nobody's"


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (httpx.ConnectError("raw words"), errors.UpstreamUnavailable),
        (httpx.RemoteProtocolError("raw words"), errors.UpstreamError),
        (httpx.ReadError("raw words"), errors.UpstreamUnavailable),
        (httpx.ConnectTimeout("raw words"), errors.UpstreamTimeout),
        (httpx.ReadTimeout("raw words"), errors.UpstreamTimeout),
    ],
)
def test_connection_that_fails_is_mapped(
    clients: Clients, failure: Exception, kind: type[errors.UpstreamError]
) -> None:
    upstream, server = clients()
    server.answer(failure)

    with pytest.raises(kind) as raised:
        upstream.ask(QUESTION, Call())
    assert type(raised.value) is kind
    assert len(server.requests) == 1


def test_stream_cut_into_bytes_gives_the_same_parts_and_signs_of_life_between(clients: Clients) -> None:
    upstream, server = clients()
    server.answer(streamed(*(STREAM[i : i + 1] for i in range(len(STREAM)))))

    batches = batches_of(upstream)

    assert [part for parts in batches for part in parts] == [Part("Hi"), Part(finish_reason="stop"), Part(done=True)]
    assert len(batches) == len(STREAM)
    assert batches[0] == []


def test_stream_of_comments_alone_is_a_sign_of_life(clients: Clients) -> None:
    upstream, server = clients()
    server.answer(streamed(b": keep-alive\n\n", b": keep-alive\n\n", STREAM))

    assert batches_of(upstream)[:2] == [[], []]


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (b'data: {"error": {"message": "raw words", "code": 429}}\n\n', errors.UpstreamError),
        (b'data: {"error": {"message": "raw words", "code": "content_filter"}}\n\n', errors.ContentFiltered),
        (b"data: raw words\n\n", errors.UpstreamError),
        (b"data: " + b"x" * 2_000_000, errors.UpstreamError),
    ],
)
def test_stream_that_goes_wrong_gives_what_came_before_and_then_its_error(
    clients: Clients, event: bytes, kind: type[errors.UpstreamError]
) -> None:
    upstream, server = clients()
    server.answer(streamed(b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n', event))
    answer = upstream.ask(QUESTION, Call())
    got: list[Part] = []

    with pytest.raises(errors.UpstreamError) as raised:
        answer.receive(taking(got))
    answer.close()

    assert type(raised.value) is kind
    assert "raw words" not in json.dumps(error_body(raised.value.failure, "c"))


def test_stream_that_goes_wrong_gives_each_part_before_its_error(clients: Clients) -> None:
    upstream, server = clients()
    server.answer(streamed(b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\ndata: no JSON\n\n'))
    answer = upstream.ask(QUESTION, Call())
    got: list[Part] = []

    with pytest.raises(errors.UpstreamError):
        answer.receive(taking(got))
    assert got == [Part("Hi")]
    answer.close()


def test_stream_that_goes_wrong_after_all_that_is_wanted_raises_nothing(clients: Clients) -> None:
    upstream, server = clients()
    server.answer(streamed(b"data: [DONE]\n\ndata: no JSON\n\n"))
    answer = upstream.ask(QUESTION, Call())

    assert answer.receive(lambda parts: False)
    answer.close()


def test_stream_that_just_ends_raises_nothing_and_says_that_half_a_character_is_pending(clients: Clients) -> None:
    upstream, server = clients()
    server.answer(streamed(b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n'))
    answer = upstream.ask(QUESTION, Call())

    got: list[Part] = []

    assert not answer.receive(taking(got))
    assert got == [Part("a")]
    assert (answer.pending(), answer.pending()) == (Part("\ufffd"), None)
    answer.close()


def test_rate_limits_of_the_answer_are_kept_and_nothing_else(clients: Clients) -> None:
    upstream, server = clients()
    headers = {
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-tokens": "6m0s",
        "x-ratelimit-limit-tokens": "not harmless at all; sk-secret",
        "x-ratelimit-" + "x" * 100: "1",
        "set-cookie": "secret=1",
    }
    server.answer(streamed(headers=headers))
    answer = upstream.ask(QUESTION, Call())
    answer.receive(taking([]))
    answer.close()

    assert answer.rate_limits == {"x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-tokens": "6m0s"}


def test_upstream_is_ready_without_asking(clients: Clients) -> None:
    upstream, server = clients()

    assert upstream.ready()
    assert server.requests == []
