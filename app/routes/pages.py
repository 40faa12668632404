"""The pages, the files that they load, and the contract. All of them are read once, at the start."""

from __future__ import annotations

from pathlib import Path

from flask import Flask, Response, request

from app import errors
from app.web.assets import Asset, OtherTrees, read
from app.web.current import worker_of
from app.web.files import file, page

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


def register(app: Flask) -> None:
    """Read the files, and put their addresses on the application. Raises: OSError, ValueError."""
    store = worker_of(app).store
    tree = read(STATIC)
    boot = Asset.of("boot.js", (STATIC / "boot.js").read_bytes())
    worker = Asset.of("sw.js", tree.fill((STATIC / "sw.js").read_bytes()))
    others = OtherTrees(store)
    if store.elsewhere is not None:
        store.elsewhere.publish(tree.name, tree.record)
    home, docs = tree.pages["index.html"], tree.pages["docs.html"]
    contract = (CONTRACTS / "openapi.yaml").read_bytes()

    @app.get("/")
    def show_home() -> Response:
        """The chat. The service worker knows the page by its header, as another program may answer here tomorrow."""
        response = page(home, CHAT_POLICY)
        response.headers["X-ChatWait"] = "page"
        return response

    @app.get("/docs")
    def show_docs() -> Response:
        """The contract for people."""
        return page(docs, DOCS_POLICY)

    @app.get("/openapi.yaml")
    def show_contract() -> Response:
        """The contract for programs."""
        response = Response(contract, content_type="application/yaml")
        response.headers["Cache-Control"] = "no-cache"
        return response

    @app.get("/assets/boot.js")
    def show_boot() -> Response:
        """The file that a page of any version loads first."""
        response = file(boot)
        response.headers["Cache-Control"] = "no-cache"
        return response

    @app.get("/sw.js")
    def show_worker() -> Response:
        """The script that shows the page while the server is away. Each version has its own, so browsers replace it."""
        response = file(worker)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["Content-Security-Policy"] = WORKER_POLICY
        return response

    @app.get("/assets/<tree>/<name>")
    def show_asset(**path: str) -> Response:
        """A file that a page loads: of this tree, or of another version's tree that the store has."""
        asset = tree.assets.get(request.path) or others.of(path["tree"]).get(request.path)
        if asset is None:
            raise errors.NotFound
        response = file(asset)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response
