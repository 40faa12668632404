"""Another version of the service, as a deploy brings one: the same, but for what its page loads."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.harness.reader import get
from tests.harness.server import ROOT


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
