"""The files of deploy/: their numbers fit together, and the programs that read them accept them."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from app.settings import read_settings, table
from deploy import healthcheck
from tests.harness.certificates import make_certificate
from tests.harness.image import Image
from tests.harness.net import reserve_port
from tests.harness.proxies import DEPLOY, ROOT, HAProxy, Nginx, Proxy, installed, substitute
from tests.harness.valkey import program as valkey_program
from tests.requirements import require_or_skip

NGINX, HAPROXY, UNIT, GUIDE = (
    (DEPLOY / name).read_text(encoding="utf-8")
    for name in ("nginx.conf", "haproxy.cfg", "chatwait.service", "README.md")
)
SHARED = (DEPLOY / "compose-shared.yaml").read_text(encoding="utf-8")
IMAGE = Image.read()
GUNICORN = (ROOT / "gunicorn.conf.py").read_text(encoding="utf-8")
DEFAULTS = read_settings({"ENV_FILE": "/dev/null", "OPENAI_API_KEY": "sk-test"})


def number(pattern: str, text: str) -> int:
    """Find the one number of this setting."""
    (found,) = re.findall(rf"(?m)^ *{pattern}", text)
    return int(found)


def test_proxies_close_idle_connections_before_the_service_does() -> None:
    ours = number(r"keepalive = (\d+)", GUNICORN)
    assert number(r"keepalive_timeout (\d+)s;", NGINX) < ours
    assert number(r"timeout http-keep-alive (\d+)s", HAPROXY) < ours
    assert "http-reuse never" in HAPROXY


def test_proxies_wait_longer_than_a_generation_may_last() -> None:
    assert number(r"proxy_read_timeout (\d+)s;", NGINX) > DEFAULTS.max_generation_seconds
    assert number(r"timeout server (\d+)s", HAPROXY) > DEFAULTS.max_generation_seconds
    assert number(r"timeout client (\d+)s", HAPROXY) > 2 * DEFAULTS.heartbeat_seconds


def test_nginx_takes_larger_bodies_than_the_service_and_keeps_its_largest_in_memory() -> None:
    assert number(r"client_body_buffer_size (\d+)m;", NGINX) << 20 >= DEFAULTS.max_body_bytes
    usual, for_images = (int(size) << 20 for size in re.findall(r"(?m)^ *client_max_body_size (\d+)m;", NGINX))
    assert usual > DEFAULTS.max_body_bytes
    assert for_images > DEFAULTS.openai_max_body_bytes


def test_nginx_reads_first_what_it_can_hold_in_memory() -> None:
    """With two instances it may send these bodies twice. Larger ones are never held, and so never written to a file."""
    (digits,) = re.findall(r'#shared +"~\^\[0-9\]\{1,(\d)\}\$" 1;', NGINX)
    assert 10 ** int(digits) <= number(r"client_body_buffer_size (\d+)m;", NGINX) << 20


def test_unit_gives_a_stop_its_time_and_the_streams_their_descriptors() -> None:
    assert number(r"TimeoutStopSec=(\d+)", UNIT) > DEFAULTS.drain_seconds + 10
    assert number(r"LimitNOFILE=(\d+)", UNIT) >= 6 * DEFAULTS.max_active_streams + 1000
    assert number(r"LimitNOFILE=(\d+)", UNIT) >= configuration()["DESCRIPTORS"]


def configuration(**environ: str) -> dict[str, Any]:
    """Read gunicorn.conf.py as gunicorn does."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ENV_FILE": os.devnull, "OPENAI_API_KEY": "sk-test", **environ}.items():
            patch.setenv(name, value)
        return runpy.run_path(str(ROOT / "gunicorn.conf.py"))


@pytest.mark.parametrize(("streams", "readers"), [(1000, 2000), (5, 2000), (20_000, 1), (1, 40_000), (7, 13)])
def test_worker_has_room_for_the_connections_that_its_limits_allow(streams: int, readers: int) -> None:
    told = configuration(MAX_ACTIVE_STREAMS=str(streams), MAX_READERS=str(readers))
    settings = told["settings"]
    assert settings.connections >= readers + readers / 10 + streams + 200
    assert settings.connections < readers + readers / 10 + streams + 202
    assert told["worker_connections"] >= settings.connections + 100, "gevent accepts so many at once"
    assert told["DESCRIPTORS"] > told["worker_connections"] + 2 * streams


def test_proxies_have_room_for_as_many_connections_as_the_service() -> None:
    """Each takes two in nginx, the client's and ours, and there may be two instances."""
    told = number(r"worker_connections (\d+)/", SHARED.replace("sed -e 's/worker_connections  *[0-9]*/", ""))
    assert told > 2 * 2 * DEFAULTS.connections
    assert services()["nginx"]["ulimits"]["nofile"] >= 2 * told
    (guide, descriptors) = re.search(r"worker_connections (\d+);.*worker_rlimit_nofile (\d+);", GUIDE).groups()  # type: ignore[union-attr]
    assert (int(guide), int(descriptors)) == (told, 2 * told)
    assert f"2 × that sum ({DEFAULTS.connections:,})" in GUIDE
    assert number(r"maxconn (\d+)", HAPROXY) > 2 * DEFAULTS.connections


def test_guide_lists_the_options_that_the_files_have() -> None:
    rows = re.findall(r"(?m)^\| `([a-z]+)` \| .* \| *(yes)? *\| *(yes)? *\|$", GUIDE)
    told = {name: (bool(nginx), bool(haproxy)) for name, nginx, haproxy in rows}
    there = [set(re.findall(r"(?m)^ *#([a-z]+) ", text)) for text in (NGINX, HAPROXY)]
    assert told == {name: (name in there[0], name in there[1]) for name in there[0] | there[1]}


INSTANCES = {"shared", "two"}
"""Options that say, each in its own way, how two instances stand behind one haproxy."""


@pytest.mark.parametrize(("kind", "instances"), [(Nginx, "shared"), (HAProxy, "shared"), (HAProxy, "two")])
def test_configuration_with_every_option_is_accepted(kind: type[Proxy], instances: str, tmp_path: Path) -> None:
    program = installed(kind.name)
    require_or_skip(f"{kind.name} (apt-get install {kind.name})", program is not None)
    pem = make_certificate(tmp_path, "DNS:chat.example.org").both
    paths = (
        ["/etc/ssl/certs/chatwait.pem", "/etc/ssl/private/chatwait.key"]
        if kind is Nginx
        else ["/etc/haproxy/chatwait.pem"]
    )
    changes = dict.fromkeys(paths, str(pem)) | ({"listen 443 ": "listen 127.0.0.1:1 "} if kind is Nginx else {})
    there = set(re.findall(r"(?m)^ *#([a-z]+) ", NGINX if kind is Nginx else HAPROXY))
    options = sorted(there - (INSTANCES - {instances}))
    with reserve_port(shared=False) as port:
        proxy = kind(tmp_path, port.getsockname()[1])
        proxy.shipped(*options, changes=changes)
        check = [*proxy.command(), "-t" if kind is Nginx else "-c"]
        told = subprocess.run(check, capture_output=True, text=True, timeout=60)
        proxy.close()
    assert told.returncode == 0, told.stderr
    assert not re.search(r"\[(warn|WARNING|ALERT)\]", told.stderr), told.stderr


def test_nginx_never_begins_a_long_wait_again() -> None:
    """Who waited until the read timeout is told so, and not made to wait for as long at the other instance."""
    assert number(r"#shared proxy_next_upstream_timeout (\d+)s;", NGINX) < number(r"proxy_read_timeout (\d+)s;", NGINX)


def test_no_proxy_counts_answers_against_an_instance() -> None:
    """A 503 may be the model's fault."""
    addresses = re.findall(r"(?m)^ *(?:#shared )?server 127\.0\.0\.1:\d+ .*;", NGINX)
    assert len(addresses) == 2
    assert all("max_fails=0;" in address for address in addresses)
    assert not re.search(r"(?m)^[^#]*\bobserve\b|on-error", HAPROXY)


# Two instances, one Valkey, in containers


def services() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load(SHARED)["services"])


def test_shared_compose_has_two_instances_that_differ_in_nothing() -> None:
    one, two = services()["one"], services()["two"]
    assert one.pop("build") == {"context": ".."}
    assert two.pop("pull_policy") == "never"  # it is what was built for the first
    assert one == two
    named = {*one["environment"], *re.findall(r"^    # ([A-Z_]+): ", SHARED, re.MULTILINE)}
    assert {"REDIS_URL", "ALLOWED_HOSTS", "OPENAI_API_KEY", "OPENAI_BASE_URL", "DRAIN_SECONDS"} <= named
    assert named <= {row[0] for row in table()}


def test_shared_compose_gives_a_stop_its_time_and_asks_whether_work_is_taken() -> None:
    one = services()["one"]
    assert float(one["stop_grace_period"].removesuffix("s")) == 40 > DEFAULTS.drain_seconds + 10
    assert one["healthcheck"]["test"] == ["CMD", *IMAGE.health_command, "/ready"]
    assert float(one["healthcheck"]["timeout"].removesuffix("s")) > healthcheck.TIMEOUT_SECONDS


def test_shared_compose_hardens_every_service_and_publishes_only_nginx_to_this_machine() -> None:
    for name, service in services().items():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["healthcheck"]["test"][0] == "CMD"
        assert re.fullmatch(r"[1-9][0-9]+:[1-9][0-9]+", service.get("user", IMAGE.user))
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert ("ports" in service) == (name == "nginx")


def test_shared_compose_starts_what_others_need_before_them_and_keeps_valkey_to_the_instances() -> None:
    compose = services()
    healthy = {"condition": "service_healthy"}
    assert compose["one"]["depends_on"] == {"valkey": healthy}
    assert compose["nginx"]["depends_on"] == {"one": healthy, "two": healthy}
    assert yaml.safe_load(SHARED)["networks"]["store"] == {"internal": True}
    assert [name for name, service in compose.items() if "store" in service["networks"]] == ["one", "two", "valkey"]
    assert compose["one"]["environment"]["REDIS_URL"] == "redis://valkey:6379/0"


def test_shared_compose_pins_the_images_of_others() -> None:
    assert re.fullmatch(r"nginx:1\.\d+-alpine", services()["nginx"]["image"])
    assert re.fullmatch(r"valkey/valkey:\d+-alpine", services()["valkey"]["image"])


def test_shared_compose_runs_a_valkey_that_writes_nothing_and_makes_room() -> None:
    """The real program takes these very words."""
    program, *options = services()["valkey"]["command"]
    assert program == "valkey-server"
    there = valkey_program("valkey")
    require_or_skip("Valkey (pip install -r requirements-dev.txt)", there is not None)
    with reserve_port(shared=False) as reservation:
        port = reservation.getsockname()[1]
        server = subprocess.Popen([str(there), *options, "--port", str(port), "--bind", "127.0.0.1"])
        try:
            client = redis.Redis(port=port, socket_timeout=5)
            poll_until(lambda: answers(client))
            said = {name: client.config_get(name)[name] for name in ("save", "appendonly", "maxmemory-policy")}
            client.close()
        finally:
            server.kill()
            server.wait()
    assert said == {"save": "", "appendonly": "no", "maxmemory-policy": "volatile-lru"}


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def poll_until(fact: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not fact():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_shared_compose_makes_an_nginx_configuration_that_nginx_takes(tmp_path: Path) -> None:
    """The command as it stands there, in directories of the test's own; only names and what is newer than some nginx
    is taken out again: `resolve`, and what it needs."""
    program = installed("nginx")
    require_or_skip("nginx (apt-get install nginx)", program is not None)
    shell, flags, script = services()["nginx"]["command"]
    assert (shell, flags) == ("sh", "-ec")
    # What the image's own main file says, as far as it matters here.
    main = "worker_processes auto;\nevents {\n    worker_connections  1024;\n}\nhttp {\n    include conf.d/*.conf;\n}\n"
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\n{main}", encoding="utf-8")
    (tmp_path / "conf.d").mkdir()
    places = {"/etc/chatwait/nginx.conf": str(DEPLOY / "nginx.conf"), "/etc/nginx/": f"{tmp_path}/"}
    places |= {"/tmp/nginx.conf": f"{tmp_path}/main.conf", "exec nginx": "exec true"}
    subprocess.run([shell, flags, substitute(script, places)], check=True, timeout=60)
    site = tmp_path / "conf.d" / "chatwait.conf"
    made = site.read_text(encoding="utf-8")
    for line in ("server one:8000 resolve max_fails=0;", "server two:8000 resolve max_fails=0;", "listen 8080;"):
        assert made.count(line) == 1
    assert made.count("/dev/stdout chatwait;") == made.count("/dev/stderr alert;") == 1
    assert "#shared" not in made
    newer = {" zone chatwait 64k; resolver 127.0.0.11 valid=1s ipv6=off;": "", " resolve ": " "}
    newer |= {"one:8000": "127.0.0.1:8000", "two:8000": "127.0.0.1:8001"}
    site.write_text(substitute(made, newer), encoding="utf-8")
    told = subprocess.run(
        [str(program), "-t", "-e", "stderr", "-c", str(tmp_path / "main.conf")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
    assert "worker_connections 16384;" in (tmp_path / "main.conf").read_text(encoding="utf-8")


def test_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    require_or_skip("systemd-analyze (apt-get install systemd)", program is not None)
    unit = tmp_path / "chatwait.service"
    unit.write_text(UNIT.replace("/opt/chatwait/.venv/bin/gunicorn", sys.executable), encoding="utf-8")
    told = subprocess.run([str(program), "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (told.returncode, [line for line in told.stderr.splitlines() if "chatwait.service" in line]) == (0, [])
