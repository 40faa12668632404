"""What one finished answer takes in a worker's memory, measured in a process that keeps thousands of them.

Each kind of answer has a process of its own. The process fills a `MemoryStore` as a worker does, and ends every log.
The answers are 100 chunks each: the words of the repository's own documents, every answer with another part of them.
An answer of OpenAI's has two chunks more, as a provider sends them: one tells the role, one the end.

`resident` is what the process grew by, divided by the answers: with what the allocator rounds up, reserves and loses.
`allocated` is what the interpreter asked the allocator for, in a second process. `counted` is what the service counts
for an answer in its memory budget.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tracemalloc
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from app.generation.ending import Ending, Figures, decide
from app.platform.utc import utc_now
from app.streams.chunk import Chunk, Envelope
from app.streams.interface import Kind, Origin, StreamLog
from app.streams.memory.store import MemoryStore
from app.tokens.usage import provider_usage

__all__ = ["BARS", "KINDS", "measure"]

ROOT = Path(__file__).resolve().parents[1]
CHUNKS = 100
MODEL = "gpt-4o-mini-2024-07-18"
NATIVE, OPENAI, REASONING = "native", "openai", "reasoning"
KINDS: Final = (NATIVE, OPENAI, REASONING)

BARS: Final = {NATIVE: 3200, OPENAI: 3600, REASONING: 6000}
"""What an answer may take at most. Units: bytes, resident."""

_PIECES = re.compile(r"\s?\w{1,8}|\s?[^\w\s]+|\s+")


def _words() -> list[str]:
    """Cut the repository's documents into pieces as long as a model's tokens are."""
    paths = sorted(path for pattern in ("*.md", "docs/*.md", "load/*.md", "tests/*.md") for path in ROOT.glob(pattern))
    return _PIECES.findall("".join(path.read_text(encoding="utf-8") for path in paths))


def _of(words: Sequence[str], number: int) -> list[str]:
    """Give the words of one answer: another part of the documents for each."""
    begin = number * 37 % (len(words) - CHUNKS)
    # Joined and cut anew: an answer must not share its strings with another one.
    return [bytes(word, "utf-8").decode() for word in words[begin : begin + CHUNKS]]


def _data(stream_id: str, delta: dict[str, object], finish_reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    begin = {"id": f"chatcmpl-{stream_id}", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": MODEL}
    more = {"service_tier": "default", "system_fingerprint": "fp_efad92c60b", "choices": [choice], "usage": None}
    return json.dumps(begin | more, separators=(",", ":"))


def _append_text(log: StreamLog, words: Sequence[str]) -> None:
    for word in words:
        log.append(word)


def _append_chunks(field: str) -> Callable[[StreamLog, Sequence[str]], None]:
    is_text = field == "content"

    def append(log: StreamLog, words: Sequence[str]) -> None:
        stream_id = log.stream_id
        prefix, suffix = _data(stream_id, {field: "@"}).split("@")
        envelope = Envelope(prefix, suffix, is_text)
        log.append_chunks([Chunk("", _data(stream_id, {"role": "assistant", "content": ""}))])
        first, *others = words
        # An envelope is one from its second time on: the first chunk of a shape is raw.
        log.append_chunks([Chunk(first if is_text else "", _data(stream_id, {field: first}))])
        for word in others:
            log.append_chunks([Chunk(word if is_text else "", word, envelope)])
        log.append_chunks([Chunk("", _data(stream_id, {}, "stop"))])

    return append


_APPEND: Final[dict[str, tuple[Kind, Callable[[StreamLog, Sequence[str]], None]]]] = {
    NATIVE: ("text", _append_text),
    OPENAI: ("chunks", _append_chunks("content")),
    REASONING: ("chunks", _append_chunks("reasoning_content")),
}


def _fill(store: MemoryStore, kind: str, words: Sequence[str], numbers: range) -> None:
    """Keep so many answers as a worker keeps them: every text and number of a log is its own."""
    holds, append = _APPEND[kind]
    for number in numbers:
        model = bytes(MODEL, "ascii").decode()
        log, _ = store.create(Origin(str(uuid.uuid4()), model, utc_now(), 900 + number, holds))
        append(log, _of(words, number))
        with log.reader(0):
            pass  # one that was there
        figures = Figures(
            30_000 + number,
            provider_usage({"prompt_tokens": 900 + number, "completion_tokens": 300 + number, "total_tokens": 9999}),
            "stop",
            1_000 + number,
        )
        decide(log, Ending(), lambda figures=figures: figures)  # type: ignore[misc]


def _resident_bytes() -> int:
    gc.collect()
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise OSError("The kernel does not tell what memory this process has.")


def _allocated_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _here(kind: str, logs: int, *, traced: bool) -> dict[str, float]:
    """Fill this process. The first answers are not counted: they bring what is made once for all."""
    words = _words()
    store = MemoryStore(max_active=logs, budget_bytes=1 << 40, retention_seconds=3600.0)
    first = logs // 4
    if traced:
        tracemalloc.start()
    look = _allocated_bytes if traced else _resident_bytes
    _fill(store, kind, words, range(first))
    before, counted = look(), store.used_bytes
    _fill(store, kind, words, range(first, first + logs))
    after = look()
    counted = store.used_bytes - counted
    return {"allocated" if traced else "resident": (after - before) / logs, "counted": counted / logs}


def measure(kind: str, logs: int) -> dict[str, float]:
    """Tell what an answer of this kind takes: resident, allocated and counted. Units: bytes.

    Raises: CalledProcessError.
    """
    found: dict[str, float] = {}
    for how in ("resident", "allocated"):
        command = [sys.executable, "-m", "load.memory", "--answers", str(logs), "--here", kind, how]
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
        found |= json.loads(done.stdout)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table. Exit codes: 0 every bar is met, 1 one is missed."""
    parser = argparse.ArgumentParser(prog="python -m load.memory", description=__doc__)
    parser.add_argument("--answers", type=int, default=8000, help="how many answers a process keeps")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND")
    parser.add_argument("--here", nargs=2, metavar=("KIND", "HOW"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.here:
        kind, how = options.here
        print(json.dumps(_here(kind, options.answers, traced=how == "allocated")))
        return 0
    found = {kind: measure(kind, options.answers) for kind in options.kinds}
    if options.json:
        print(json.dumps(found))
    else:
        print("| an answer of 100 chunks | resident | allocated | counted | bar |\n|---|---|---|---|---|")
        for kind, sizes in found.items():
            met = "met" if sizes["resident"] <= BARS[kind] else "**missed**"
            columns = " | ".join(f"{sizes[name]:,.0f} B" for name in ("resident", "allocated", "counted"))
            print(f"| {kind} | {columns} | {BARS[kind]:,} B: {met} |")
    return int(any(sizes["resident"] > BARS[kind] for kind, sizes in found.items()))


if __name__ == "__main__":
    raise SystemExit(main())
