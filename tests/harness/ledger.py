"""Keep what the scripted upstream was asked, and let a test wait for what becomes of it."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.harness.net import Watch, now


@dataclass(eq=False)
class RequestRecord:
    """Keep what was asked and what became of it. Units: times are `time.monotonic()`.

    Times are noted just before the bytes are written: whoever has received something finds it in the ledger.
    """

    number: int
    at: float
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    json: Any
    connection: int
    watch: Watch = field(repr=False)
    tokens: list[tuple[str, float]] = field(default_factory=list)
    answered_at: float | None = None
    finished_at: float | None = None
    peer_closed_at: float | None = None
    _awaited: list[tuple[int, int, threading.Event]] = field(default_factory=list, repr=False)
    _awaiting: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def wait_closed(self, timeout: float = 5.0) -> float:
        """Wait until the peer has closed the connection of this request, and tell when that was."""
        self._wait(lambda: self.peer_closed_at is not None, timeout, "the peer to close its connection")
        assert self.peer_closed_at is not None
        return self.peer_closed_at

    def wait_finished(self, timeout: float = 5.0) -> float:
        """Wait until the script has been played to its end, and tell when that was."""
        self._wait(lambda: self.finished_at is not None, timeout, "its script to end")
        assert self.finished_at is not None
        return self.finished_at

    def wait_tokens(self, count: int, timeout: float = 5.0) -> None:
        """Wait until so many tokens have been sent."""
        # Not by the watch: it would wake each of fifty that wait for each of a thousand tokens.
        sent = threading.Event()
        with self._awaiting:
            heapq.heappush(self._awaited, (count, id(sent), sent))
        if len(self.tokens) < count and not sent.wait(timeout):
            raise TimeoutError(f"waited {timeout:g} s for {self._how_far(f'{count} tokens')}")

    def note_token(self, text: str) -> None:
        """Note a token that is about to be sent, and wake those who waited for it."""
        self.tokens.append((text, now()))
        if self._awaited:
            with self._awaiting:
                while self._awaited and self._awaited[0][0] <= len(self.tokens):
                    heapq.heappop(self._awaited)[2].set()

    def _how_far(self, what: str) -> str:
        return f"{what}; request {self.number} has {len(self.tokens)} tokens out"

    def _wait(self, predicate: Callable[[], bool], timeout: float, what: str) -> None:
        self.watch.wait_until(predicate, timeout=timeout, what=lambda: self._how_far(what))
