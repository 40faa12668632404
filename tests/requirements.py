"""What a machine may lack: a test says what it needs, and is skipped aloud, or fails with CHATWAIT_REQUIRE=1."""

from __future__ import annotations

import os

import pytest

MISSING = "missing: "


def is_required() -> bool:
    """Tell whether a missing part is a failure here, as it is for `.ci/run`."""
    return os.environ.get("CHATWAIT_REQUIRE") == "1"


def require_or_skip(what: str, present: bool) -> None:
    """Skip the test (or the module) that needs this part where it is not present.

    Raises: a failure instead, with CHATWAIT_REQUIRE=1.
    """
    if present:
        return
    if is_required():
        pytest.fail(MISSING + what, pytrace=False)
    pytest.skip(MISSING + what, allow_module_level=True)
