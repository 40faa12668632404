"""Test the chaos proxy: it breaks connections at the byte it was told, and nowhere else."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.harness.chaos import Answer, BlackholeAfter, ChaosProxy, CleanCloseAfter, CutAfter, Late, OneQueue, Slow
from tests.harness.http1 import Dropped, Wire, get, post
from tests.harness.net import Watch, reserve_port

ANSWER = bytes(range(256)) * 400


class Target:
    """Send the whole answer for each line that is received, and note what becomes of each connection."""

    def __init__(self) -> None:
        self.endings: list[str] = []
        self.received = bytearray()
        self.sockets: list[socket.socket] = []
        self.watch = Watch()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def wait_endings(self, *wanted: str) -> None:
        self.watch.wait_until(
            lambda: sorted(self.endings) == sorted(wanted),
            timeout=5,
            what=lambda: f"{wanted}, got {self.endings}",
        )

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listening.accept()
            except OSError:
                return
            self.sockets.append(peer)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        ending = "fin"
        try:
            while data := peer.recv(65536):
                self.received += data
                self.watch.changed()
                for _ in range(data.count(b"\n")):
                    peer.sendall(ANSWER)
        except OSError:
            ending = "reset"
        peer.close()
        self.endings.append(ending)
        self.watch.changed()


@pytest.fixture
def target() -> Iterator[Target]:
    server = Target()
    yield server
    server.close()


@pytest.fixture
def proxy(target: Target) -> Iterator[ChaosProxy]:
    with ChaosProxy("127.0.0.1", target.port) as running:
        yield running


def connect(proxy: ChaosProxy, ask: bytes = b"go\n") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
    client.sendall(ask)
    return client


def read_all(client: socket.socket, size: int | None = None) -> tuple[bytes, str]:
    """Read to the end, or so many bytes, and tell how it ended."""
    got = bytearray()
    while size is None or len(got) < size:
        try:
            data = client.recv(65536)
        except ConnectionResetError:
            return bytes(got), "reset"
        except TimeoutError:
            return bytes(got), "silence"
        if not data:
            return bytes(got), "fin"
        got += data
    return bytes(got), "open"


def test_proxy_by_default_passes_both_directions(proxy: ChaosProxy, target: Target) -> None:
    with connect(proxy) as client:
        assert read_all(client, len(ANSWER)) == (ANSWER, "open")
    target.wait_endings("fin")

    assert (proxy.connections, proxy.bytes_down) == (1, len(ANSWER))
    proxy.wait_until(lambda: proxy.live == 0)


@pytest.mark.parametrize(("policy", "ending"), [(CutAfter, "reset"), (CleanCloseAfter, "fin")])
def test_proxy_ends_the_connection_after_exactly_n_bytes(
    proxy: ChaosProxy, target: Target, policy: type[CutAfter] | type[CleanCloseAfter], ending: str
) -> None:
    counts = [*range(40), 255, 4096, 65535, 65536, 65537, len(ANSWER) - 1, len(ANSWER)]
    for count in counts:
        proxy.plan(policy(count))
        with connect(proxy) as client:
            assert read_all(client) == (ANSWER[:count], ending), count

    assert proxy.bytes_down == sum(counts)
    target.watch.wait_until(
        lambda: len(target.endings) == len(counts), timeout=5, what=lambda: f"{len(target.endings)} endings"
    )


def test_proxy_that_cuts_at_zero_lets_the_request_through(proxy: ChaosProxy, target: Target) -> None:
    proxy.plan(CutAfter(0))
    with connect(proxy, b"hello\n") as client:
        assert read_all(client) == (b"", "reset")

    assert target.received == b"hello\n"


def test_proxy_takes_the_plan_in_order_and_then_the_default(proxy: ChaosProxy) -> None:
    proxy.default = CutAfter(3)
    proxy.plan(CutAfter(1), CutAfter(2))

    got = []
    for _ in range(4):
        with connect(proxy) as client:
            got.append(len(read_all(client)[0]))

    assert got == [1, 2, 3, 3]


def test_proxy_in_a_blackhole_passes_n_bytes_and_then_nothing(proxy: ChaosProxy, target: Target) -> None:
    proxy.plan(BlackholeAfter(1000))
    with connect(proxy) as client:
        assert read_all(client, 1000) == (ANSWER[:1000], "open")
        client.settimeout(0.1)
        client.sendall(b"x" * 100)
        assert read_all(client) == (b"", "silence")

    assert target.received == b"go\n"
    assert target.endings == []
    assert proxy.live == 1
    proxy.cut_all()
    target.wait_endings("reset")


def test_proxy_blackholes_live_connections_and_new_ones_pass(proxy: ChaosProxy, target: Target) -> None:
    with connect(proxy) as dark:
        read_all(dark, len(ANSWER))
        proxy.blackhole_all()
        proxy.blackhole_all()
        dark.sendall(b"go\n")
        with connect(proxy) as light:
            assert read_all(light, len(ANSWER)) == (ANSWER, "open")
        target.wait_endings("fin")
        dark.settimeout(0.05)
        assert read_all(dark) == (b"", "silence")
    assert target.received == b"go\ngo\n"


def test_proxy_cuts_all_live_connections_on_both_sides(proxy: ChaosProxy, target: Target) -> None:
    clients = [connect(proxy) for _ in range(5)]
    for client in clients:
        read_all(client, len(ANSWER))
    assert proxy.live == 5

    proxy.cut_all()

    assert [read_all(client)[1] for client in clients] == ["reset"] * 5
    target.wait_endings(*["reset"] * 5)
    for client in clients:
        client.close()


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_proxy_cuts_live_connections_after_exactly_so_many_more_bytes(proxy: ChaosProxy, count: int) -> None:
    with connect(proxy) as client:
        assert read_all(client, len(ANSWER)) == (ANSWER, "open")
        proxy.cut_all_after(count)
        client.sendall(b"go\n")
        assert read_all(client) == (ANSWER[:count], "reset")
    with connect(proxy) as client:
        assert read_all(client, len(ANSWER)) == (ANSWER, "open")


def test_proxy_with_a_marker_concerns_only_the_requests_that_hold_it(target: Target) -> None:
    with ChaosProxy("127.0.0.1", target.port, marker=b"wanted") as proxy, connect(proxy) as client:
        proxy.plan(CutAfter(5), Answer(b"canned"))
        assert read_all(client, len(ANSWER)) == (ANSWER, "open")
        with connect(proxy) as other:
            assert read_all(other, len(ANSWER)) == (ANSWER, "open")
            assert (proxy.connections, proxy.live, proxy.bytes_down) == (0, 0, 0)
            client.sendall(b"wanted\n")
            assert read_all(client) == (ANSWER[:5], "reset")
            other.sendall(b"wanted\r\nContent-Length: 4\r\n\r\n12")
            other.sendall(b"34")
            assert read_all(other) == (b"canned", "fin")
        assert b"wanted\r" not in target.received
        with connect(proxy, b"wanted\n") as third:
            assert read_all(third, len(ANSWER)) == (ANSWER, "open")
            assert (proxy.connections, proxy.live) == (3, 1)


def test_proxy_passes_the_kind_of_the_peers_end_on(proxy: ChaosProxy, target: Target) -> None:
    for hard, ending in ((False, "fin"), (True, "reset")):
        wire = Wire("127.0.0.1", proxy.port)
        wire.send(b"go\n")
        for _ in wire._read_exactly(len(ANSWER)):
            pass
        wire.reset() if hard else wire.close()
        target.wait_endings(ending)
        target.endings.clear()

    with connect(proxy) as client:
        read_all(client, len(ANSWER))
        target.sockets[-1].shutdown(socket.SHUT_RDWR)
        assert read_all(client) == (b"", "fin")


def test_proxy_passes_slowly(proxy: ChaosProxy) -> None:
    proxy.plan(Slow(20_000))
    begun_at = time.monotonic()
    with connect(proxy) as client:
        got, ending = read_all(client, 4000)
        assert ending == "open"
        assert ANSWER.startswith(got)
    # Three of four pieces of 1000 bytes were waited for; a busy machine only makes it longer.
    assert time.monotonic() - begun_at >= 0.14


def test_proxy_answers_without_the_target(proxy: ChaosProxy, target: Target) -> None:
    head = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\n"
    proxy.plan(Answer(head + b"no"))

    reply = post(f"{proxy.base_url}/x", {"a": "b" * 100_000})

    assert (reply.status, reply.headers["retry-after"], reply.body) == (503, "3", b"no")
    assert target.sockets == []


def test_proxy_refuses_and_accepts_again_while_old_connections_live(proxy: ChaosProxy) -> None:
    with connect(proxy) as client:
        read_all(client, len(ANSWER))
        for _ in range(3):
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                connect(proxy)
            client.sendall(b"go\n")
            assert read_all(client, len(ANSWER)) == (ANSWER, "open")
            proxy.accept()
            with connect(proxy) as other:
                assert read_all(other, len(ANSWER)) == (ANSWER, "open")


def test_proxy_to_a_target_that_refuses_drops_the_client() -> None:
    with (
        reserve_port() as silent,
        ChaosProxy("127.0.0.1", silent.getsockname()[1]) as lost,
        pytest.raises(Dropped),
    ):
        get(lost.base_url)


def test_proxy_stopped_with_live_and_dark_links_leaves_no_thread(target: Target) -> None:
    with ChaosProxy("127.0.0.1", target.port) as proxy:
        proxy.plan(BlackholeAfter(1))
        dark, light = connect(proxy), connect(proxy)
        read_all(dark, 1)
        read_all(light, len(ANSWER))
    assert read_all(light) == (b"", "reset")
    target.wait_endings("reset", "reset")
    dark.close()
    light.close()

    assert not [thread for thread in threading.enumerate() if thread.name == "chaos-proxy"]


def test_proxy_that_is_late_passes_every_byte_on_later(proxy: ChaosProxy) -> None:
    proxy.plan(Late(0.3))
    began = time.monotonic()
    with connect(proxy) as client:
        assert read_all(client, len(ANSWER)) == (ANSWER, "open")
    assert time.monotonic() - began >= 0.3


def test_proxy_with_one_queue_lets_a_reader_who_takes_nothing_hold_up_the_others(proxy: ChaosProxy) -> None:
    queue = proxy.default = OneQueue()
    narrow, client = Wire("127.0.0.1", proxy.port, rcvbuf=4096), None
    try:
        narrow.send(b"go\n")
        while not queue.turn.locked():
            time.sleep(0.001)
        client = connect(proxy)
        client.settimeout(0.3)
        got, ending = read_all(client, len(ANSWER))
        assert ending == "silence"  # something may have passed between two pieces of the other's
        narrow.reset()
        client.settimeout(5)
        assert got + read_all(client, len(ANSWER) - len(got))[0] == ANSWER
    finally:
        narrow.close()
        if client is not None:
            client.close()


def test_proxy_sends_connections_to_its_targets_in_turns_and_then_where_it_is_led(target: Target) -> None:
    others = [Target(), Target()]
    try:
        with ChaosProxy("127.0.0.1", target.port, in_turns=[others[0].port]) as proxy:
            for name in (b"1\n", b"2\n", b"3\n"):
                with connect(proxy, name) as client:
                    read_all(client, len(ANSWER))
            proxy.lead_to(others[1].port)
            with connect(proxy, b"4\n") as client:
                read_all(client, len(ANSWER))
        assert [server.received for server in (target, *others)] == [b"1\n3\n", b"2\n", b"4\n"]
    finally:
        for server in others:
            server.close()
