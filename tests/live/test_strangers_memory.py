"""What the worker's memory keeps of strangers: no key, and nothing of what they guessed."""

from __future__ import annotations

import secrets

import pytest

from tests.harness.reader import post
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream
from tests.live.rawhttp import raw
from tests.live.spender import spend_apart
from tests.live.steps import poll, settings


def test_idempotency_key_is_not_kept_in_memory(upstream: ScriptedUpstream) -> None:
    """A key is kept hashed: nothing that lives holds it. The stream's id does, and is the control."""
    key = secrets.token_urlsafe(24)
    with ChatWait(**settings(upstream), probe=True) as chatwait:
        first = post(f"{chatwait.base_url}/chat/wait", {"message": "Hi"}, headers={"Idempotency-Key": key})
        poll(lambda: not chatwait.holders(key), seconds=10, what=lambda: f"the key held by {chatwait.holders(key)}")
        assert chatwait.holders(first.json["stream_id"])


@pytest.mark.long
@pytest.mark.timeout(300)
def test_twenty_thousand_guesses_leave_nothing_behind(
    shared_upstream: ScriptedUpstream, record_property: pytest.RecordProperty
) -> None:
    """Strangers: asking creates nothing, also when it is asked for a lot."""
    with ChatWait(check_output=False, **settings(shared_upstream, LOG_LEVEL="CRITICAL")) as chatwait:
        held = []
        for turn in range(5):
            for part in range(4):
                data = b"".join(
                    raw(f"{'GET' if number % 2 else 'DELETE'} /chat/wait/cw_{turn:02}{part:03}{number:017} HTTP/1.1")
                    for number in range(1000)
                )
                told = spend_apart(chatwait.port, 1, data + raw("GET /nowhere HTTP/1.1", "Connection: close"))
                assert (told["statuses"], told["received_bytes"] > 300_000) == ([404], True)
            held.append(chatwait.resources()["rss_bytes"] >> 10)
        record_property("rss_kib", held)
        print(f"KiB held after each 4,000 guesses: {held}")
        assert held[-1] - held[1] < 1 << 9  # 43 bytes for each of 12,000; seen: 0
