"""Threads take turns, and with gevent only where they wait."""

from __future__ import annotations

import time

__all__ = ["let_others_run"]


def let_others_run() -> None:
    """Let every other thread run that can. Work of many milliseconds calls this now and then."""
    time.sleep(0)
