"""Read streams over real connections, and come back after a drop.

Must never import the service's code: it judges it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from load.events import Event, EventParser
from tests.harness.answer import Answer
from tests.harness.http1 import (
    Dropped,
    Headers,
    KeptAlive,
    Reply,
    Target,
    Wire,
    delete,
    encode_body,
    get,
    post,
    request,
)

__all__ = [
    "Answer",
    "Connection",
    "Dropped",
    "Event",
    "EventParser",
    "Headers",
    "KeptAlive",
    "Reply",
    "delete",
    "get",
    "open_stream",
    "post",
    "read_answer",
    "read_resuming",
    "request",
]

REFUSED_PAUSE_SECONDS = 0.05
RETRY_AFTER_CAP_SECONDS = 2.0


class Connection:
    """Hold one answer while it comes."""

    def __init__(self, wire: Wire, method: str, cursor: str = "") -> None:
        self.opened_at = time.monotonic()
        self._wire = wire
        self._method = method
        self._parser = EventParser(cursor)
        self.status, self.headers = wire.read_head()
        self.answered_at = time.monotonic()

    @property
    def last_event_id(self) -> str:
        """Tell the id to come back with: that of the last dispatched event."""
        return self._parser.last_event_id

    def pieces(self) -> Iterator[bytes]:
        """Give the body's bytes as they come. Raises: Dropped, TimeoutError."""
        return self._wire.read_body(self._method, self.status, self.headers)

    def events(self) -> Iterator[Event]:
        """Give the events as they come; ends with the body. Call it once.

        Raises: Dropped, after every event that came whole, TimeoutError when nothing came for the timeout.
        """
        for piece in self.pieces():
            yield from self._parser.feed(piece, time.monotonic())

    def body(self) -> bytes:
        """Read the whole body. Raises: Dropped, TimeoutError."""
        return b"".join(self.pieces())

    def reply(self) -> Reply:
        """Read the whole answer. Raises: Dropped, TimeoutError."""
        return Reply(self.status, self.headers, self.body())

    def close(self) -> None:
        """Close with FIN (or RST if something is unread, as any program's close is)."""
        self._wire.close()

    def reset(self) -> None:
        """Close with RST."""
        self._wire.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_stream(
    url: str,
    *,
    method: str | None = None,
    json: Any = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
    rcvbuf: int | None = None,
    via: str | None = None,
) -> Connection:
    """Send a request (POST when there is `json`, else GET) and give its answer once the headers are there.

    `via` is the base URL of a proxy: the bytes go there, while `Host` stays the URL's.
    Units: `timeout` is the longest silence in seconds, `rcvbuf` the receive buffer in bytes.
    Raises: OSError (Dropped and TimeoutError among them).
    """
    target = Target.of(url)
    through = Target.of(via) if via else target
    method = method or ("GET" if json is None else "POST")
    body, fields = encode_body(json, None, headers)
    fields = {"Host": f"{target.host}:{target.port}", "Accept": "text/event-stream", **fields}
    cursor = next((value for name, value in fields.items() if name.lower() == "last-event-id"), "")
    wire = Wire(through.host, through.port, timeout=timeout, rcvbuf=rcvbuf)
    try:
        wire.send_request(method, target.path, fields, body)
        return Connection(wire, method, cursor)
    except BaseException:
        wire.close()
        raise


def read_answer(
    url: str,
    json: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
    after: int = 0,
    prefix: str | None = None,
    via: str | None = None,
) -> Answer:
    """Read one stream to its end over one connection; `after` and `prefix` as for Answer.

    Raises: AssertionError for another status than 200 and for anything wrong in the stream, Dropped, TimeoutError.
    """
    with open_stream(url, json=json, headers=headers, timeout=timeout, via=via) as connection:
        if connection.status != 200:
            raise AssertionError(f"answered {connection.status}: {connection.body()[:2000]!r}")
        answer = Answer(after=after, prefix=prefix)
        answer.status = connection.status
        answer.begin_connection(connection.headers)
        for event in connection.events():
            answer.add(event)
    return answer.verify()


def read_resuming(
    base_url: str,
    *,
    json: Any,
    via: str | None = None,
    max_attempts: int = 50,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
) -> Answer:
    """Start a generation and read it to its end, however often the connection drops.

    Silence for `timeout` is a drop too. A 503 or 429 is asked again after its Retry-After (2 s at most).
    Raises: AssertionError, for anything wrong in the stream or when the attempts are used up.
    """
    fields = {"Idempotency-Key": secrets.token_urlsafe(24), **(headers or {})}
    answer = Answer()
    for _ in range(max_attempts):
        try:
            if _read_some(answer, base_url, json, fields, via, timeout):
                return answer.verify()
        except (ConnectionError, TimeoutError) as drop:
            answer.drops.append(str(drop))
            if isinstance(drop, ConnectionRefusedError):
                time.sleep(REFUSED_PAUSE_SECONDS)  # nothing tells when somebody listens again
            if answer.is_complete:
                return answer  # the rest was only the end of the body
    raise AssertionError(
        f"the stream did not end in {max_attempts} attempts with {answer.tokens} tokens; drops: {answer.drops[-5:]}"
    )


def _read_some(
    answer: Answer, base_url: str, json: Any, headers: Mapping[str, str], via: str | None, timeout: float
) -> bool:
    """Read what one connection gives, and tell whether that was the end."""
    started = answer.stream_id is not None
    url = f"{base_url}/chat/streaming"
    if started:
        # Without an id yet, the whole stream is asked for; an empty Last-Event-ID is what a browser would not send.
        cursor = {"Last-Event-ID": answer.last_event_id} if answer.last_event_id else {}
        connection = open_stream(f"{url}/{answer.stream_id}", headers={**headers, **cursor}, timeout=timeout, via=via)
    else:
        connection = open_stream(url, json=json, headers=headers, timeout=timeout, via=via)
    with connection:
        if connection.status == 204:
            return True
        if connection.status in (429, 503):
            answer.drops.append(f"answered {connection.status}")
            wait = connection.headers.get("retry-after", "0")
            time.sleep(min(float(wait) if wait.isdigit() else 0.0, RETRY_AFTER_CAP_SECONDS))  # as it was told to
            return False
        if connection.status != 200:
            raise AssertionError(f"answered {connection.status}: {connection.body()[:2000]!r}")
        answer.status = connection.status
        answer.begin_connection(connection.headers)
        for event in connection.events():
            answer.add(event)
    if not answer.is_complete:
        answer.drops.append("a clean close in mid-stream")
    return answer.is_complete
