"""A streamed answer under way: bytes in, parts out, failures as our own errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import httpx2

from app import errors
from app.upstream import failures
from app.upstream.body import BODY, Body
from app.upstream.decoder import BrokenStream, ChunkDecoder, ErrorReported, EventSplitter
from app.upstream.interface import Part

__all__ = ["StreamedAnswer"]

_RATE_LIMIT = re.compile(r"x-ratelimit-[a-z0-9-]{1,40}")
_HARMLESS = re.compile(r"[0-9A-Za-z.:]{1,32}")


class StreamedAnswer:
    """The event stream of one response. It is an `Answer`."""

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
            return not all(map(arrived, self._response.iter_raw()))  # a transport of the tests' own
        except BrokenStream as error:
            raise errors.UpstreamError(f"The model's server sent something other than an answer: {error}.") from None
        except ErrorReported as report:
            raise failures.from_report(report.error) from None
        except httpx2.TransportError as error:
            raise errors.UpstreamError("The connection to the model's server broke.") from error

    def pending(self) -> Part | None:
        half = self._decoder.pending()
        return Part(half) if half else None

    def close(self) -> None:
        self._response.close()
