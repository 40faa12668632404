"""An upstream without a network: says what a test tells it, and notes what it was asked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from app import errors
from app.upstream.call import Call
from app.upstream.interface import Answer, Model, Part, Question

PATIENCE_SECONDS = 20.0
"""How long a test waits for what comes at once unless the program is wrong."""


def finish(reason: str = "stop") -> Part:
    return Part(finish_reason=reason)


def done() -> Part:
    return Part(done=True)


def texts(*items: str) -> list[Part]:
    return [Part(item) for item in items]


def whole(*items: str) -> list[Part]:
    """Say an ordinary answer."""
    return [*texts(*items), finish(), done()]


class Gate:
    """Hold the upstream at one place of its answer until the test opens it or the call is cancelled."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()
        self._ours, self._theirs = socket.socketpair()

    def open(self) -> None:
        self._opened.set()
        self._theirs.close()

    def break_off(self) -> None:
        """Let the answer go on to fail."""
        self._theirs.close()

    def wait_reached(self) -> None:
        assert self.reached.wait(PATIENCE_SECONDS), "nobody came to the gate"

    def pass_through(self, call: Call) -> None:
        """Wait as a real answer does: in a read of a socket that the call knows. Raises: UpstreamError."""
        try:
            call.adopt(self._ours)
            self.reached.set()
            self._ours.recv(1)
        except OSError as error:
            raise errors.UpstreamUnavailable from error
        finally:
            self._ours.close()
        if not self._opened.is_set():
            raise errors.UpstreamUnavailable("The call was cancelled.")

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


class Last(list[Part]):
    """Parts that come together, and the end of the stream's bytes with them."""


Step = Part | list[Part] | BaseException | Gate | Callable[[], Any]
"""A list of parts comes together."""


class FakeAnswer:
    """Give parts; raise exceptions, wait at gates, and call functions that stand between them."""

    def __init__(self, steps: Iterable[Step], call: Call, half: str) -> None:
        self.rate_limits: Mapping[str, str] = {"x-ratelimit-remaining-requests": "9"}
        self.closed = threading.Event()
        self._steps = iter(list(steps))
        self._call = call
        self._half = half

    def receive(self, take: Callable[[Sequence[Part]], bool]) -> bool:
        for step in self._steps:
            if isinstance(step, Part | list):
                wants_more = take([step] if isinstance(step, Part) else step)
                if isinstance(step, Last):
                    return False
                if not wants_more:
                    return True
            elif isinstance(step, BaseException):
                raise step
            elif isinstance(step, Gate):
                step.pass_through(self._call)
            else:
                step()
        return False

    def pending(self) -> Part | None:
        half, self._half = self._half, ""
        return Part(half) if half else None

    def close(self) -> None:
        self.closed.set()


class FakeUpstream:
    """Answer each question with the next script, the last one for ever."""

    def __init__(self, *scripts: Iterable[Step] | BaseException, half: str = "") -> None:
        self.scripts = [script if isinstance(script, BaseException) else list(script) for script in scripts]
        self.half = half
        self.questions: list[Question] = []
        self.calls: list[Call] = []
        self.answers: list[FakeAnswer] = []
        self.is_ready = True
        self.is_closed = False

    def ask(self, question: Question, call: Call) -> Answer:
        self.questions.append(question)
        self.calls.append(call)
        script = self.scripts[min(len(self.questions), len(self.scripts)) - 1]
        if isinstance(script, BaseException):
            raise script
        answer = FakeAnswer(script, call, self.half)
        self.answers.append(answer)
        return answer

    def models(self) -> list[Model]:
        return [Model("gpt-4o-mini", 1, "openai"), Model("org/model")]

    def ready(self) -> bool:
        return self.is_ready

    def close(self) -> None:
        self.is_closed = True
