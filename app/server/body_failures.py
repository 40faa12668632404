"""Why a body cannot be read, in words for its sender."""

from __future__ import annotations

from app import errors
from app.server.chunks import MEAN_CHUNK_BYTES, Crumbs

__all__ = ["displaced", "encoded", "late", "too_large", "too_short", "unreadable"]

_REASONS = {
    "NoMoreData": "The body broke off.",
    "InvalidChunkSize": "The body cannot be read: a chunk's size is not a hexadecimal number.",
    "InvalidChunkExtension": "The body cannot be read: what follows a chunk's size is malformed.",
    "ChunkMissingTerminator": "The body cannot be read: a chunk is not as long as it says, or the last one is missing.",
    "InvalidHeader": "The body cannot be read: its trailers are malformed.",
    "InvalidHeaderName": "The body cannot be read: its trailers are malformed.",
    "LimitRequestHeaders": "The body cannot be read: its trailers are too long.",
}
"""The keys are names of gunicorn's exceptions. An import of the exceptions would load gunicorn."""


def too_large(at_most: int) -> errors.BodyTooLarge:
    """Units: bytes."""
    return errors.BodyTooLarge(f"It is larger than {at_most} bytes, the most this server takes.")


def too_short() -> errors.InvalidJson:
    return errors.InvalidJson("The body ended before its announced length.")


def encoded() -> errors.InvalidJson:
    return errors.InvalidJson("The body is encoded for its transfer, in a way that this server does not read.")


def displaced() -> errors.RequestTimeout:
    return errors.RequestTimeout("It had stopped coming, and others needed its room.")


def late(seconds: float) -> errors.RequestTimeout:
    return errors.RequestTimeout(f"It was not complete after {seconds:g} seconds.")


def unreadable(error: Exception) -> errors.ChatError:
    """Translate what gunicorn's parser or the connection raised during a read."""
    if not isinstance(error, Crumbs):
        is_connection = isinstance(error, OSError)
        reason = "The connection broke off in the body." if is_connection else "The body could not be read."
        return errors.InvalidJson(_REASONS.get(type(error).__name__, reason))
    needed = f"Needs a Content-Length, or chunks of {MEAN_CHUNK_BYTES} bytes or more."
    return errors.InvalidRequest("The body is cut into too many small chunks.", fields={"body": [needed]})
