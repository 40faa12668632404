"""Streams that are damaged on Valkey: each is logged once, and its readers get 410."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator

from app import errors
from app.observability import facts
from app.observability.observer import tell
from app.streams.interface import log_name
from app.streams.shared.records import Damaged

__all__ = ["Damage"]

MOST_KNOWN = 1000


class Damage:
    """Remembers the streams that were found damaged last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, None] = OrderedDict()

    def found(self, stream_id: str, what: str) -> None:
        """Log that a part of a stream is damaged, unless that stream was logged before."""
        with self._lock:
            is_known = stream_id in self._known
            self._known[stream_id] = None
            if len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
        if not is_known:
            tell(facts.StreamDamaged(stream=log_name(stream_id), what=what))

    @contextlib.contextmanager
    def is_gone(self, stream_id: str) -> Iterator[None]:
        """Raises: StreamExpired where the block inside raises Damaged."""
        try:
            yield
        except Damaged as error:
            self.found(stream_id, str(error))
            raise errors.StreamExpired("The stored stream is damaged and cannot be read.") from error
