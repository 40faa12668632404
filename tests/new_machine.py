"""Run a command as on a machine that has just booted and has little more than make and Python.

    python3 tests/new_machine.py make test
    python3 tests/new_machine.py --uptime 1023.9 --without '' .venv/bin/python -m pytest tests/unit

The clock that counts from the start of the machine begins at `--uptime` seconds. The programs of `--without` are not
found: the command gets a PATH of its own, with a link to every other program. Standard library only: this runs before
anything is installed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

YOUNG = Path(__file__).resolve().parent / "young"
UPTIME = 5.0
SYSTEM = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
OPTIONAL = (
    *("chromium", "chromium-browser", "chromium-headless-shell", "nginx", "haproxy", "redis-server", "valkey-server"),
    *("openssl", "curl", "ip", "systemd-analyze", "node", "npm"),
)
"""What no command of ours may need. The tests of these parts are skipped, and the summary says so."""


def link_programs(directory: Path, path: str, without: Sequence[str]) -> None:
    """Fill a directory with a link to each program on the path but these; as on a path, the first one counts."""
    for folder in [*path.split(os.pathsep), *SYSTEM]:
        if not os.path.isdir(folder or "."):
            continue
        for name in os.listdir(folder or "."):
            link, program = directory / name, os.path.join(folder, name)
            if name in without or os.path.lexists(link) or not os.access(program, os.X_OK):
                continue
            if name.startswith("python"):  # an environment that is made by it must not name this directory
                link.write_text(f'#!/bin/sh\nexec {shlex.quote(os.path.abspath(program))} "$@"\n', encoding="utf-8")
                link.chmod(0o755)
            else:
                link.symlink_to(os.path.abspath(program))


def environment(directory: Path, *, uptime: float | None, without: Sequence[str]) -> dict[str, str]:
    """Make the environment of the command; `directory` is empty, and lives as long as the command."""
    variables = dict(os.environ)
    if uptime is not None:
        real = time.clock_gettime(time.CLOCK_MONOTONIC)  # whatever this machine seems to be
        variables["CHATWAIT_TEST_CLOCK_AHEAD"] = repr(uptime - real)
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(YOUNG), variables.get("PYTHONPATH")]))
    if without:
        link_programs(directory, variables.get("PATH", os.defpath), without)
        variables["PATH"] = str(directory)
    return variables


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uptime", type=float, default=UPTIME, metavar="SECONDS", help=f"{UPTIME:g} by default")
    parser.add_argument(
        "--without", default=",".join(OPTIONAL), metavar="NAMES", help="programs that are not there: %(default)s"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args(arguments)
    if not asked.command:
        parser.error("the command is missing")
    without = [name for name in asked.without.split(",") if name]
    with tempfile.TemporaryDirectory(prefix="new-machine-") as directory:
        variables = environment(Path(directory), uptime=asked.uptime, without=without)
        return subprocess.run(asked.command, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
