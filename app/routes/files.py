"""Read what browsers load, once: the pages of app/static, and the files below assets/ under an address of their own.

The address holds a hash of the whole tree, so a page and what it loads are always of one version, and what was
loaded once may be kept for ever.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Asset", "Tree", "read"]

CONTENT_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "png": "image/png",
    "svg": "image/svg+xml",
}
MOST_BYTES = 4_194_304
"""The tree stays in memory, in each worker."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*\.(css|js|png|svg)")
_PLACEHOLDER = b"{{assets}}"


@dataclass(frozen=True)
class Asset:
    """A file as it is sent: plain, and packed by gzip where that is shorter."""

    content_type: str
    plain: bytes
    packed: bytes | None

    @classmethod
    def of(cls, name: str, content: bytes) -> Asset:
        packed = gzip.compress(content, mtime=0)
        content_type = CONTENT_TYPES[name.rpartition(".")[2]]
        return cls(content_type, content, packed if len(packed) < len(content) else None)


@dataclass(frozen=True)
class Tree:
    """The files of one version."""

    prefix: str
    """The address below which the assets are: `/assets/` and 16 hex digits."""
    pages: Mapping[str, bytes]
    assets: Mapping[str, Asset]
    """By the whole path of each."""


def read(static: Path) -> Tree:
    """Read a tree: its pages (`*.html`), and what is in `assets/`; names of another kind are an editor's leftovers.

    Raises: OSError, ValueError when there is more than may stay in memory.
    """
    pages = {path.name: path for path in static.glob("*.html")}
    assets = {path.name: path for path in static.glob("assets/*") if _NAME.fullmatch(path.name) and path.is_file()}
    if sum(path.stat().st_size for path in (*pages.values(), *assets.values())) > MOST_BYTES:
        raise ValueError(f"{static} holds more than {MOST_BYTES} bytes")
    texts = {name: path.read_bytes() for name, path in pages.items()}
    files = {name: path.read_bytes() for name, path in assets.items()}
    digest = hashlib.sha256()
    for name, content in sorted({**texts, **files}.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    prefix = f"/assets/{digest.hexdigest()[:16]}"
    return Tree(
        prefix,
        {name: text.replace(_PLACEHOLDER, prefix.encode()) for name, text in texts.items()},
        {f"{prefix}/{name}": Asset.of(name, content) for name, content in files.items()},
    )
