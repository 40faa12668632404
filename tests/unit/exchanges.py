"""Exchanges written by hand, for the judge of all answers to hear."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from typing import Any

from tests.harness.contract_check import Run
from tests.harness.tap import Tap

ID = "cw_p3Vd8KxQm1ZsT7yHbN0e2w"
OTHER = "cw_AAAAAAAAAAAAAAAAAAAAAA"
STREAM = f"/v1/chat/streaming/{ID}"
TEXT = "Rome."
SHA256 = hashlib.sha256(TEXT.encode()).hexdigest()

Change = dict[str, Any]


def hear(
    run: Run,
    method: str,
    target: str,
    status: int,
    headers: Change,
    body: bytes = b"",
    *,
    asked: str = "",
) -> list[str]:
    """Let a tap hear one exchange, in small pieces, and give what it found wrong."""
    tap = Tap(run)
    tap.sent(f"{method} {target} HTTP/1.1\r\nHost: a\r\n{asked}\r\n".encode())
    fields = {name: value for name, value in headers.items() if value is not None}
    if "Content-Length" not in fields and status != 204:
        fields["Transfer-Encoding"] = "chunked"
    raw = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    wire = f"HTTP/1.1 {status} X\r\n{raw}\r\n".encode()
    if fields.get("Transfer-Encoding"):
        wire += b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces(body, 50)) + b"0\r\n\r\n"
    else:
        wire += body
    for piece in pieces(wire, 7):
        tap.received(piece)
    tap.closed()
    return run.take_problems()


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def common(**changes: Any) -> Change:
    headers = {"X-Correlation-Id": str(uuid.uuid4()), "Cache-Control": "no-store", "Content-Type": "application/json"}
    return {**headers, **{name.replace("_", "-"): value for name, value in changes.items()}}


def of_stream(**changes: Any) -> Change:
    return common(**{"X_Stream_Id": ID, "Location": STREAM, **changes})


def of_events(**changes: Any) -> Change:
    return of_stream(
        **{
            "Content_Type": "text/event-stream; charset=utf-8",
            "Cache_Control": "no-cache, no-store, no-transform",
            "X_Accel_Buffering": "no",
            **changes,
        }
    )


def totals(**changes: Any) -> Change:
    usage = {"prompt_tokens": 31, "completion_tokens": 2, "total_tokens": 33, "source": "provider"}
    return {
        "status": "complete",
        "finish_reason": "stop",
        "model": "gpt-4o-mini",
        "tokens": 2,
        "usage": usage,
        "first_token_ms": 212,
        "duration_ms": 260,
        "characters": len(TEXT),
        "sha256": SHA256,
        **changes,
    }
