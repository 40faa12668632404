"""Send one request again and again at the least cost, and tell what that cost.

`python -m tests.live.spender PORT TIMES` takes the bytes from stdin. In a process of its own, so
that its CPU time is that of a client and of nothing else.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CLOSED = 0
ROOT = Path(__file__).resolve().parents[2]


def spend(port: int, times: int, data: bytes) -> dict[str, Any]:
    """Send the bytes on a connection each, read what comes to its end.

    Gives `cpu_seconds`, `sent_bytes`, `received_bytes`, and every one of the `statuses`; CLOSED is one of them where a
    connection was closed without an answer.
    """
    received = 0
    statuses = set()
    begun = time.process_time()
    for _ in range(times):
        status = CLOSED
        with socket.create_connection(("127.0.0.1", port), timeout=60.0) as sock:
            try:
                sock.sendall(data)
                first = sock.recv(65_536)
                status = int(first[9:12] or CLOSED)
                received += len(first)
                while piece := sock.recv(65_536):
                    received += len(piece)
            except ConnectionError:
                pass  # refused before all was sent
        statuses.add(status)
    spent = time.process_time() - begun
    sent = times * len(data)
    return {"cpu_seconds": spent, "sent_bytes": sent, "received_bytes": received, "statuses": sorted(statuses)}


def spend_apart(port: int, times: int, data: bytes) -> dict[str, Any]:
    """Do the same in a process of its own."""
    command = [sys.executable, "-m", "tests.live.spender", str(port), str(times)]
    done = subprocess.run(command, input=data, cwd=ROOT, capture_output=True, check=True, timeout=100)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


if __name__ == "__main__":
    print(json.dumps(spend(int(sys.argv[1]), int(sys.argv[2]), sys.stdin.buffer.read())))
