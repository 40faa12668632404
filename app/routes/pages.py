"""What people see in a browser: the pages, what they load, and the contract. All of it is read once, at the start."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path

from flask import Flask, Response, request
from werkzeug.datastructures import Accept
from werkzeug.http import parse_accept_header

from app import errors
from app.observability import facts
from app.observability.observer import tell
from app.streams.interface import Store
from app.web import assets as files

__all__ = ["register"]

STATIC = Path(__file__).parent.parent / "static"
CONTRACTS = Path(__file__).parent.parent.parent / "contracts"

_NOTHING_ELSE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
CHAT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    f"worker-src 'self'; {_NOTHING_ELSE}; require-trusted-types-for 'script'; trusted-types chatwait-worker"
)
WORKER_POLICY = (
    f"default-src 'none'; connect-src 'self'; {_NOTHING_ELSE}; require-trusted-types-for 'script'; trusted-types 'none'"
)
DOCS_POLICY = f"default-src 'none'; style-src 'self'; img-src 'self' data:; {_NOTHING_ELSE}"

LONGEST_ACCEPT_ENCODING = 2000
MOST_OTHER_TREES = 2
"""Of other versions, in memory. During a deploy there is one."""

_HASH = re.compile(r"[0-9a-f]{16}")


def register(app: Flask, store: Store) -> None:
    """Read the files, and put their addresses on the application. Raises: OSError, ValueError."""
    tree = files.read(STATIC)
    boot = files.Asset.of("boot.js", (STATIC / "boot.js").read_bytes())
    worker = files.Asset.of("sw.js", tree.fill((STATIC / "sw.js").read_bytes()))
    others = _OtherTrees(store)
    store.publish(tree.name, tree.record)
    home, docs = tree.pages["index.html"], tree.pages["docs.html"]
    contract = (CONTRACTS / "openapi.yaml").read_bytes()

    @app.get("/")
    def show_home() -> Response:
        """The chat. Its worker knows it by the header: another program may answer at this address tomorrow."""
        response = _page(home, CHAT_POLICY)
        response.headers["X-ChatWait"] = "page"
        return response

    @app.get("/docs")
    def show_docs() -> Response:
        """The contract for people."""
        return _page(docs, DOCS_POLICY)

    @app.get("/openapi.yaml")
    def show_contract() -> Response:
        """The contract for programs."""
        response = Response(contract, content_type="application/yaml")
        response.headers["Cache-Control"] = "no-cache"
        return response

    @app.get("/assets/boot.js")
    def show_boot() -> Response:
        """What a page of any version loads first."""
        response = _file(boot)
        response.headers["Cache-Control"] = "no-cache"
        return response

    @app.get("/sw.js")
    def show_worker() -> Response:
        """What shows the page when the server is away. It differs with each version, so browsers replace it."""
        response = _file(worker)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["Content-Security-Policy"] = WORKER_POLICY
        return response

    @app.get("/assets/<tree>/<name>")
    def show_asset(**path: str) -> Response:
        """A file that a page loads: of this tree, or of another version's that this one can get hold of."""
        asset = tree.assets.get(request.path) or others.of(path["tree"]).get(request.path)
        if asset is None:
            raise errors.NotFound
        response = _file(asset)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


class _OtherTrees:
    """The files of other versions, which instances that run them have published: a page that was loaded before a
    deploy goes on to find its own. The last few stay in memory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._trees: dict[str, Mapping[str, files.Asset]] = {}

    def of(self, version: str) -> Mapping[str, files.Asset]:
        """Give what there is of a version, by its hash; nothing when it is not known."""
        found = self._trees.get(version)
        if found is not None or not _HASH.fullmatch(version):
            return found or {}
        with self._lock:  # a page asks for all of its files at once
            return self._trees.get(version) or self._fetched(version)

    def _fetched(self, version: str) -> Mapping[str, files.Asset]:
        try:
            record = self._store.published(version)
            if record is None:
                return {}
            found = files.published(version, record)
        except errors.StoreUnavailable:
            return {}
        except ValueError:
            tell(facts.TreeDamaged(tree=version))
            return {}
        while len(self._trees) >= MOST_OTHER_TREES:
            self._trees.pop(next(iter(self._trees)))
        self._trees[version] = found
        return found


def _file(asset: files.Asset) -> Response:
    is_packed = asset.packed is not None and _takes_gzip()
    response = Response(asset.packed if is_packed else asset.plain, content_type=asset.content_type)
    if is_packed:
        response.headers["Content-Encoding"] = "gzip"
    response.vary.add("Accept-Encoding")
    return response


def _page(text: bytes, policy: str) -> Response:
    response = Response(text, content_type="text/html; charset=utf-8")
    response.headers["Cache-Control"] = "no-cache"
    response.headers["Content-Security-Policy"] = policy
    response.headers["Referrer-Policy"] = "no-referrer"
    if "Sec-Fetch-Dest" in request.headers:  # sent over https and to localhost only; elsewhere the next is an error
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    return response


def _takes_gzip() -> bool:
    accepted = parse_accept_header(request.headers.get("Accept-Encoding", "")[:LONGEST_ACCEPT_ENCODING], Accept)
    return accepted.quality("gzip") > 0
