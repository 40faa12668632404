"""The parts that one worker runs with. They are built once, and kept in `app.extensions["chatwait"]`."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field

from app.embedded_model import model, supervisor
from app.generation.ending import end_lost
from app.generation.live import Generations
from app.generation.run import Bounds
from app.observability.libraries import flush
from app.platform.clock import Clock
from app.reading.readers import Readers
from app.server.body import Bodies
from app.server.connections import Connections
from app.settings import Settings
from app.shutdown import Drain
from app.streams.interface import Store
from app.streams.memory.store import MemoryStore
from app.tokens import counting as tokens
from app.upstream.client import OpenAIUpstream
from app.upstream.interface import Upstream

__all__ = ["Worker"]


@dataclass(kw_only=True)
class Worker:
    """The parts of one worker, each with one job."""

    settings: Settings
    store: Store
    upstream: Upstream
    generations: Generations
    readers: Readers
    bodies: Bodies
    connections: Connections
    clock: Clock
    drain: Drain = field(init=False)
    joining: threading.Lock = field(default_factory=threading.Lock)
    """Held while the chunks of a log are joined: each joined answer takes memory that nobody has counted yet."""
    answering: int = 0
    """How many requests are being answered in a view: their answer has not begun."""

    def __post_init__(self) -> None:
        self.drain = Drain(
            store=self.store,
            generations=self.generations,
            readers=self.readers,
            answering=lambda: self.answering,
            drain_seconds=self.settings.drain_seconds,
        )

    @classmethod
    def build(cls, settings: Settings, *, upstream: Upstream | None, store: Store | None) -> Worker:
        """Build the parts and connect them. The clock does not tick until `Clock.start`."""
        clock = Clock()
        if upstream is None:
            upstream = own = _upstream(settings)
            clock.add(own.sweep)
        connections = Connections(most=settings.connections)
        worker = cls(
            settings=settings,
            store=store or _store(settings),
            upstream=upstream,
            generations=_generations(settings, upstream),
            readers=_readers(settings),
            bodies=Bodies(
                budget_bytes=settings.upload_bytes,
                connections=connections,
                largest_bytes=max(settings.max_body_bytes, settings.openai_max_body_bytes),
            ),
            connections=connections,
            clock=clock,
        )
        for check in (
            worker.generations.check,
            worker.readers.check,
            worker.bodies.check,
            worker.connections.check,
            worker.store.sweep,
            lambda _: worker.drain.check(time.monotonic()),  # who stops a worker does not wait for one that stood still
            flush,
        ):
            clock.add(check)
        tokens.warm(settings.openai_model)
        if worker.store.elsewhere is not None:
            worker.store.elsewhere.start(
                cancel=worker.generations.cancel, abort=worker.generations.abort, lost=end_lost
            )
        return worker

    def close(self) -> None:
        """Cancel all generations and close everything. For tests: a worker of gunicorn ends by its drain."""
        self.clock.stop()
        self.generations.cancel_all("shutdown")
        self.store.close()
        self.upstream.close()


def _generations(settings: Settings, upstream: Upstream) -> Generations:
    bounds = Bounds(
        silence_seconds=settings.timeout_seconds,
        generation_seconds=settings.max_generation_seconds,
        abandoned_seconds=settings.abandoned_seconds,
        answer_chars=settings.max_answer_chars,
    )
    return Generations(upstream=upstream, bounds=bounds)


def _readers(settings: Settings) -> Readers:
    return Readers(
        limit=settings.max_readers,
        most_attached=settings.most_attached,
        heartbeat_seconds=settings.heartbeat_seconds,
    )


def _store(settings: Settings) -> Store:
    if not settings.redis_url:
        return MemoryStore(
            max_active=settings.max_active_streams,
            budget_bytes=settings.stream_memory_mb * 1_048_576,
            retention_seconds=settings.retention_seconds,
        )
    from app.streams.shared.store import SharedStore

    return SharedStore(
        settings.redis_url,
        max_active=settings.max_active_streams,
        budget_bytes=settings.stream_memory_mb * 1_048_576,
        retention_seconds=settings.retention_seconds,
        generation_seconds=settings.max_generation_seconds,
        abandoned_seconds=settings.abandoned_seconds,
    )


def _upstream(settings: Settings) -> OpenAIUpstream:
    if not settings.local_model:
        return OpenAIUpstream(base_url=settings.openai_base_url, api_key=settings.openai_api_key)
    url = os.environ.get(model.URL, "")
    return OpenAIUpstream(
        base_url=f"{url}/v1",
        api_key=os.environ.get(model.KEY, ""),
        is_ready=lambda: supervisor.ready(url, timeout=1.0),
    )
