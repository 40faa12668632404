"""The pages of app/static and the files that they load, read once.

The address of a file holds a hash of the whole tree. So a page and its files are always of one version, and a browser
may keep a file for ever. The hash is that of all files of the tree together. So an instance of another version can
check what it finds under a hash, and may serve these files (`published`).
"""

from __future__ import annotations

import gzip
import hashlib
import re
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from app import errors
from app.observability import facts
from app.observability.observer import tell
from app.streams.interface import Store

__all__ = ["Asset", "OtherTrees", "Tree", "published", "read"]

CONTENT_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "png": "image/png",
    "svg": "image/svg+xml",
}
MOST_BYTES = 4_194_304
"""The most that a tree may take in the memory of each worker."""

MOST_OTHER_TREES = 2
"""Trees of other versions in memory. During a deploy there is one."""

_HASH = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*\.(css|js|png|svg)")
_PLACEHOLDER, _LIST = b"{{assets}}", b"{{files}}"
_COMMENT = re.compile(rb"^[ \t]*(?://.*|/\*\*(?:(?!\*/)[\s\S])*\*/)[ \t]*$", re.MULTILINE)
_HEAD = re.compile(rb"([^\0/]{1,200})\0([0-9]{1,10})\0")


@dataclass(frozen=True)
class Asset:
    """A file as it is sent: plain, and packed by gzip where that is shorter.

    A script is sent without the comments that have lines of their own. These comments were a fifth of what a first
    visit waits for. The script's lines keep their numbers.
    """

    content_type: str
    plain: bytes
    packed: bytes | None

    @classmethod
    def of(cls, name: str, content: bytes) -> Asset:
        extension = name.rpartition(".")[2]
        if extension == "js":
            content = _COMMENT.sub(lambda comment: b"\n" * comment[0].count(b"\n"), content)
        packed = gzip.compress(content, mtime=0)
        content_type = CONTENT_TYPES[extension]
        return cls(content_type, content, packed if len(packed) < len(content) else None)


@dataclass(frozen=True)
class Tree:
    """The files of one version."""

    prefix: str
    """The address below which the assets are: `/assets/` and 16 hex digits."""
    pages: Mapping[str, bytes]
    assets: Mapping[str, Asset]
    """By the whole path of each."""
    record: bytes
    """The whole tree, packed. `published` reads such a record."""

    @property
    def name(self) -> str:
        """The hash, as it stands in the address."""
        return self.prefix.rpartition("/")[2]

    def fill(self, text: bytes) -> bytes:
        """Put the address and the names of the assets into a file that has an address of its own."""
        names = " ".join(sorted(path.rpartition("/")[2] for path in self.assets))
        return text.replace(_PLACEHOLDER, self.prefix.encode()).replace(_LIST, names.encode())


def read(static: Path) -> Tree:
    """Read a tree: its pages (`*.html`) and the files in `assets/`. Other names are an editor's leftovers.

    Raises: OSError; ValueError when the tree is larger than MOST_BYTES.
    """
    pages = {path.name: path for path in static.glob("*.html")}
    assets = {path.name: path for path in static.glob("assets/*") if _NAME.fullmatch(path.name) and path.is_file()}
    if sum(path.stat().st_size for path in (*pages.values(), *assets.values())) > MOST_BYTES:
        raise ValueError(f"{static} holds more than {MOST_BYTES} bytes")
    texts = {name: path.read_bytes() for name, path in pages.items()}
    files = {name: path.read_bytes() for name, path in assets.items()}
    record = b"".join(
        f"{name}\0{len(content)}\0".encode() + content for name, content in sorted((texts | files).items())
    )
    prefix = f"/assets/{_hash_of(record)}"
    return Tree(
        prefix,
        {name: text.replace(_PLACEHOLDER, prefix.encode()) for name, text in texts.items()},
        {f"{prefix}/{name}": Asset.of(name, content) for name, content in files.items()},
        zlib.compress(record),
    )


def published(name: str, packed: bytes) -> dict[str, Asset]:
    """Read the assets of a record, by the whole path of each. Raises: ValueError when its hash is not `name`."""
    unpacking = zlib.decompressobj()
    try:
        record = unpacking.decompress(packed, MOST_BYTES + MOST_BYTES // 16)
    except zlib.error:
        raise ValueError("no record of a tree") from None
    if not unpacking.eof or _hash_of(record) != name:
        raise ValueError("a record of another tree")
    assets: dict[str, Asset] = {}
    at = 0
    while head := _HEAD.match(record, at):
        at = head.end() + int(head[2])
        file = head[1].decode()
        if _NAME.fullmatch(file):
            assets[f"/assets/{name}/{file}"] = Asset.of(file, record[head.end() : at])
    return assets


class OtherTrees:
    """The files of other versions, as instances of those versions have published them. So a page that was loaded before
    a deploy still finds its own files. The last few trees stay in memory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._trees: dict[str, Mapping[str, Asset]] = {}

    def of(self, version: str) -> Mapping[str, Asset]:
        """Return the files of a version, by its hash. Empty when nobody has published it."""
        found = self._trees.get(version)
        if found is not None or not _HASH.fullmatch(version):
            return found or {}
        with self._lock:  # a page asks for all of its files at once, and one look at the store is enough
            return self._trees.get(version) or self._fetched(version)

    def _fetched(self, version: str) -> Mapping[str, Asset]:
        try:
            elsewhere = self._store.elsewhere
            record = None if elsewhere is None else elsewhere.published(version)
            if record is None:
                return {}
            found = published(version, record)
        except errors.StoreUnavailable:
            return {}
        except ValueError:
            tell(facts.TreeDamaged(tree=version))
            return {}
        while len(self._trees) >= MOST_OTHER_TREES:
            self._trees.pop(next(iter(self._trees)))
        self._trees[version] = found
        return found


def _hash_of(record: bytes) -> str:
    return hashlib.sha256(record).hexdigest()[:16]
