"""The version of this service, in one place. Tests compare every copy of it with this one."""

from __future__ import annotations

__all__ = ["VERSION"]

VERSION = "0.2.0"
