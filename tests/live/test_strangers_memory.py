"""What the worker's memory keeps of strangers: no key, and nothing of what they guessed."""

from __future__ import annotations

import re
import secrets
import sys
from pathlib import Path

import pytest

from tests.harness.reader import post
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream
from tests.live.rawhttp import raw
from tests.live.spender import spend_apart
from tests.live.steps import new_key, poll, settings
from tests.requirements import require_or_skip


def in_memory(pid: int, text: str) -> int:
    """Count a text in everything that a process may write to."""
    found = 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
            if place := re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line):
                start, end = (int(number, 16) for number in place.groups())
                try:
                    memory.seek(start)
                    found += memory.read(end - start).count(text.encode())
                except (OSError, OverflowError):
                    pass  # the kernel's own pages
    return found


def test_idempotency_key_is_not_kept_in_memory(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """A key is kept hashed. What a core would show; the stream's id stands there, and is the control."""
    require_or_skip("Linux's /proc", sys.platform == "linux")
    key = secrets.token_urlsafe(24)
    first = post(f"{chatwait.base_url}/chat/wait", {"message": "Hi"}, headers={"Idempotency-Key": key})
    (pid,) = chatwait.worker_pids()

    def is_forgotten() -> bool:
        post(f"{chatwait.base_url}/chat/wait", {"message": "Hi " * 50}, headers=new_key())  # takes freed memory again
        return in_memory(pid, key) == 0

    poll(is_forgotten, seconds=30, what="the key out of memory")
    assert in_memory(pid, first.json["stream_id"]) > 0


@pytest.mark.long
@pytest.mark.timeout(300)
def test_forty_thousand_guesses_leave_nothing_behind(
    shared_upstream: ScriptedUpstream, record_property: pytest.RecordProperty
) -> None:
    """Strangers: asking creates nothing, also when it is asked for a lot."""
    with ChatWait(check_output=False, **settings(shared_upstream, LOG_LEVEL="CRITICAL")) as chatwait:
        held = []
        for turn in range(5):
            for part in range(8):
                data = b"".join(
                    raw(f"{'GET' if number % 2 else 'DELETE'} /chat/wait/cw_{turn:02}{part:03}{number:017} HTTP/1.1")
                    for number in range(1000)
                )
                told = spend_apart(chatwait.port, 1, data + raw("GET /nowhere HTTP/1.1", "Connection: close"))
                assert (told["statuses"], told["received_bytes"] > 300_000) == ([404], True)
            held.append(chatwait.resources()["rss_bytes"] >> 10)
        record_property("rss_kib", held)
        print(f"KiB held after each 8,000 guesses: {held}")
        assert held[-1] - held[0] < 3 << 10
