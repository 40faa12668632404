"""A generation by its id, which is the capability to read it and to stop it."""

from __future__ import annotations

from flask import Blueprint, Response

from app import errors
from app.dialects.native.answer import stopped
from app.streams.interface import End
from app.web.answers import as_json, events, waited
from app.web.asking import find
from app.web.current import worker

__all__ = ["blueprint"]

blueprint = Blueprint("streams", __name__)

CANCEL_SECONDS = 2.0
"""How long a stop waits for the end, which another worker may have to write. After that the answer says `running`."""


@blueprint.get("/chat/streaming/<stream_id>")
def show_streaming(stream_id: str) -> Response:
    """(Re)attach to the event stream."""
    return events(*find(stream_id))


@blueprint.get("/chat/wait/<stream_id>")
def show_wait(stream_id: str) -> Response:
    """Wait for the whole answer."""
    return waited(*find(stream_id))


@blueprint.delete("/chat/streaming/<stream_id>")
@blueprint.delete("/chat/wait/<stream_id>")
def cancel(stream_id: str) -> Response:
    """Stop a generation, and say how it ended or that it is running."""
    return as_json(stopped(stream_id, *_stop(stream_id)))


def _stop(stream_id: str) -> tuple[End | None, int]:
    """Stop a generation, here or at another worker. Return its end, if the end has come in time, and its number of
    records.

    Raises: StreamUnknown, StreamExpired, StoreUnavailable.
    """
    store = worker().store
    try:
        log = store.find(stream_id)
    except errors.Overloaded:  # there is no room for its text here, and a stop needs none
        if store.elsewhere is None:
            raise
        return store.elsewhere.cancel(stream_id)
    if log.end is None:
        sharing = log.sharing
        if store.elsewhere is not None and sharing is not None and sharing.is_foreign:
            store.elsewhere.cancel(stream_id)
        else:
            worker().generations.cancel(stream_id, "client")
        if sharing is not None:
            sharing.settle(CANCEL_SECONDS)
    return log.end, log.head
