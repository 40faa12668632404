"""Pages and files as responses."""

from __future__ import annotations

from flask import Response, request
from werkzeug.datastructures import Accept
from werkzeug.http import parse_accept_header

from app.web.assets import Asset

__all__ = ["file", "page"]

LONGEST_ACCEPT_ENCODING = 2000
"""How much of Accept-Encoding is read. Units: characters."""


def file(asset: Asset) -> Response:
    """Answer with a file, packed where the client takes that."""
    is_packed = asset.packed is not None and _takes_gzip()
    response = Response(asset.packed if is_packed else asset.plain, content_type=asset.content_type)
    if is_packed:
        response.headers["Content-Encoding"] = "gzip"
    response.vary.add("Accept-Encoding")
    return response


def page(text: bytes, policy: str) -> Response:
    """Answer with a page, under a Content-Security-Policy."""
    response = Response(text, content_type="text/html; charset=utf-8")
    response.headers["Cache-Control"] = "no-cache"
    response.headers["Content-Security-Policy"] = policy
    response.headers["Referrer-Policy"] = "no-referrer"
    if "Sec-Fetch-Dest" in request.headers:  # over https and to localhost; elsewhere browsers report the next line
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    return response


def _takes_gzip() -> bool:
    accepted = parse_accept_header(request.headers.get("Accept-Encoding", "")[:LONGEST_ACCEPT_ENCODING], Accept)
    return accepted.quality("gzip") > 0
