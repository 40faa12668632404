"""The Dockerfile, .dockerignore and deploy/compose.yaml: their facts fit together, and fit the service."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from app.routes.pages import CONTRACTS, STATIC
from app.settings import BadSettings, Settings, read_settings, table
from deploy import healthcheck
from tests.harness.image import ROOT, Image, build_context

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = (ROOT / "deploy/compose.yaml").read_text(encoding="utf-8")
SHARED = (ROOT / "deploy/compose-shared.yaml").read_text(encoding="utf-8")
IMAGE = Image.read()
COPIED = IMAGE.files()
HOME = IMAGE.directory
TRY = (ROOT / "deploy/try-image").read_text(encoding="utf-8")
READERS_OF_A_STOP = 10  # gunicorn.conf.py's
GRACE_SECONDS = 40.0


def test_image_runs_as_a_numbered_user_who_is_not_root() -> None:
    assert re.fullmatch(r"[1-9][0-9]{3,}:[1-9][0-9]{3,}", IMAGE.user)


def test_image_without_allowed_hosts_asks_for_them() -> None:
    """HOST is set, ALLOWED_HOSTS and secrets are not; with the names that clients use it is complete."""
    told = IMAGE.environment
    assert told == {"HOST": "0.0.0.0", "PORT": IMAGE.port}
    given = {**told, "OPENAI_API_KEY": "sk-test", "ENV_FILE": "/dev/null"}
    with pytest.raises(BadSettings, match="ALLOWED_HOSTS"):
        read_settings(given)
    assert read_settings({**given, "ALLOWED_HOSTS": "chat.example.org"}).port == int(IMAGE.port)


def test_dockerignore_lets_in_what_is_copied_and_nothing_else() -> None:
    assert build_context() == set(COPIED)


def test_dockerignore_keeps_secrets_and_leftovers_out(tmp_path: Path) -> None:
    wanted = {"app/a.py", "app/b/c.py", "contracts/openapi.yaml", "wsgi.py", "deploy/healthcheck.py"}
    leftovers = {
        ".env",
        ".git/config",
        ".venv/x.py",
        "app/__pycache__/a.pyc",
        "app/b/c.pyc",
        "contracts/examples/x.http",
    }
    for name in (*wanted, *leftovers, "deploy/try-image", "deploy/.env", "tests/a.py", "key.pem", "Dockerfile"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".dockerignore").write_bytes((ROOT / ".dockerignore").read_bytes())

    assert build_context(tmp_path) == wanted


def test_image_holds_all_that_the_service_reads() -> None:
    """Its code, its pages, the contract it shows; gunicorn finds its configuration where it starts."""
    code = {path for path in (ROOT / "app").rglob("*.py") if "__pycache__" not in path.parts}
    scripts = {*(ROOT / "app").rglob("*.lua")}
    assert len(scripts) > 5  # premise
    read = {*code, *scripts, *(path for path in STATIC.rglob("*") if path.is_file()), CONTRACTS / "openapi.yaml"}
    assert len(code) > 20  # premise
    for path in (*read, ROOT / "gunicorn.conf.py", ROOT / "wsgi.py"):
        name = path.relative_to(ROOT).as_posix()
        assert COPIED.get(name) == f"{HOME}/{name}"


def test_requirement_files_are_copied_before_they_are_installed() -> None:
    there: set[str] = set()
    installed: set[str] = set()
    for step, rest in IMAGE.steps:
        if step == "RUN":
            named = set(re.findall(r"-r (\S+)", rest))
            assert named <= there
            assert not named or "--only-binary :all:" in rest  # there is no compiler in the base
            installed |= named
        elif step == "COPY":
            there |= set(rest.split()[:-1])
    assert installed == {"requirements.txt", "requirements-local.txt"}


def test_command_is_gunicorn_without_a_shell() -> None:
    assert IMAGE.command == ["gunicorn", "wsgi:app"]
    assert IMAGE.stop_signal == "SIGTERM"


def test_health_command_is_a_file_of_the_image_and_ends_before_its_timeout() -> None:
    python, script = IMAGE.health_command
    assert python == "python"
    assert COPIED[script] == f"{HOME}/{script}"
    assert int(IMAGE.health_flags["timeout"].removesuffix("s")) > healthcheck.TIMEOUT_SECONDS


def test_grace_is_longer_than_the_drain_wherever_it_is_said() -> None:
    configuration = (ROOT / "gunicorn.conf.py").read_text(encoding="utf-8")
    assert f"READERS_OF_A_STOP = {READERS_OF_A_STOP} " in configuration
    guide = (ROOT / "docs" / "container.md").read_text(encoding="utf-8")
    said = [
        *re.findall(r"--stop-timeout (\d+)", DOCKERFILE + guide),
        *re.findall(r"stop_grace_period: (\d+)s", COMPOSE + SHARED + guide),
        *re.findall(r"terminationGracePeriodSeconds: (\d+)", guide),
    ]

    assert len(said) >= 7
    assert {float(number) for number in re.findall(r"GRACE_SECONDS=(\d+)", TRY)} == {GRACE_SECONDS}
    assert {float(number) for number in said} == {GRACE_SECONDS}
    assert Settings().drain_seconds + READERS_OF_A_STOP < GRACE_SECONDS


def test_compose_says_what_the_image_and_the_settings_know() -> None:
    service = yaml.safe_load(COMPOSE)["services"]["chatwait"]
    settings = {row[0] for row in table()}
    named = {*service["environment"], *re.findall(r"^      # ([A-Z_]+): ", COMPOSE, re.MULTILINE)}

    assert (
        {"ALLOWED_HOSTS", "OPENAI_API_KEY", "OPENAI_BASE_URL", "DRAIN_SECONDS"} <= named <= {*settings, "LOCAL_MODEL"}
    )
    assert service["build"] == {"context": ".."}
    assert service["ports"] == [f"127.0.0.1:8000:{IMAGE.port}"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
