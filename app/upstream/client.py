"""The one door to the model: asks through the openai SDK, reads the answer's raw bytes, yields its parts."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx2
import msgspec
import openai

from app import errors
from app.upstream import failures
from app.upstream.decoder import BrokenStream, ChunkDecoder, ErrorReported, EventSplitter, Part
from app.upstream.framing import BadFraming
from app.upstream.transport import BODY, ERROR_BODY_BYTES, Body, Call, Transport, current_call

__all__ = ["Answer", "OpenAIUpstream", "Question", "Upstream"]

OPENAI_URL = "https://api.openai.com/v1"

_RATE_LIMIT = re.compile(r"x-ratelimit-[a-z0-9-]{1,40}")
_HARMLESS = re.compile(r"[0-9A-Za-z.:]{1,32}")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the model. `temperature` None leaves it to the model."""

    messages: Sequence[Mapping[str, str]]
    model: str
    max_tokens: int
    temperature: float | None

    @property
    def held_bytes(self) -> int:
        """What it takes in memory until it is answered: its messages, and the request's body that they are sent in."""
        return sum(
            sys.getsizeof(message) + sum(sys.getsizeof(text) + len(text.encode()) for text in message.values())
            for message in self.messages
        )


class Answer(Protocol):
    """A model's answer under way."""

    @property
    def rate_limits(self) -> Mapping[str, str]:
        """The upstream's x-ratelimit-* headers, for the log."""

    def receive(self, take: Callable[[Sequence[Part]], bool]) -> bool:
        """Give what comes to `take`, as it comes, until it returns False; no parts are a sign of life.

        `take` must not wait: it may be called by the worker's event loop. True when it returned False and more may
        follow; False when the stream has ended, whether or not the answer was complete.
        Raises: errors.UpstreamError, and what `take` raises.
        """

    def pending(self) -> str:
        """Return what stands for half a character that nothing completed, once; empty for none."""

    def close(self) -> None:
        """Give the connection back if the answer was read to its end, else close it."""


class Upstream(Protocol):
    """Where answers come from; tests pass one of their own."""

    def ask(self, question: Question, call: Call) -> Answer:
        """Ask once, without any retry. Raises: errors.UpstreamError."""

    def ready(self) -> bool: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class _Dialect:
    """What a model's server was found to understand."""

    limit: str = "max_tokens"
    leaves_out: set[str] = field(default_factory=set)

    def parameters(self, question: Question) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": question.model,
            "messages": question.messages,
            "stream": True,
            self.limit: question.max_tokens,
            "stream_options": {"include_usage": True},
        }
        if question.temperature is not None:
            body["temperature"] = question.temperature
        return {name: value for name, value in body.items() if name not in self.leaves_out}

    def learn(self, refused: str) -> None:
        """Send it no more; of the two names of the limit, the other one instead, unless that was refused too."""
        if refused == self.limit:
            other = "max_completion_tokens" if refused == "max_tokens" else "max_tokens"
            if other not in self.leaves_out:
                self.leaves_out.add(refused)
                self.limit = other
        elif refused == "stream_options":
            self.leaves_out.add(refused)


class OpenAIUpstream:
    """Any server that speaks OpenAI's chat completions."""

    def __init__(self, *, base_url: str, api_key: str, transport: httpx2.BaseTransport | None = None) -> None:
        """`transport`: tests pass one that respx has mocked; ours otherwise."""
        self._to_openai = base_url in ("", OPENAI_URL)
        self._dialects: dict[str, _Dialect] = {}
        self._lock = threading.Lock()
        self._transport = transport or Transport(secure=not base_url.startswith("http:"))
        self._sdk = openai.OpenAI(
            base_url=base_url or OPENAI_URL,
            api_key=api_key or "none",
            http_client=httpx2.Client(transport=self._transport, trust_env=False),
            default_headers={
                "Accept": "text/event-stream",
                "Accept-Encoding": "identity",  # the raw bytes are decoded here, so they must not be packed
            },
        )
        self._url = self._sdk.base_url.join("chat/completions")
        # A server that wants no key must not be sent one that is none.
        headers = {
            name: value
            for name, value in ((self._sdk.auth_headers if api_key else {}) | self._sdk.default_headers).items()
            if isinstance(value, str)
        }
        self._headers = httpx2.Request("POST", self._url, headers=headers).headers  # with Host
        self._bare = httpx2.Request("POST", self._url)  # for errors, which must not keep the question

    def ask(self, question: Question, call: Call) -> _SdkAnswer:
        token = current_call.set(call)
        try:
            response = self._post_learning(question)
        finally:
            current_call.reset(token)
        try:
            if _is_packed(response):
                raise errors.UpstreamError(
                    "The model's server packed its answer (Content-Encoding), though it was asked not to: "
                    "compression has to be switched off there, or in the proxy before it."
                )
            if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
                raise errors.UpstreamError("The model's server answered with something that is no event stream.")
        except errors.UpstreamError:
            response.close()
            raise
        return _SdkAnswer(response)

    def _post_learning(self, question: Question) -> httpx2.Response:
        """Post, and again in other words as long as the server names a parameter that it does not know."""
        dialect = self._dialect(question.model)
        while True:
            sent = dialect.parameters(question)
            try:
                return self._post(sent)
            except openai.OpenAIError as error:
                refused = failures.refused_parameter(error)
                if refused:
                    dialect.learn(refused)
                # Asked again also where another question at the same moment learned it first; what was refused in this
                # way was not answered, and does not count as an attempt.
                if not refused or dialect.parameters(question) == sent:
                    raise failures.from_sdk(error) from error

    def _post(self, body: dict[str, Any]) -> httpx2.Response:
        """Post the SDK's request, and raise the SDK's errors, without its layers in between: they cost as much as all
        else that a request needs (load/PROFILE.md), to build this one anew and to decide on retries that are ours.
        """
        content = msgspec.json.encode(body)
        request = httpx2.Request("POST", self._url, headers=self._headers, stream=httpx2.ByteStream(content))
        request.headers["Content-Length"] = str(len(content))
        try:
            response = self._transport.handle_request(request)
        except httpx2.TimeoutException as error:
            raise openai.APITimeoutError(self._bare) from error
        except httpx2.RemoteProtocolError as error:  # it was asked, and may have been paid: not to be tried again
            why = f": {error.__cause__}" if isinstance(error.__cause__, BadFraming) else ""
            raise errors.UpstreamError(f"The model's server sent what is no answer of HTTP{why}.") from error
        except httpx2.TransportError as error:
            raise openai.APIConnectionError(request=self._bare) from error
        if response.status_code >= 300:
            raise self._refusal(response)
        return response  # which knows no request: nothing keeps the question while it is answered

    def _refusal(self, response: httpx2.Response) -> openai.APIStatusError:
        """Read what an error says, raw and within bounds: its status stands, whatever becomes of its words."""
        content = bytearray()
        with contextlib.closing(response), contextlib.suppress(httpx2.TransportError):
            assert isinstance(response.stream, httpx2.SyncByteStream)
            for piece in response.stream:
                content += piece
                if len(content) > ERROR_BODY_BYTES:
                    break
        body = None if _is_packed(response) else failures.read_body(bytes(content[:ERROR_BODY_BYTES]))
        response.request = self._bare
        return self._sdk._make_status_error(f"Error code: {response.status_code}", body=body, response=response)

    def _dialect(self, model: str) -> _Dialect:
        with self._lock:
            if model not in self._dialects:
                limit = "max_completion_tokens" if self._to_openai else "max_tokens"
                self._dialects[model] = _Dialect(limit)
            return self._dialects[model]

    def ready(self) -> bool:
        """A remote upstream's outage must not take resumes and the page down, so nothing is asked."""
        return True

    def sweep(self, now: float) -> None:
        """Let go of connections that are of no more use."""
        if isinstance(self._transport, Transport):
            self._transport.sweep(now)

    def close(self) -> None:
        self._sdk.close()


def _is_packed(response: httpx2.Response) -> bool:
    codings = response.headers.get("content-encoding", "").lower().split(",")
    return any(coding.strip() not in ("", "identity") for coding in codings)


class _SdkAnswer:
    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._split = EventSplitter().feed
        self._decoder = ChunkDecoder()
        self.rate_limits = {
            name: value
            for name, value in response.headers.items()
            if _RATE_LIMIT.fullmatch(name) and _HARMLESS.fullmatch(value)
        }

    def receive(self, take: Callable[[Sequence[Part]], bool]) -> bool:
        split = self._split
        decode = self._decoder.decode

        def arrived(received: bytes) -> bool:
            parts: list[Part] = []
            try:
                parts.extend(map(decode, split(received)))
            except Exception:
                if parts and not take(parts):
                    return False
                raise
            return take(parts)

        body: Body | None = self._response.extensions.get(BODY)
        try:
            if body is not None:
                return body.receive(arrived)
            return not all(map(arrived, self._response.iter_raw()))  # a client of the tests' own
        except BrokenStream as error:
            raise errors.UpstreamError(f"The model's server sent what is no answer: {error}.") from None
        except ErrorReported as report:
            raise failures.from_report(report.error) from None
        except httpx2.TransportError as error:
            raise errors.UpstreamError("The connection to the model's server broke off.") from error

    def pending(self) -> str:
        return self._decoder.pending()

    def close(self) -> None:
        self._response.close()
