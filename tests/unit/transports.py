"""How tests ask over the transport, and look at the connections that it keeps."""

from __future__ import annotations

import select
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx2

from app.upstream.body import BODY
from app.upstream.call import Call, current_call
from app.upstream.interface import Answer, Part, Question
from app.upstream.transport import Transport
from tests.unit.fakes import PATIENCE_SECONDS
from tests.unit.rawserver import MINE, RawServer, Step

QUESTION = Question([{"role": "user", "content": "Hello"}], "m", 256, None)


def ask(
    transport: Transport, url: str, *, whole: bool = False, content: bytes = b"{}", call: Call | None = None
) -> bytes:
    """Ask once, and read the answer to its end in the one way or the other. Raises: httpx2.TransportError."""
    token = current_call.set(call or Call())
    try:
        response = transport.handle_request(httpx2.Request("POST", url, content=content))
    finally:
        current_call.reset(token)
    body = response.extensions[BODY]
    pieces: list[bytes] = []
    try:
        if whole:
            pieces.extend(body)
        else:
            body.receive(lambda data: pieces.append(data) or True)
    finally:
        body.close()
    return b"".join(pieces)


def kept(transport: Transport) -> int:
    return sum(map(len, transport._pool._idle.values()))


def wait_for_bytes(transport: Transport) -> None:
    """Wait until the one kept connection has something that can be read, or an end."""
    ((connection,),) = transport._pool._idle.values()
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    assert poll.poll(PATIENCE_SECONDS * 1000)


def behind(surplus: bytes, read: threading.Event) -> list[Step]:
    """Answer, and send more when the answer has been read: in a piece of its own, however busy the machine."""
    return [MINE, lambda _: read.wait(PATIENCE_SECONDS), surplus]


def ask_new(transport: Transport, server: RawServer) -> bytes:
    """Ask, while the server's first connection still waits, and see that it was another one that answered."""
    body = ask(transport, server.url)
    assert server.connections == 2
    return body


def event(text: str) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % text.encode()


def batches_of(answer: Answer, batches: list[list[Part]]) -> bool:
    def take(parts: Sequence[Part]) -> bool:
        batches.append(list(parts))
        return True

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(answer.receive, take).result(PATIENCE_SECONDS)
