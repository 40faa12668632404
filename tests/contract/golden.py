"""The golden exchanges of contracts/examples: read them, send them to the service, and write them anew.

`python -m tests.contract.golden` sends every request to a running service and writes its answers into the files, and
from there into openapi.yaml, events.md and the page: a wanted change of the wire is one command and a visible diff.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from load.events import Event, EventParser
from tests.contract.situations import Scene, World
from tests.harness.http1 import Headers, Wire

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "contracts" / "examples"

STREAM_IDS = ("cw_p3Vd8KxQm1ZsT7yHbN0e2w", "cw_Jt5wLr9cUe2XoG4iKa6n8Q")
CHUNK_STREAM_IDS = ("cwc_Wm4rT8bYx1QnZe6uJk3o9A", "cwc_Rf7sDq2vPz9HyB5xNc0t8M")
"""Those of logs that OpenAI's route began."""
CORRELATION_IDS = ("4f1c2a90-7d0b-4b7e-9c55-0e6a3d1f8b21", "b2e7d4c6-1f3a-4d58-8e09-5a7c9b0d6e34")
TIME = "2026-11-21T09:00:00.000Z"
CREATED = 1_795_251_600
"""The same time, in seconds since 1970."""
MILLISECONDS = {"first_token_ms": "212", "duration_ms": "260"}

_STREAM_ID = r"\b{}_[A-Za-z0-9_-]{{22}}(?![A-Za-z0-9_-])"
_CORRELATION_ID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\b")
_TIME = re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_MILLISECONDS = re.compile(r'("(first_token_ms|duration_ms)": ?)\d+')
_CREATED = re.compile(r'("created": ?)\d+')
_PROOF = re.compile(r"(?<=^: records=)(\d+) sha256=[0-9a-f]{64}$", re.MULTILINE)
_DATA = re.compile(r"^data: (.*)\nid: .*\.(\d+)$", re.MULTILINE)
_COMMENT = re.compile(rb"^: (\w+)$", re.MULTILINE)
_REPEATED = re.compile(r"\{\{(.+?) × (\d+)\}\}")
_NOT_SHOWN = (
    *("date", "server", "connection", "content-length", "transfer-encoding"),
    *("content-security-policy", "x-content-type-options", "referrer-policy"),
)
"""Headers of the connection, of the server, and of the browser's protection; all others are shown."""


@dataclass(frozen=True)
class Golden:
    """Hold one exchange as its file shows it."""

    name: str
    situation: str
    request: str
    answer: str

    @classmethod
    def read(cls, path: Path) -> Golden:
        """Read a file. Raises: ValueError when it is no exchange."""
        text = path.read_bytes().decode("utf-8")
        found = re.fullmatch(r"(?:# Situation: ([^\n]+)\n\n)?(.+?)\n\n(HTTP/1\.1 .*)?", text, re.DOTALL)
        if found is None:
            raise ValueError(f"{path} is no exchange")
        name = path.relative_to(EXAMPLES).with_suffix("").as_posix()
        return cls(name, found[1] or "", found[2], found[3] or "")

    def write(self) -> None:
        """Write the file."""
        first = f"# Situation: {self.situation}\n\n" if self.situation else ""
        (EXAMPLES / f"{self.name}.http").write_bytes(f"{first}{self.request}\n\n{self.answer}".encode())

    @property
    def folder(self) -> str:
        return self.name.partition("/")[0]

    @property
    def method(self) -> str:
        return self.request.partition(" ")[0]

    @property
    def path(self) -> str:
        return self.request.split(" ", 2)[1]

    @property
    def status(self) -> int:
        return int(self.answer.split(" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        """Give the answer's headers, names in lower case."""
        lines = self.answer.partition("\n\n")[0].split("\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    @property
    def body(self) -> str:
        """Give the answer's body; of a text other than events the file's last line break is not part of it."""
        body = self.answer.partition("\n\n")[2]
        return body if self.headers.get("content-type", "").startswith("text/event-stream") else body.removesuffix("\n")

    @property
    def body_sent(self) -> str:
        return unfolded(self.request.partition("\n\n")[2])


def unfolded(text: str) -> str:
    """Write out what stands for many repetitions, such as `{{a × 9000}}`."""
    return _REPEATED.sub(lambda found: found[1] * int(found[2]), text)


def goldens() -> list[Golden]:
    return [Golden.read(path) for path in sorted(EXAMPLES.rglob("*.http"))]


def answer_to(world: World, golden: Golden) -> Golden:
    """Send a request into its situation; give the exchange with the answer that came, what varies replaced."""
    with world.scene(golden.situation) as scene:
        text = replace_ids(golden.request, scene)
        status, headers, body = exchange(scene, text)
        is_proved = is_stream(headers) and b"\n: records=" in body
        records = all_records(scene, headers) if is_proved else ""
    return replace(golden, answer=shown(status, headers, body, scene.stream_id, records))


def replace_ids(request: str, scene: Scene) -> str:
    if not scene.stream_id:
        return request
    names = CHUNK_STREAM_IDS if scene.stream_id.startswith("cwc_") else STREAM_IDS
    return request.replace(names[0], scene.stream_id)


def all_records(scene: Scene, headers: Headers) -> str:
    """Read a stream of chunks from its beginning: the hash at its end is over all of it."""
    target = headers["location"]
    return exchange(scene, f"GET {target} HTTP/1.1\nHost: localhost:8000\n\n")[2].decode("ascii")


def is_stream(headers: Headers) -> bool:
    return headers.get("content-type", "").startswith("text/event-stream")


def exchange(scene: Scene, request: str, *, whole: bool = True) -> tuple[int, Headers, bytes]:
    """Send a request as its text says, and read the answer, event by event where it is a stream, if the `whole`."""
    head, _, text = request.partition("\n\n")
    body = unfolded(text).encode()
    if body and "\nContent-Length:" not in head:
        head += f"\nContent-Length: {len(body)}"
    method = head.partition(" ")[0]
    wire = Wire("127.0.0.1", scene.service.port, timeout=30)
    try:
        wire.send(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        scene.sent()
        status, headers = wire.read_head()
        parser, pieces = EventParser(), []
        has_events = is_stream(headers)
        if has_events and not whole:
            return status, headers, b""
        for piece in wire.read_body(method, status, headers):
            pieces.append(piece)
            for event in parser.feed(piece) if has_events else ():
                scene.saw(event)
            for comment in _COMMENT.findall(piece) if has_events else ():
                scene.saw(Event(comment.decode(), ""))
        return status, headers, b"".join(pieces)
    finally:
        wire.close()


def shown(status: int, headers: Headers, body: bytes, stream_id: str, records: str = "") -> str:
    """Write an answer as its file shows it. `records`: the stream of chunks that its hash is over."""
    text = body.decode("utf-8")
    kind = headers.get("content-type", "")
    if text and kind.startswith(("text/html", "application/yaml")):
        text = text.partition("\n")[0] + "\n…"  # the file itself is elsewhere in the repository
    if text and not kind.startswith("text/event-stream"):
        text += "\n"
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += sorted(f"{_spelt(name)}: {value}" for name, value in headers.pairs if name.lower() not in _NOT_SHOWN)
    answer = masked("\n".join(lines) + "\n\n" + text, stream_id)
    proof = digest(masked(records, stream_id))
    return _PROOF.sub(lambda found: f"{found[1]} sha256={proof}", answer)


def digest(stream: str) -> str:
    """Give the SHA-256 of all records of a stream of chunks, as its last frame tells it."""
    records = "".join(f"{data}\n" for data, _ in _DATA.findall(stream) if data != "[DONE]")
    return hashlib.sha256(records.encode("ascii")).hexdigest()


def _spelt(name: str) -> str:
    return (
        "-".join(part.capitalize() for part in name.split("-")).replace("Etag", "ETag").replace("Chatwait", "ChatWait")
    )


def masked(text: str, stream_id: str = "") -> str:
    """Replace what varies from run to run: ids, times and durations, each id by the same one everywhere."""
    correlations: dict[str, str] = {}

    def numbered(known: dict[str, str], names: tuple[str, ...]) -> Any:
        return lambda found: known.setdefault(found[0], names[min(len(known), len(names) - 1)])

    for names in (STREAM_IDS, CHUNK_STREAM_IDS):
        prefix = names[0].partition("_")[0]
        ids = {stream_id: names[0]} if stream_id.startswith(f"{prefix}_") else {}
        text = re.sub(_STREAM_ID.format(prefix), numbered(ids, names), text)
    text = _CORRELATION_ID.sub(numbered(correlations, CORRELATION_IDS), text)
    text = _CREATED.sub(lambda found: f"{found[1]}{CREATED}", text)
    text = _MILLISECONDS.sub(lambda found: found[1] + MILLISECONDS[found[2]], text)
    return _TIME.sub(TIME, text)


def record() -> Iterator[str]:
    """Write the files anew from a running service; tell which of them changed."""
    with tempfile.TemporaryDirectory() as directory, World(Path(directory)) as world:
        for golden in goldens():
            new = answer_to(world, golden)
            if new != golden:
                new.write()
                yield new.name


if __name__ == "__main__":
    from tests.contract import documents

    for changed in (*record(), *documents.write()):
        print(changed)
