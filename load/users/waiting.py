"""One who waits for the whole."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from locust import task

from load.answer import Incomplete, Text
from load.users.asking import JSON, Asking


class WaitUser(Asking):
    """Wait for the whole answer."""

    kind = "answer (wait)"

    @task
    def wait_for_it(self) -> None:
        """Ask, and take the answer at once."""
        with self.booked(), self.waiting():
            self.take_whole()

    def take_whole(self) -> None:
        """Ask, and check the whole answer. Raises: Incomplete."""
        wanted, body = self.request()
        begun_at = time.monotonic()
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
        text.prove(whole)
        text.prove_count(wanted)
        self.measurements.tokens += tokens * self.measurements.is_measuring
        if self.is_measured and text.last_sent_ms:
            self.measurements.note_waited(
                begun_at,
                received_at,
                first_ms=text.first_sent_ms,
                last_ms=text.last_sent_ms,
                ttft_ms=self.options.ttft_ms,
            )
            self.fire("wait overhead", self.measurements.wait_overhead_ms[-1])

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Be among those who wait."""
        self.measurements.waiting += 1
        try:
            yield
        finally:
            self.measurements.waiting -= 1
