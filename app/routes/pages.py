"""What people see in a browser."""

from __future__ import annotations

from pathlib import Path

from flask import Blueprint, Response

__all__ = ["blueprint"]

blueprint = Blueprint("pages", __name__)

STATIC = Path(__file__).parent.parent / "static"
CONTRACTS = Path(__file__).parent.parent.parent / "contracts"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


@blueprint.get("/")
def show_home() -> Response:
    """What this is, and how to talk to it."""
    return _page(STATIC / "index.html", "text/html; charset=utf-8")


@blueprint.get("/docs")
def show_docs() -> Response:
    """The contract for people."""
    return _page(STATIC / "docs.html", "text/html; charset=utf-8")


@blueprint.get("/openapi.yaml")
def show_contract() -> Response:
    """The contract for programs."""
    return _page(CONTRACTS / "openapi.yaml", "application/yaml")


@blueprint.get("/style.css")
def show_style() -> Response:
    return _page(STATIC / "style.css", "text/css; charset=utf-8")


def _page(path: Path, content_type: str) -> Response:
    response = Response(path.read_bytes(), content_type=content_type)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response
