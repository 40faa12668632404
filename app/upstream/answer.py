"""An answer under way: bytes in, parts out, failures as our own errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import httpx2

from app import errors
from app.upstream import failures
from app.upstream.body import BODY, Body
from app.upstream.decoder import BrokenStream, ErrorReported, EventSplitter
from app.upstream.interface import Part
from app.upstream.rate_limits import rate_limits_of
from app.upstream.recorder import MOST_RAW_BYTES, whole_answer

__all__ = ["StreamedAnswer", "WholeAnswer"]


class Decoder(Protocol):
    """Makes parts of the data of events. `is_clients_own`: the client gets to know what the upstream says."""

    is_clients_own: bool

    def decode(self, data: bytes) -> Part:
        """Raises: BrokenStream, ErrorReported."""

    def pending(self) -> Part | None: ...


class StreamedAnswer:
    """The event stream of one response. It is an `Answer`."""

    def __init__(self, response: httpx2.Response, decoder: Decoder) -> None:
        self._response = response
        self._split = EventSplitter().feed
        self._decoder = decoder
        self.rate_limits = rate_limits_of(response.headers)

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

        return _received(self._response, arrived, is_clients_own=self._decoder.is_clients_own)

    def pending(self) -> Part | None:
        return self._decoder.pending()

    def close(self) -> None:
        self._response.close()


class WholeAnswer:
    """The JSON of one response that was not streamed. It is an `Answer` of one part."""

    def __init__(self, response: httpx2.Response, completion_id: str) -> None:
        self._response = response
        self._completion_id = completion_id
        self._body = bytearray()
        self.rate_limits = rate_limits_of(response.headers)

    def receive(self, take: Callable[[Sequence[Part]], bool]) -> bool:
        def arrived(received: bytes) -> bool:
            self._body += received
            if len(self._body) > MOST_RAW_BYTES:
                raise BrokenStream("it is too large")
            return take([])  # a sign of life

        more = _received(self._response, arrived, is_clients_own=True)
        if not more and self._body:
            body, self._body = bytes(self._body), bytearray()
            with _as_our_own(is_clients_own=True):
                part = whole_answer(body, self._completion_id)
            take([part])
        return more

    def pending(self) -> None:
        return None

    def close(self) -> None:
        self._response.close()


def _received(response: httpx2.Response, arrived: Callable[[bytes], bool], *, is_clients_own: bool) -> bool:
    """Give the bytes of a response to `arrived`, as `Answer.receive` says."""
    body: Body | None = response.extensions.get(BODY)
    with _as_our_own(is_clients_own=is_clients_own):
        if body is not None:
            return body.receive(arrived)
        return not all(map(arrived, response.iter_raw()))  # a transport of the tests' own


@contextmanager
def _as_our_own(*, is_clients_own: bool) -> Iterator[None]:
    """Raises: errors.UpstreamError for what goes wrong inside the block."""
    try:
        yield
    except BrokenStream as error:
        raise errors.UpstreamError(f"The model's server sent something other than an answer: {error}.") from None
    except ErrorReported as report:
        mapped = failures.from_report_for_client if is_clients_own else failures.from_report
        raise mapped(report.error) from None
    except httpx2.TransportError as error:
        raise errors.UpstreamError("The connection to the model's server broke.") from error
