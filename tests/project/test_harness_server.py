"""Test the runner of the service with a small gunicorn application in place of ChatWait."""

import os
import signal
import socket
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest

from tests.harness import server
from tests.harness.leaks import PEOPLE
from tests.harness.reader import get
from tests.harness.server import ChatWait, StartFailed, failed_start
from tests.live.steps import poll

CONFIG = """
import os
bind = os.environ["HOST"] + ":" + os.environ["PORT"]
loglevel = "critical"
control_socket_disable = True
workers = int(os.environ.get("WORKERS", "1"))
graceful_timeout = 5
if "BAD" in os.environ:
    print("BAD: it must not be " + os.environ["BAD"], flush=True)
    raise SystemExit(3)
"""

APPLICATION = """
import json, os, subprocess, sys
if "HELPER" in os.environ:
    helper = subprocess.Popen(["sleep", "60"], start_new_session=True)

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/health":
        print(json.dumps({"event": "health", "stream": "none"}), flush=True)
    elif path == "/env":
        start_response("200 OK", [])
        return [json.dumps(dict(os.environ)).encode()]
    elif path == "/raw":
        print(environ["QUERY_STRING"], flush=True)
    elif path == "/long":
        print(json.dumps({"x": "y" * 17000}), flush=True)
    elif path == "/stderr":
        print("oops", file=sys.stderr, flush=True)
    elif path == "/helper":
        start_response("200 OK", [])
        return [str(helper.pid).encode()]
    start_response("200 OK", [])
    return [b"{}"]
"""


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; an orphan that nobody has reaped yet does not."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service")
    (folder / "gunicorn.conf.py").write_text(CONFIG)
    (folder / "wsgi.py").write_text(APPLICATION)
    return folder


def test_service_runs_with_a_clean_environment_and_tells_its_resources(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of the developer")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", "of the developer"))
    with ChatWait(root=root, TIMEOUT_SECONDS=5, FLAG=True, ABSENT=None, WORKERS=2) as service:
        environment = get(f"{service.base_url}/env").json
        pids = service.wait_for_workers(2)
        resources = service.resources()
        sockets = service.sockets()

    assert environment["PORT"] == str(service.port)
    assert (environment["TIMEOUT_SECONDS"], environment["FLAG"]) == ("5", "true")
    assert environment["ENV_FILE"] == "/dev/null"
    assert not {"OPENAI_API_KEY", "ABSENT"} & set(environment)
    assert ("PYTHONPATH" in environment) == ("CHATWAIT_TEST_CLOCK_AHEAD" in os.environ)
    assert set(resources) == {"fds", "threads", "rss_bytes"}
    assert min(*resources.values(), sockets) > 0
    assert not any(is_alive(pid) for pid in pids)


def test_service_counts_the_connections_of_its_clients(root: Path) -> None:
    with ChatWait(root=root) as service:
        poll(lambda: service.clients() == 0, seconds=10, what="the probe's connection to be gone")
        with socket.create_connection(("127.0.0.1", service.port)):
            poll(lambda: service.clients() == 1, seconds=10, what="the connection to be there")
        poll(lambda: service.clients() == 0, seconds=10, what="the connection to be gone")


def test_service_log_can_be_searched_and_awaited(root: Path) -> None:
    with ChatWait(root=root) as service:
        assert service.wait_for_log("health")["stream"] == "none"
        get(f"{service.base_url}/raw?{{%22a%22:1}}".replace("%22", '"'))
        assert service.wait_for_log(lambda record: record.get("a") == 1) == {"a": 1}
        assert service.log_of("health", stream="none")
        assert not service.log_of("health", stream="other")
        with pytest.raises(TimeoutError, match="health"):
            service.wait_for_log("health", timeout=0.01, stream="other")
        assert service.lines


@pytest.mark.parametrize("said", ["log", "lines", "output", "stderr_lines"])
def test_service_has_said_before_its_answer_what_a_test_then_looks_for(
    root: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """The thread that reads its output is late, as on a busy machine."""
    take = server._Pipe._take_lines

    def late(pipe: server._Pipe, received: bytes) -> None:
        time.sleep(0.2)  # that it is late is the case
        take(pipe, received)

    with ChatWait(root=root, check_output=False) as service:
        monkeypatch.setattr(server._Pipe, "_take_lines", late)
        get(f"{service.base_url}/raw?{{%22said%22:1}}".replace("%22", '"'))
        get(f"{service.base_url}/stderr")
        told = getattr(service, said)
    wanted = {"log": {"said": 1}, "lines": '{"said":1}', "output": '{"said":1}', "stderr_lines": "oops"}[said]
    assert wanted in told


def test_service_stops_starts_again_on_its_port_and_is_killed(root: Path) -> None:
    service = ChatWait(root=root)
    try:
        port = service.start().port
        assert service.stop() == 0
        assert not service.is_running
        assert service.start().port == port
        assert service.interrupt() == 0
        service.start()
        service.kill()
        assert not service.is_running
        service.check()
    finally:
        service.end()


def test_service_that_is_killed_takes_its_helpers_along(root: Path) -> None:
    with ChatWait(root=root, HELPER=1) as service:
        helper = int(get(f"{service.base_url}/helper").body)
        assert service.worker_pids()
        assert helper not in service.worker_pids()
        assert is_alive(helper)
        service.kill()
        assert not is_alive(helper)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/raw?plain", "not JSON .*plain"),
        ("/raw?[1]", "not a JSON object"),
        ('/raw?{"a":NaN}', "NaN is not JSON"),
        ("/long", "16384 are allowed"),
        ("/stderr", "stderr is not empty:\noops"),
    ],
)
def test_service_with_bad_output_fails_its_test(root: Path, path: str, problem: str) -> None:
    with pytest.raises(AssertionError, match=problem), ChatWait(root=root) as service:
        get(f"{service.base_url}{path}")


def test_service_with_bad_output_can_be_asked_not_to_fail(root: Path) -> None:
    with ChatWait(root=root, check_output=False) as service:
        get(f"{service.base_url}/stderr")
        service.stop()
    assert service.stderr_lines == ["oops"]
    assert "oops" in service.output


def test_service_adds_its_output_to_the_failure_of_a_test(root: Path) -> None:
    with pytest.raises(KeyError) as failure, ChatWait(root=root):
        raise KeyError("of the test")
    assert '"event": "health"' in failure.value.__notes__[0]


def test_service_with_bad_settings_gives_exit_code_and_output(root: Path) -> None:
    assert failed_start(root=root, BAD="x") == (3, "BAD: it must not be x")
    with pytest.raises(StartFailed, match="it must not be y") as failure, ChatWait(root=root, BAD="y"):
        pass
    assert failure.value.exit_code == 3


def test_failed_start_that_starts_is_a_failure(root: Path) -> None:
    with pytest.raises(AssertionError, match="the service started with"):
        failed_start(root=root, GOOD=1)


def test_service_gets_signals(root: Path) -> None:
    with ChatWait(root=root) as service:
        service.signal(signal.SIGTERM)
        assert service.wait_exit(10) == 0


def test_service_that_leaks_fails_the_test_that_used_it(root: Path) -> None:
    with pytest.raises(AssertionError, match="the canary of an e-mail address in the log"):  # noqa: SIM117
        with ChatWait(root=root, check_output=False) as service:
            get(f"{service.base_url}/raw?x={PEOPLE['an e-mail address']}")
