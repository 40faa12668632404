"""The files of deploy/: their numbers fit together, and the programs that read them accept them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.config import read_settings
from tests.harness.certificates import make_certificate
from tests.harness.net import reserve_port
from tests.harness.proxies import DEPLOY, ROOT, HAProxy, Nginx, Proxy, installed
from tests.requirements import require_or_skip

NGINX, HAPROXY, UNIT, GUIDE = (
    (DEPLOY / name).read_text(encoding="utf-8")
    for name in ("nginx.conf", "haproxy.cfg", "chatwait.service", "README.md")
)
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
    assert number(r"client_max_body_size (\d+)m;", NGINX) << 20 > DEFAULTS.max_body_bytes
    assert number(r"client_body_buffer_size (\d+)m;", NGINX) << 20 >= DEFAULTS.max_body_bytes


def test_unit_gives_a_stop_its_time_and_the_streams_their_descriptors() -> None:
    assert number(r"TimeoutStopSec=(\d+)", UNIT) > DEFAULTS.drain_seconds + 10
    assert number(r"LimitNOFILE=(\d+)", UNIT) >= 6 * DEFAULTS.max_active_streams + 1000


def test_guide_lists_the_options_that_the_files_have() -> None:
    rows = re.findall(r"(?m)^\| `([a-z]+)` \| .* \| *(yes)? *\| *(yes)? *\|$", GUIDE)
    told = {name: (bool(nginx), bool(haproxy)) for name, nginx, haproxy in rows}
    there = [set(re.findall(r"(?m)^ *#([a-z]+) ", text)) for text in (NGINX, HAPROXY)]
    assert told == {name: (name in there[0], name in there[1]) for name in there[0] | there[1]}


def test_links_of_the_guide_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", GUIDE)
    assert links
    assert [link for link in links if not (DEPLOY / link).exists()] == []


@pytest.mark.parametrize("kind", [Nginx, HAProxy])
def test_configuration_with_every_option_is_accepted(kind: type[Proxy], tmp_path: Path) -> None:
    program = installed(kind.name)
    require_or_skip(f"{kind.name} (apt-get install {kind.name})", program is not None)
    pem = make_certificate(tmp_path, "DNS:chat.example.org").both
    paths = (
        ["/etc/ssl/certs/chatwait.pem", "/etc/ssl/private/chatwait.key"]
        if kind is Nginx
        else ["/etc/haproxy/chatwait.pem"]
    )
    changes = dict.fromkeys(paths, str(pem)) | ({"listen 443 ": "listen 127.0.0.1:1 "} if kind is Nginx else {})
    options = sorted(set(re.findall(r"(?m)^ *#([a-z]+) ", NGINX if kind is Nginx else HAPROXY)))
    with reserve_port(shared=False) as port:
        proxy = kind(tmp_path, port.getsockname()[1])
        proxy.shipped(*options, changes=changes)
        check = [*proxy.command(), "-t" if kind is Nginx else "-c"]
        told = subprocess.run(check, capture_output=True, text=True, timeout=60)
        proxy.close()
    assert told.returncode == 0, told.stderr
    assert not re.search(r"\[(warn|WARNING|ALERT)\]", told.stderr), told.stderr


def test_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    require_or_skip("systemd-analyze (apt-get install systemd)", program is not None)
    unit = tmp_path / "chatwait.service"
    unit.write_text(UNIT.replace("/opt/chatwait/.venv/bin/gunicorn", sys.executable), encoding="utf-8")
    told = subprocess.run([str(program), "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (told.returncode, [line for line in told.stderr.splitlines() if "chatwait.service" in line]) == (0, [])
