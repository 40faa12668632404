"""What Valkey must carry: a load straight against a real Valkey, from the service's own committer and tail.

`python -m load.scale` starts a Valkey, and workers that have no readers and no model: each writes the beginnings, the
commits and the ends of its streams with the service's committer, and follows a share of its neighbour's streams with
the service's tail. There are more and more streams, until Valkey's one thread is full or its answers come
late. What a plan for many machines needs is printed as Markdown, and as JSON. It takes a minute, and two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.streams.interface import new_stream_id
from app.streams.shared import scripts
from app.streams.shared.commands import REMEMBERED_SECONDS
from app.streams.shared.committer import Commit, Committer
from app.streams.shared.connection import Answer, Command, Connection, script
from app.streams.shared.leases import LEASE_SECONDS
from app.streams.shared.replies import CommitReply, Done, FinishReply, Written
from app.streams.shared.store import ROUND_SECONDS
from app.streams.shared.tail import Tail
from load.compare.subjects import NotStarted
from load.compare.valkey import Cores, Valkey

__all__ = ["Figures", "Memory", "Plan", "main", "measure", "memory"]

TOKENS = 500
TOKENS_PER_SECOND = 50
CHUNK = b" token"
TICK_SECONDS = 0.002
WARM_SECONDS = 1.0
ANSWERS = 10

FULL_SHARE = 0.9
LATE_MS = 20.0
"""A round trip that takes longer than a stream's next token needs: from there on Valkey is behind."""

USABLE_SHARE = 0.6
"""Of what one thread can take: the rest is for bursts, replicas, and all that comes back at once after a failure."""

MOST_WAITED = 0.1
GROWTH = 1.5
MOST_STEPS = 10
KEPT_SECONDS = Settings().retention_seconds
KEPT_MS = int(KEPT_SECONDS * 1000)
LIVE_MS = int((Settings().max_generation_seconds + KEPT_SECONDS + 60) * 1000)
GOAL = 1_000_000

END = json.dumps(
    {
        "event": "done",
        "content": {
            "sequence": TOKENS + 1,
            "is_final": True,
            "status": "complete",
            "finish_reason": "stop",
            "model": "mock",
            "tokens": TOKENS,
            "usage": {"prompt_tokens": 9, "completion_tokens": TOKENS, "total_tokens": TOKENS + 9},
            "first_token_ms": 100,
            "duration_ms": 10_000,
            "characters": TOKENS * len(CHUNK),
            "sha256": 64 * "0",
            "correlation_id": 32 * "0",
        },
        "frees_key": False,
    }
)


@dataclass(frozen=True)
class Figures:
    """What was measured with so many streams. Units: microseconds and bytes for a token, milliseconds, shares of a
    core."""

    streams: int
    tokens_per_second: float
    valkey_us: float
    valkey_share: float  # of its main thread
    valkey_waited: float  # for a core, which others had
    bytes_in: float
    bytes_out: float
    commands_per_second: float  # as they were sent
    steps_per_second: float  # with those that the scripts run
    read_share: float  # of the tokens: brought to another worker
    commit_p50_ms: float
    commit_p99_ms: float
    load_share: float  # this program's own

    @property
    def is_full(self) -> bool:
        """Valkey takes no more: its thread is busy, or round trips are late, or tokens were not written."""
        behind = self.tokens_per_second < 0.97 * self.streams * TOKENS_PER_SECOND
        return self.valkey_share >= FULL_SHARE or self.commit_p99_ms > LATE_MS or behind


@dataclass(frozen=True)
class Memory:
    """What one answer takes in Valkey. Units: bytes, as Valkey counts its keys'."""

    live: float  # half of it is written
    finished: float  # while its text is kept
    remembered: float  # when only its hash is left


class _Stream:
    """One answer under way, as the committer sees it."""

    def __init__(self, tokens: int, owner: str, count: Callable[[int], object]) -> None:
        """`count` is called with the number of tokens that were written."""
        key = "{chatwait}:" + new_stream_id()
        self.keys = (key, f"{key}:log")
        self.head = 0  # of what was appended
        self.failure = ""
        self._sent = 0
        self._tokens = tokens
        self._owner = owner
        self._count = count
        self._written = 0

    @property
    def is_whole(self) -> bool:
        return self.head == self._tokens

    @property
    def is_awaited(self) -> bool:
        """Its first record and its end go at once, as those of a log do."""
        return self.head <= 1 or self.is_whole

    def _create(self) -> Command:
        fields = ("owner", self._owner, "fence", 1, "head", 0, "bytes", 0, "correlation_id", 32 * "0", "model", "mock")
        more = ("created", "2026-01-01T00:00:00.000Z", "prompt_tokens", 9)
        return script(scripts.CREATE, self.keys[:1], 1, LIVE_MS, "", *fields, *more)

    def append(self, tokens: int) -> None:
        """Append so many tokens, or those that are left."""
        self.head = min(self.head + tokens, self._tokens)

    def commit(self) -> Commit | None:
        begun, self._sent = self._sent, self.head
        if begun == self.head:
            return None
        create = None if begun else self._create()  # goes before the records, in the same batch
        finish = self._finish() if self.is_whole else None
        return Commit(self.keys, 1, begun + 1, (self.head - begun) * [CHUNK], restore=create, finish=finish)

    def _finish(self) -> Command:
        remembered_ms = KEPT_MS + REMEMBERED_SECONDS * 1000
        return script(scripts.FINISH, self.keys, 1, self._tokens, END, "done", KEPT_MS, remembered_ms, 0)

    def committed(self, reply: CommitReply) -> None:
        if not isinstance(reply, Written):
            self.failure = f"Valkey did not write: {reply!r:.200}"
            return
        self._count(reply.head - self._written)
        self._written = reply.head

    def finished(self, reply: FinishReply) -> None:
        if not isinstance(reply, Done):
            self.failure = f"Valkey did not end: {reply!r:.200}"

    def not_committed(self) -> None:
        self.failure = "Valkey refused a batch"

    def not_committable(self) -> None:
        self.failure = "Valkey's answer cannot be used"


class _Timed(Connection):
    """A connection that notes how long each round trip takes, and counts the commands."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url, name=name, timeout_seconds=5.0)
        self.rounds: list[float] = []
        self.sent = 0

    def ask(self, commands: Sequence[Command]) -> list[Answer]:
        begun = time.monotonic()
        answers = super().ask(commands)
        self.rounds.append(time.monotonic() - begun)
        self.sent += len(answers)
        return answers


class _Copy:
    """A stream of another worker, which is followed."""

    def __init__(self, worker: _Worker, key: str) -> None:
        self._worker = worker
        self._key = key
        self.head = 0

    def take(self, entries: list[Any]) -> bool:
        self.head = int(entries[-1][0].partition(b"-")[0])
        self._worker.read += len(entries)
        if entries[-1][1][0] == b"e":
            self._worker.tail.unfollow(self._key, self)
        return True


class _Worker:
    """A worker of the service, as Valkey sees it: two connections."""

    def __init__(self, url: str, number: int, streams: int, read_share: float) -> None:
        self.name = f"{number:016x}"
        self.neighbour = self
        self.written = self.read = 0
        self.failure: BaseException | None = None
        self._streams = streams
        self._read_share = read_share
        self._begun = 0
        self._wake = "{chatwait}:wake:" + self.name
        self.connection = _Timed(url, f"chatwait-{self.name}")
        self._committer = Committer(self.connection, live_ms=LIVE_MS, back=_nothing)
        tailing = Connection(url, name=f"chatwait-{self.name}-tail", timeout_seconds=5.0)
        self.tail = Tail(tailing, wake=self._wake, woken=_nothing, broken=_nothing, nudge=self._nudge)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        self._committer.start()
        self.tail.start()
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self.tail.stop()

    def join(self) -> None:
        self._thread.join()
        self.tail.join()
        self._committer.stop()
        self._committer.join()

    def follow(self, stream: _Stream) -> None:
        """Read a stream from now on, as when its reader comes: first what there is, then the tail."""
        hash_key, entries = stream.keys
        self._post(("HGETALL", hash_key), ("XRANGE", entries, "(0-0", "+", "COUNT", 500))
        self.tail.follow(entries, _Copy(self, entries))

    def _post(self, *commands: Command) -> None:
        self._committer.post(commands, _nothing)

    def _count(self, tokens: int) -> None:
        self.written += tokens

    def _nudge(self) -> None:
        self._post(script(scripts.WAKE, (self._wake,), "follow", "", LIVE_MS))

    def _new(self, tokens: int) -> _Stream:
        stream = _Stream(tokens, self.name, self._count)
        self._begun += 1
        if int(self._begun * self._read_share) > int((self._begun - 1) * self._read_share):
            self.neighbour.follow(stream)
        return stream

    def _run(self) -> None:
        try:
            self._append()
        except BaseException as failure:  # noqa: BLE001 - who asked for the figures raises it
            self.failure = failure

    def _append(self) -> None:
        """Append what is due, every few milliseconds, as the model's tokens come; the committer writes it."""
        count = self._streams
        ring = [self._new(TOKENS * (at + 1) // count or 1) for at in range(count)]  # so that ends are spread
        place = appended = 0
        next_life = begun = time.monotonic()
        while not self._stopped:
            now = time.monotonic()
            if now >= next_life:
                next_life = now + ROUND_SECONDS
                self._post(
                    ("SET", "{chatwait}:worker:" + self.name, 1, "PX", int(LEASE_SECONDS * 1000)),
                    ("EXISTS", "{chatwait}:worker:" + self.neighbour.name),
                )
            due = int((now - begun) * TOKENS_PER_SECOND * count) - appended
            appended += due
            for at in range(min(due, count)):
                stream = ring[(place + at) % count]
                stream.append(due // count + (at < due % count))
                self._committer.changed(stream)
                if stream.failure:
                    raise AssertionError(stream.failure)
                if stream.is_whole:
                    ring[(place + at) % count] = self._new(TOKENS)
            place = (place + due) % count
            time.sleep(TICK_SECONDS)


def _nothing(*_: object) -> None:
    """Stand for what no worker of these needs."""


class _Info:
    """What Valkey says of itself, as numbers, and how long its thread was ready and had no core."""

    def __init__(self, url: str) -> None:
        self._connection = Connection(url, name="figures", timeout_seconds=5.0)

    def ask(self) -> dict[str, float]:
        (told,) = self._connection.ask([("INFO", "everything")])
        pairs = (line.split(":", 1) for line in told.decode().splitlines() if ":" in line)
        found = {name: float(value) for name, value in pairs if value.replace(".", "", 1).isdigit()}
        ran = Path(f"/proc/{found['process_id']:.0f}/schedstat").read_text(encoding="ascii")  # of its main thread
        return found | {"waited": int(ran.split()[1]) / 1e9}

    def close(self) -> None:
        self._connection.close()


def measure(url: str, *, streams: int, worker_streams: int, read_share: float, seconds: float) -> Figures:
    """Load Valkey for so long, after a moment that does not count."""
    workers = math.ceil(streams / worker_streams)
    each = streams // workers
    found = [_Worker(url, number, each, read_share) for number in range(workers)]
    for number, worker in enumerate(found):
        worker.neighbour = found[(number + 1) % workers]
    info = _Info(url)

    def state() -> tuple[dict[str, float], float, float, list[int]]:
        each = ((one.written, one.read, one.connection.sent) for one in found)
        sums = [sum(values) for values in zip(*each, strict=True)]
        return info.ask(), time.monotonic(), time.process_time(), sums

    with ExitStack() as stack:
        stack.callback(info.close)
        for worker in found:
            stack.callback(worker.join)
        for worker in found:
            stack.callback(worker.stop)
            worker.start()
        time.sleep(WARM_SECONDS)
        told, begun, own, sums = state()
        for worker in found:
            worker.connection.rounds.clear()
        time.sleep(seconds)
        told_then, ended, own_then, sums_then = state()
        rounds = sorted(took for worker in found for took in worker.connection.rounds) or [math.nan]
    for worker in found:
        if worker.failure is not None:
            raise worker.failure
    took = ended - begun
    written, read, sent = (then - before for then, before in zip(sums_then, sums, strict=True))
    spent = {name: told_then[name] - told.get(name, 0.0) for name in told_then}
    cpu = spent["used_cpu_user_main_thread"] + spent["used_cpu_sys_main_thread"]
    tokens = max(written, 1)
    return Figures(
        streams=each * workers,
        tokens_per_second=written / took,
        valkey_us=cpu * 1e6 / tokens,
        valkey_share=cpu / took,
        valkey_waited=spent["waited"] / took,
        bytes_in=spent["total_net_input_bytes"] / tokens,
        bytes_out=spent["total_net_output_bytes"] / tokens,
        commands_per_second=sent / took,
        steps_per_second=spent["total_commands_processed"] / took,
        read_share=read / tokens,
        commit_p50_ms=rounds[len(rounds) // 2] * 1000,
        commit_p99_ms=rounds[len(rounds) * 99 // 100] * 1000,
        load_share=(own_then - own) / took,
    )


def memory(url: str) -> Memory:
    """Write some answers chunk by chunk, and ask what their keys take: half written, ended, without their text."""
    committer = Committer(Connection(url, name="memory", timeout_seconds=5.0), live_ms=LIVE_MS, back=_nothing)
    streams = [_Stream(TOKENS, f"{0:016x}", _nothing) for _ in range(ANSWERS)]

    def taken(*of: int) -> float:
        keys = [stream.keys[at] for stream in streams for at in of]
        return sum(committer.ask(*(("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys))) / ANSWERS

    committer.start()
    try:
        live = 0.0
        for number in range(TOKENS):
            if number == TOKENS // 2:
                live = taken(0, 1)
            for stream in streams:
                stream.append(1)
                committer.changed(stream)
            committer.ask(("PING",))  # when it is answered, the chunks are written
        if failures := [stream.failure for stream in streams if stream.failure]:
            raise AssertionError(failures[0])
        return Memory(live, taken(0, 1), taken(0))
    finally:
        committer.stop()
        committer.join()


@dataclass(frozen=True)
class Plan:
    """What was measured, and what follows from it."""

    steps: Sequence[Figures]
    memory: Memory
    worker_streams: int

    @property
    def best(self) -> Figures:
        """The step with the most tokens that was not full yet, or the first."""
        return max((step for step in self.steps if not step.is_full), key=lambda it: it.streams, default=self.steps[0])

    @property
    def thread_streams(self) -> float:
        """How many streams fill one thread, at the cost of a token in the best step, where it is not reached."""
        best = self.best
        reached = any(step.is_full and step.valkey_share >= FULL_SHARE for step in self.steps)
        return best.streams if reached else best.streams * FULL_SHARE / max(best.valkey_share, 1e-9)

    @property
    def streams_per_valkey(self) -> int:
        return int(self.thread_streams * USABLE_SHARE)

    def bytes_for(self, streams: int) -> tuple[float, float]:
        """What so many streams take at any time: live with kept text, and remembered for a day beside it."""
        ends_per_second = streams * TOKENS_PER_SECOND / TOKENS
        kept = streams * self.memory.live + ends_per_second * KEPT_SECONDS * self.memory.finished
        return kept, ends_per_second * REMEMBERED_SECONDS * self.memory.remembered

    def needed(self, streams: int) -> tuple[int, int]:
        """Valkey servers and workers (of one core each)."""
        return math.ceil(streams / self.streams_per_valkey), math.ceil(streams / self.worker_streams)

    def markdown(self) -> str:
        lines = [
            "| streams | tokens a second | valkey's CPU a token | valkey's thread: busy, waiting for a core "
            "| in, out a token | commands a second, with those in scripts | commit p50, p99 | this load's own CPU |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {it.streams:,} | {it.tokens_per_second:,.0f} | {it.valkey_us:.1f} µs "
            f"| {it.valkey_share:.0%}, {it.valkey_waited:.0%} | {it.bytes_in:.0f}, {it.bytes_out:.0f} B "
            f"| {it.commands_per_second:,.0f}, {it.steps_per_second:,.0f} "
            f"| {it.commit_p50_ms:.1f}, {it.commit_p99_ms:.1f} ms | {it.load_share:.0%} |"
            for it in self.steps
        ]
        if any(it.valkey_waited > MOST_WAITED for it in self.steps):
            lines += ["", "**Valkey waited for a core that others had**: its CPU counts, its times do not."]
        best = self.best
        sizes = ", ".join(f"{name} {size:,.0f} B" for name, size in asdict(self.memory).items())
        lines += [
            "",
            f"Memory of an answer of {TOKENS} tokens (live: half of it written): {sizes}. Of the tokens "
            f"{best.read_share:.0%} were read at another worker, too.",
            "",
            f"| | 1,000 streams | {GOAL:,} streams |",
            "|---|---|---|",
        ]
        share = 1000 / best.streams
        into, out = (each * best.tokens_per_second * share / 1e6 for each in (best.bytes_in, best.bytes_out))
        lines.append(
            f"| commands a second, with those in scripts | {best.commands_per_second * share:,.0f}, "
            f"{best.steps_per_second * share:,.0f} | |"
        )
        lines.append(f"| to Valkey, from it | {into:.1f}, {out:.1f} MB/s | {into:,.1f}, {out:,.1f} GB/s |")
        few, many = self.bytes_for(1000), self.bytes_for(GOAL)
        for what, at in (
            (f"live, and kept for {KEPT_SECONDS / 60:.0f} minutes", 0),
            (f"remembered for {REMEMBERED_SECONDS / 3600:.0f} hours", 1),
        ):
            lines.append(f"| {what} | {few[at] / 2**20:,.0f} MiB | {many[at] / 2**30:,.0f} GiB |")
        servers, workers = self.needed(GOAL)
        lines.append(
            f"| Valkey servers of {self.streams_per_valkey:,} streams, {USABLE_SHARE:.0%} of the "
            f"{self.thread_streams:,.0f} that fill a thread | {1000 / self.streams_per_valkey:.2f} | {servers:,} |"
        )
        lines.append(
            f"| workers of {self.worker_streams} streams, a core each "
            f"| {1000 / self.worker_streams:.0f} | {workers:,} |"
        )
        lines += [
            "",
            f"Kept and remembered: as if every stream were followed by the next, an answer each "
            f"{TOKENS / TOKENS_PER_SECOND:.0f} seconds.",
        ]
        return "\n".join(lines)

    def json(self) -> str:
        servers, workers = self.needed(GOAL)
        found = {
            "steps": [asdict(step) for step in self.steps],
            "memory": asdict(self.memory),
            "streams_per_valkey": self.streams_per_valkey,
            "goal": {"streams": GOAL, "valkey_servers": servers, "workers": workers},
        }
        return json.dumps(found, indent=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and give the exit code: 0, or 2 when nothing can be measured."""
    parser = argparse.ArgumentParser(prog="python -m load.scale", description=__doc__)
    parser.add_argument("--streams", type=int, default=500, help="streams of the first step")
    parser.add_argument(
        "--read-share", type=float, default=0.1, help="share of the streams that are read at another worker"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each step")
    parser.add_argument(
        "--steps", type=int, default=MOST_STEPS, help="most steps; each has 1.5 times the streams of the one before"
    )
    parser.add_argument(
        "--worker-streams", type=int, default=250, help="streams of a worker, as one of the service sustains"
    )
    parser.add_argument("--json", type=Path, help="also write the figures into this file, as JSON")
    options = parser.parse_args(arguments)
    if not hasattr(os, "sched_setaffinity") or not Path("/proc/self/schedstat").exists():
        print("No measurement. Valkey's time on a core is read from Linux's /proc, and this system has none.")
        return 2
    cores = sorted(os.sched_getaffinity(0))
    steps: list[Figures] = []
    streams = options.streams
    sys.setswitchinterval(0.0005)  # who has an answer need not wait until another has written its batch
    with tempfile.TemporaryDirectory(prefix="scale-") as directory, ExitStack() as stack:
        try:
            valkey = Valkey(Path(directory), Cores.of(cores).first)
        except NotStarted as problem:
            print(f"No measurement: {problem}")
            return 2
        stack.callback(valkey.end)
        if len(cores) > 1:
            stack.callback(os.sched_setaffinity, 0, cores)
            os.sched_setaffinity(0, cores[:-1])
        found = memory(valkey.url())
        while len(steps) < options.steps and not (steps and steps[-1].is_full):
            steps.append(
                measure(
                    valkey.url(),
                    streams=streams,
                    worker_streams=options.worker_streams,
                    read_share=options.read_share,
                    seconds=options.seconds,
                )
            )
            print(f"{streams:,} streams: {steps[-1].valkey_share:.0%} of Valkey's thread", flush=True)
            streams = int(streams * GROWTH)
    plan = Plan(steps, found, options.worker_streams)
    print(f"\n{plan.markdown()}")
    if options.json is not None:
        options.json.write_text(plan.json(), encoding="utf-8")
    else:
        print(f"\n{plan.json()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
