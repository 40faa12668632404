"""The commands of deploy/README.md, as pasted: only ports differ, and `systemctl` is a stand-in of the test's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.server import ROOT, ChatWait
from tests.harness.upstream import ScriptedUpstream
from tests.live.steps import settings
from tests.requirements import require_or_skip

GUIDE = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")

SYSTEMCTL = """#!/bin/sh
# Says what is wanted, and waits until it is done.
echo "$@" > {wanted}
cat {done} > /dev/null
"""


@contextmanager
def systemctl(directory: Path, service: ChatWait) -> Iterator[list[str]]:
    """Stand for the program: `chatwait-one` is this service; every call is noted."""
    wanted, done = directory / "wanted", directory / "done"
    for pipe in (wanted, done):
        os.mkfifo(pipe)
    program = directory / "systemctl"
    program.write_text(SYSTEMCTL.format(wanted=wanted, done=done), encoding="utf-8")
    program.chmod(0o755)
    calls: list[str] = []

    def serve() -> None:
        while call := wanted.read_text(encoding="utf-8").strip():
            calls.append(call)
            if call == "restart chatwait-one":
                service.stop()
                service.start()
            done.write_text("done", encoding="utf-8")

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    try:
        yield calls
    finally:
        wanted.write_text("", encoding="utf-8")
        serving.join()


@pytest.mark.parametrize(
    ("hosts", "ends_with", "restarted"),
    [
        ("chat.example.org,localhost", 0, ["restart chatwait-one", "restart chatwait-two"]),
        ("chat.example.org", 22, ["restart chatwait-one"]),
    ],
    ids=["ready", "never ready"],
)
def test_deploy_restarts_the_second_instance_when_the_first_is_ready_and_never_hangs(
    upstream: ScriptedUpstream, tmp_path: Path, hosts: str, ends_with: int, restarted: list[str]
) -> None:
    require_or_skip("curl (apt-get install curl)", shutil.which("curl") is not None)
    (block,) = re.findall(r"^```\n(systemctl restart chatwait-one.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    with (
        ChatWait(**settings(upstream, ALLOWED_HOSTS=hosts)) as service,
        systemctl(tmp_path, service) as calls,
    ):
        script = block.replace("localhost:8000", f"localhost:{service.port}").replace("--retry 60", "--retry 2")
        assert script.count("--retry 2 ") == 1
        assert "--max-time 5 " in script
        assert "--retry-max-time 60 " in script, "a server that accepts and says nothing is not waited for either"
        path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
        done = subprocess.run(["sh", "-c", script], env={**os.environ, "PATH": path}, timeout=60, check=False)

        assert (done.returncode, calls) == (ends_with, restarted)
