"""Run the real service as its users do: gunicorn in a process of its own, judged by its ports, signals and output.

Must never import the service's code.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import psutil  # type: ignore[import-untyped, unused-ignore]

from tests.harness import leaks as leaking
from tests.harness import pace as pacing
from tests.harness import probe as probing
from tests.harness import tap
from tests.harness.http1 import get
from tests.harness.net import HOST, Watch, reserve_port

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app"]
CLOCK = ("CHATWAIT_TEST_CLOCK_AHEAD", "PYTHONPATH")
"""What `tests.new_machine` tells every Python of the tests: the second only beside the first."""
PASSED_ON = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "COVERAGE_PROCESS_CONFIG")
STORE = "CHATWAIT_TEST_REDIS_URL"
"""Where this names a Valkey, every service of the tests that says nothing else keeps its streams there."""

START_SECONDS = 60.0
EXIT_SECONDS = 5.0
POLL_SECONDS = 0.02
MAX_LINE_BYTES = 16 << 10
MAX_LINES = 500_000
READ_BYTES = 1 << 20


class StartFailed(AssertionError):
    """State that the service did not start; `exit_code` is None when it ran without answering."""

    def __init__(self, exit_code: int | None, output: str) -> None:
        ending = "did not answer /health" if exit_code is None else f"exited with {exit_code}"
        super().__init__(f"the service {ending}; its output:\n{output}")
        self.exit_code = exit_code
        self.output = output


class _Pipe:
    """Collect the lines of one output, in a thread, and judge each of them as it comes."""

    def __init__(self, watch: Watch, *, is_log: bool) -> None:
        self.lines: list[str] = []
        self.log: list[dict[str, Any]] = []
        self.faults: list[str] = []
        self._watch = watch
        self._is_log = is_log
        self._thread: threading.Thread | None = None
        self._pipe: IO[bytes] | None = None
        self._taking = threading.Lock()
        self._taken = 0  # bytes
        self._rest = b""
        self.flows = threading.Event()
        self.flows.set()

    def follow(self, pipe: IO[bytes]) -> None:
        """Read the pipe of the process that was just started."""
        self._pipe = pipe
        self._thread = threading.Thread(target=self._read, args=(pipe,), name="output", daemon=True)
        self._thread.start()

    def catch_up(self, timeout: float = EXIT_SECONDS) -> None:
        """Wait until every line that was written before is here: an answer may be faster than the lines about it."""
        with self._taking:
            if self._pipe is None or self._pipe.closed or not self.flows.is_set():
                return
            wanted = self._taken + _waiting_bytes(self._pipe)
        until = time.monotonic() + timeout
        while self._taken < wanted and time.monotonic() < until:
            time.sleep(0.001)

    def join(self, timeout: float = EXIT_SECONDS) -> None:
        """Wait for the pipe's end, which comes when the last process that holds it has ended."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _read(self, pipe: IO[bytes]) -> None:
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        received = b"-"
        while received:
            poll.poll()
            self.flows.wait()
            with self._taking:
                received = os.read(pipe.fileno(), READ_BYTES)
                self._take_lines(received)
                self._taken += len(received)
                if not received:
                    pipe.close()
            self._watch.changed()

    def _take_lines(self, received: bytes) -> None:
        """Take whole lines; the rest when it is too long for one, or the last."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            self._take(line + b"\n")
        if self._rest and (not received or len(self._rest) > READ_BYTES):
            self._take(self._rest)
            self._rest = b""

    def _take(self, raw: bytes) -> None:
        if len(self.lines) >= MAX_LINES:
            self._fault(f"more than {MAX_LINES} lines", raw)
            return
        self.lines.append(raw.decode("utf-8", "backslashreplace").rstrip("\n"))
        if self._is_log:
            self._judge(raw)

    def _judge(self, raw: bytes) -> None:
        if len(raw.rstrip(b"\n")) > MAX_LINE_BYTES:
            self._fault(f"a line of {len(raw)} bytes, {MAX_LINE_BYTES} are allowed", raw)
        try:
            parsed = json.loads(raw, parse_constant=_refuse_constant)
        except ValueError as problem:
            self._fault(f"not JSON ({problem})", raw)
            return
        if isinstance(parsed, dict):
            self.log.append(parsed)
        else:
            self._fault("not a JSON object", raw)

    def _fault(self, problem: str, raw: bytes) -> None:
        if len(self.faults) < 20:
            self.faults.append(f"stdout, line {len(self.lines)}: {problem}: {raw[:1000]!r}")


class ChatWait:
    """Run the service on a port of its own, with these settings and nothing else in its environment.

    As a context manager it starts on entry; on exit it always ends the process group, and then raises AssertionError
    if a line of stdout was not one JSON object of at most 16 KiB, or stderr not empty, unless `check_output` is False;
    and, whatever it is, if one of them holds what no log may (`leaks`).
    It can be started again after it ended, on the same port and with its log growing on.
    With `probe` its worker also tells what only it can see (`inside`). With `pace` built-in waits of it are shorter.
    """

    def __init__(
        self,
        *,
        check_output: bool = True,
        root: Path = ROOT,
        probe: bool = False,
        pace: pacing.Pace | None = None,
        **settings: Any,
    ) -> None:
        self.check_output = check_output
        self.has_probe = probe
        self.pace = pace
        self.settings = settings
        self._root = root
        self._watch = Watch()
        self._out = _Pipe(self._watch, is_log=True)
        self._err = _Pipe(self._watch, is_log=False)
        self._process: subprocess.Popen[bytes] | None = None
        # On Linux a second socket may hold the port while gunicorn listens, and keeps it ours between two starts.
        self._reservation = reserve_port(shared=False)
        self.port: int = self._reservation.getsockname()[1]
        if sys.platform != "linux":
            self._reservation.close()
        self._is_tapped = (root / "contracts").is_dir()  # a program of a test's own keeps no contract
        if self._is_tapped:
            tap.watch(self.port)

    # Life

    def start(self, timeout: float = START_SECONDS) -> Self:
        """Start the service, and wait until it is healthy. Raises: StartFailed, with the output."""
        if self.is_running:
            raise RuntimeError("the service is running already")
        process = subprocess.Popen(
            self._command(),
            cwd=self._root,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._process = process
        assert process.stdout is not None
        assert process.stderr is not None
        self._out.follow(process.stdout)
        self._err.follow(process.stderr)
        ends_at = time.monotonic() + timeout
        while not self._is_healthy():
            if process.poll() is not None or time.monotonic() > ends_at:
                exit_code = process.poll()
                self.kill()
                raise StartFailed(exit_code, self.output)
            time.sleep(POLL_SECONDS)  # nothing tells from outside when a port begins to answer
        return self

    def stop(self, timeout: float = 35.0) -> int:
        """End the service gracefully (SIGTERM), and give its exit code. Raises: TimeoutError."""
        self.signal(signal.SIGTERM)
        return self.wait_exit(timeout)

    def interrupt(self, timeout: float = 10.0) -> int:
        """Press Ctrl-C: SIGINT to the whole group, as a terminal does. Give the exit code. Raises: TimeoutError."""
        os.killpg(self._running.pid, signal.SIGINT)
        return self.wait_exit(timeout)

    def kill(self) -> None:
        """Kill the whole group, and whatever the service had started outside it (SIGKILL)."""
        if self._process is None:
            return
        family = self._family()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for member in family:
            with contextlib.suppress(psutil.Error):
                member.kill()
        self._process.wait(EXIT_SECONDS)
        psutil.wait_procs(family, timeout=EXIT_SECONDS)
        self._join_output()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to gunicorn's master."""
        self._running.send_signal(number)

    def wait_exit(self, timeout: float) -> int:
        """Wait until the master has ended, and give its exit code. Raises: TimeoutError."""
        process = self._running
        try:
            exit_code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the service still ran after {timeout:g} s; its output:\n{self.output}") from None
        self._join_output()
        return exit_code

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.end()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        if error is not None:
            error.add_note(f"the end of the service's output:\n{self.output[-4000:]}")
            return
        if leaks := leaking.leaks([*self._out.lines, *self._err.lines]):
            raise AssertionError("\n".join(leaks[:20]))
        if self.check_output:
            self.check()

    def end(self) -> None:
        """End the service quickly, by force if it must be, and give the port back."""
        if self.is_running:
            with contextlib.suppress(TimeoutError, ProcessLookupError):
                self.signal(signal.SIGINT)
                self.wait_exit(EXIT_SECONDS)
        self.kill()
        if self._is_tapped:
            tap.unwatch(self.port)
            self._is_tapped = False
        self._reservation.close()

    # What it says

    @property
    def base_url(self) -> str:
        """Tell the URL of the service, without a slash at its end."""
        return f"http://{HOST}:{self.port}"

    @property
    def is_running(self) -> bool:
        """Tell whether the master lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def lines(self) -> list[str]:
        """List the lines of stdout as they came."""
        self._out.catch_up()
        return list(self._out.lines)

    @property
    def stderr_lines(self) -> list[str]:
        """List the lines of stderr."""
        self._err.catch_up()
        return list(self._err.lines)

    @property
    def log(self) -> list[dict[str, Any]]:
        """List the lines of stdout, parsed; those that are no JSON object are left out."""
        self._out.catch_up()
        return list(self._out.log)

    @property
    def output(self) -> str:
        """Give all that was written, stderr last."""
        self._out.catch_up()
        self._err.catch_up()
        return "\n".join([*self._out.lines, *self._err.lines])

    def log_of(self, event: str | Callable[[dict[str, Any]], bool], **fields: Any) -> list[dict[str, Any]]:
        """List the log's records of this event (its `event`, or else its `message`) with these fields.

        What the service wrote before is there. The lines of the model's calls and of an answer's end are written before
        the answer's last byte. What is written after that byte (`reader_left`), or by another process than the one that
        answered, may come later: `wait_for_log` waits for it.
        """
        return [record for record in self.log if _matches(record, event, fields)]

    def wait_for_log(
        self, event: str | Callable[[dict[str, Any]], bool], timeout: float = 5.0, **fields: Any
    ) -> dict[str, Any]:
        """Wait for the first such record, one that is there already included. Raises: TimeoutError."""
        found: list[dict[str, Any]] = []
        searched = 0

        def search() -> bool:
            nonlocal searched
            while searched < len(self._out.log) and not found:
                record = self._out.log[searched]
                searched += 1
                if _matches(record, event, fields):
                    found.append(record)
            return bool(found)

        def missing() -> str:
            return f"the log line {event!r} {fields!r}; the last lines:\n" + "\n".join(self._out.lines[-10:])

        self._watch.wait_until(search, timeout=timeout, what=missing)
        return found[0]

    @contextlib.contextmanager
    def output_unread(self) -> Iterator[None]:
        """Read nothing of stdout meanwhile, as a log collector that hangs: the pipe fills up, and blocks who writes."""
        self._out.flows.clear()
        try:
            yield
        finally:
            self._out.flows.set()

    def check(self) -> None:
        """Raise AssertionError if any line of the output is not what it should be."""
        problems = list(self._out.faults)
        if self._err.lines:
            problems.append("stderr is not empty:\n" + "\n".join(self._err.lines[:50]))
        if problems:
            raise AssertionError("\n".join(problems))

    # What it uses

    def worker_pids(self) -> list[int]:
        """List the workers: the master's children that run its own command, not other programs."""
        master = psutil.Process(self._running.pid)
        pids = []
        for child in master.children():
            # A worker is a fork that executes nothing new; with setproctitle it says so.
            with contextlib.suppress(psutil.Error):
                command = child.cmdline()
                if command == master.cmdline() or (command and command[0].startswith("gunicorn: worker")):
                    pids.append(child.pid)
        return pids

    def wait_for_workers(self, count: int, timeout: float = 5.0) -> list[int]:
        """Wait until so many workers run (the first one answers before the others are there). Raises: TimeoutError."""
        ends_at = time.monotonic() + timeout
        while len(pids := self.worker_pids()) != count:
            if time.monotonic() > ends_at:
                raise TimeoutError(f"waited {timeout:g} s for {count} workers, there are {len(pids)}")
            time.sleep(POLL_SECONDS)  # nothing tells from outside when a process is born
        return pids

    def resources(self) -> dict[str, int]:
        """Add up what the workers hold: `fds`, `threads` and `rss_bytes`."""
        total = {"fds": 0, "threads": 0, "rss_bytes": 0}
        for pid in self.worker_pids():
            worker = psutil.Process(pid)
            total["fds"] += worker.num_fds()
            total["threads"] += worker.num_threads()
            total["rss_bytes"] += worker.memory_info().rss
        return total

    def sockets(self) -> int:
        """Count the internet sockets of the workers, listeners too; after a crowd it takes the tenth of a second."""
        return sum(len(psutil.Process(pid).net_connections(kind="inet")) for pid in self.worker_pids())

    def clients(self) -> int:
        """Count the connections of clients that the workers hold a descriptor of."""
        held = (one for pid in self.worker_pids() for one in psutil.Process(pid).net_connections(kind="inet"))
        return sum(one.laddr.port == self.port and one.status != psutil.CONN_LISTEN for one in held)

    def inside(self) -> dict[str, int]:
        """Count what lives in the worker, greenlets for one; only with `probe=True`. It stops the worker for 0.2 s."""
        counts: dict[str, int] = get(f"{self.base_url}{probing.PATH}", timeout=60.0).json
        return counts

    def uncollected(self) -> dict[str, int]:
        """Count by type what has become garbage in cycles since the last call; only with `probe=True`.

        The first call says nothing, and switches the collector off for good.
        """
        counts: dict[str, int] = get(f"{self.base_url}{probing.PATH}?{probing.UNCOLLECTED}", timeout=60.0).json
        return counts

    def holders(self, text: str) -> list[str]:
        """Name the types of the live objects in the worker that hold a text; only with `probe=True`."""
        told: dict[str, list[str]] = get(f"{self.base_url}{probing.PATH}?{text[::-1]}", timeout=60.0).json
        return told["holders"]

    # Its own

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the service was not started")
        return self._process

    def _command(self) -> list[str]:
        if self.pace is not None:
            return [*COMMAND[:-1], pacing.target(self.pace, probe=self.has_probe)]
        return [*COMMAND[:-1], probing.TARGET] if self.has_probe else COMMAND

    def _environment(self) -> dict[str, str]:
        passed_on = (*PASSED_ON, *CLOCK) if CLOCK[0] in os.environ else PASSED_ON
        environment = {name: os.environ[name] for name in passed_on if name in os.environ}
        # A developer's own .env must not decide what a test sees.
        environment |= {"HOST": HOST, "PORT": str(self.port), "ENV_FILE": os.devnull}
        if url := os.environ.get(STORE):
            environment["REDIS_URL"] = url
        for name, value in self.settings.items():
            if value is not None:
                environment[name] = str(value).lower() if isinstance(value, bool) else str(value)
        return environment

    def _is_healthy(self) -> bool:
        try:
            named = str(self.settings.get("ALLOWED_HOSTS") or HOST).partition(",")[0]
            return get(f"{self.base_url}/health", {"Host": named}, timeout=1.0).status == 200
        except OSError:
            return False

    def _family(self) -> list[psutil.Process]:
        """List all that descends from the master, while it lives."""
        assert self._process is not None
        if self._process.poll() is not None:
            return []
        try:
            children: list[psutil.Process] = psutil.Process(self._process.pid).children(recursive=True)
            return children
        except psutil.Error:
            return []

    def _join_output(self) -> None:
        self._out.join()
        self._err.join()


def failed_start(*, root: Path = ROOT, **settings: Any) -> tuple[int, str]:
    """Start the service with settings it must refuse, and give its exit code and output.

    Raises: AssertionError when it starts, or neither answers nor ends.
    """
    service = ChatWait(root=root, **settings)
    try:
        service.start()
    except StartFailed as failure:
        if failure.exit_code is None:
            raise
        return failure.exit_code, failure.output
    finally:
        service.end()
    raise AssertionError(f"the service started with {settings!r}")


def _matches(record: dict[str, Any], event: str | Callable[[dict[str, Any]], bool], fields: dict[str, Any]) -> bool:
    if callable(event):
        is_wanted = event(record)
    else:
        is_wanted = record.get("event", record.get("message")) == event
    return is_wanted and all(record.get(name) == value for name, value in fields.items())


def _waiting_bytes(pipe: IO[bytes]) -> int:
    """Tell how many bytes wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
