"""A service that is at fault in every way in turn; otherwise it answers as promised."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.load.streams import FAULTS, ID, encode, frames, texts


class Liar(ThreadingHTTPServer):
    """Count what it was asked, and spoil the streams with these faults, one after the other."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, faults: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.faults = itertools.cycle(faults)
        self.bytes_of: dict[str, list[bytes]] = {}
        self.lock = threading.Lock()
        self.is_silent = False
        self.ended = threading.Event()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Liar

    def do_GET(self) -> None:
        if not self.path.startswith("/chat/"):
            self._send(b"{}")
            return
        stream_id = self.path.rpartition("/")[2]
        after = int(self.headers.get("Last-Event-ID", ".-1").rpartition(".")[2])
        self._send(b"".join(self.server.bytes_of[stream_id][after + 1 :]), stream_id)

    def do_POST(self) -> None:
        if self.server.is_silent:
            self.server.ended.wait()
            return
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            number = self.server.asked.total()
            self.server.asked[self.path] += 1
            fault = next(self.server.faults, "") if self.path.endswith("streaming") else ""
        if self.path.endswith("wait"):
            text = "".join(texts(5))
            proof = {"characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
            self._send(json.dumps({"status": "complete", "content": text, "tokens": 5, **proof}).encode())
            return
        events = frames(texts(10))
        stream_id = f"{ID}{number}"
        spoilt = encode(FAULTS[fault][1](events) if fault else events)
        self.server.bytes_of[stream_id] = [frame.replace(ID.encode(), stream_id.encode()) for frame in spoilt]
        self._send(b"".join(self.server.bytes_of[stream_id]), stream_id)

    def _send(self, body: bytes, stream_id: str = "") -> None:
        self.send_response(200)
        self.send_header("X-Stream-Id", stream_id)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def lying(faults: list[str]) -> Iterator[Liar]:
    """Serve until the context is left."""
    with Liar(faults) as liar:
        thread = threading.Thread(target=liar.serve_forever, daemon=True)
        thread.start()
        try:
            yield liar
        finally:
            liar.ended.set()
            liar.shutdown()
            thread.join(5)


@contextmanager
def silent() -> Iterator[str]:
    """Serve one that is healthy and never answers a question; give its base URL."""
    with lying([""]) as liar:
        liar.is_silent = True
        yield liar.base_url
