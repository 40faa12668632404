"""A service that is at fault in every way in turn; otherwise it answers as promised."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.harness.ledger import RequestRecord
from tests.harness.upstream import Script, ScriptedUpstream, Stall
from tests.load.streams import FAULTS, ID, encode, frames, ping, texts


class Liar:
    """Count what it was asked, and spoil the streams with these faults, one after the other."""

    def __init__(self, faults: list[str], *, silent: bool = False) -> None:
        self.asked: Counter[str] = Counter()
        self.base_url = ""
        self._faults = itertools.cycle(faults)
        self._is_silent = silent
        self._bytes_of: dict[str, list[bytes]] = {}

    def answer(self, record: RequestRecord) -> Script:
        if not record.path.startswith("/chat/"):
            return Script(body=b"{}")
        if record.method == "GET":
            stream_id = record.path.rpartition("/")[2]
            after = int(record.headers.get("last-event-id", ".0").rpartition(".")[2])
            opening = encode([ping(after)], stream_id) if after else self._bytes_of[stream_id][:1]
            return _stream(stream_id, opening + self._bytes_of[stream_id][after + 1 :])
        if self._is_silent:
            return Script(before=[Stall()])
        stream_id = f"{ID}{self.asked.total()}"
        self.asked[record.path] += 1
        if record.path.endswith("wait"):
            text = "".join(texts(5))
            proof = {"characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
            return Script(body=json.dumps({"status": "complete", "content": text, "tokens": 5, **proof}).encode())
        fault = next(self._faults)
        events = frames(texts(10))
        self._bytes_of[stream_id] = encode(FAULTS[fault][1](events) if fault else events, stream_id)
        return _stream(stream_id, self._bytes_of[stream_id])


def _stream(stream_id: str, events: list[bytes]) -> Script:
    return Script(headers={"x-stream-id": stream_id}, body=b"".join(events))


@contextmanager
def lying(faults: list[str], *, silent: bool = False) -> Iterator[Liar]:
    """Serve until the context is left; a `silent` one is healthy, and never answers a question."""
    liar = Liar(faults, silent=silent)
    with ScriptedUpstream(ledger=False).by(liar.answer) as server:
        liar.base_url = server.origin
        yield liar
