"""JSON of a request, read strictly and within bounds, so that no request holds up the others."""

from __future__ import annotations

import json
import re
from itertools import accumulate, islice
from typing import Any

from app import errors

__all__ = ["check_parts", "parse"]

DEEPEST = 500
MOST_DIGITS = 10_000
"""The most digits of all integers together. The time to read an integer grows with the square of its digits."""

_PART = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{,}\]]', re.DOTALL)


class _Refused(ValueError):
    pass


def check_parts(body: bytes, *, most: int, hint: str) -> None:
    """Refuse a body with more than `most` strings, brackets and commas, before they become objects one by one.

    A mebibyte of unknown fields would hold up all other requests for half a second (measured).
    Raises: InvalidRequest, whose detail ends in `hint`; InvalidJson when the body is nested too deep.
    """
    if sum(body.count(mark) for mark in (b'"', b"[", b"{", b",")) <= most:
        return  # a cheap look that lets most requests pass; only here do commas inside strings count
    parts = [body[part.start()] for part in islice(_PART.finditer(body), most + 1)]
    if len(parts) > most:
        if max(accumulate((part in b"[{") - (part in b"]}") for part in parts)) > DEEPEST:
            raise errors.InvalidJson("The body is nested too deeply.")
        raise errors.InvalidRequest(
            f"The body has far more values than a request can have. {hint}",
            fields={"_schema": ["Too many values."]},
        )


def parse(body: bytes) -> Any:
    """Read JSON: in UTF-8, without NaN or Infinity, and without one name twice in an object. Raises: InvalidJson."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _Refused("An object has the same name twice.")
        return found

    def never(constant: str) -> Any:
        raise _Refused(f"{constant} is not a JSON number.")

    digits_left = MOST_DIGITS

    def whole(digits: str) -> int:
        nonlocal digits_left
        digits_left -= len(digits)
        if digits_left < 0:
            raise _Refused("A number in the body is too long.")
        return int(digits)

    if not body.strip():
        raise errors.InvalidJson("The body is empty.")
    try:
        return json.loads(body.decode(), object_pairs_hook=once, parse_constant=never, parse_int=whole)
    except UnicodeDecodeError:
        raise errors.InvalidJson("The body is not UTF-8.") from None
    except RecursionError:
        raise errors.InvalidJson("The body is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise errors.InvalidJson(f"The JSON is not valid at line {error.lineno}, column {error.colno}.") from None
    except _Refused as error:
        raise errors.InvalidJson(str(error)) from None
    except ValueError:
        raise errors.InvalidJson("A number in the body is too long.") from None
