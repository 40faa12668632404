"""Every failure that a client can meet, as one tree of exceptions. Standard library only.

    ChatError                         error_code, status, message, detail, action, origin, retryable
    ├── ClientError                   origin: client
    │   ├── InvalidJson               400 invalid_json
    │   ├── InvalidRequest            400 invalid_request, with fields
    │   ├── MessageEmpty              400 message_empty
    │   ├── MessageTooLong            400 message_too_long
    │   ├── ContextTooLong            400 context_too_long
    │   ├── ModelNotAllowed           400 model_not_allowed
    │   ├── HostNotAllowed            400 host_not_allowed
    │   ├── OriginNotAllowed          403 origin_not_allowed
    │   ├── CursorMalformed           400 cursor_malformed
    │   ├── CursorForeign             400 cursor_foreign
    │   ├── CursorAhead               409 cursor_ahead
    │   ├── Cancelled                 409 cancelled
    │   ├── StreamUnknown             404 stream_unknown
    │   ├── StreamExpired             410 stream_expired
    │   ├── IdempotencyKeyReused      422 idempotency_key_reused
    │   ├── NotFound                  404 not_found
    │   ├── MethodNotAllowed          405 method_not_allowed
    │   ├── RequestTimeout            408 request_timeout
    │   ├── BodyTooLarge              413 body_too_large
    │   └── UnsupportedMediaType      415 unsupported_media_type
    ├── ServiceError                  origin: service
    │   ├── Overloaded                503 overloaded, with Retry-After
    │   ├── ShuttingDown              503 shutting_down, with Retry-After
    │   ├── StoreUnavailable          503 store_unavailable, with Retry-After
    │   ├── ProducerLost              503 producer_lost
    │   └── InternalError             500 internal_error
    └── UpstreamError                 origin: upstream; itself 502 upstream_error
        ├── UpstreamRefused           502 upstream_refused, or the upstream's status
        ├── UpstreamUnavailable       503 upstream_unavailable
        ├── UpstreamRateLimited       429 upstream_rate_limited
        ├── UpstreamAuthFailed        502 upstream_auth_failed
        ├── ContentFiltered           502 content_filtered
        ├── PromptRefusedAsTooLong    400 context_too_long
        └── UpstreamTimeout           504 upstream_timeout

No text holds a stack trace, a host name, a key, a stream id or the upstream's own words, but for those of `Reported`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NamedTuple

__all__ = ["ChatError", "Failure", "Reported"]  # code that raises the others says `errors.MessageEmpty`


class Reported(NamedTuple):
    """What the upstream said of a request, redacted. `message` has at most 1,000 characters, the others at most 100."""

    status: int
    message: str
    type: str | None = None
    param: str | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a value. A log stores it, and a dialect writes it. Units: `retry_after_seconds` in whole seconds."""

    error_code: str
    message: str
    detail: str
    action: str
    origin: str
    retryable: bool
    retry_after_seconds: int | None = None
    fields: dict[str, list[str]] | None = None
    reported: Reported | None = None


class ChatError(Exception):
    """A failure in three parts: what happened (`message`), why (`detail`), what to do now (`action`)."""

    error_code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    message: ClassVar[str] = "Something went wrong on this server."
    why: ClassVar[str] = "The server ran into an unexpected problem."
    action: ClassVar[str] = "Try again. If it happens again, give the operator the correlation id."
    origin: ClassVar[str] = "service"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str | None = None,
        *,
        retry_after_seconds: int | None = None,
        fields: dict[str, list[str]] | None = None,
        allow: tuple[str, ...] = (),
    ) -> None:
        """Units: `retry_after_seconds` in whole seconds. `allow` is the Allow header of a 405."""
        super().__init__(detail or self.why)
        self.detail = detail or self.why
        self.retry_after_seconds = retry_after_seconds
        self.fields = fields or None
        self.allow = allow
        self.reported: Reported | None = None

    @property
    def failure(self) -> Failure:
        """The error as a value."""
        return Failure(**{name: getattr(self, name) for name in Failure.__slots__})


class ClientError(ChatError):
    status = 400
    origin = "client"


class InvalidJson(ClientError):
    error_code = "invalid_json"
    message = "The request is not valid JSON."
    why = "The body could not be read as JSON."
    action = "Send one JSON object in UTF-8."


class InvalidRequest(ClientError):
    error_code = "invalid_request"
    message = "The request does not have the expected form."
    why = "One or more fields are not valid."
    action = "Correct the fields that `fields` lists. The contract at /openapi.yaml describes every field."


class MessageEmpty(ClientError):
    error_code = "message_empty"
    message = "The message is empty."
    why = "The message contains nothing but white space."
    action = "Write a message and send it again."


class MessageTooLong(ClientError):
    error_code = "message_too_long"
    message = "The message is too long."
    why = "The message is longer than this server accepts."
    action = "Shorten the message, or send it in parts."


class ContextTooLong(ClientError):
    error_code = "context_too_long"
    message = "The conversation is too long."
    why = "The message and the context together have more tokens than this server accepts."
    action = "Leave out the oldest messages of the context, or start a new conversation."


class ModelNotAllowed(ClientError):
    error_code = "model_not_allowed"
    message = "This model is not available on this server."
    why = "This server does not offer the requested model."
    action = "Choose a model that GET /models lists."


class HostNotAllowed(ClientError):
    error_code = "host_not_allowed"
    message = "This server does not accept that host name."
    why = "The Host header names a host that is not in ALLOWED_HOSTS."
    action = "Use a host name that the operator allows, or ask the operator to add yours to ALLOWED_HOSTS."


class OriginNotAllowed(ClientError):
    error_code = "origin_not_allowed"
    status = 403
    message = "Pages from that origin may not use this server."
    why = "The request comes from a web page whose origin is not in CORS_ORIGINS."
    action = "Use this server's own page, or ask the operator to add the origin to CORS_ORIGINS."


class CursorMalformed(ClientError):
    error_code = "cursor_malformed"
    message = "The cursor is malformed."
    why = "A cursor is the id of an event: a stream id, a dot and a number."
    action = "Send the id of the last event that you received, unchanged. Send no cursor to start at the beginning."


class CursorForeign(ClientError):
    error_code = "cursor_foreign"
    message = "The cursor belongs to another stream."
    why = "The stream id in the cursor differs from the one in the address."
    action = "Request the stream that the cursor came from, or send no cursor."


class CursorAhead(ClientError):
    error_code = "cursor_ahead"
    status = 409
    message = "The cursor is ahead of the stream."
    why = "The number in the cursor is higher than that of the stream's last event."
    action = "Send the id of the last event that you received. Send no cursor to start at the beginning."


class Cancelled(ClientError):
    """The answer was stopped. Only clients of OpenAI's get this as an error, because their shape has no word for it."""

    error_code = "cancelled"
    status = 409
    message = "The answer was cancelled."
    why = "The answer was stopped before its end."
    action = "Keep the text that you have received. A new request brings the whole answer."


class StreamUnknown(ClientError):
    error_code = "stream_unknown"
    status = 404
    message = "There is no such stream."
    why = "The server has no stream with this id. The server may have restarted since the stream began."
    action = "Keep the text that you have received. Send the message again if you need the rest."


class StreamExpired(ClientError):
    error_code = "stream_expired"
    status = 410
    message = "The stream is no longer available."
    why = "The stream ended a while ago, and the server no longer keeps its text."
    action = "Keep the text that you have received. Send the message again if you need the rest."


class IdempotencyKeyReused(ClientError):
    error_code = "idempotency_key_reused"
    status = 422
    message = "The idempotency key was already used for a different request."
    why = "A key belongs to one request, and this request differs from the first one."
    action = "Use a new key for a new request."


class NotFound(ClientError):
    error_code = "not_found"
    status = 404
    message = "There is nothing at this address."
    why = "No route matches this path."
    action = "See the list of addresses at /docs."


class MethodNotAllowed(ClientError):
    error_code = "method_not_allowed"
    status = 405
    message = "This address does not support that method."
    why = "The address exists, but only for other methods."
    action = "Use one of the methods in the Allow header."


class RequestTimeout(ClientError):
    error_code = "request_timeout"
    status = 408
    message = "The request took too long to arrive."
    why = "The body was not complete in time."
    action = "Send the request again over a faster connection."
    retryable = True


class BodyTooLarge(ClientError):
    error_code = "body_too_large"
    status = 413
    message = "The request is too large."
    why = "The body is larger than this server accepts."
    action = "Shorten the message, or leave out the oldest messages of the context."


class UnsupportedMediaType(ClientError):
    error_code = "unsupported_media_type"
    status = 415
    message = "This server does not support that content type."
    why = "The Content-Type is not application/json."
    action = "Send JSON with `Content-Type: application/json`."


class ServiceError(ChatError):
    origin = "service"


class Overloaded(ServiceError):
    error_code = "overloaded"
    status = 503
    message = "The server is busy."
    why = "The server is handling as many conversations as it can."
    action = "Try again in a few seconds."
    retryable = True


class ShuttingDown(ServiceError):
    error_code = "shutting_down"
    status = 503
    message = "The server is stopping."
    why = "The server is being stopped or restarted, and accepts no new requests."
    action = "Try again in a few seconds."
    retryable = True


class StoreUnavailable(ServiceError):
    error_code = "store_unavailable"
    status = 503
    message = "The server cannot reach its storage."
    why = "The storage that all server processes share does not respond right now."
    action = "Try again in a few seconds. The text that you have received is not lost."
    retryable = True


class ProducerLost(ServiceError):
    error_code = "producer_lost"
    status = 503
    message = "The answer was interrupted."
    why = "The server process that received the answer from the model has stopped. No other process can finish it."
    action = "Keep the text that you have received. Ask again for the rest."
    retryable = True


class InternalError(ServiceError):
    retryable = True


class UpstreamError(ChatError):
    error_code = "upstream_error"
    status = 502
    message = "The model's answer could not be used."
    why = "The model's server stopped too early, or sent something other than an answer."
    action = "Ask again. If it happens again, give the operator the correlation id."
    origin = "upstream"
    retryable = True
    rate_limits: Mapping[str, str] = MappingProxyType({})
    """The x-ratelimit-* headers that came with it."""


class UpstreamRefused(UpstreamError):
    error_code = "upstream_refused"
    message = "The model's server refused the request."
    why = "The model's server does not accept a request of this form."
    action = "Change the request as the error of the model's server says."
    retryable = False


class UpstreamUnavailable(UpstreamError):
    error_code = "upstream_unavailable"
    status = 503
    message = "The model cannot be reached right now."
    why = "The model's server does not respond, or reports a failure."
    action = "Try again in a minute."


class UpstreamRateLimited(UpstreamError):
    error_code = "upstream_rate_limited"
    status = 429
    message = "The model accepts no more requests right now."
    why = "The rate limit of the model's server is reached."
    action = "Wait a moment, then ask again."


class UpstreamAuthFailed(UpstreamError):
    error_code = "upstream_auth_failed"
    status = 502
    message = "The model's server rejected this server's key."
    why = "The key that the operator configured is missing or wrong, or may not use this model."
    action = "Ask the operator to correct OPENAI_API_KEY, OPENAI_BASE_URL or the model."
    retryable = False


class ContentFiltered(UpstreamError):
    error_code = "content_filtered"
    status = 502
    message = "The model's provider refused this request."
    why = "The provider's content policy does not allow the request."
    action = "Change the wording of the message and ask again."
    retryable = False


class PromptRefusedAsTooLong(UpstreamError):
    error_code = "context_too_long"
    status = 400
    message = "The conversation is too long."
    why = "The message and the context together are longer than the model can read."
    action = "Leave out the oldest messages of the context, or start a new conversation."
    retryable = False


class UpstreamTimeout(UpstreamError):
    error_code = "upstream_timeout"
    status = 504
    message = "The model took too long."
    why = "The model's server sent nothing for too long."
    action = "Ask again, or ask for a shorter answer."


def walk(root: type[ChatError] = ChatError) -> list[type[ChatError]]:
    """List every error class that a client can meet."""
    found = [] if root in (ChatError, ClientError, ServiceError) else [root]
    for child in root.__subclasses__():
        found += walk(child)
    return found


_STATUS = {kind.error_code: kind.status for kind in walk()}


def status_of(error_code: str) -> int:
    """Return the HTTP status of an error code. Raises: KeyError."""
    return _STATUS[error_code]
