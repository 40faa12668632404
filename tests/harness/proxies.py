"""Run a real nginx or haproxy in front of a service, with a plain configuration or with the one that is shipped.

Must never import the service's code.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.harness.net import HOST, reserve_port
from tests.harness.server import ROOT

DEPLOY = ROOT / "deploy"
START_SECONDS = 10.0
EXIT_SECONDS = 10.0
POLL_SECONDS = 0.02
PATH = os.environ.get("PATH", "")
"""A user's own PATH may lack the directory where a distribution puts its servers (`new_machine` leaves it out)."""
if "/usr/bin" in PATH.split(os.pathsep):
    PATH = os.pathsep.join([PATH, "/usr/sbin", "/usr/local/sbin"])


def installed(name: str) -> str | None:
    """Tell where the program is; None where it is not."""
    return shutil.which(name, path=PATH)


def substitute(config: str, changes: Mapping[str, str]) -> str:
    """Replace each of these texts in a configuration. Raises: AssertionError when one does not stand in it."""
    for old, new in changes.items():
        if old not in config:
            raise AssertionError(f"not in the configuration: {old!r}")
        config = config.replace(old, new)
    return config


def switch_on(config: str, *options: str) -> str:
    """Take the mark of these options off their lines, as the configuration's own comment tells people to.

    Raises: AssertionError when there is no such option.
    """
    for option in options:
        config, count = re.subn(rf"(?m)^( *)#{option} ", r"\1", config)
        if not count:
            raise AssertionError(f"no such option in the configuration: {option}")
    return config


class Proxy:
    """Run one proxy on a port of its own until the context is left; then its output must have been clean.

    It can be ended and started again, on the same port.
    """

    name = ""
    reload_signal = signal.SIGHUP

    def __init__(self, directory: Path, service_port: int) -> None:
        self.kind = self.name
        self.check_output = True
        self.directory = directory
        self.service_port = service_port
        self._process: subprocess.Popen[bytes] | None = None
        # On Linux a second socket may hold the port while the proxy listens.
        self._reservation = reserve_port(shared=False)
        self.port: int = self._reservation.getsockname()[1]
        self._output = directory / f"{self.name}-{self.port}.out"
        self.config = ""

    # What the kinds differ in

    def shipped(self, *options: str, changes: Mapping[str, str] | None = None) -> Self:
        """Take the configuration of deploy/, with these options and changes; only ports and paths are ours."""
        raise NotImplementedError

    def write(self, config: str) -> None:
        """Write the configuration; a start or a reload reads it."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Give the command that runs it in the foreground."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Tell whether it is past its start, once it accepts."""
        return True

    def faults(self) -> list[str]:
        """List the lines of its output that tell of a fault of the proxy's own."""
        raise NotImplementedError

    # Life

    def start(self) -> Self:
        """Start it, and wait until it accepts. Raises: AssertionError, with its output."""
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        ends_at = time.monotonic() + START_SECONDS
        while not (self._accepts() and self.is_ready()):
            if self._process.poll() is not None or time.monotonic() > ends_at:
                self.kill()
                raise AssertionError(f"{self.name} did not start:\n{self.output}")
            time.sleep(POLL_SECONDS)  # nothing tells from outside when a port begins to answer
        return self

    def stop(self) -> None:
        """End it, and wait for that; connections are closed. Raises: TimeoutError."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} still runs:\n{self.output}") from None

    def kill(self) -> None:
        """Kill it and its workers, whatever they are doing, and wait until none of them holds the port."""
        if self._process is None:
            return
        workers = []
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = psutil.Process(self._process.pid).children()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(EXIT_SECONDS)
        psutil.wait_procs(workers, timeout=EXIT_SECONDS)

    def reload(self) -> None:
        """Make it read its configuration again; old connections stay with the old workers."""
        assert self._process is not None
        self._process.send_signal(self.reload_signal)

    def workers(self) -> set[int]:
        """List the processes that it has started."""
        assert self._process is not None
        return {child.pid for child in psutil.Process(self._process.pid).children()}

    def close(self) -> None:
        """Give the port back."""
        self._reservation.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._process is not None and self._process.poll() is None:
                self.stop()
        finally:
            self.kill()
            self.close()
        if error is not None:
            error.add_note(f"what {self.name} said:\n{self.output[-4000:]}")
        elif self.check_output and (faults := self.faults()):
            raise AssertionError(f"{self.name} said:\n" + "\n".join(faults))

    # What it says

    @property
    def base_url(self) -> str:
        """Tell the URL that leads through it, without a slash at its end."""
        return f"http://{HOST}:{self.port}"

    @property
    def output(self) -> str:
        """Give all that it wrote: its standard output and every log in its directory."""
        paths = [self._output, *sorted(self.directory.glob("*.log"))]
        return "".join(path.read_text("utf-8", "replace") for path in paths if path.exists())

    def log_lines(self) -> list[str]:
        """List the lines of its log of requests."""
        raise NotImplementedError

    def _accepts(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0):
                return True
        except OSError:
            return False


class Nginx(Proxy):
    """Run nginx: `site` is what stands in the http block."""

    name = "nginx"

    def __init__(self, directory: Path, service_port: int, site: str = "") -> None:
        super().__init__(directory, service_port)
        self.write(site)

    def write(self, site: str) -> None:
        """Write the configuration; what the site says last holds."""
        self.config = site
        temporary = "".join(
            f"    {kind}_temp_path {self.directory}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;\n" if os.geteuid() == 0 else ""  # else its workers are nobody, and may write nothing here
        (self.directory / "nginx.conf").write_text(
            f"{user}worker_processes 1;\npid {self.directory}/nginx.pid;\nerror_log {self.directory}/error.log;\n"
            f"events {{\n    worker_connections 1024;\n}}\nhttp {{\n{temporary}"
            f"    access_log {self.directory}/access.log;\n"
            "    gzip on;\n    gzip_proxied any;\n    gzip_types *;\n    gzip_min_length 1;\n"
            f"{site}\n}}\n",
            encoding="utf-8",
        )

    def plain(self) -> Self:
        """Take nginx's own defaults, with gzip for everything and a short timeout."""
        self.write(
            f"server {{\n    listen {HOST}:{self.port};\n    location / {{\n"
            f"        proxy_pass http://{HOST}:{self.service_port};\n        proxy_read_timeout 30s;\n    }}\n}}"
        )
        return self

    def shipped(self, *options: str, changes: Mapping[str, str] | None = None) -> Self:
        """Take deploy/nginx.conf."""
        site = switch_on((DEPLOY / "nginx.conf").read_text(encoding="utf-8"), *options)
        ours = {
            "listen 80;": f"listen {HOST}:{self.port};",
            "127.0.0.1:8000": f"{HOST}:{self.service_port}",
            "/var/log/nginx/": f"{self.directory}/",
        }
        self.write(substitute(substitute(site, changes or {}), ours))
        return self

    def command(self) -> list[str]:
        path = installed("nginx")
        assert path is not None
        config = str(self.directory / "nginx.conf")
        return [path, "-p", str(self.directory), "-e", "stderr", "-g", "daemon off;", "-c", config]

    def faults(self) -> list[str]:
        return [line for line in self.output.splitlines() if re.search(r"\[(emerg|alert|crit|warn)\]", line)]

    def log_lines(self) -> list[str]:
        for name in ("chatwait.log", "access.log"):
            if (path := self.directory / name).exists():
                return path.read_text(encoding="utf-8").splitlines()
        return []


class HAProxy(Proxy):
    """Run haproxy as a master with one worker."""

    name = "haproxy"
    reload_signal = signal.SIGUSR2

    def write(self, config: str) -> None:
        """Write the configuration."""
        self.config = config
        (self.directory / "haproxy.cfg").write_text(config, encoding="utf-8")

    def plain(self) -> Self:
        """Take haproxy's own defaults, with gzip for everything and short timeouts."""
        self.write(
            "global\n    log stdout format raw local0\ndefaults\n    mode http\n    log global\n    option httplog\n"
            "    timeout connect 5s\n    timeout client 30s\n    timeout server 30s\n"
            "    compression algo gzip\n    compression type text/event-stream application/json\n"
            f"frontend front\n    bind {HOST}:{self.port}\n    default_backend back\n"
            f"backend back\n    server one {HOST}:{self.service_port}\n"
        )
        return self

    def shipped(self, *options: str, changes: Mapping[str, str] | None = None) -> Self:
        """Take deploy/haproxy.cfg."""
        config = switch_on((DEPLOY / "haproxy.cfg").read_text(encoding="utf-8"), *options)
        ours = {"bind :80\n": f"bind {HOST}:{self.port}\n", "127.0.0.1:8000": f"{HOST}:{self.service_port}"}
        self.write(substitute(substitute(config, changes or {}), ours))
        return self

    def command(self) -> list[str]:
        path = installed("haproxy")
        assert path is not None
        return [path, "-W", "-f", str(self.directory / "haproxy.cfg")]

    def is_ready(self) -> bool:
        # Until its master catches the signal, which it does some time after it listens, a reload would be lost.
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status")
        caught = re.search(r"SigCgt:\s*(\w+)", status.read_text(encoding="ascii")) if status.exists() else None
        return caught is None or bool(int(caught[1], 16) >> (self.reload_signal - 1) & 1)

    def faults(self) -> list[str]:
        told = [line for line in self.output.splitlines() if re.search(r"^\[(ALERT|WARNING)\]", line)]
        # That a worker ends when it is told to is an alert for its master.
        ended = r"exited|Exiting|Former worker|Proxy .* stopped|Stopping|Server .* is (DOWN|UP)"
        return [line for line in told if not re.search(ended, line)]

    def log_lines(self) -> list[str]:
        lines = self._output.read_text("utf-8", "replace").splitlines()
        return [line for line in lines if not re.match(r"\[(NOTICE|WARNING|ALERT)\]|Proxy ", line)]
