"""Takes the parts of an answer into a log as they come, and remembers what else they tell: usage and finish reason."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Sequence
from enum import Enum, auto

from app import errors
from app.observability.chunk_log import ChunkLog
from app.streams.chunk import Chunk
from app.streams.interface import StreamLog, log_name
from app.tokens.usage import Usage, provider_usage
from app.upstream.interface import Part

__all__ = ["Intake", "Phase"]

_FINISH_REASON = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Phase(Enum):
    """How far an answer has come."""

    GOES_ON = auto()
    OVER = auto()
    """The answer is over. Only the end of its bytes is awaited."""
    UNWANTED = auto()
    """Nobody wants more of the answer, because its log has ended."""


_OVER = Phase.OVER
"""This name is read for every chunk. To find a member through its enum is slow."""


class Intake:
    """One answer's way into its log."""

    def __init__(self, log: StreamLog, *, started: float, room: int, stopped: threading.Event) -> None:
        """`room` is how long the answer may be. `stopped` is set when the generation is ended from outside.

        Units: `started` in monotonic seconds, `room` in characters.
        """
        self.phase = Phase.GOES_ON
        self.last_life = started
        """When the upstream last gave a sign of life. Units: monotonic seconds."""
        self.is_whole = False
        """The answer has its finish reason, and no text has come after that."""
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        """The provider's."""
        self.first_token_ms: int | None = None
        self._log = log
        self._started = started
        self._room = room
        self._stopped = stopped
        self._chunks = ChunkLog(
            stream=log_name(log.stream_id),
            correlation_id=log.origin.correlation_id,
            started=started,
            sizes=log.sizes,
        )

    def take(self, parts: Sequence[Part]) -> bool:
        """Take the parts that came. False when no more is wanted, and `phase` says why. Must not wait.

        Raises: UpstreamError when the answer is too long, Overloaded.
        """
        if self.phase is _OVER:
            return True  # so the connection can be kept; `check_tail` bounds the time
        if self._stopped.is_set():
            self.phase = Phase.UNWANTED  # parts that still come must not keep the call open
            return False
        now = time.monotonic()
        if not self.is_whole:  # after a whole answer empty parts could come for ever, so they are no sign of life
            self.last_life = now
        texts: list[str] = []
        chunks: list[Chunk] = []
        too_long = over = False
        for part in parts:
            if part.chunks:
                self._room -= part.chars
                if self._room < 0:
                    too_long = True
                    break
                if part.chars:
                    self.is_whole = False
                chunks += part.chunks
            elif text := part.text:
                self.is_whole = False  # text came after a finish reason, so a failure now leaves a hole
                self._room -= len(text)
                if self._room < 0:
                    too_long = True
                    break
                texts.append(text)
            if part.finish_reason:
                self.is_whole = True
                known = _FINISH_REASON.fullmatch(part.finish_reason)
                self.finish_reason = part.finish_reason if known else "unknown"
            if part.usage is not None and (usage := provider_usage(part.usage)):
                if self.usage is None:
                    self.last_life = now
                self.usage = usage
            if part.done:
                over = True
                break
        if texts or chunks:
            self.last_life = now
            if self.first_token_ms is None:
                self.first_token_ms = int((now - self._started) * 1000)
            if not (self._log.append_chunks(chunks) if chunks else self._log.append(*texts)):
                self.phase = Phase.UNWANTED
                return False
            self._chunks.add(len(chunks) or len(texts), now)
        if too_long:
            raise errors.UpstreamError("The answer is longer than this server accepts.")
        if over:
            self.phase = Phase.OVER
        return not over

    def take_half(self, half: Part | None) -> None:
        """Append the replacement of half a character that nothing will complete."""
        if half is not None:
            with contextlib.suppress(errors.Overloaded):
                added = self._log.append_chunks(half.chunks) if half.chunks else self._log.append(half.text)
                if added:
                    self._chunks.add(len(half.chunks) or 1, time.monotonic())

    def flush(self) -> None:
        """Tell of the records that were appended since the last time."""
        self._chunks.flush(time.monotonic())
