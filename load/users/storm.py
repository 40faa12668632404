"""A resume storm: all readers lose their connections at one moment, and come back within a second.

The moments are the storm's own: it does not wait for a service that is still busy with the last one.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import NoReturn

import gevent
from locust import task
from locust.env import Environment

from load.answer import Answer, Broken, Incomplete
from load.measurements import Measurements, Strike
from load.users.asking import JSON, Streaming

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: what is closed sends RST


class Storm:
    """Cut all who are here at once, again and again while it is measured."""

    def __init__(self, measurements: Measurements, every_seconds: float) -> None:
        self.users: list[StormUser] = []
        self._measurements = measurements
        self._every_seconds = every_seconds

    def run(self) -> NoReturn:
        """Strike half a period after the measuring begins, and then each period."""
        while True:
            while not self._measurements.is_measuring:
                gevent.sleep(0.02)
            due_at = time.monotonic() + self._every_seconds / 2
            while self._measurements.is_measuring:
                if time.monotonic() >= due_at:
                    self.strike()
                    due_at += self._every_seconds
                gevent.sleep(0.02)

    def strike(self) -> None:
        """Cut every connection that is open, without a pause between two."""
        strike = Strike(at=time.monotonic(), readers=len(self.users))
        self._measurements.strikes.append(strike)
        for user in self.users:
            user.cut(strike)


class StormUser(Streaming):
    """Read along, be cut by the storm, and come back with the last event's id; without an answer's head, ask again.

    Of its tokens those count as delayed that were sent while it was there.
    """

    kind = "answer (storm)"

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.strike: Strike | None = None  # which cut the connection that is open, or was the last
        environment.storm.users.append(self)

    def on_stop(self) -> None:
        """Be no longer one of those who can be cut."""
        self.environment.storm.users.remove(self)

    def cut(self, strike: Strike) -> None:
        """End the connection in the middle of whatever comes, half of the time with RST, else with FIN."""
        if self.socket is None or self.strike is not None:
            return  # between two answers, or still away
        self.strike = strike
        strike.cut += 1
        is_reset = self.random.random() < 0.5
        with contextlib.suppress(OSError):
            if is_reset:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.socket.shutdown(socket.SHUT_RD if is_reset else socket.SHUT_RDWR)

    @task
    def chat(self) -> None:
        """Ask, and read over as many connections as the storm leaves."""
        self.strike = came_back_from = None
        with self.answered() as (body, answer):
            key = {"Idempotency-Key": f"{self.random.getrandbits(128):032x}"}
            while not answer.is_complete:
                with contextlib.suppress(_Cut):
                    self.read_until_cut(answer, body, key, came_back_from)
                if (came_back_from := self.strike) is None:
                    continue
                if answer.is_complete:  # all had been received: nothing to come back for
                    came_back_from.cut -= 1
                    continue
                back_at = came_back_from.at + self.random.uniform(0, self.options.spread)
                time.sleep(max(back_at - time.monotonic(), 0.0))
                self.strike = None

    def read_until_cut(self, answer: Answer, body: bytes, key: dict[str, str], of: Strike | None) -> None:
        """Read one connection; of one that comes back note how soon it answers. Raises: _Cut, Incomplete."""
        begun_at = time.monotonic()
        came_back = of
        try:
            method, path, content, headers = "POST", "/chat/streaming", body, JSON | key
            if answer.stream_id:
                method, path, content = "GET", f"/chat/streaming/{answer.stream_id}", None
                headers = {"Last-Event-ID": answer.last_event_id} if answer.last_event_id else {}
            with self.asked(method, path, content, headers) as response:
                for data, received_at in self.pieces(answer, response):
                    is_first = answer.tokens == 0
                    answer.feed(data, received_at)
                    if came_back is not None and answer.frames:
                        came_back.note_back(begun_at, received_at)
                        self.fire("resume", (received_at - begun_at) * 1000)
                        came_back = None
                    if is_first and answer.tokens and of is None:
                        self.note_first((received_at - begun_at) * 1000)
                    self.note_tokens(answer.taken, received_at, sent_after=begun_at)
        except Broken:
            if self.strike is not None:
                raise _Cut from None
            self._note_refused(came_back)
            raise
        except Incomplete:
            self._note_refused(came_back)
            raise

    def _note_refused(self, came_back: Strike | None) -> None:
        if came_back is not None:
            came_back.refused += 1


class _Cut(Exception):
    """The storm has cut the connection."""
