"""Conversations in every state that the page can show, as records of its store."""

from __future__ import annotations

from typing import Any

NOW = 1_800_000_000_000  # ms since the epoch
TEXT = "Rome is the capital of Italy. It has been since 1871."
LIVE = ("sending", "waiting", "streaming", "slow", "reconnecting")
PROSE = """### What is kept

Text with **bold**, *italic*, `code` and a [link](https://example.com/).

1. one
2. two
   - nested

> quoted

```python
print("a line that is much longer than the window of a phone, so that the block has to scroll by itself")
```

| event | identification | what it means | continuation |
|---|---|---:|---|
| `token` | stream_id.sequence | a piece of text | unconditionally |
| `done` | stream_id.sequence | complete, with a hash of the whole text | nevermore |

Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft

مرحبا بالعالم"""
SERVICE_ERROR = {
    "error_code": "upstream_error",
    "message": "The model's answer could not be used.",
    "detail": "The model's server broke off.",
    "action": "Ask again.",
    "correlation_id": "4f1c2a90",
    "retryable": True,
}
ENDED = {"tokens": 21, "firstTokenMs": 400, "durationMs": 2400, "endedAt": NOW, "model": "gpt-4o-mini"}


def question(number: int = 1, content: str = "And of Italy?") -> dict[str, Any]:
    """Make a question's record."""
    return {"id": f"q{number}", "role": "user", "content": content, "at": NOW}


def answer(state: str, content: str = "", number: int = 1, **more: Any) -> dict[str, Any]:
    """Make an answer's record, asked 4 s ago."""
    return {
        "id": f"a{number}",
        "role": "assistant",
        "content": content,
        "at": NOW,
        "state": state,
        "asks": f"q{number}",
        "sent": {"model": None, "skip": 0},
        "sentAt": NOW - 4_000,
        "firstAt": NOW - 3_500 if content else None,
        "lastTokenAt": NOW - 3_000 if content else None,
        "sequence": len(content),
        "reconnects": 0,
        "error": None,
        **more,
    }


ANSWERS: dict[str, dict[str, Any]] = {
    "sending": answer("sending"),
    "queued": answer("sending", queued=True, place=1),
    "queued, second": answer("sending", queued=True, place=2),
    "queued, later": answer("sending", queued=True, place=3),
    "queued, somewhere": answer("sending", queued=True, place=0),
    "waiting": answer("waiting"),
    "streaming": answer("streaming", TEXT),
    "stopping": answer("streaming", TEXT, stopping=True),
    "slow": answer("slow", TEXT, lastTokenAt=NOW - 12_000),
    "reconnecting": answer("reconnecting", TEXT),
    "reconnecting, later": answer("reconnecting", TEXT, retryAt=NOW + 4_100),
    "reconnecting, busy": answer("reconnecting", busy=True),
    "complete": answer("complete", PROSE, finishReason="stop", **ENDED),
    "complete, cut": answer("complete", TEXT, finishReason="length", **ENDED),
    "complete, cut at once": answer("complete", finishReason="length", **ENDED),
    "complete, filtered": answer("complete", TEXT, finishReason="content_filter", **ENDED),
    "complete, of an old format": answer("complete", TEXT, sentAt=None, firstAt=None, lastTokenAt=None, sent=None),
    "stopped": answer("stopped", TEXT, **ENDED),
    "stopped at once": answer("stopped", **ENDED),
    "interrupted": answer("interrupted", TEXT, error={"code": "connection_lost", "retryable": True}),
    "gone": answer("interrupted", TEXT, error={"code": "answer_gone", "retryable": False}),
    "ended by the server": answer(
        "interrupted", "One", error={"code": "ended_by_server", "reason": "shutdown", "retryable": True}
    ),
    "damaged": answer("failed", TEXT, error={"code": "text_damaged", "retryable": True}),
    "failed": answer("failed", TEXT, error=SERVICE_ERROR, **ENDED),
    "failed at once": answer("failed", error=SERVICE_ERROR),
    "refused": answer("failed", refused=True, error={**SERVICE_ERROR, "error_code": "message_too_long"}),
}


def conversation(name: str) -> dict[str, Any]:
    """Make a conversation of two questions, whose last answer is the one of this name."""
    before = answer("complete", "Paris.", number=0, **ENDED)
    return {"messages": [question(0, "What is the capital of France?"), before, question(), ANSWERS[name]]}
