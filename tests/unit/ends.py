"""Ends of logs: made for a test, and looked at as the wire has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from app import errors
from app.dialects.native.answer import end_data
from app.streams.interface import End, Totals
from app.tokens.usage import Usage

__all__ = ["Terminal", "end_with", "terminal_of"]


class Terminal(NamedTuple):
    """A terminal event as a reader gets it."""

    event: str
    content: dict[str, Any]
    frees_key: bool


def terminal_of(log: Any) -> Terminal:
    """Tell how a log ended. Fails where it has not."""
    end = log.end
    assert end is not None, "the log has not ended"
    return Terminal({"complete": "done"}.get(end.status, end.status), end_data(log.origin, end), end.frees_key)


def end_with(event: str = "done", *, frees_key: bool = False) -> Callable[[Totals], End]:
    """Make an end of a kind. One that `frees_key` failed, and may be asked again."""

    def end(totals: Totals) -> End:
        failure = None
        if event == "failed":
            failure = (errors.ProducerLost() if not frees_key else errors.UpstreamUnavailable()).failure
        return End(
            status={"done": "complete"}.get(event, event),  # type: ignore[arg-type]
            records=totals.records,
            characters=totals.characters,
            sha256=totals.sha256,
            usage=Usage(7, totals.records, 7 + totals.records, "estimated"),
            finish_reason=None,
            first_token_ms=None,
            duration_ms=1,
            reason="client" if event == "cancelled" else None,
            error=failure,
        )

    return end
