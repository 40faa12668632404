"""Test the reader against a small service that keeps the contract, and through the chaos proxy."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.chaos import Answer as Canned
from tests.harness.chaos import BlackholeAfter, ChaosProxy, CleanCloseAfter, CutAfter, Policy
from tests.harness.ledger import RequestRecord
from tests.harness.reader import (
    Dropped,
    KeptAlive,
    delete,
    get,
    open_stream,
    post,
    read_answer,
    read_resuming,
)
from tests.harness.upstream import Close, Raw, Script, ScriptedUpstream

TOKENS = ["H\u00e9", "\r\n", "\U0001f600", "data: x", "\u2028", "."]
TEXT = "".join(TOKENS)


def frame(event: str, event_id: str, data: dict[str, Any]) -> bytes:
    return f"event: {event}\ndata: {json.dumps(data)}\nid: {event_id}\n\n".encode()


class Service:
    """Keep one finished answer for each idempotency key, and count how often one was made."""

    def __init__(self) -> None:
        self.url = ""
        self.streams: dict[str, str] = {}
        self.hosts: set[str] = set()
        self.cursors: list[str] = []
        self.skipped = -1  # the number of a token frame that this service loses

    def stream_for(self, key: str) -> str:
        return self.streams.setdefault(key, f"stream-{len(self.streams)}")

    def frames(self, stream_id: str, after: int) -> Iterator[bytes]:
        if after <= 0:
            yield frame("start", f"{stream_id}.0", {"stream_id": stream_id})
        else:
            yield frame("ping", f"{stream_id}.{after}", {"phase": "generating", "tokens": len(TOKENS)})
        for number, content in enumerate(TOKENS, 1):
            if number > after and number != self.skipped:
                data = {"sequence": number, "count": 1, "content": content, "is_final": False}
                yield frame("token", f"{stream_id}.{number}", data)
        end = {"sequence": len(TOKENS) + 1, "is_final": True, "status": "complete", "tokens": len(TOKENS)}
        end |= {"characters": len(TEXT), "sha256": hashlib.sha256(TEXT.encode()).hexdigest()}
        yield frame("done", f"{stream_id}.{len(TOKENS) + 1}", end)

    def answer(self, record: RequestRecord) -> Script:
        """Answer as the contract says, in chunks of five bytes."""
        match record.method:
            case "POST" if record.json == {"message": "refuse"}:
                return Script(400, body=b'{"error_code": "invalid_request"}')
            case "POST":
                return self._stream(self.stream_for(record.headers.get("idempotency-key", "none")), record)
            case "GET" if (stream_id := record.path.rpartition("/")[2]) in self.streams.values():
                return self._stream(stream_id, record)
            case "DELETE":
                return Script(body=b'{"status": "cancelled"}')
            case "HEAD":
                return Script(headers={"content-length": "1000"}, body=b"")
        return Script(404, body=b"not json")

    def _stream(self, stream_id: str, record: RequestRecord) -> Script:
        self.hosts.add(record.headers["host"])
        cursor = record.headers.get("last-event-id", "")
        self.cursors.append(cursor)
        after = int(cursor.rpartition(".")[2]) if cursor else -1
        if after > len(TOKENS):
            return Script(204, body=b"")
        whole = b"".join(self.frames(stream_id, after))
        return Script(
            headers={"x-stream-id": stream_id}, steps=[Raw(whole[at : at + 5]) for at in range(0, len(whole), 5)]
        )


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    with ScriptedUpstream().by(service.answer) as server:
        service.url = server.origin
        yield service


@pytest.fixture
def proxy(service: Service) -> Iterator[ChaosProxy]:
    with ChaosProxy("127.0.0.1", int(service.url.rpartition(":")[2])) as running:
        yield running


def read(service: Service, proxy: ChaosProxy, **options: Any) -> Any:
    return read_resuming(service.url, json={"message": "m"}, via=proxy.base_url, **options)


def test_read_answer_reads_and_verifies_a_stream(service: Service) -> None:
    answer = read_answer(f"{service.url}/chat/streaming", {"message": "m"})

    assert (answer.text, answer.tokens, answer.status) == (TEXT, len(TOKENS), 200)
    assert answer.stream_id == "stream-0"
    assert answer.events[0].received_at <= answer.events[-1].received_at


def test_read_answer_with_a_cursor_reads_the_rest(service: Service) -> None:
    service.stream_for("key")
    url, headers = f"{service.url}/chat/streaming/stream-0", {"Last-Event-ID": "stream-0.2"}

    answer = read_answer(url, headers=headers, after=2, prefix="".join(TOKENS[:2]))

    assert answer.text == TEXT
    assert [event.event for event in answer.events][:2] == ["ping", "token"]


def test_read_answer_refused_shows_status_and_body(service: Service) -> None:
    with pytest.raises(AssertionError, match=r"answered 400.*invalid_request"):
        read_answer(f"{service.url}/chat/streaming", {"message": "refuse"})


def test_read_answer_of_a_stream_with_a_hole_fails(service: Service, proxy: ChaosProxy) -> None:
    service.skipped = 3
    with pytest.raises(AssertionError, match="a sequence number is missing"):
        read_answer(f"{service.url}/chat/streaming", {"message": "m"})
    with pytest.raises(AssertionError, match="a sequence number is missing"):
        read(service, proxy)


@pytest.mark.parametrize("policy", [CutAfter, CleanCloseAfter])
def test_read_answer_cut_in_mid_stream_is_dropped(
    service: Service, proxy: ChaosProxy, policy: type[CutAfter] | type[CleanCloseAfter]
) -> None:
    for count in (0, 10, 100, 300, 600):
        proxy.plan(policy(count))
        with pytest.raises(Dropped):
            read_answer(f"{proxy.base_url}/chat/streaming", {"message": "m"})


@pytest.mark.parametrize("policy", [CutAfter, CleanCloseAfter])
def test_read_resuming_survives_a_cut_at_every_few_bytes(
    service: Service, proxy: ChaosProxy, policy: type[CutAfter] | type[CleanCloseAfter]
) -> None:
    read(service, proxy)
    whole = proxy.bytes_down
    assert whole > 1000

    for count in range(0, whole, 13):
        proxy.plan(policy(count))
        answer = read(service, proxy)
        assert answer.text == TEXT, count
        assert len(answer.drops) == 1 and answer.events[-1] is answer.terminal, count

    # One generation for each read: a repeated POST carries its key.
    assert len(service.streams) == 1 + len(range(0, whole, 13))


def test_read_resuming_survives_one_cut_after_another(service: Service, proxy: ChaosProxy) -> None:
    proxy.plan(*(CutAfter(count) for count in (0, 50, 0, 700, 0, 20, 900, 700, 500)))

    answer = read(service, proxy)

    assert answer.text == TEXT
    assert len(answer.drops) == 9
    assert len(service.streams) == 1


def test_read_resuming_keeps_its_cursor_over_a_reconnect_that_got_nothing(service: Service, proxy: ChaosProxy) -> None:
    proxy.plan(CutAfter(1100), CutAfter(0), CutAfter(200))
    read(service, proxy)

    first, *later = service.cursors
    assert first == ""
    assert len(set(later)) == 1
    assert later[0].startswith("stream-0.")


def test_read_resuming_takes_silence_for_a_drop_and_asks_again_after_a_503(service: Service, proxy: ChaosProxy) -> None:
    busy = Canned(b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")
    plan: list[Policy] = [BlackholeAfter(600), busy]
    proxy.plan(*plan)

    answer = read(service, proxy, timeout=1.0)

    assert answer.text == TEXT
    assert len(answer.drops) == 2


def test_read_resuming_says_how_far_it_got_when_its_attempts_are_used_up(service: Service, proxy: ChaosProxy) -> None:
    proxy.default = CutAfter(100)
    with pytest.raises(AssertionError, match="the stream did not end in 3 attempts with 0 tokens"):
        read(service, proxy, max_attempts=3)


def test_read_resuming_names_the_service_as_host_behind_the_proxy(service: Service, proxy: ChaosProxy) -> None:
    read(service, proxy)
    assert service.hosts == {service.url.removeprefix("http://")}
    assert proxy.connections == 1


def test_open_stream_gives_events_as_they_come_and_resets(service: Service, proxy: ChaosProxy) -> None:
    proxy.plan(BlackholeAfter(600))
    with open_stream(f"{proxy.base_url}/chat/streaming", json={}, rcvbuf=4096, timeout=5) as connection:
        events = connection.events()
        assert next(events).event == "start"
        assert next(events).json["content"] == TOKENS[0]
        assert connection.last_event_id == "stream-0.1"
        connection.reset()
    assert connection.headers["x-stream-id"] == connection.headers["X-STREAM-ID"] == "stream-0"
    assert connection.headers.get("X-None") is None


def test_simple_requests_give_status_headers_and_body(service: Service) -> None:
    assert delete(f"{service.url}/x").json == {"status": "cancelled"}
    refused = post(f"{service.url}/x", data=b'{"message": "refuse"}')
    assert (refused.status, refused.json["error_code"]) == (400, "invalid_request")
    missing = get(f"{service.url}/none?x=1")
    assert missing.status == 404
    with pytest.raises(AssertionError, match="not JSON"):
        _ = missing.json


def test_kept_alive_connection_carries_many_requests_and_raw_bytes(service: Service) -> None:
    with KeptAlive("127.0.0.1", int(service.url.rpartition(":")[2])) as connection:
        assert connection.request("HEAD", "/x").body == b""
        assert connection.request("DELETE", "/x").status == 200
        assert connection.request("POST", "/x", json={"message": "refuse"}).status == 400
        connection.send(b"DELETE /x HTTP/1.1\r\n")
        connection.send(b"Connection: close\r\n\r\n")
        assert connection.read_reply().status == 200
        assert connection.closed_by_server()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-Stream-Id: ab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
    ],
)
def test_an_answer_that_was_cut_anywhere_is_dropped(sent: bytes) -> None:
    with ScriptedUpstream().by(lambda _: Script(before=[Raw(sent), Close()])) as server, pytest.raises(Dropped):
        get(server.origin)
