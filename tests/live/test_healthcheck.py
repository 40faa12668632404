"""The image's own HEALTHCHECK command, run as it stands there, beside a real service."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness.image import ROOT, Image
from tests.harness.reader import get
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream
from tests.live.steps import KEY, settings

PYTHON, *SCRIPT = Image.read().health_command
FOREIGN = "chat.example.org"


def check(**environment: Any) -> tuple[int, str]:
    """Run the command with these settings, and give its exit code and output."""
    assert PYTHON == "python"
    values = {"PATH": os.environ["PATH"], "OPENAI_API_KEY": KEY, **environment}
    done = subprocess.run(
        [sys.executable, *SCRIPT],
        cwd=ROOT,
        env={name: str(value) for name, value in values.items()},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stdout + done.stderr


def test_healthcheck_of_a_service_that_lives_succeeds(chatwait: ChatWait) -> None:
    assert check(PORT=chatwait.port) == (0, "GET /health: 200\n")


@pytest.mark.parametrize("name", [FOREIGN, f"{FOREIGN}:8443"])
def test_healthcheck_with_foreign_allowed_hosts_succeeds(upstream: ScriptedUpstream, name: str, tmp_path: Path) -> None:
    """127.0.0.1 is let in only so that the harness sees the start; the command sends the first name of the list."""
    told = {"HOST": "0.0.0.0", "ALLOWED_HOSTS": f"{name},127.0.0.1"}
    with ChatWait(**settings(upstream, **told)) as chatwait:
        url = f"{chatwait.base_url}/health"
        assert get(url, {"Host": "localhost"}).status == 400  # premise: not every name is let in
        assert get(url, {"Host": name}).status == 200

        assert check(PORT=chatwait.port, **{**told, "ALLOWED_HOSTS": name})[0] == 0
        # An environment without settings: they stand in the file that the service reads.
        env_file = tmp_path / "env"
        env_file.write_text(f"HOST=0.0.0.0\nPORT={chatwait.port}\nALLOWED_HOSTS={name}\n", encoding="utf-8")
        assert check(ENV_FILE=env_file)[0] == 0


def test_healthcheck_goes_past_a_proxy_of_the_environment(chatwait: ChatWait) -> None:
    assert check(PORT=chatwait.port, http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9")[0] == 0


def test_healthcheck_of_an_answer_other_than_200_fails(chatwait: ChatWait) -> None:
    exit_code, output = check(PORT=chatwait.port, ALLOWED_HOSTS=FOREIGN)
    assert exit_code == 1
    assert "400" in output


def test_healthcheck_of_nobody_fails_without_a_traceback() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # taken, and nobody listens
        exit_code, output = check(PORT=held.getsockname()[1])
    assert exit_code == 1
    assert output.startswith("no answer: ")
    assert "Traceback" not in output


def test_healthcheck_of_a_service_that_hangs_fails_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        exit_code, output = check(PORT=silent.getsockname()[1])
    assert exit_code == 1
    assert output.startswith("no answer: ")


def test_healthcheck_with_bad_settings_fails_in_words() -> None:
    exit_code, output = check(PORT="abc")
    assert exit_code == 1
    assert "PORT" in output
    assert "Traceback" not in output
