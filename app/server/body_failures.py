"""Why a body cannot be read, in words for its sender."""

from __future__ import annotations

from app import errors
from app.server.chunks import MEAN_CHUNK_BYTES, Crumbs

__all__ = ["displaced", "encoded", "late", "too_large", "too_short", "unreadable"]

_REASONS = {
    "NoMoreData": "The connection broke before the body was complete.",
    "InvalidChunkSize": "The body cannot be read: a chunk's size is not a hexadecimal number.",
    "InvalidChunkExtension": "The body cannot be read: a chunk extension is malformed.",
    "ChunkMissingTerminator": "The body cannot be read: a chunk has the wrong length, or the last chunk is missing.",
    "InvalidHeader": "The body cannot be read: its trailers are malformed.",
    "InvalidHeaderName": "The body cannot be read: its trailers are malformed.",
    "LimitRequestHeaders": "The body cannot be read: its trailers are too long.",
}
"""The keys are names of gunicorn's exceptions. An import of the exceptions would load gunicorn."""


def too_large(at_most: int) -> errors.BodyTooLarge:
    """Units: bytes."""
    return errors.BodyTooLarge(f"The body is larger than {at_most} bytes, the limit of this server.")


def too_short() -> errors.InvalidJson:
    return errors.InvalidJson("The body is shorter than its Content-Length.")


def encoded() -> errors.InvalidJson:
    return errors.InvalidJson("This server does not support the Transfer-Encoding of the body.")


def displaced() -> errors.RequestTimeout:
    return errors.RequestTimeout("The body stopped arriving, and other requests needed its memory.")


def late(seconds: float) -> errors.RequestTimeout:
    return errors.RequestTimeout(f"The body was not complete after {seconds:g} seconds.")


def unreadable(error: Exception) -> errors.ChatError:
    """Translate what gunicorn's parser or the connection raised during a read."""
    if not isinstance(error, Crumbs):
        is_connection = isinstance(error, OSError)
        reason = (
            "The connection broke before the body was complete." if is_connection else "The body could not be read."
        )
        return errors.InvalidJson(_REASONS.get(type(error).__name__, reason))
    needed = f"Send a Content-Length, or chunks of at least {MEAN_CHUNK_BYTES} bytes."
    return errors.InvalidRequest("The body has too many small chunks.", fields={"body": [needed]})
