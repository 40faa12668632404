"""The list of models that an upstream tells, read within bounds."""

from __future__ import annotations

import msgspec

from app.upstream.interface import Model

__all__ = ["MOST_BYTES", "read_models"]

MOST_BYTES = 4 * 1_048_576
MOST_MODELS = 5000
LONGEST_NAME_CHARS = 200


class _Listed(msgspec.Struct):
    id: msgspec.Raw = msgspec.Raw(b"null")
    created: msgspec.Raw = msgspec.Raw(b"null")
    owned_by: msgspec.Raw = msgspec.Raw(b"null")


class _List(msgspec.Struct):
    data: list[_Listed]


_decode = msgspec.json.Decoder(_List).decode


def read_models(body: bytes) -> list[Model]:
    """Read the body of GET /models. What is no model's name is left out. Raises: ValueError."""
    models: dict[str, Model] = {}
    for listed in _decode(body).data[:MOST_MODELS]:
        name, created, owner = (_value(raw) for raw in (listed.id, listed.created, listed.owned_by))
        if isinstance(name, str) and 0 < len(name) <= LONGEST_NAME_CHARS:
            models[name] = Model(
                name,
                created if type(created) is int and 0 <= created < 2**53 else 0,
                owner if isinstance(owner, str) and len(owner) <= LONGEST_NAME_CHARS else "",
            )
    return list(models.values())


def _value(raw: msgspec.Raw) -> object:
    if len(raw) > 8 * LONGEST_NAME_CHARS or bytes(raw)[:1] in b"[{":
        return None
    return msgspec.json.decode(raw)
