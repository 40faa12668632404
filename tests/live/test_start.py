"""What a start refuses, warns of and sets up."""

from __future__ import annotations

import os
import re
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from app.version import VERSION
from tests.harness import server
from tests.harness.reader import get, read_answer
from tests.harness.server import ChatWait, failed_start
from tests.harness.upstream import ScriptedUpstream
from tests.live.rawhttp import connect
from tests.live.steps import KEY, settings

SECRET = "redis://:secret-password@store.example:6379/0"
BAD = {
    "WORKERS": ({"WORKERS": 2}, ["WORKERS", "2", "WORKERS=1"]),
    "REDIS_URL": ({"REDIS_URL": f"{SECRET}/streams"}, ["REDIS_URL"]),
    "PORT": ({"PORT": "abc"}, ["PORT", "'abc'"]),
    "PORT out of range": ({"PORT": 70_000}, ["PORT", "65535"]),
    "HOST": ({"HOST": "0.0.0.0"}, ["ALLOWED_HOSTS", "0.0.0.0"]),
    "LOG_LEVEL": ({"LOG_LEVEL": "LOUD"}, ["LOG_LEVEL", "'LOUD'", "INFO"]),
    "several": ({"TIMEOUT_SECONDS": "soon", "MAX_TOKENS": "-1"}, ["TIMEOUT_SECONDS", "'soon'", "MAX_TOKENS", "'-1'"]),
    "worker_connections": (
        {"GUNICORN_CMD_ARGS": "--worker-connections 3499", "MAX_READERS": 2000},
        ["worker_connections", "3499", "MAX_READERS", "MAX_ACTIVE_STREAMS", "3500"],
    ),
    "workers": ({"GUNICORN_CMD_ARGS": "--workers 2"}, ["workers", "got 2", "WORKERS"]),
    "worker_class": ({"GUNICORN_CMD_ARGS": "--worker-class gthread"}, ["worker_class", "gthread", "gevent"]),
    "bind": ({"GUNICORN_CMD_ARGS": "--bind 0.0.0.0:8765"}, ["bind", "0.0.0.0:8765", "HOST", "ALLOWED_HOSTS"]),
    "OPENAI_API_KEY": ({"OPENAI_API_KEY": "two secret words"}, ["OPENAI_API_KEY"]),
    "OPENAI_BASE_URL": ({"OPENAI_BASE_URL": "http://user:secret@upstream.example"}, ["OPENAI_BASE_URL"]),
}


@pytest.fixture(scope="module")
def refusals() -> dict[str, tuple[int, str]]:
    """Try all the bad settings, a few at a time."""
    with ThreadPoolExecutor(3) as pool:
        starts = {
            name: pool.submit(
                failed_start, **{"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": KEY, **bad}
            )
            for name, (bad, _) in BAD.items()
        }
        return {name: start.result() for name, start in starts.items()}


@pytest.mark.parametrize("name", BAD)
def test_start_with_a_bad_setting_ends_in_words_that_name_it(refusals: dict[str, tuple[int, str]], name: str) -> None:
    """The variable, the value, what is allowed; no secret and no traceback."""
    exit_code, output = refusals[name]
    assert exit_code != 0
    for word in BAD[name][1]:
        assert word in output
    for word in ("secret", "Traceback", "Booting worker", KEY):
        assert word not in output


@pytest.mark.requirement("core assumption 6", "tasks T014", "page constraint 4")
def test_start_with_key_and_base_url_has_one_worker_and_no_other_process(chatwait: ChatWait) -> None:
    """The embedded model's supervisor runs only where it is the one that answers."""
    master = psutil.Process(chatwait._running.pid)
    assert [child.pid for child in master.children(recursive=True)] == chatwait.wait_for_workers(1)
    assert get(f"{chatwait.base_url}/ready").json["parts"]["upstream"] == "remote"


def test_start_tells_the_version_in_the_log_and_at_health(chatwait: ChatWait) -> None:
    """Each worker tells it once. The contract that is served has the same one."""
    told = [line["version"] for line in chatwait.log if line["event"] == "worker_started"]
    assert told == [VERSION]
    assert get(f"{chatwait.base_url}/health").json["version"] == VERSION
    contract = get(f"{chatwait.base_url}/openapi.yaml").body.decode()
    assert f'\n  version: "{VERSION}"\n' in contract


def test_start_without_c_finds_its_configuration_and_raises_what_it_may_open(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gunicorn wsgi:app` at the project's root serves; a low soft limit of descriptors is raised."""
    monkeypatch.setattr(server, "COMMAND", [sys.executable, "-m", "gunicorn", "wsgi:app"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= 7000, "premise: there is room to raise it"
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        chatwait = ChatWait(**settings(upstream, MAX_ACTIVE_STREAMS=1000))
        chatwait.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        assert read_answer(f"{chatwait.base_url}/chat/streaming", {"message": "Hi"}).text == "Hello, world."
        (pid,) = chatwait.wait_for_workers(1)
        assert psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE)[0] >= 7000
        table = re.search(r"FDSize:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
        assert table, "premise: the kernel tells it"
        assert int(table[1]) >= 7000, "or each doubling of it stops every stream for 10 to 30 ms"
        # 101 MiB, most of them the tokenizer's tables; 34 more are what those are built from, given back after it.
        assert psutil.Process(pid).memory_info().rss < 125 << 20
        assert any("gevent" in line.get("message", "") for line in chatwait.log)  # the configuration's worker
        assert not [line for line in chatwait.log if line["level"] == "WARNING"]
    finally:
        chatwait.end()
    chatwait.check()


def test_start_runs_no_plugin_of_gevents_and_leaves_the_collector_on(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """To look for plugins, and to collect while everything is being loaded, took a tenth of a start."""
    plugin = tmp_path / "plugin-1.0.dist-info"
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (plugin / "entry_points.txt").write_text("[gevent.plugins.monkey.will_patch_all]\nplugin = plugin:met\n")
    (tmp_path / "plugin.py").write_text("def met(event): raise SystemExit('a plugin was run')\n")
    with ChatWait(
        **settings(upstream, PYTHONPATH=os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))),
        probe=True,
    ) as chatwait:
        assert chatwait.inside()["collects"] == 1


def test_start_with_fewer_descriptors_than_the_limits_need_warns_and_serves_beside_any_number_of_connections(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "COMMAND", ["prlimit", "--nofile=300:300", *server.COMMAND])
    with ChatWait(**settings(upstream, MAX_READERS=100, MAX_ACTIVE_STREAMS=100)) as chatwait, ExitStack() as stack:
        warning = chatwait.wait_for_log(lambda line: line["level"] == "WARNING")["message"]
        for word in ("300", "MAX_READERS", "ulimit -n", "room for 75 connections instead of 410"):
            assert word in warning
        for _ in range(330):
            stack.enter_context(connect(chatwait.port))
        for _ in range(3):
            assert get(f"{chatwait.base_url}/health").status == 200


@pytest.mark.requirement("core assumption 3")
def test_start_on_a_public_address_warns_that_there_is_no_sign_in(upstream: ScriptedUpstream) -> None:
    """With ALLOWED_HOSTS set it starts, and only those hosts are answered."""
    with ChatWait(**settings(upstream, HOST="0.0.0.0", ALLOWED_HOSTS="chat.example.org,127.0.0.1")) as chatwait:
        warning = chatwait.wait_for_log(lambda line: line["level"] == "WARNING")
        assert "authentication" in warning["message"]
        assert "0.0.0.0" in warning["message"]
        assert get(f"{chatwait.base_url}/models", {"Host": "chat.example.org"}).status == 200
        assert get(f"{chatwait.base_url}/models", {"Host": "localhost"}).status == 400
