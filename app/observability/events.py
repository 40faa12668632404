"""The listener that writes every fact as a line of the log."""

from __future__ import annotations

import logging

from app.observability.facts import Fact
from app.observability.stdout import Event

__all__ = ["write"]

_log = logging.getLogger("app")


def write(fact: Fact) -> None:
    """Write one line: the fact's event, level and fields."""
    level = fact.level
    if _log.isEnabledFor(level):
        _log.handle(Event(fact.event, level, fact.fields()))
