"""The x-ratelimit-* headers of an upstream's answer, for the log and for clients of OpenAI's interface."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["rate_limits_of"]

_RATE_LIMIT = re.compile(r"x-ratelimit-[a-z0-9-]{1,40}")
_HARMLESS = re.compile(r"[0-9A-Za-z.:]{1,32}")
MOST = 20


def rate_limits_of(headers: Mapping[str, str]) -> dict[str, str]:
    """Return those of them whose values are harmless, MOST at most."""
    found = {
        name: value for name, value in headers.items() if _RATE_LIMIT.fullmatch(name) and _HARMLESS.fullmatch(value)
    }
    return dict(list(found.items())[:MOST])
