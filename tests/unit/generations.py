"""One generation with a log that notes what is asked of it, and an upstream without a network."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from typing import Any

from app.generation.run import Bounds, Generation
from app.streams.interface import Origin
from app.streams.memory.store import MemoryStore
from app.upstream.interface import Question
from tests.unit.ends import Terminal, terminal_of
from tests.unit.fakes import PATIENCE_SECONDS, FakeUpstream, Step

BOUNDS = Bounds(silence_seconds=30.0, generation_seconds=600.0, abandoned_seconds=300.0, answer_chars=1000)
QUESTION = Question([{"role": "user", "content": "Hello"}], "gpt-4o-mini", 256, None)
PROMPT_TOKENS = 8
KEYS = [
    "sequence",
    "is_final",
    "status",
    "finish_reason",
    "model",
    "tokens",
    "usage",
    "first_token_ms",
    "duration_ms",
    "characters",
    "sha256",
    "correlation_id",
]


class WatchedLog:
    """A log that notes what is asked of it, and may do something at it."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.appended: list[tuple[str, bool]] = []
        self.batches: list[tuple[str, ...]] = []
        self.finished: list[bool] = []
        self.at_append: Callable[[str], None] = lambda text: None
        self.after_append: Callable[[str], None] = lambda text: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append(self, *texts: str) -> bool:
        for text in texts:
            self.at_append(text)
        taken = bool(self._log.append(*texts))
        self.appended += [(text, taken) for text in texts]
        self.batches.append(texts)
        for text in texts:
            self.after_append(text)
        return taken

    def finish(self, end: Any) -> bool:
        won = bool(self._log.finish(end))
        self.finished.append(won)
        return won


class Run:
    """One generation and all that it wrote."""

    def __init__(self, upstream: FakeUpstream, bounds: Bounds = BOUNDS) -> None:
        store = MemoryStore(max_active=10, budget_bytes=10_000_000, retention_seconds=60)
        log, _ = store.create(Origin("c-1", "gpt-4o-mini", "2026-11-21T09:00:00.000Z", PROMPT_TOKENS))
        self.log = WatchedLog(log)
        self.upstream = upstream
        self.generation = Generation(self.log, QUESTION, upstream=upstream, bounds=bounds)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self.generation.run, daemon=True)
        self._thread.start()

    def join(self) -> Terminal:
        assert self._thread is not None
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), "the generation's thread goes on"
        return self.terminal

    @property
    def terminal(self) -> Terminal:
        """The one terminal event, once it has been seen that there is one and that nothing follows it."""
        terminal = terminal_of(self.log)
        assert self.log.finished.count(True) == 1
        content = terminal.content
        text = self.log.text()
        assert list(content)[: len(KEYS)] == KEYS
        assert content["is_final"] is True
        assert content["tokens"] == self.log.head == content["sequence"] - 1
        assert content["characters"] == len(text)
        assert content["sha256"] == hashlib.sha256(text.encode()).hexdigest()
        assert text == "".join(text for text, taken in self.log.appended if taken)
        assert content["correlation_id"] == "c-1"
        assert content["model"] == "gpt-4o-mini"
        assert {"complete": "done"}.get(content["status"], content["status"]) == terminal.event
        return terminal


def run(*scripts: Iterable[Step] | BaseException, half: str = "", bounds: Bounds = BOUNDS) -> Run:
    """Run a generation to its end in this thread."""
    made = Run(FakeUpstream(*scripts, half=half), bounds)
    made.generation.run()
    return made
