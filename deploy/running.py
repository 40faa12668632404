"""Hold the image's command while it runs in a room, and look at its processes from outside. Linux only."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from deploy.bare_root import Failed, Room
from deploy.dockerfile import Image
from tests.harness.reader import get

HOST_NAME = "chat.example.org"  # what ALLOWED_HOSTS says: no name of this machine
START_SECONDS = 60.0
POLL_SECONDS = 0.05
WRITING = os.O_WRONLY | os.O_RDWR


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass(frozen=True)
class Process:
    """What the kernel says of one process."""

    pid: int
    inner_pid: int
    state: str
    user: int
    is_powerless: bool
    command: bytes

    @classmethod
    def look_at(cls, pid: int) -> Process:
        """Raises: OSError, when it has ended meanwhile."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        facts = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        powers = [int(facts[name][0], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")]
        return cls(
            pid=pid,
            inner_pid=int(facts["NSpid"][-1]),
            state=facts["State"][0],
            user=int(facts["Uid"][0]),
            is_powerless=not any(powers) and facts["NoNewPrivs"] == ["1"],
            command=Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" "),
        )

    def written(self, root: Path) -> list[str]:
        """List the paths in this root of the files that it has open for writing."""
        paths = []
        for descriptor in Path(f"/proc/{self.pid}/fdinfo").iterdir():
            with contextlib.suppress(OSError):
                flags = int(descriptor.read_text().split("flags:")[1].split()[0], 8)
                path = os.readlink(f"/proc/{self.pid}/fd/{descriptor.name}")
                if flags & WRITING and path.startswith("/") and int(descriptor.name) > 2:  # 0 to 2 are ours
                    paths.append(path.removeprefix(str(root)))
        return paths


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class Running:
    """The image's command as process 1 of a room; killed at the end, whatever happens."""

    def __init__(self, room: Room, image: Image, *, port: int) -> None:
        self._room = room
        self._command = room.command(*image.command)
        self.url = f"http://127.0.0.1:{port}"
        self.headers = {"Host": HOST_NAME}
        self.ready_seconds = 0.0
        self._out = tempfile.TemporaryFile()  # noqa: SIM115
        self._err = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> Self:
        begun = time.monotonic()
        # A session of its own: a Ctrl-C at the terminal is for the proof, which then ends this.
        self._outer = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err, start_new_session=True
        )
        try:
            self.poll(lambda: self._outer.poll() is not None or self._is_healthy(), START_SECONDS)
            if not self._is_healthy():
                raise Failed(f"the service did not start:\n{self.output()}")
        except BaseException:
            self.__exit__()
            raise
        self.ready_seconds = time.monotonic() - begun
        return self

    def __exit__(self, *_: object) -> None:
        # A room goes with its process 1. The kernel forgets --kill-child once that takes another user.
        with contextlib.suppress(OSError, ValueError):
            os.kill(self.first, signal.SIGKILL)
        self._outer.kill()
        self._outer.wait(10)
        self._out.close()
        self._err.close()

    def _is_healthy(self) -> bool:
        try:
            return get(f"{self.url}/health", self.headers).status == 200
        except OSError:
            return False

    def poll(self, fact: Callable[[], bool], seconds: float) -> None:
        """Wait for what nothing announces; whoever calls looks whether it came."""
        until = time.monotonic() + seconds
        while not fact() and time.monotonic() < until:
            time.sleep(POLL_SECONDS)

    @property
    def first(self) -> int:
        """The pid, seen from outside, of the room's process 1."""
        (pid,) = _children(self._outer.pid)
        return pid

    def processes(self) -> list[Process]:
        """Look at process 1 and all below it."""
        pids = [self.first]
        for pid in pids:
            pids += _children(pid)
        found = []
        for pid in pids:
            with contextlib.suppress(OSError):
                found.append(Process.look_at(pid))
        return found

    def beside(self, *words: str) -> tuple[int, str]:
        """Run a command in the same room, as `docker exec` does; give its exit code and output."""
        command = self._room.command_beside(self.first, *words)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
        return done.returncode, done.stdout + done.stderr

    def send(self, number: signal.Signals) -> None:
        os.kill(self.first, number)

    def wait(self, seconds: float) -> int | None:
        """Wait for the end of process 1, and give its exit code; None when it still runs."""
        try:
            return self._outer.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def output(self) -> str:
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
        return "\n".join(texts)[-4000:]

    def said_json(self) -> bool:
        """Tell whether stdout holds JSON objects alone, and stderr nothing."""
        self._out.seek(0)
        self._err.seek(0)
        try:
            lines = [json.loads(line) for line in self._out]
        except ValueError:
            return False
        return bool(lines) and all(isinstance(line, dict) for line in lines) and not self._err.read()
