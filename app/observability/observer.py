"""Facts for listeners: each place tells a fact once, and every listener hears the fact.

Listeners run in the thread that tells. A listener must be quick and must not wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from app.observability.facts import Fact

__all__ = ["Listener", "listen", "tell"]

MOST_LISTENERS = 8

Listener = Callable[[Fact], None]

_log = logging.getLogger(__name__)
_listeners: tuple[Listener, ...] = ()


def listen(listener: Listener) -> None:
    """Let a listener hear every fact of this process from now on. A listener that is added again is still told once.

    Called while the application is wired, in one thread.

    Raises: RuntimeError beyond MOST_LISTENERS, because each listener costs time wherever a fact is told.
    """
    global _listeners
    if listener in _listeners:
        return
    if len(_listeners) >= MOST_LISTENERS:
        raise RuntimeError(f"There are {MOST_LISTENERS} listeners already.")
    _listeners = (*_listeners, listener)


def tell(fact: Fact) -> None:
    """Tell every listener what happened. A listener that fails is logged, and harms nobody else."""
    for listener in _listeners:
        try:
            listener(fact)
        except Exception:  # noqa: BLE001 - see above
            _log.exception("a listener failed on the fact %s", fact.event)
