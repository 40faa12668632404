"""One who reads along, and one whose connection keeps breaking."""

from __future__ import annotations

import time
from http.client import HTTPResponse

from locust import task

from load.answer import Answer
from load.completion import Completion
from load.users.asking import JSON, Streaming

MOST_DROPS = 3
LONGEST_ABSENCE_SECONDS = 1.0


class ChatUser(Streaming):
    """Read a stream from its first frame to its last, and measure every token of it."""

    kind = "answer"

    @task
    def chat(self) -> None:
        """Ask, and read along."""
        with self.answered() as (body, answer):
            begun_at = time.monotonic()
            with self.asked("POST", self.path, body, JSON) as response:
                for data, received_at in self.pieces(answer, response):
                    is_first = answer.tokens == 0
                    answer.feed(data, received_at)
                    if is_first and answer.tokens:
                        self.note_first((received_at - begun_at) * 1000)
                    self.note_tokens(answer.taken, received_at)
            self.measurements.gathered[self.kind] += self.is_measured and answer.most_at_once > 1


class ResumingUser(Streaming):
    """Lose the connection anywhere, also within a frame, come back with the last event's id, and miss nothing.

    Its tokens do not count as delayed: those that were sent while it was away came late by its own doing.
    """

    kind = "answer (resumed)"

    @task
    def chat(self) -> None:
        """Ask, and read over several connections."""
        with self.answered() as (body, answer):
            drops = sorted(self.random.choices(range(self.options.tokens), k=self.random.randint(1, MOST_DROPS)))
            with self.asked("POST", self.path, body, JSON) as response:
                self.read_to_drop(answer, response, drops)
            while not answer.is_complete:
                time.sleep(self.random.uniform(0, LONGEST_ABSENCE_SECONDS))
                headers = {"Last-Event-ID": answer.last_event_id} if answer.last_event_id else {}
                came_back_at = time.monotonic()
                with self.asked("GET", self.resume_path(answer.stream_id), headers=headers) as response:
                    self.read_to_drop(answer, response, drops, came_back_at)

    def read_to_drop(
        self, answer: Answer | Completion, response: HTTPResponse, drops: list[int], came_back_at: float | None = None
    ) -> None:
        """Read one connection, to the end of the stream or to the next drop; of a resume note how soon it answers."""
        for data, received_at in self.pieces(answer, response):
            is_dropped = bool(drops) and answer.tokens >= drops[0]
            answer.feed(data[: self.random.randint(0, len(data))] if is_dropped else data, received_at)
            if came_back_at is not None and self.is_measured:
                self.measurements.resume_ms.append((received_at - came_back_at) * 1000)
                self.fire("resume", self.measurements.resume_ms[-1])
                came_back_at = None
            if is_dropped:
                del drops[0]
                return
