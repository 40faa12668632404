"""A generation by its id, which is the capability to read it and to stop it."""

from __future__ import annotations

import json

from flask import Blueprint, Response, current_app

from app import errors
from app.streams.interface import StreamLog
from app.web import answers as reading
from app.worker import Worker

__all__ = ["blueprint"]

blueprint = Blueprint("streams", __name__)

CANCEL_SECONDS = 2.0
"""How long a stop waits for the end, which another worker may have to write; then it says `running`."""


@blueprint.get("/chat/streaming/<stream_id>")
def show_streaming(stream_id: str) -> Response:
    """(Re)attach to the event stream."""
    runtime: Worker = current_app.extensions["chatwait"]
    log, cursor = _find(runtime, stream_id)
    return reading.event_stream(runtime, log, cursor)


@blueprint.get("/chat/wait/<stream_id>")
def show_wait(stream_id: str) -> Response:
    """Wait for the whole answer."""
    runtime: Worker = current_app.extensions["chatwait"]
    log, cursor = _find(runtime, stream_id)
    return reading.waited(runtime, log, cursor)


@blueprint.delete("/chat/streaming/<stream_id>")
@blueprint.delete("/chat/wait/<stream_id>")
def cancel(stream_id: str) -> Response:
    """Stop it; once it has ended, say how."""
    runtime: Worker = current_app.extensions["chatwait"]
    try:
        log = runtime.store.find(stream_id)
    except errors.Overloaded:  # there is no room for a copy here, and a stop needs none
        if (elsewhere := runtime.store.elsewhere) is None:
            raise
        end, tokens = elsewhere.cancel(stream_id)
    else:
        if log.end is None:
            sharing, elsewhere = log.sharing, runtime.store.elsewhere
            if sharing is not None and elsewhere is not None and sharing.is_foreign:
                elsewhere.cancel(stream_id)
            else:
                runtime.generations.cancel(stream_id, "client")
            if sharing is not None:
                sharing.settle(CANCEL_SECONDS)
        end, tokens = log.end, log.head
    status = end.status if end is not None else "running"
    body = {"stream_id": stream_id, "status": status, "tokens": tokens}
    return Response(json.dumps(body), 200, mimetype="application/json")


def _find(runtime: Worker, stream_id: str) -> tuple[StreamLog, reading.Cursor | None]:
    """Judge the cursor in the contract's order: malformed, foreign, then whether the stream is there."""
    cursor = reading.cursor_of_request()
    if cursor is not None and cursor[0] != stream_id:
        raise errors.CursorForeign
    return runtime.store.find(stream_id, reach=0 if cursor is None else cursor[1]), cursor
