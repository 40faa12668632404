"""Test what a worker of gunicorn does differently: its threads are gevent's, and its loop takes what comes.

gevent patches a whole process, so these tests run in one of their own, by a pytest of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    "patched_cases.py",
    "test_gevent_loop.py",
    "test_upstream_body.py",
    "test_upstream_answer.py",
    "test_direct.py",
    "test_sockets.py",
    "test_loop_direct.py",
    "test_upstream_head.py",
    "test_upstream_pool.py",
    "test_transport_early.py",
    "test_upstream_refusals.py",
    "test_upstream_forwarded.py",
]
RUN = "from gevent import monkey; monkey.patch_all(); import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"


@pytest.mark.timeout(300)
def test_hot_path_holds_where_gevent_has_patched_everything() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    files = [f"tests/unit/{name}" for name in FILES]
    command = [sys.executable, "-c", RUN, "-n", "0", "-q", "--tb=short", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)

    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert " passed" in done.stdout
