"""What people see in a browser: the pages, what they load, and the contract. All of it is read once, at the start."""

from __future__ import annotations

from pathlib import Path

from flask import Flask, Response, request
from werkzeug.datastructures import Accept
from werkzeug.http import parse_accept_header

from app import errors
from app.routes import files

__all__ = ["register"]

STATIC = Path(__file__).parent.parent / "static"
CONTRACTS = Path(__file__).parent.parent.parent / "contracts"

_NOTHING_ELSE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
CHAT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    f"{_NOTHING_ELSE}; require-trusted-types-for 'script'; trusted-types 'none'"
)
DOCS_POLICY = f"default-src 'none'; style-src 'self'; img-src 'self' data:; {_NOTHING_ELSE}"

LONGEST_ACCEPT_ENCODING = 2000


def register(app: Flask) -> None:
    """Read the files, and put their addresses on the application. Raises: OSError, ValueError."""
    tree = files.read(STATIC)
    home, docs = tree.pages["index.html"], tree.pages["docs.html"]
    contract = (CONTRACTS / "openapi.yaml").read_bytes()

    @app.get("/")
    def show_home() -> Response:
        """The chat."""
        return _page(home, CHAT_POLICY)

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

    @app.get("/assets/<tree>/<name>")
    def show_asset(**_: str) -> Response:
        """A file that a page loads. What is not of this very tree is not there."""
        asset = tree.assets.get(request.path)
        if asset is None:
            raise errors.NotFound
        is_packed = asset.packed is not None and _takes_gzip()
        response = Response(asset.packed if is_packed else asset.plain, content_type=asset.content_type)
        if is_packed:
            response.headers["Content-Encoding"] = "gzip"
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
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
