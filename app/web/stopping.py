"""Stops a generation, here or at another worker."""

from __future__ import annotations

from app import errors
from app.streams.interface import End, StreamLog
from app.web.admission import credential
from app.web.current import worker

__all__ = ["stop", "stop_by_id"]

CANCEL_SECONDS = 2.0
"""How long a stop waits for the end, which another worker may have to write. After that the answer says `running`."""


def stop_by_id(stream_id: str) -> tuple[End | None, int]:
    """Stop a generation. Return its end, if the end has come in time, and its number of records.

    Raises: StreamUnknown, StreamExpired, StoreUnavailable.
    """
    store = worker().store
    try:
        log = store.find(stream_id, credential=credential())
    except errors.Overloaded:  # there is no room for its text here, and a stop needs none
        if store.elsewhere is None:
            raise
        return store.elsewhere.cancel(stream_id)
    stop(log)
    return log.end, log.head


def stop(log: StreamLog) -> None:
    """Stop the generation of a log, and wait a moment for its end. Raises: as `stop_by_id`."""
    if log.end is not None:
        return
    store, sharing = worker().store, log.sharing
    if store.elsewhere is not None and sharing is not None and sharing.is_foreign:
        store.elsewhere.cancel(log.stream_id)
    else:
        worker().generations.cancel(log.stream_id, "client")
    if sharing is not None:
        sharing.settle(CANCEL_SECONDS)
