"""Other versions of the service, as a deploy brings them: one with another page, and version 0.1 out of git."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.harness.reader import get
from tests.harness.server import ROOT

VERSION_0_1 = "454c3bbc2077acff3aaaddfd37ae08691cecaf54"
SERVICE = ("app", "contracts", "gunicorn.conf.py", "wsgi.py")
"""What the service runs from."""


def version_0_1(directory: Path) -> Path | None:
    """Check out version 0.1 there, and give its root; None where git or this commit is missing."""
    try:
        archive = subprocess.run(
            ["git", "archive", "--format=tar", VERSION_0_1, *SERVICE], cwd=ROOT, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        # Pythons before 3.11.4 know no filter, and the archive is our own.
        files.extractall(directory, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return directory


def another_version(directory: Path) -> Path:
    """Copy what the service runs from, with a page of another version; give the root of it."""
    root = directory / "another"
    for name in ("app", "contracts"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("gunicorn.conf.py", "wsgi.py"):
        shutil.copy(ROOT / name, root / name)
    with (root / "app" / "static" / "assets" / "words.js").open("a", encoding="utf-8") as words:
        words.write("// Of another version.\n")
    return root


def assets_of(base_url: str) -> list[str]:
    """Give the paths of all that the page loads, as one of its answers names them."""
    return re.findall(r'(?:src|href)="(/assets/[^"]+)"', get(f"{base_url}/").body.decode())
