"""A script of the page as it is sent: line by line, and not as the service does it."""

from __future__ import annotations

__all__ = ["as_sent"]


def as_sent(text: str) -> str:
    """Empty the lines of a script that are comments, and of no other kind."""
    lines, is_comment = [], False
    for line in text.split("\n"):
        bare = line.strip()
        is_comment = is_comment or bare.startswith("/**")
        lines.append("" if is_comment or bare.startswith("//") else line)
        is_comment = is_comment and not bare.endswith("*/")
    return "\n".join(lines)
