"""What is compared: how each one starts, is asked, and what it uses. Each serves on one core, with one worker."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import string
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Self

from load.upstream import CONTENT, MODEL

__all__ = [
    "BEFORE",
    "DIRECT",
    "NODE",
    "OPENAI",
    "OURS",
    "ROOT",
    "Meter",
    "NotStarted",
    "Process",
    "Subject",
    "as_openai",
    "before",
    "free_port",
    "node",
    "request",
    "subjects",
]

ROOT = Path(__file__).resolve().parents[2]
REFERENCES = ROOT / "load" / "references"
OURS = "ChatWait"
OPENAI = "ChatWait, OpenAI's route"
NODE = "Node"
DIRECT = "direct"
BEFORE = "before"
PACKAGES = ("openai", "resumable-stream", "redis")
"""What the reference in Node is made of."""
START_SECONDS = 90.0
STOP_SECONDS = 10.0
MOST_STREAMS = 600
OUR_MODEL = "gpt-4o-mini"
"""What our service asks for, and lets its clients ask for."""


class NotStarted(Exception):
    """A program does not run; the text says why in a sentence."""


class Process:
    """A program on cores of its own, mostly one, until the context is left. What it prints goes into a file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        directory: Path,
        cores: Collection[int] | None,
        root: Path = ROOT,
        **environment: str,
    ) -> None:
        self.log = directory / f"{name}.log"
        pin = (lambda: os.sched_setaffinity(0, cores)) if cores is not None else None
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                list(command),
                cwd=root,
                env={key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ} | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=pin,
            )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(self.pid, signal.SIGTERM)
            self._process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def wait_until(self, fact: Callable[[], bool]) -> None:
        """Raises: NotStarted, with the end of what the program said."""
        until = time.monotonic() + START_SECONDS
        while not fact():
            if self._process.poll() is not None or time.monotonic() > until:
                said = self.log.read_text(encoding="utf-8", errors="replace")[-600:].strip()
                raise NotStarted(f"{self.log.stem} did not start: {said or 'it says nothing'}")
            time.sleep(0.1)


class Meter:
    """What a process and its children have used, as the scheduler counts it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._spent: dict[str, int] = {}

    def cpu_us(self) -> float:
        """Add up the time on a core of all threads, user and system, those that have ended too.

        Units: microseconds.
        """
        for pid in self._tree(self._pid):
            for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    self._spent[str(path)] = int(path.read_text(encoding="ascii").split()[0])
        return sum(self._spent.values()) / 1000

    def rss_mb(self) -> float:
        """Tell the resident memory of the largest process, which is the worker. Units: MiB."""
        sizes = [0]
        for pid in self._tree(self._pid):
            with contextlib.suppress(OSError):
                sizes.append(int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]))
        return max(sizes) * os.sysconf("SC_PAGE_SIZE") / 1_048_576

    def _tree(self, pid: int) -> list[int]:
        found = [pid]
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for child in path.read_text(encoding="ascii").split():
                    found += self._tree(int(child))
        return found


@dataclass(frozen=True)
class Subject:
    """One way from the model to the client."""

    name: str
    what: str
    version: Sequence[str]  # a command that prints it
    command: Callable[[int, int, Path], Sequence[str]]  # port, the model's port, a directory for what it needs
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/health"
    stream_path: str = "/chat/streaming"
    wait_path: str = "/chat/wait"
    speaks_openai: bool = False
    asks_usage: bool = True
    model: str = MODEL
    more_frames: int | None = None
    """How many frames an answer has beside one for each token. None: frames are not counted."""
    headers: Mapping[str, str] = field(default_factory=dict)
    directory: Path = ROOT
    """Where it is started."""

    @property
    def about(self) -> str:
        return f"{self.name}: {self.what}."

    def start(self, directory: Path, cores: Collection[int] | None, upstream_port: int) -> tuple[Process, int]:
        """Start it and wait until it serves; give it and its port. Raises: NotStarted."""
        port = free_port()
        environment = {
            name: string.Template(value).substitute(port=port, upstream=f"127.0.0.1:{upstream_port}")
            for name, value in self.environment.items()
        }
        try:
            command = self.command(port, upstream_port, directory)
            process = Process(self.name, command, directory, cores, self.directory, **environment)
        except OSError as error:
            raise NotStarted(f"{self.name} cannot be started: {error.strerror}") from error
        try:
            process.wait_until(lambda: _answers(port, self.ready))
        except BaseException:
            process.__exit__()
            raise
        return process, port

    def stream_request(self, port: int, tokens: int, gap_ms: int, where: str = CONTENT) -> bytes:
        """Write the request for a stream whose tokens are content, reasoning, or a tool's arguments."""
        return self._request(port, self.stream_path, tokens, gap_ms, where, stream=True)

    def resume_request(self, port: int, stream_id: str) -> bytes:
        """Write the request for a stream from its beginning, as a client writes it that lost all of it."""
        return request("GET", f"{self.stream_path}/{stream_id}", port, headers={"Last-Event-ID": f"{stream_id}.0"})

    def wait_request(self, port: int, tokens: int) -> bytes:
        """Write the request for a whole answer."""
        return self._request(port, self.wait_path, tokens, 0, CONTENT, stream=False)

    def _request(self, port: int, path: str, tokens: int, gap_ms: int, where: str, *, stream: bool) -> bytes:
        question = f"tokens={tokens} gap_ms={gap_ms}" + ("" if where == CONTENT else f" in={where}")
        body: dict[str, object] = {"message": question, "max_tokens": min(tokens, 4096)}
        if self.speaks_openai:
            body = {"model": self.model, "messages": [{"role": "user", "content": question}], "stream": stream}
            if stream and self.asks_usage:
                body["stream_options"] = {"include_usage": True}
        return request("POST", path, port, json.dumps(body).encode(), self.headers)


def request(method: str, path: str, port: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """Write a request of HTTP/1.1."""
    fields = {"Host": f"127.0.0.1:{port}", **(headers or {})}
    if body:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _answers(port: int, path: str) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _nginx(port: int, upstream_port: int, directory: Path) -> Sequence[str]:
    text = (REFERENCES / "nginx.conf").read_text(encoding="utf-8")
    home = directory / "nginx"
    home.mkdir(exist_ok=True)
    values = {"port": port, "upstream": f"127.0.0.1:{upstream_port}", "directory": home}
    (home / "nginx.conf").write_text(string.Template(text).substitute(values), encoding="utf-8")
    return ["nginx", "-e", "stderr", "-c", str(home / "nginx.conf")]


def subjects(service: Path, references: Path, litellm: Path) -> list[Subject]:
    """List what is compared: ours first, the upstream itself (which the run starts) left out.

    The three paths are the `bin` directories of the environments that the programs are installed in.
    """
    key = secrets.token_hex(16)
    found = [
        Subject(
            OURS,
            "this service, as `make run` starts it; logs on, every answer kept and hashed",
            [str(service / "python"), "-c", "import sys; print(sys.version.split()[0])"],
            lambda *_: [str(service / "python"), "-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app"],
            {
                "HOST": "127.0.0.1",
                "PORT": "$port",
                "OPENAI_BASE_URL": "http://$upstream/v1",
                "OPENAI_API_KEY": f"sk-{key}",
                "OPENAI_MODEL": OUR_MODEL,
                "ENV_FILE": os.devnull,
                "MAX_ACTIVE_STREAMS": str(MOST_STREAMS),
                "MAX_READERS": str(2 * MOST_STREAMS),
            },
            "/ready",
            "/v1/chat/streaming",
            "/v1/chat/wait",
        ),
        Subject(
            "FastAPI",
            "FastAPI, AsyncOpenAI, StreamingResponse, pydantic 2, uvicorn with uvloop and httptools; chunks logged",
            [str(references / "python"), "-c", "import fastapi, sys; print(fastapi.__version__)"],
            lambda port, *_: [
                *(str(references / "uvicorn"), "--app-dir", str(REFERENCES), "fastapi_service:app"),
                *("--port", str(port), "--workers", "1", "--loop", "uvloop", "--http", "httptools"),
                *("--no-access-log", "--log-level", "warning"),
            ],
            {"OPENAI_BASE_URL": "http://$upstream/v1", "OPENAI_API_KEY": "none", "OPENAI_MODEL": MODEL},
        ),
        Subject(
            "Flask",
            "the usual generator over the SDK's chunks, gunicorn with gevent",
            [str(references / "python"), "-c", "from importlib.metadata import version; print(version('flask'))"],
            lambda port, *_: [
                *(str(references / "gunicorn"), "--config", os.devnull, "--chdir", str(REFERENCES)),
                *("flask_service:app", "--bind", f"127.0.0.1:{port}", "--workers", "1", "--worker-class", "gevent"),
                *("--worker-connections", "1000", "--no-control-socket", "--log-level", "warning"),
            ],
            {"OPENAI_BASE_URL": "http://$upstream/v1", "OPENAI_API_KEY": "none", "OPENAI_MODEL": MODEL},
        ),
    ]
    if (litellm / "litellm").exists():
        found.append(
            Subject(
                "LiteLLM",
                "LiteLLM's proxy, one worker, in production mode",
                [str(litellm / "python"), "-c", "from importlib.metadata import version; print(version('litellm'))"],
                lambda port, *_: [
                    *(str(litellm / "litellm"), "--config", str(REFERENCES / "litellm.yaml")),
                    *("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
                ],
                {
                    "OPENAI_BASE_URL": "http://$upstream/v1",
                    "OPENAI_API_KEY": "none",
                    "LITELLM_MASTER_KEY": f"sk-{key}",
                    "LITELLM_MODE": "PRODUCTION",
                    "LITELLM_LOG": "ERROR",
                    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
                    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
                    "LITELLM_LOCAL_BLOG_POSTS": "True",
                    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
                    "AIOHTTP_CONNECTOR_LIMIT": "2000",
                    "AIOHTTP_CONNECTOR_LIMIT_PER_HOST": "2000",
                },
                "/health/readiness",
                "/v1/chat/completions",
                "/v1/chat/completions",
                speaks_openai=True,
                headers={"Authorization": f"Bearer sk-{key}"},
            )
        )
    if shutil.which("nginx"):
        found.append(
            Subject(
                "nginx",
                "nginx forwarding, unbuffered: what passing bytes on costs; it understands, keeps and proves nothing",
                ["nginx", "-v"],
                _nginx,
                ready="/figures",  # the model's own, passed on
                stream_path="/v1/chat/completions",
                wait_path="/v1/chat/completions",
                speaks_openai=True,
            )
        )
    return found


def as_openai(subject: Subject) -> Subject:
    """Give our service as OpenAI's clients ask it: the same process, by another route."""
    return replace(
        subject,
        name=OPENAI,
        stream_path="/v1/chat/completions",
        wait_path="/v1/chat/completions",
        speaks_openai=True,
        asks_usage=False,
        model=OUR_MODEL,
        more_frames=3,  # one that tells the role, one that tells the end, and [DONE]
        headers={"Authorization": "Bearer sk-none"},
    )


def before(subject: Subject, directory: Path) -> Subject:
    """Give our service as it is in another checkout, run by the same Python."""
    return replace(subject, name=BEFORE, what=f"this service as it is in {directory.name}", directory=directory)


def node(directory: Path, valkey_url: str) -> Subject:
    """Give the reference in Node, as it is installed in a directory. Raises: NotStarted, when it is not."""
    program, packages = shutil.which("node"), directory / "node_modules"
    try:
        versions = {name: json.loads((packages / name / "package.json").read_text())["version"] for name in PACKAGES}
    except OSError:
        versions = {}
    if program is None or not versions:
        raise NotStarted(f"{NODE} is not installed here. It needs Node 20 or later, with npm.")
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Subject(
        NODE,
        f"node:http, OpenAI's SDK, and vercel/resumable-stream over the same Valkey ({told})",
        [program, "--version"],
        lambda *_: [program, str(directory / "service.mjs")],
        {
            "PORT": "$port",
            "OPENAI_BASE_URL": "http://$upstream/v1",
            "OPENAI_API_KEY": "none",
            "OPENAI_MODEL": MODEL,
            "REDIS_URL": valkey_url,
            "NODE_ENV": "production",
        },
    )
