"""What all users have in common: drawing a request, sending it, and booking what became of it."""

from __future__ import annotations

import itertools
import json
import random
import socket
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlsplit

from locust import User
from locust.env import Environment

from load.answer import Answer, Broken, Incomplete, Text
from load.completion import Completion
from load.measurements import Measurements

SILENCE_SECONDS = 30.0  # three heartbeats of the service
READ_BYTES = 65536
JSON = {"Content-Type": "application/json"}


class Asking(User):
    """Draw a request, send it, and book what became of it."""

    abstract = True
    kind = ""  # what its answers are booked as
    numbers = itertools.count()

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.options: Namespace = environment.parsed_options
        self.measurements: Measurements = environment.measurements
        self.random = random.Random(f"{self.options.seed} {self.kind} {next(self.numbers)}")
        self.is_measured = False
        self.socket: socket.socket | None = None  # of the request that is under way

    def request(self) -> tuple[int | None, bytes]:
        """Draw a request of its own; also give how many tokens must come, where the model does as told."""
        return self.request_of(self.random.randint(max(self.options.tokens // 2, 1), self.options.tokens * 3 // 2))

    def request_of(self, most: int, manner: str = "") -> tuple[int | None, bytes]:
        """Write a request for so many tokens."""
        body = {"message": f"Count to {most}{manner}.", "max_tokens": most}
        return (most if self.options.stamped else None), json.dumps(body).encode()

    def connect(self, connection: HTTPConnection) -> None:
        """Connect, before anything is sent."""
        connection.connect()

    @contextmanager
    def asked(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Iterator[HTTPResponse]:
        """Ask over a connection of its own, and close that however the answer is left. Raises: Incomplete."""
        target = urlsplit(self.host or "")
        connection_type = HTTPSConnection if target.scheme == "https" else HTTPConnection
        connection = connection_type(target.netloc, timeout=SILENCE_SECONDS)
        try:
            self.connect(connection)
            self.socket = connection.sock
            connection.request(method, target.path.rstrip("/") + path, body, headers or {})
            # Not before: locust kills who rests between two answers, and by then it may be on its way to ask again.
            self.measurements.asked[self.kind] += method == "POST"
            with connection.getresponse() as response:
                if response.status != 200:
                    raise Incomplete(f"HTTP {response.status} {_error_code(response.read())}")
                yield response
        except TimeoutError:
            raise Incomplete(f"nothing came for {SILENCE_SECONDS:g} s") from None
        except (OSError, HTTPException) as problem:
            raise Broken(f"the connection broke: {type(problem).__name__}") from None
        finally:
            self.socket = None
            connection.close()

    @contextmanager
    def booked(self) -> Iterator[None]:
        """Book one answer, as complete or as incomplete with its reason."""
        of = self.measurements
        self.is_measured = of.is_measuring
        of.begun[self.kind] += self.is_measured
        begun_at = time.monotonic()
        problem = None
        try:
            yield
            of.complete[self.kind] += self.is_measured
        except Incomplete as incomplete:
            problem = incomplete
            of.reasons[self.kind, str(incomplete)] += self.is_measured
            time.sleep(0.1)  # a service that refuses everything must not be hammered
        self.fire(self.kind, (time.monotonic() - begun_at) * 1000, problem)

    def fire(self, name: str, milliseconds: float, problem: Incomplete | None = None) -> None:
        """Tell locust's own statistics."""
        if self.is_measured:
            self.environment.events.request.fire(
                request_type="SSE" if "wait" not in name else "JSON",
                name=name,
                response_time=milliseconds,
                response_length=0,
                exception=problem,
                context={},
            )


class Streaming(Asking):
    """What the users have in common that read events."""

    abstract = True
    is_open = False
    path = "/chat/streaming"
    answer_type: type[Answer] | type[Completion] = Answer

    def resume_path(self, stream_id: str | None) -> str:
        """Name where a stream goes on."""
        return f"/chat/streaming/{stream_id}"

    @contextmanager
    def answered(self) -> Iterator[tuple[bytes, Answer | Completion]]:
        """Draw a request and book its answer, which is among the open streams from its first head to its end."""
        with self.booked():
            wanted, body = self.request()
            self.is_open = False
            try:
                yield body, self.answer_type(wanted=wanted, stamped=self.options.stamped)
            finally:
                self.measurements.streams -= self.is_open

    def pieces(self, answer: Answer | Completion, response: HTTPResponse) -> Iterator[tuple[bytes, float]]:
        """Give what comes over one connection and when; count the tokens that it brought. Raises: Incomplete."""
        if "X-Stream-Id" not in response.headers:
            raise Incomplete("the answer has no X-Stream-Id")
        answer.begin_connection(response.headers)
        text, of = answer.taken, self.measurements
        of.streams += not self.is_open
        self.is_open = True
        while data := self.read(response):
            before = text.tokens
            yield data, time.monotonic()
            of.tokens += (text.tokens - before) * of.is_measuring
            text.delays_ms.clear()
            text.lates_ms.clear()
        answer.end_connection()

    def read(self, response: HTTPResponse) -> bytes:
        """Read what is there."""
        return response.read1(READ_BYTES)

    def note_first(self, milliseconds: float) -> None:
        """Note how long the first token took."""
        if self.is_measured:
            self.measurements.ttft_ms.append(milliseconds)
            self.fire("TTFT", milliseconds)

    def note_tokens(self, text: Text, received_at: float, *, sent_after: float = 0.0) -> None:
        """Note the delays of the tokens that have just come, and were sent after a moment."""
        if not self.is_measured:
            return
        of, latest_ms = self.measurements, (received_at - sent_after) * 1000
        of.late_ms.extend(text.lates_ms)
        for delay_ms in text.delays_ms:
            if delay_ms <= latest_ms:
                of.delay_ms.append(delay_ms)
                self.fire("token delay (added)", delay_ms)


def _error_code(body: bytes) -> str:
    try:
        told = json.loads(body)
        return str(told.get("error", told)["error_code"])
    except (ValueError, KeyError, TypeError):
        return "without an error code"
