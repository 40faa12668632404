"""The users of a load test: one who reads along, one who waits for the whole, one whose connection keeps breaking.

`python -m load` runs them; `locust -f load/locustfile.py --host URL` runs them with locust's own pages. Each user asks
again as soon as it has its answer, so the number of streams at a time is the number of users.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from locust import User, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from load.answer import Answer, Incomplete, Text
from load.measurements import Measurements

SILENCE_SECONDS = 30.0  # three heartbeats of the service
MOST_DROPS = 3
LONGEST_ABSENCE_SECONDS = 1.0
READ_BYTES = 65536
JSON = {"Content-Type": "application/json"}


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser, **_: Any) -> None:
    """Offer what the users need to know, when locust's own command runs them."""
    parser.add_argument(
        "--tokens", type=int, default=100, help="mean length of an answer; max_tokens is drawn around it"
    )
    parser.add_argument("--seed", type=int, default=1, help="of lengths, drops and absences")
    parser.add_argument("--stamped", action="store_true", help="the model is load/upstream.py on this machine")


@events.init.add_listener
def attach(environment: Environment, **_: Any) -> None:
    """Give the environment what its users write into; alone, without `python -m load`, they measure at once."""
    environment.measurements = Measurements()
    environment.measurements.is_measuring = True


class _Asking(User):
    """What the users have in common: drawing a request, sending it, and booking what became of it."""

    abstract = True
    kind = ""  # what its answers are booked as
    numbers = itertools.count()

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.options: Namespace = environment.parsed_options
        self.measurements: Measurements = environment.measurements
        self.random = random.Random(f"{self.options.seed} {self.kind} {next(self.numbers)}")
        self.is_measured = False

    def request(self) -> tuple[int | None, bytes]:
        """Draw a request of its own; also give how many tokens must come, where the model does as told."""
        most = self.random.randint(max(self.options.tokens // 2, 1), self.options.tokens * 3 // 2)
        body = {"message": f"Count to {most}.", "max_tokens": most}
        return (most if self.options.stamped else None), json.dumps(body).encode()

    @contextmanager
    def asked(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Iterator[HTTPResponse]:
        """Ask over a connection of its own, and close that however the answer is left. Raises: Incomplete."""
        target = urlsplit(self.host or "")
        connection_type = HTTPSConnection if target.scheme == "https" else HTTPConnection
        connection = connection_type(target.netloc, timeout=SILENCE_SECONDS)
        try:
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
            raise Incomplete(f"the connection broke: {type(problem).__name__}") from None
        finally:
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


class _Streaming(_Asking):
    """What the users have in common that read events."""

    abstract = True
    is_open = False

    @contextmanager
    def answered(self) -> Iterator[tuple[bytes, Answer]]:
        """Draw a request and book its answer, which is among the open streams from its first head to its end."""
        with self.booked():
            wanted, body = self.request()
            self.is_open = False
            try:
                yield body, Answer(wanted=wanted, stamped=self.options.stamped)
            finally:
                self.measurements.streams -= self.is_open

    def pieces(self, answer: Answer, response: HTTPResponse) -> Iterator[tuple[bytes, float]]:
        """Give what comes over one connection and when; count the tokens that it brought. Raises: Incomplete."""
        answer.begin_connection(response.getheader("X-Stream-Id", ""))
        text, of = answer.text, self.measurements
        of.streams += not self.is_open
        self.is_open = True
        while data := response.read1(READ_BYTES):
            before = text.tokens
            yield data, time.monotonic()
            of.tokens += (text.tokens - before) * of.is_measuring
            text.delays_ms.clear()
            text.lates_ms.clear()
        answer.end_connection()


class ChatUser(_Streaming):
    """Read a stream from its first frame to its last, and measure every token of it."""

    kind = "answer"
    weight = 9

    @task
    def chat(self) -> None:
        """Ask, and read along."""
        with self.answered() as (body, answer):
            begun_at = time.monotonic()
            with self.asked("POST", "/chat/streaming", body, JSON) as response:
                for data, received_at in self.pieces(answer, response):
                    is_first = answer.text.tokens == 0
                    answer.feed(data, received_at)
                    if self.is_measured:
                        if is_first and answer.text.tokens:
                            self.note_first((received_at - begun_at) * 1000)
                        self.note_tokens(answer.text)

    def note_first(self, milliseconds: float) -> None:
        """Note how long the first token took."""
        self.measurements.ttft_ms.append(milliseconds)
        self.fire("TTFT", milliseconds)

    def note_tokens(self, text: Text) -> None:
        """Note the delays of the tokens that have just come."""
        self.measurements.delay_ms.extend(text.delays_ms)
        self.measurements.late_ms.extend(text.lates_ms)
        for delay_ms in text.delays_ms:
            self.fire("token delay (added)", delay_ms)


class ResumingUser(_Streaming):
    """Lose the connection anywhere, also within a frame, come back with the last event's id, and miss nothing.

    Its tokens do not count as delayed: those that were sent while it was away came late by its own doing.
    """

    kind = "answer (resumed)"
    weight = 1

    @task
    def chat(self) -> None:
        """Ask, and read over several connections."""
        with self.answered() as (body, answer):
            drops = sorted(self.random.choices(range(self.options.tokens), k=self.random.randint(1, MOST_DROPS)))
            with self.asked("POST", "/chat/streaming", body, JSON) as response:
                self.read(answer, response, drops)
            while not answer.ended:
                time.sleep(self.random.uniform(0, LONGEST_ABSENCE_SECONDS))
                headers = {"Last-Event-ID": answer.cursor} if answer.cursor else {}
                came_back_at = time.monotonic()
                with self.asked("GET", f"/chat/streaming/{answer.stream_id}", headers=headers) as response:
                    self.read(answer, response, drops, came_back_at)

    def read(self, answer: Answer, response: HTTPResponse, drops: list[int], came_back_at: float | None = None) -> None:
        """Read one connection, to the end of the stream or to the next drop; of a resume note how soon it answers."""
        for data, received_at in self.pieces(answer, response):
            is_dropped = bool(drops) and answer.text.tokens >= drops[0]
            answer.feed(data[: self.random.randint(0, len(data))] if is_dropped else data, received_at)
            if came_back_at is not None and self.is_measured:
                self.measurements.resume_ms.append((received_at - came_back_at) * 1000)
                self.fire("resume", self.measurements.resume_ms[-1])
                came_back_at = None
            if is_dropped:
                del drops[0]
                return


class WaitUser(_Asking):
    """Wait for the whole answer."""

    kind = "answer (wait)"
    weight = 1

    @task
    def wait_for_it(self) -> None:
        """Ask, and take the answer at once."""
        with self.booked():
            wanted, body = self.request()
            with self.asked("POST", "/chat/wait", body, JSON) as response:
                try:
                    whole = json.loads(response.read())
                    content, tokens = str(whole["content"]), int(whole["tokens"])
                except (ValueError, KeyError, TypeError):
                    raise Incomplete("the answer is not the JSON that was promised") from None
            received_at = time.monotonic()
            if whole.get("status") != "complete":
                raise Incomplete(f"its status is {whole.get('status')}")
            text = Text(stamped=self.options.stamped)
            text.add(content, tokens, received_at)
            text.prove(whole, wanted)
            self.measurements.tokens += tokens * self.measurements.is_measuring
            if self.is_measured and text.last_sent_ms:
                self.measurements.wait_ms.append(received_at * 1000 - text.last_sent_ms)


def _error_code(body: bytes) -> str:
    try:
        return str(json.loads(body)["error_code"])
    except (ValueError, KeyError, TypeError):
        return "without an error code"
