"""Play a server that does exactly what a test's script says, over real sockets: an OpenAI-compatible one, or any other.

Must never know the service under test. What runs alone, in a process of its own, is `python -m load.upstream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.harness.exchange import Exchange, Gates
from tests.harness.http1 import parse_head
from tests.harness.ledger import RequestRecord
from tests.harness.net import HOST, Listener, LoopThread, Watch, now, reset_transport
from tests.harness.script import (
    CREATED,
    Close,
    Delta,
    Done,
    EndBody,
    Event,
    Finish,
    Gate,
    Paced,
    Pause,
    Raw,
    Reset,
    Script,
    Stall,
    Step,
    Token,
    TruncatedChunk,
    Usage,
    answer,
    encode_json,
    error,
)

__all__ = [
    "Close",
    "Delta",
    "Done",
    "EndBody",
    "Event",
    "Finish",
    "Gate",
    "Paced",
    "Pause",
    "Raw",
    "RequestRecord",
    "Reset",
    "Script",
    "ScriptedUpstream",
    "Stall",
    "Step",
    "Token",
    "TruncatedChunk",
    "Usage",
    "answer",
    "error",
]

MAX_HEAD_BYTES = 1 << 20
MAX_BODY_BYTES = 64 << 20


class ScriptedUpstream:
    """Serve `POST /v1/chat/completions` as scripted and `GET /v1/models`, on a free port of 127.0.0.1.

    It plays any other server where `by` says what to answer.
    Its own mistakes (a predicate that raises, a step that cannot be encoded) are kept in `failures`, and raised when
    the context is left.
    """

    def __init__(
        self, *, port: int = 0, certfile: str | None = None, keyfile: str | None = None, ledger: bool = True
    ) -> None:
        tls = None
        if certfile is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certfile, keyfile)
        self.models: list[str] = ["scripted"]
        self.failures: list[Exception] = []
        self._keeps_ledger = ledger  # a load test of hours must not fill the memory
        self._scheme = "https" if tls else "http"
        self._watch = Watch()
        self._loop = LoopThread("scripted-upstream")
        self._listener = Listener(lambda: _Connection(self), port=port, tls=tls)
        self._live: set[_Connection] = set()
        self._connection_numbers = itertools.count(1)
        self._clear()

    def _clear(self) -> None:
        self._requests: list[RequestRecord] = []
        self._request_numbers = itertools.count(1)
        self._queue: deque[Script] = deque()
        self._rules: list[tuple[Callable[[Any], bool], Script]] = []
        self._default = answer(["Hello", ",", " world", "."])
        self._by: Callable[[RequestRecord], Script | None] = lambda _: None
        self._gates = Gates()
        self.connections_opened = 0

    # Life

    def start(self) -> Self:
        """Listen."""
        self._loop.run(self._listener.open())
        return self

    def stop(self) -> None:
        """Drop every connection and end the thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.run(self._listener.close())
            self._loop.run(self._drop(list(self._live)))
        self._loop.stop()
        self._listener.release()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self.failures and error is None:
            raise self.failures[0]

    @property
    def port(self) -> int:
        """Tell the port, which is the same before, while and after it is refused."""
        return self._listener.port

    @property
    def origin(self) -> str:
        """Tell the address, without a path."""
        return f"{self._scheme}://{HOST}:{self.port}"

    @property
    def base_url(self) -> str:
        """Tell what a client calls its base URL."""
        return f"{self.origin}/v1"

    def refuse(self) -> None:
        """Refuse new connections; those that are open stay so."""
        self._loop.run(self._listener.close())

    def listen_again(self) -> None:
        """Accept connections again, on the same port."""
        self._loop.run(self._listener.open())

    def reset(self) -> None:
        """Forget ledger, scripts and gates, and drop the requests that are still being answered.

        Idle connections stay, as they would between two requests of a real client.
        """

        async def forget() -> None:
            await self._drop([connection for connection in self._live if connection.busy])
            self._clear()

        self._loop.run(forget())

    # What it answers

    def by(self, function: Callable[[RequestRecord], Script | None]) -> Self:
        """Answer what the function says, whatever is asked; where it says None, as a model would."""
        self._by = function
        return self

    def always(self, script: Script) -> None:
        """Answer so whenever nothing more particular is said."""
        self._default = script

    def then(self, *scripts: Script) -> None:
        """Answer the next requests so, one script each, before anything else is considered."""
        self._loop.call(lambda: self._queue.extend(scripts))

    def when(self, predicate: Callable[[Any], bool], script: Script) -> None:
        """Answer so when the predicate holds for the request's JSON; of several rules the first one wins."""
        self._loop.call(lambda: self._rules.append((predicate, script)))

    def open(self, gate: str) -> None:
        """Let everybody through the gate who is there or comes later (until `reset`)."""
        self._loop.call(lambda: self._gates.at(gate).opened.set())

    def wait_reached(self, gate: str, timeout: float = 5.0, count: int = 1) -> None:
        """Wait until so many requests have arrived at the gate."""

        self._watch.wait_until(
            lambda: self._gates.reached(gate) >= count,
            timeout=timeout,
            what=lambda: f"{count} at gate {gate!r}, {self._gates.reached(gate)} came",
        )

    # What happened

    @property
    def requests(self) -> list[RequestRecord]:
        """List every request, in the order of arrival."""
        return list(self._requests)

    @property
    def completions(self) -> list[RequestRecord]:
        """List the requests for a completion, leaving out those for the models."""
        return [record for record in self._requests if record.path.endswith("/chat/completions")]

    @property
    def connections_open(self) -> int:
        """Count the connections that are open now."""
        return len(self._live)

    def wait_for_requests(self, count: int, timeout: float = 5.0) -> list[RequestRecord]:
        """Wait until so many completions have been asked for, and list them."""
        self.wait_until(lambda: len(self.completions) >= count, timeout, f"{count} requests for a completion")
        return self.completions

    def wait_until(self, predicate: Callable[[], Any], timeout: float = 5.0, what: str = "the predicate") -> None:
        """Wait until something holds; judged whenever the ledger changes."""
        self._watch.wait_until(
            predicate,
            timeout=timeout,
            what=lambda: f"{what}; {len(self._requests)} requests, {self.connections_open} connections open",
        )

    def close_idle_connections(self) -> int:
        """Close the idle connections, as a server's keep-alive timer does, and count them."""

        async def close() -> int:
            idle = [connection for connection in self._live if not connection.busy]
            for connection in idle:
                connection.close()
            await _gone(idle)
            return len(idle)

        return self._loop.run(close())

    # For its connections, in the loop's thread

    def _opened(self, connection: _Connection) -> int:
        self._live.add(connection)
        self.connections_opened += 1
        self._watch.changed()
        return next(self._connection_numbers)

    def _lost(self, connection: _Connection) -> None:
        self._live.discard(connection)
        self._watch.changed()

    def _record(self, request: _Request, connection: int) -> RequestRecord:
        try:
            parsed = json.loads(request.body)
        except ValueError:
            parsed = None
        record = RequestRecord(
            number=next(self._request_numbers),
            at=now(),
            method=request.method,
            path=request.path,
            headers=request.headers,
            body=request.body,
            json=parsed,
            connection=connection,
            watch=self._watch,
        )
        if self._keeps_ledger:
            self._requests.append(record)
        self._watch.changed()
        return record

    def _script_for(self, record: RequestRecord) -> Script:
        if (script := self._by(record)) is not None:
            return script
        path = record.path.partition("?")[0]
        if record.method == "GET" and path.endswith("/models"):
            listed = [{"id": name, "object": "model", "created": CREATED, "owned_by": "tests"} for name in self.models]
            body = encode_json({"object": "list", "data": listed})
            return Script(headers={"content-type": "application/json"}, body=body)
        if record.method != "POST" or not path.endswith("/chat/completions"):
            return error(404, f"Unknown request URL: {record.method} {path}.", "unknown_url")
        if self._queue:
            return self._queue.popleft()
        for predicate, script in self._rules:
            if predicate(record.json):
                return script
        return self._default

    async def _drop(self, connections: list[_Connection]) -> None:
        for connection in connections:
            connection.close(hard=True)
        await _gone(connections)


async def _gone(connections: Iterable[_Connection]) -> None:
    await asyncio.gather(*(connection.lost.wait() for connection in connections))


@dataclass(frozen=True)
class _Request:
    """Hold one request as it came, header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class _Connection(asyncio.StreamReaderProtocol):
    """Serve one connection, and notice at once when the peer leaves, whatever the script is doing."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        super().__init__(asyncio.StreamReader(limit=MAX_HEAD_BYTES), self._serve)
        self.busy = False
        self.lost = asyncio.Event()
        self._upstream = upstream
        self._number = 0
        self._records: list[RequestRecord] = []
        self._closed_here = False
        self._player: asyncio.Task[Any] | None = None
        self._wire: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._wire = transport
        self._number = self._upstream._opened(self)
        super().connection_made(transport)

    def eof_received(self) -> bool | None:
        # The event loop keeps on reading while a script sleeps, so a peer's close cuts the sleep short.
        self._peer_left()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._peer_left()
        super().connection_lost(exc)
        self.lost.set()
        self._upstream._lost(self)

    def close(self, *, hard: bool = False) -> None:
        """Close from this side: with FIN when all is sent, or with RST now."""
        self._closed_here = True
        if self._wire is not None:
            if hard:
                reset_transport(self._wire)
            else:
                self._wire.close()

    def _become_idle(self) -> None:
        self.busy = False

    def _end(self, hard: bool) -> None:
        self.close(hard=hard)

    def _peer_left(self) -> None:
        if not self._closed_here:
            for record in self._records:
                record.peer_closed_at = record.peer_closed_at or now()
            self._upstream._watch.changed()
        if self._player is not None and self._player is not asyncio.current_task():
            self._player.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._player = asyncio.current_task()
        try:
            while (request := await _read_request(reader)) is not None:
                self.busy = True
                record = self._upstream._record(request, self._number)
                if self._upstream._keeps_ledger:
                    self._records.append(record)
                script = self._upstream._script_for(record)
                exchange = Exchange(record, writer, self._upstream._gates, on_finish=self._become_idle, close=self._end)
                await exchange.play(script)
                if self._closed_here or request.headers.get("connection", "").lower() == "close":
                    break
        except (
            asyncio.CancelledError,
            ConnectionError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
        ):
            pass  # the peer left, or the test is over
        except Exception as mistake:  # noqa: BLE001 (kept, and raised by __exit__)
            self._upstream.failures.append(mistake)
            self.close(hard=True)
        finally:
            self._player = None
            self.close()


async def _read_request(reader: asyncio.StreamReader) -> _Request | None:
    """Read one request, or None when the peer closed between two."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as end:
        if end.partial:
            raise
        return None
    first, found = parse_head(head[:-4])
    method, path, _ = first.split(" ", 2)
    headers = {name.lower(): value for name, value in found.pairs}
    return _Request(method, path, headers, await _read_body(reader, headers))


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        length = int(headers.get("content-length", "0"))
        if length > MAX_BODY_BYTES:
            raise ConnectionAbortedError("the request is too large for the harness")
        return await reader.readexactly(length)
    body = bytearray()
    while size := int((await reader.readline()).partition(b";")[0], 16):
        if len(body) + size > MAX_BODY_BYTES:
            raise ConnectionAbortedError("the request is too large for the harness")
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    while (await reader.readline()).strip():
        pass
    return bytes(body)
