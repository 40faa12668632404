"""Describes an exception without its text, which may quote a conversation."""

from __future__ import annotations

import errno
import traceback

__all__ = ["Description", "describe"]

DEEPEST_PLACES = 12
LONGEST_CHAIN = 5

Description = dict[str, list[str] | str]
"""`types`: the exception's and its causes'. `places`: file:line and function. `errno`: the name, of an OSError only."""


def describe(error: BaseException | None) -> Description:
    """Tell an exception's types and the places where it came from. The result keeps no frame alive."""
    places = [
        f"{frame.filename.rsplit('/site-packages/', 1)[-1].rsplit('/app/', 1)[-1]}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__ if error else None)[-DEEPEST_PLACES:]
    ]
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < LONGEST_CHAIN:
        chain.append(type(cause).__name__)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    described: Description = {"types": chain, "places": places}
    if isinstance(error, OSError) and (name := errno.errorcode.get(error.errno or 0)):
        described["errno"] = name
    return described
