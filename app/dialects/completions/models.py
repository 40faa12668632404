"""Ids of completions, and the JSON of models, as OpenAI's clients know them."""

from __future__ import annotations

from typing import Any

__all__ = ["completion_id", "model", "stream_id_of"]

COMPLETION_PREFIX = "chatcmpl-"


def completion_id(stream_id: str) -> str:
    """Return the id of a completion, which every chunk of the stream has."""
    return COMPLETION_PREFIX + stream_id


def stream_id_of(name: str) -> str:
    """Return the stream id that a path names: by itself, or as a completion's id."""
    return name.removeprefix(COMPLETION_PREFIX)


def model(name: str, created: int = 0, owner: str = "") -> dict[str, Any]:
    """Write a model. Strict clients need all four members. Units: `created` in seconds since 1970, 0 where it is not
    known."""
    return {"id": name, "object": "model", "created": created, "owned_by": owner or "chatwait"}
