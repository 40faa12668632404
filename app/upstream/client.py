"""The client of any server that speaks OpenAI's chat completions: asks once, and hands on the answer."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import httpx2
import msgspec

from app import errors
from app.upstream import failures, models, sdk
from app.upstream.answer import Arriving, StreamedAnswer, WholeAnswer
from app.upstream.body import ERROR_BODY_BYTES
from app.upstream.call import Call, current_call
from app.upstream.decoder import ChunkDecoder
from app.upstream.framing import BadFraming
from app.upstream.interface import Answer, Forwarded, Model, Question
from app.upstream.parameters import Parameters
from app.upstream.rate_limits import rate_limits_of
from app.upstream.recorder import Recorder
from app.upstream.reports import ReportReader
from app.upstream.transport import Transport

__all__ = ["OpenAIUpstream"]

OPENAI_URL = "https://api.openai.com/v1"

MOST_MODELS = 500
"""For how many models it is remembered what their servers refuse. Clients may be allowed to name any model."""

MODELS_SECONDS = 10.0
"""How long the list of models may take."""

EVENTS, JSON = "text/event-stream", "application/json"


class OpenAIUpstream:
    """A server that speaks OpenAI's chat completions. It is an `Upstream`."""

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str,
        transport: httpx2.BaseTransport | None = None,
        is_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """`base_url` "" means OpenAI's own. Tests pass a `transport` that respx has mocked.

        `is_ready` tells whether the model's server can answer. Without it nothing is asked: an outage of a remote
        server must not take down resumes and the page.
        """
        self._is_ready = is_ready
        self._to_openai = base_url in ("", OPENAI_URL)
        self._parameters: OrderedDict[str, Parameters] = OrderedDict()  # by model, the last used one at the end
        self._lock = threading.Lock()
        self._arriving = Arriving()
        self._transport = transport or Transport(secure=not base_url.startswith("http:"))
        self._sdk = sdk.OpenAI(
            base_url=base_url or OPENAI_URL,
            api_key=api_key or "none",
            http_client=httpx2.Client(transport=self._transport, trust_env=False),
            default_headers={
                "Accept": EVENTS,
                "Accept-Encoding": "identity",  # The raw bytes are decoded here, so they must not be packed.
            },
        )
        self._url = self._sdk.base_url.join("chat/completions")
        # Without a key no Authorization is sent: the SDK's placeholder is no key.
        headers = {
            name: value
            for name, value in ((self._sdk.auth_headers if api_key else {}) | self._sdk.default_headers).items()
            if isinstance(value, str)
        }
        self._headers = httpx2.Request("POST", self._url, headers=headers).headers  # with Host
        self._reports = ReportReader(
            secrets=[api_key, self._url.password], hosts=[self._url.host, self._url.raw_host.decode("ascii")]
        )
        self._bare = httpx2.Request("POST", self._url)  # for errors: they must not keep the question

    def ask(self, question: Question | Forwarded, call: Call) -> Answer:
        token = current_call.set(call)
        try:
            if isinstance(question, Forwarded):
                response = self._forward(question)
            else:
                response = self._post_learning(question)
        finally:
            current_call.reset(token)
        is_streamed = isinstance(question, Question) or question.is_streamed
        try:
            if _is_packed(response):
                raise errors.UpstreamError(
                    "The model's server compressed its answer (Content-Encoding), although the request does not allow "
                    "that. The operator can switch compression off there, or in the proxy in front of it."
                )
            kind = response.headers.get("content-type", "").lower().partition(";")[0].strip()
            if is_streamed and not kind.startswith(EVENTS):
                raise errors.UpstreamError("The model's server did not answer with an event stream.")
            if not is_streamed and kind != JSON and not kind.endswith("+json"):
                raise errors.UpstreamError("The model's server did not answer with JSON.")
        except errors.UpstreamError as error:
            error.rate_limits = rate_limits_of(response.headers)
            response.close()
            raise
        if isinstance(question, Question):
            return StreamedAnswer(response, ChunkDecoder())
        mapped = partial(failures.from_report_for_client, reader=self._reports)
        if not is_streamed:
            return WholeAnswer(response, question.completion_id, mapped, self._arriving)
        recorder = Recorder(question.completion_id, choices=question.choices, keeps_usage=question.keeps_usage)
        return StreamedAnswer(response, recorder, mapped)

    def _forward(self, request: Forwarded) -> httpx2.Response:
        """Post a client's own request, and post it again without each of our additions that the server does not know.

        The server may quote the client where it seems to refuse an addition. So nothing is learned for other requests
        unless this request is accepted without the addition.
        """
        parameters = self._parameters_of(request.model)
        tried = parameters.copy()
        learned: list[str] = []
        sent = request.write(tried.left_out)
        while True:
            try:
                response = self._post(sent, accept=EVENTS if request.is_streamed else JSON)
            except sdk.OpenAIError as error:
                refused = failures.refused_parameter(error)
                if refused:
                    tried.learn(refused)
                if not refused or (again := request.write(tried.left_out)) == sent:
                    raise failures.from_sdk_for_client(error, self._reports) from error
                sent = again
                learned.append(refused)
            else:
                for refused in learned:
                    parameters.learn(refused)
                return response

    def models(self) -> list[Model]:
        request = httpx2.Request("GET", self._sdk.base_url.join("models"), headers=self._headers)
        request.headers["Accept"] = JSON
        call = Call()
        late = threading.Timer(MODELS_SECONDS, call.cancel)
        late.start()
        token = current_call.set(call)
        body = bytearray()
        try:
            with contextlib.closing(self._transport.handle_request(request)) as response:
                if response.status_code >= 300:
                    raise failures.from_status(response.status_code, None, response.headers)
                assert isinstance(response.stream, httpx2.SyncByteStream)
                for piece in response.stream:
                    body += piece
                    if len(body) > models.MOST_BYTES:
                        raise ValueError
            return models.read_models(bytes(body))
        except httpx2.TransportError as error:
            raise errors.UpstreamUnavailable("The model's server did not tell its models.") from error
        except ValueError as error:
            raise errors.UpstreamError("The model's server did not answer with a list of models.") from error
        finally:
            current_call.reset(token)
            late.cancel()

    def _post_learning(self, question: Question) -> httpx2.Response:
        """Post the question, and post it again without each parameter that the server does not know."""
        parameters = self._parameters_of(question.model)
        while True:
            sent = parameters.body(question)
            try:
                return self._post(msgspec.json.encode(sent))
            except sdk.OpenAIError as error:
                refused = failures.refused_parameter(error)
                if refused:
                    parameters.learn(refused)
                # The question is asked again even if another question learned the same a moment before. A refusal of
                # this kind costs nothing, and does not count as an attempt.
                if not refused or parameters.body(question) == sent:
                    raise failures.from_sdk(error) from error

    def _post(self, content: bytes, *, accept: str = EVENTS) -> httpx2.Response:
        """Post as the SDK does, and raise the SDK's errors, without the SDK's layers in between.

        Those layers build the request anew, and decide on retries, which are decided here. They cost as much as
        everything else in a request (load/PROFILE.md).
        """
        request = httpx2.Request("POST", self._url, headers=self._headers, stream=httpx2.ByteStream(content))
        request.headers["Content-Length"] = str(len(content))
        request.headers["Accept"] = accept
        try:
            response = self._transport.handle_request(request)
        except httpx2.TimeoutException as error:
            raise sdk.APITimeoutError(self._bare) from error
        except httpx2.RemoteProtocolError as error:  # The question may have been paid for: no retry.
            why = f": {error.__cause__}" if isinstance(error.__cause__, BadFraming) else ""
            raise errors.UpstreamError(f"The model's server did not send a valid HTTP answer{why}.") from error
        except httpx2.TransportError as error:
            raise sdk.APIConnectionError(request=self._bare) from error
        if response.status_code >= 300:
            raise self._refusal(response)
        return response  # The response knows no request, so nothing keeps the question while it is answered.

    def _refusal(self, response: httpx2.Response) -> sdk.APIStatusError:
        """Read the text of an error, raw and within bounds. The status stands even if the text cannot be read."""
        content = bytearray()
        with contextlib.closing(response), contextlib.suppress(httpx2.TransportError):
            assert isinstance(response.stream, httpx2.SyncByteStream)
            for piece in response.stream:
                content += piece
                if len(content) > ERROR_BODY_BYTES:
                    break
        body = None if _is_packed(response) else failures.read_body(bytes(content[:ERROR_BODY_BYTES]))
        response.request = self._bare
        response.extensions[failures.SAID] = body
        return self._sdk._make_status_error(f"Error code: {response.status_code}", body=body, response=response)

    def _parameters_of(self, model: str) -> Parameters:
        with self._lock:
            if model not in self._parameters:
                self._parameters[model] = Parameters("max_completion_tokens" if self._to_openai else "max_tokens")
                if len(self._parameters) > MOST_MODELS:
                    self._parameters.popitem(last=False)
            self._parameters.move_to_end(model)
            return self._parameters[model]

    def ready(self) -> bool:
        return self._is_ready()

    def sweep(self, now: float) -> None:
        """Close kept connections that are no longer of use. Units: monotonic seconds."""
        if isinstance(self._transport, Transport):
            self._transport.sweep(now)

    def close(self) -> None:
        self._sdk.close()


def _is_packed(response: httpx2.Response) -> bool:
    codings = response.headers.get("content-encoding", "").lower().split(",")
    return any(coding.strip() not in ("", "identity") for coding in codings)
