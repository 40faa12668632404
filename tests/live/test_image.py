"""The image's files, laid out and run as the Dockerfile says. `deploy/try-image` tries the real image."""

from __future__ import annotations

import compileall
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.image import ROOT, Image
from tests.harness.reader import get, open_stream
from tests.harness.server import ChatWait, StartFailed
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token
from tests.live.steps import KEY, settings

IMAGE = Image.read()
HOST_NAME = "chat.example.org"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Lay the image's files out, compile them, and let nobody write there."""
    home = tmp_path_factory.mktemp("image")
    for source, target in IMAGE.files().items():
        path = home / Path(target).relative_to(IMAGE.directory)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / source, path)
    compileall.compile_dir(home, quiet=1)
    folders = [home, *(path for path in home.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    yield home
    for folder in folders:
        folder.chmod(0o755)


def paths(tree: Path) -> set[str]:
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*")}


def test_image_files_are_all_that_the_service_needs_and_it_writes_nothing_there(
    tree: Path, upstream: ScriptedUpstream
) -> None:
    before = paths(tree)
    told = settings(upstream, **{**IMAGE.environment, "PORT": "", "ALLOWED_HOSTS": f"{HOST_NAME},127.0.0.1"})
    told.pop("PORT")
    upstream.always(Script(steps=[Token("Par"), Gate("end"), Token("is."), Finish("stop"), Done()]))
    with ChatWait(root=tree, **told) as chatwait:
        named = {"Host": HOST_NAME}
        for path in ("/", "/docs", "/openapi.yaml", "/ready"):
            assert get(f"{chatwait.base_url}{path}", named).status == 200
        with open_stream(f"{chatwait.base_url}/chat/streaming", json={"message": "Hi"}, headers=named) as stream:
            events = stream.events()
            while next(events).event != "token":
                pass
            chatwait.signal(signal.Signals[IMAGE.stop_signal])
            chatwait.wait_for_log("drain_started")
            upstream.open("end")
            assert [event.event for event in events][-1] == "done"
        assert chatwait.wait_exit(40.0) == 0
    assert paths(tree) == before


def test_image_without_allowed_hosts_refuses_to_start_and_names_them(tree: Path) -> None:
    environment = {name: value for name, value in IMAGE.environment.items() if name != "PORT"}
    service = ChatWait(root=tree, check_output=False, OPENAI_API_KEY=KEY, **environment)
    with pytest.raises(StartFailed) as failed, service:
        pass
    assert failed.value.exit_code not in (0, None)
    assert "ALLOWED_HOSTS" in failed.value.output
    assert "Traceback" not in failed.value.output


def test_health_check_finds_what_it_needs_in_the_image(tree: Path) -> None:
    python, script = IMAGE.health_command
    assert python == "python"
    done = subprocess.run(
        [sys.executable, script],
        cwd=tree,
        env={
            "PATH": os.environ["PATH"],
            **IMAGE.environment,
            "ALLOWED_HOSTS": HOST_NAME,
            "OPENAI_API_KEY": KEY,
            "PORT": "1",
        },
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("no answer: ")
