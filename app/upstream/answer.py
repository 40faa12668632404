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
from app.upstream.recorder import whole_answer

__all__ = ["Arriving", "StreamedAnswer", "WholeAnswer"]


Mapped = Callable[[object], errors.UpstreamError]
"""Maps an error that the upstream reported in its answer."""

MOST_BODY_BYTES = 16 * 1_048_576
"""How large an answer may be that is not streamed."""

MOST_ARRIVING_BYTES = 4 * MOST_BODY_BYTES
"""How much all answers that are not streamed hold while they arrive, beside what is free."""

FREE_BODY_BYTES = 65_536
"""So much of each answer is not counted there. So a few large answers keep no small one away."""


class Decoder(Protocol):
    """Makes parts of the data of events."""

    def decode(self, data: bytes) -> Part:
        """Raises: BrokenStream, ErrorReported."""

    def pending(self) -> Part | None: ...


class StreamedAnswer:
    """The event stream of one response. It is an `Answer`."""

    def __init__(self, response: httpx2.Response, decoder: Decoder, mapped: Mapped = failures.from_report) -> None:
        self._response = response
        self._split = EventSplitter().feed
        self._decoder = decoder
        self._mapped = mapped
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

        with _as_our_own(self._mapped):
            return _received(self._response, arrived)

    def pending(self) -> Part | None:
        return self._decoder.pending()

    def close(self) -> None:
        self._response.close()


class Arriving:
    """What the answers of one worker that are not streamed hold together while they arrive."""

    def __init__(self) -> None:
        self.held_bytes = 0

    def hold(self, count: int) -> None:
        """Raises: Overloaded."""
        if self.held_bytes + count > MOST_ARRIVING_BYTES:
            raise errors.Overloaded("The server has no memory left for so large an answer.", retry_after_seconds=5)
        self.held_bytes += count

    def release(self, count: int) -> None:
        self.held_bytes -= count


class WholeAnswer:
    """The JSON of one response that is not streamed. It is an `Answer` of one part, and of signs of life before it."""

    def __init__(self, response: httpx2.Response, completion_id: str, mapped: Mapped, arriving: Arriving) -> None:
        self._response = response
        self._completion_id = completion_id
        self._mapped = mapped
        self._arriving = arriving
        self._counted = 0
        self._body = bytearray()  # The buffer grows in place: many pieces cost no copies.
        self.rate_limits = rate_limits_of(response.headers)

    def receive(self, take: Callable[[Sequence[Part]], bool]) -> bool:
        is_wanted = True

        def arrived(received: bytes) -> bool:
            nonlocal is_wanted
            if len(self._body) + len(received) > MOST_BODY_BYTES:
                raise BrokenStream("it is larger than 16 MiB")
            more = len(self._body) + len(received) - FREE_BODY_BYTES - self._counted
            if more > 0:
                self._arriving.hold(more)
                self._counted += more
            self._body += received
            is_wanted = take([])
            return is_wanted

        with _as_our_own(self._mapped):
            if _received(self._response, arrived) or not is_wanted:
                return True
            body, self._body = bytes(self._body), bytearray()
            part = whole_answer(body, self._completion_id)
        take([part])
        return False

    def pending(self) -> Part | None:
        return None

    def close(self) -> None:
        self._arriving.release(self._counted)
        self._counted = 0
        self._response.close()


def _received(response: httpx2.Response, arrived: Callable[[bytes], bool]) -> bool:
    """Give the bytes of a response to `arrived`, as `Answer.receive` says."""
    body: Body | None = response.extensions.get(BODY)
    if body is not None:
        return body.receive(arrived)
    return not all(map(arrived, response.iter_raw()))  # a transport of the tests' own


@contextmanager
def _as_our_own(mapped: Mapped) -> Iterator[None]:
    """Raises: errors.UpstreamError for what goes wrong inside the block."""
    try:
        yield
    except BrokenStream as error:
        raise errors.UpstreamError(f"The model's server sent something other than an answer: {error}.") from None
    except ErrorReported as report:
        raise mapped(report.error) from None
    except httpx2.TransportError as error:
        raise errors.UpstreamError("The connection to the model's server broke.") from error
