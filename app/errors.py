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
        ├── UpstreamUnavailable       503 upstream_unavailable
        ├── UpstreamRateLimited       429 upstream_rate_limited
        ├── UpstreamAuthFailed        502 upstream_auth_failed
        ├── ContentFiltered           502 content_filtered
        ├── PromptRefusedAsTooLong    400 context_too_long
        └── UpstreamTimeout           504 upstream_timeout

No text holds a stack trace, a host name, a key, a stream id or the upstream's own words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

__all__ = ["ChatError", "Failure"]  # code that raises the others says `errors.MessageEmpty`


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a value. A log stores it, and a dialect writes it.

    Units: `retry_after_seconds` in whole seconds.
    """

    error_code: str
    message: str
    detail: str
    action: str
    origin: str
    retryable: bool
    retry_after_seconds: int | None = None
    fields: dict[str, list[str]] | None = None


class ChatError(Exception):
    """A failure in three parts: what happened (`message`), why (`detail`), what to do now (`action`)."""

    error_code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    message: ClassVar[str] = "Something went wrong here."
    why: ClassVar[str] = "The server met a fault of its own."
    action: ClassVar[str] = "Try again; if it happens again, tell the operator the correlation id."
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
        self.fields = fields
        self.allow = allow

    @property
    def failure(self) -> Failure:
        """The error as a value."""
        return Failure(
            error_code=self.error_code,
            message=self.message,
            detail=self.detail,
            action=self.action,
            origin=self.origin,
            retryable=self.retryable,
            retry_after_seconds=self.retry_after_seconds,
            fields=self.fields or None,
        )


class ClientError(ChatError):
    origin = "client"


class InvalidJson(ClientError):
    error_code = "invalid_json"
    status = 400
    message = "The request is not valid JSON."
    why = "The body could not be read as JSON."
    action = 'Send one JSON object in UTF-8, such as {"message": "Hello"}.'


class InvalidRequest(ClientError):
    error_code = "invalid_request"
    status = 400
    message = "The request is not of the expected form."
    why = "One or more fields cannot be used as sent."
    action = "Correct what `fields` names; the contract at /openapi.yaml shows every field."


class MessageEmpty(ClientError):
    error_code = "message_empty"
    status = 400
    message = "The message is empty."
    why = "The message holds nothing but white space."
    action = "Write a message and send it again."


class MessageTooLong(ClientError):
    error_code = "message_too_long"
    status = 400
    message = "The message is too long."
    why = "The message is longer than this server takes."
    action = "Shorten the message, or send it in parts."


class ContextTooLong(ClientError):
    error_code = "context_too_long"
    status = 400
    message = "The conversation is too long."
    why = "Message and context together hold more tokens than this server takes."
    action = "Leave out the oldest messages of the context, or start a new conversation."


class ModelNotAllowed(ClientError):
    error_code = "model_not_allowed"
    status = 400
    message = "This model is not available here."
    why = "The model is not one of those that this server offers."
    action = "Choose one that GET /models lists, or leave `model` out."


class HostNotAllowed(ClientError):
    error_code = "host_not_allowed"
    status = 400
    message = "This server does not answer under that host name."
    why = "The Host header names a host that is not in ALLOWED_HOSTS."
    action = "Use a host name that the operator allows, or have it added to ALLOWED_HOSTS."


class OriginNotAllowed(ClientError):
    error_code = "origin_not_allowed"
    status = 403
    message = "Pages of that origin may not use this server."
    why = "The request comes from a web page whose origin is not in CORS_ORIGINS."
    action = "Open the page from this server, or have its origin added to CORS_ORIGINS."


class CursorMalformed(ClientError):
    error_code = "cursor_malformed"
    status = 400
    message = "The cursor cannot be read."
    why = "A cursor is the id of an event: a stream id, a dot and a number."
    action = "Send the id of the last event you received, unchanged, or none to start at the beginning."


class CursorForeign(ClientError):
    error_code = "cursor_foreign"
    status = 400
    message = "The cursor belongs to another stream."
    why = "The stream of the cursor is not the one that the address names."
    action = "Ask for the stream that the cursor came from, or send no cursor."


class CursorAhead(ClientError):
    error_code = "cursor_ahead"
    status = 409
    message = "The cursor is ahead of the stream."
    why = "The stream has not got that far; the cursor cannot have come from it."
    action = "Send the id of the last event you received, or none to start at the beginning."


class StreamUnknown(ClientError):
    error_code = "stream_unknown"
    status = 404
    message = "There is no such stream."
    why = "No stream of that id is known; the server may have been restarted since."
    action = "Keep what you have received, and send the message again if you need the rest."


class StreamExpired(ClientError):
    error_code = "stream_expired"
    status = 410
    message = "The stream is no longer kept."
    why = "It ended a while ago, and its text has been dropped from memory."
    action = "Keep what you have received, and send the message again if you need the rest."


class IdempotencyKeyReused(ClientError):
    error_code = "idempotency_key_reused"
    status = 422
    message = "The idempotency key was used for another request."
    why = "A key stands for one request, and this one differs from the first."
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
    message = "This address does not take that method."
    why = "The method is not one that this address answers."
    action = "Use a method that the Allow header names."


class RequestTimeout(ClientError):
    error_code = "request_timeout"
    status = 408
    message = "The request took too long to arrive."
    why = "The body was not complete in time."
    action = "Send it again over a better connection."
    retryable = True


class BodyTooLarge(ClientError):
    error_code = "body_too_large"
    status = 413
    message = "The request is too large."
    why = "The body is larger than this server takes."
    action = "Shorten the message or leave out the oldest messages of the context."


class UnsupportedMediaType(ClientError):
    error_code = "unsupported_media_type"
    status = 415
    message = "The request is not of a type that this server reads."
    why = "The Content-Type is not application/json."
    action = "Send JSON with `Content-Type: application/json`."


class ServiceError(ChatError):
    origin = "service"


class Overloaded(ServiceError):
    error_code = "overloaded"
    status = 503
    message = "The server is busy."
    why = "It is serving as many conversations as it can."
    action = "Try again in a few seconds."
    retryable = True


class ShuttingDown(ServiceError):
    error_code = "shutting_down"
    status = 503
    message = "The server is stopping."
    why = "It is being restarted or moved, and takes no new work."
    action = "Try again in a few seconds."
    retryable = True


class StoreUnavailable(ServiceError):
    error_code = "store_unavailable"
    status = 503
    message = "The server cannot reach its storage."
    why = "Streams are kept where all of its processes find them, and that does not answer right now."
    action = "Try again in a few seconds; what was read before is not lost."
    retryable = True


class ProducerLost(ServiceError):
    error_code = "producer_lost"
    status = 503
    message = "The answer was broken off here."
    why = "The process that received it from the model has stopped, and nobody can go on in its place."
    action = "Keep what you have received, and ask again for the rest."
    retryable = True


class InternalError(ServiceError):
    retryable = True


class UpstreamError(ChatError):
    error_code = "upstream_error"
    status = 502
    message = "The model's answer could not be used."
    why = "The model's server broke off or sent something that is no answer."
    action = "Ask again; if it happens again, tell the operator the correlation id."
    origin = "upstream"
    retryable = True


class UpstreamUnavailable(UpstreamError):
    error_code = "upstream_unavailable"
    status = 503
    message = "The model cannot be reached right now."
    why = "The model's server does not answer, or is failing."
    action = "Try again in a minute."


class UpstreamRateLimited(UpstreamError):
    error_code = "upstream_rate_limited"
    status = 429
    message = "The model is taking no more requests right now."
    why = "The model's server limits how much may be asked of it."
    action = "Wait a moment, then ask again."


class UpstreamAuthFailed(UpstreamError):
    error_code = "upstream_auth_failed"
    status = 502
    message = "The model refused this server's key."
    why = "The key that the operator configured is missing, wrong or not allowed to use this model."
    action = "Tell the operator: OPENAI_API_KEY, OPENAI_BASE_URL or the model must be corrected."
    retryable = False


class ContentFiltered(UpstreamError):
    error_code = "content_filtered"
    status = 502
    message = "The model's provider refused this request."
    why = "The provider's content policy does not allow it."
    action = "Change the wording of the message and ask again."
    retryable = False


class PromptRefusedAsTooLong(UpstreamError):
    error_code = "context_too_long"
    status = 400
    message = "The conversation is too long."
    why = "Message and context together are longer than the model can read."
    action = "Leave out the oldest messages of the context, or start a new conversation."
    retryable = False


class UpstreamTimeout(UpstreamError):
    error_code = "upstream_timeout"
    status = 504
    message = "The model took too long."
    why = "The model's server was silent for too long."
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
