"""What an upstream says of a client's own request: read from where servers say it, and fit for the client."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from app.errors import Reported
from app.observability.redaction import MARK, redact

__all__ = ["JUDGING", "ReportReader", "status_in"]

JUDGING = (400, 404, 413, 422, 429)
"""With these statuses an upstream judges the request itself."""

LONGEST_MESSAGE_CHARS = 1_000
LONGEST_NAME_CHARS = 100
LONGEST_READ_CHARS = 16_384
"""No more of a text is looked at, once the upstream's own secrets are out of it."""
FEWEST_SECRET_CHARS = 6
"""A shorter key is not looked for: it would be found in any word. Log lines have the same rule."""
DEEPEST = 4
MOST_ENTRIES = 4
"""How many of the faults that a server lists become part of the message."""

_MESSAGES = ("message", "error", "detail", "msg", "title")
_STATUSES = ("code", "status", "status_code", "http_status")
_MARKUP = ("<", "{", "[[", "[{", '["')


class ReportReader:
    """Reads what one upstream says. What it returns shows neither the upstream's key nor the name of its host."""

    def __init__(self, *, secrets: Iterable[str], hosts: Iterable[str]) -> None:
        self._secrets = [secret for secret in secrets if len(secret) >= FEWEST_SECRET_CHARS]
        names = "|".join(re.escape(host) for host in hosts if host)
        self._hosts = re.compile(
            rf"(?<![A-Za-z0-9_-])(?:{names})(?![A-Za-z0-9_-])(?::[0-9]{{1,5}})?" if names else r"(?!)", re.IGNORECASE
        )

    def read(self, report: object, status: int) -> Reported | None:
        """Read the JSON of an error. None when it says nothing. A text that is a page or broken JSON says nothing.

        Servers say it in `error`, in `message` or in `detail`, as a text or as an object. Some put it into a list.
        """
        if isinstance(report, str) and report.lstrip().startswith(_MARKUP):
            return None
        said = _innermost(report)
        message = self._line(_message(said), LONGEST_MESSAGE_CHARS)
        if not message:
            return None
        param = said.get("param") or _place(said.get("detail"))
        kind, param, code = (
            self._line(value, LONGEST_NAME_CHARS) for value in (said.get("type"), param, said.get("code"))
        )
        return Reported(status, message, kind, param, code)

    def _line(self, value: object, longest: int) -> str | None:
        """Write a text or a whole number on one line, redacted. None for anything else, and for nothing."""
        if type(value) is not int and not isinstance(value, str):
            return None
        text = str(value)
        for secret in self._secrets:  # before anything is cut
            text = text.replace(secret, MARK)
        text = self._hosts.sub(MARK, text)[:LONGEST_READ_CHARS]
        if not text.isprintable():
            text = "".join(sign if sign.isprintable() else " " for sign in text)
        text = redact(" ".join(text.split()), longest=longest)
        return (text if len(text) <= longest else f"{text[: longest - 1]}…") or None


def status_in(report: object) -> int | None:
    """Find the status with which a server judges a request, although it told another one in the head. None for no such
    status."""
    said = _innermost(report)
    for name in _STATUSES:
        for status in JUDGING:
            if said.get(name) in (status, str(status)):
                return status
    return None


def _innermost(report: Any) -> dict[str, Any]:
    """Return the object that has the message."""
    for _ in range(DEEPEST):
        if isinstance(report, list) and report and isinstance(report[0], dict):
            report = report[0]  # Google sends a list of one error.
        elif isinstance(report, dict) and isinstance(report.get("error"), dict) and report["error"]:
            report = report["error"]
        else:
            break
    return report if isinstance(report, dict) else {"message": report}


def _message(said: Any, depth: int = DEEPEST) -> str:
    """Find a message in whatever shape. A list of faults becomes one text."""
    if isinstance(said, str):
        return said
    if not depth:
        return ""
    if isinstance(said, list):
        return "; ".join(filter(None, (_message(entry, depth - 1) for entry in said[:MOST_ENTRIES])))
    if not isinstance(said, dict):
        return ""
    text = next(filter(None, (_message(said.get(name), depth - 1) for name in _MESSAGES)), "")
    place = _place(said)
    return f"{place}: {text}" if place and text else text


def _place(fault: Any) -> str:
    """Name the field in which FastAPI found a fault: ["body", "messages", 0] is messages.0. "" for anything else."""
    if isinstance(fault, list) and len(fault) == 1:
        fault = fault[0]
    steps = fault.get("loc") if isinstance(fault, dict) else None
    if not isinstance(steps, list):
        return ""
    names = [str(step) for step in steps[:10] if isinstance(step, str) or type(step) is int]
    return ".".join(names[1:] if names[:1] == ["body"] else names)
