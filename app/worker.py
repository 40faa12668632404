"""What one worker runs with, built once and kept in `app.extensions["chatwait"]`; and its orderly end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from app.embedded_model import supervisor as local_model
from app.generation.ending import end_lost
from app.generation.live import Generations
from app.generation.run import Bounds
from app.observability import facts
from app.observability.libraries import flush
from app.observability.observer import tell
from app.platform.clock import TICK_SECONDS, Clock
from app.reading.readers import Readers
from app.server.body import Bodies
from app.server.connections import Connections
from app.settings import Settings
from app.streams.interface import Store, StreamLog
from app.streams.memory.store import MemoryStore
from app.tokens import counting as tokens
from app.upstream.client import OpenAIUpstream
from app.upstream.interface import Upstream

__all__ = ["Runtime"]

LOCAL_MODEL_URL = "CHATWAIT_LOCAL_MODEL_URL"
"""The environment variable by which gunicorn.conf.py tells its workers where the embedded model listens."""

QUICK_SECONDS = 0.5

RAMP_SECONDS = 10.0
"""Over how long, at most, the readers of other workers' answers are sent away."""

ENDS_SECONDS = 5.0
"""How long ends that are due are waited for, after they were cut or else after the drain's deadline."""

LAST_FRAMES_SECONDS = 5.0
"""How long readers have, after the last generation ended, to come and take what they have not read."""


@dataclass(kw_only=True)
class Runtime:
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
    answering: int = 0
    """Requests whose answer has not begun."""

    def __post_init__(self) -> None:
        self.drain = Drain(self)

    @classmethod
    def build(cls, settings: Settings, *, upstream: Upstream | None, store: Store | None) -> Runtime:
        clock = Clock()
        if upstream is None:
            upstream = own = _upstream(settings)
            clock.add(own.sweep)
        store = store or _store(settings)
        bounds = Bounds(
            silence_seconds=settings.timeout_seconds,
            generation_seconds=settings.max_generation_seconds,
            abandoned_seconds=settings.abandoned_seconds,
            answer_chars=settings.max_answer_chars,
        )
        connections = Connections(most=settings.connections)
        runtime = cls(
            settings=settings,
            store=store,
            upstream=upstream,
            generations=Generations(upstream=upstream, bounds=bounds),
            readers=Readers(
                limit=settings.max_readers,
                most_attached=settings.most_attached,
                heartbeat_seconds=settings.heartbeat_seconds,
            ),
            bodies=Bodies(budget_bytes=settings.upload_bytes, connections=connections),
            connections=connections,
            clock=clock,
        )
        for check in (
            runtime.generations.check,
            runtime.readers.check,
            runtime.bodies.check,
            connections.check,
            runtime.store.sweep,
            runtime.drain.check,
            flush,
        ):
            clock.add(check)
        tokens.warm(settings.openai_model)
        generations = runtime.generations
        if store.elsewhere is not None:
            store.elsewhere.start(cancel=generations.cancel, abort=generations.abort, lost=end_lost)
        return runtime

    def close(self) -> None:
        self.clock.stop()
        self.generations.cancel_all("shutdown")
        self.store.close()
        self.upstream.close()


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
    import os

    url = os.environ.get(LOCAL_MODEL_URL, "")
    upstream = OpenAIUpstream(base_url=f"{url}/v1", api_key=os.environ.get(local_model.KEY, ""))
    upstream.ready = lambda: local_model.ready(url, timeout=1.0)  # type: ignore[method-assign]
    return upstream


class Drain:
    """The end of a worker: no new generations, live ones up to a deadline, then cancelled, then `finished`.

    Resumes are answered until the end, and whoever has not come back yet for the end of an answer gets a
    moment to do so: a reader whose connection broke just before a restart loses nothing either.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._finished: Callable[[], None] | None = None
        self._deadline = 0.0
        self._ramp_ends = 0.0
        self._logs: list[StreamLog] | None = None
        self._last_live = 0.0
        self._leaves_at: float | None = None
        self._cut_at: float | None = None
        self._quick = False

    @property
    def begun(self) -> bool:
        return self._finished is not None

    def begin(self, finished: Callable[[], None], *, quick: bool = False) -> None:
        """Note that the worker is to end; `quick` waits for no generation, only for its readers' last frames.

        Safe in a signal handler: nothing here waits, locks or logs. May be called again, to make it quick.
        """
        self._quick = self._quick or quick
        if self._finished is None:
            self._finished = finished

    def _release(self, now: float) -> None:
        """Send readers of other workers' logs away, a few at each tick: all at once would be a storm elsewhere."""
        ticks = 0.0 if self._quick else max(0.0, (self._ramp_ends - now) / TICK_SECONDS)
        self._runtime.readers.release_foreign(1 / (1 + ticks))

    def check(self, now: float) -> None:
        if self._finished is None or self._finished is _nothing:
            return
        generations, readers = self._runtime.generations, self._runtime.readers
        if self._logs is None:
            self._deadline = now + self._runtime.settings.drain_seconds
            self._runtime.store.stop_admitting()
            self._logs = generations.logs()
            self._last_live = now
            self._ramp_ends = now + min(RAMP_SECONDS, self._runtime.settings.drain_seconds / 2)
            tell(facts.DrainStarted(generations=len(self._logs), readers=readers.present))
        self._release(now)
        if generations.live:
            self._last_live = now
            if now < self._deadline and not self._quick:
                return
            if self._cut_at is None:
                self._cut_at = now
                tell(facts.DrainCut(generations=generations.live))
            generations.begin_cancel_all("shutdown")
        if generations.ending and now < (self._deadline if self._cut_at is None else self._cut_at) + ENDS_SECONDS:
            return  # one that is held up must not hold up the stop
        if readers.has_foreign and now < self._ramp_ends and not self._quick:
            self._last_live = now
            return
        waits_until = self._last_live + (QUICK_SECONDS if self._quick else LAST_FRAMES_SECONDS)
        if self._leaves_at is None:
            waited_for = readers.count or self._runtime.answering or any(not log.end_read for log in self._logs)
            if waited_for and now < waits_until:
                return
            # Others may be in the middle of a request: what is begun from here on ends at once, and is not cut.
            self._leaves_at = now
            readers.release_all()
            if not self._quick:
                return
        if (readers.count or self._runtime.answering) and now < self._leaves_at + QUICK_SECONDS:
            return
        tell(facts.DrainFinished(readers=readers.count, cut=self._cut_at is not None))
        finished, self._finished = self._finished, _nothing
        finished()


def _nothing() -> None:
    """Stand for a drain that has finished: it has begun, and has nothing left to call."""
