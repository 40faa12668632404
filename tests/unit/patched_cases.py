"""What holds in gevent's loop alone; `test_patched` runs this, in a process where gevent has patched everything."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace

import gevent  # type: ignore[import-untyped, unused-ignore]
import pytest

from app.generation.live import Generations
from app.observability import observer
from app.observability.facts import Fact, GenerationEnded
from app.platform.gevent_loop import each_arrival, in_loop
from app.server.direct import RESPONSE, direct_writer
from app.upstream.call import Call
from app.upstream.client import OpenAIUpstream
from app.upstream.interface import Part
from tests.unit.fakes import FakeUpstream, Gate
from tests.unit.generations import BOUNDS
from tests.unit.rawserver import CHUNKED, chunk, read_request, serving
from tests.unit.readings import finish, new_log
from tests.unit.test_loop_direct import Served, assert_whole
from tests.unit.transports import QUESTION, event


def test_this_process_is_known_for_what_it_is() -> None:
    assert in_loop()


# Arrivals


def test_receive_is_called_by_the_loop_itself_and_the_thread_is_woken_once() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    callers: list[object] = []

    def receive() -> bool:
        callers.append(gevent.getcurrent())
        return ours.recv(1) != b"3"

    with ours, theirs:
        waiting = gevent.spawn(each_arrival, ours, receive)
        for number in b"123":
            gevent.sleep(0.001)  # the loop turns, and waits for what comes
            theirs.sendall(bytes([number]))
        waiting.get(timeout=5)

    assert callers == [gevent.get_hub()] * 3


def test_thread_that_is_killed_leaves_nobody_watching() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    calls: list[bytes] = []

    def receive() -> bool:
        calls.append(ours.recv(1))
        return True

    with ours, theirs:
        waiting = gevent.spawn(each_arrival, ours, receive)
        theirs.sendall(b"1")
        with gevent.Timeout(5):
            while not calls:
                gevent.sleep(0)
        waiting.kill()
        theirs.sendall(b"2")
        gevent.sleep(0.01)  # many turns of the loop, in which a watcher that is left would receive it
        assert calls == [b"1"]


def test_one_that_fails_in_the_loop_disturbs_no_other() -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    got: list[bytes] = []

    def fail() -> bool:
        pairs[0][0].recv(1)
        raise SystemExit(3)

    def receive() -> bool:
        got.append(pairs[1][0].recv(1))
        return got[-1] != b"2"

    with contextlib.ExitStack() as stack:
        for pair in pairs:
            pair[0].setblocking(False)
            for sock in pair:
                stack.enter_context(sock)

        def wait_for_failure() -> None:
            with pytest.raises(SystemExit):
                each_arrival(pairs[0][0], fail)

        failing, waiting = gevent.spawn(wait_for_failure), gevent.spawn(each_arrival, pairs[1][0], receive)
        gevent.sleep(0.001)  # the loop turns, and both wait
        pairs[1][1].sendall(b"1")
        pairs[0][1].sendall(b"x")
        failing.get(timeout=5)
        pairs[1][1].sendall(b"2")
        waiting.get(timeout=5)

    assert got == [b"1", b"2"]


# The way of an answer


def test_batch_is_taken_in_the_loop_without_a_switch() -> None:
    """`take` must not wait there: the loop is nobody's to hold up."""
    takers: list[object] = []

    def take(parts: Sequence[Part]) -> bool:
        takers.append(gevent.getcurrent())
        return True

    def serve(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(CHUNKED)
        for text in "abc":
            time.sleep(0.005)  # each text comes by itself
            connection.sendall(chunk(event(text)))
        connection.sendall(b"0\r\n\r\n")

    with serving() as start:
        upstream = OpenAIUpstream(base_url=start(serve).url.removesuffix("/chat/completions"), api_key="k")
        answer = upstream.ask(QUESTION, Call())
        assert answer.receive(take) is False
        answer.close()
        upstream.close()

    assert set(takers) == {gevent.get_hub()}
    assert len(takers) >= 3


def test_way_past_the_server_is_given_for_a_plain_connection() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for chunked, sent in ((True, b"1\r\na\r\n"), (False, b"a")):
            writer = direct_writer({RESPONSE: SimpleNamespace(chunked=chunked), "gunicorn.socket": ours})
            assert writer is not None
            assert writer.write(b"a")
            assert theirs.recv(100) == sent


# Frames, in whatever order the loop brings things


@pytest.mark.parametrize("seed", range(2))
def test_readers_of_any_pace_get_every_token_once_and_in_order(seed: int) -> None:
    """One log, three readers: a slow one over tiny buffers, a quick one, one of HTTP/1.0; heartbeats at any moment."""
    dice = random.Random(seed)
    log = new_log()
    with (
        Served(log, small=True, heartbeat_seconds=dice.choice([0.0005, 0.005, 1000.0])) as slow,
        Served(log, heartbeat_seconds=0.003) as quick,
        Served(log, chunked=False, small=dice.random() < 0.5) as plain,
    ):
        bodies: dict[Served, bytes] = {}

        def read(served: Served, size: int, pause: float) -> None:
            client, parts = served.client, []
            while piece := client.recv(size):
                parts.append(piece)
                if dice.random() < 0.3:
                    time.sleep(pause)  # the pace of a slow reader
            served.client = SimpleNamespace(  # type: ignore[assignment]
                recv=lambda _, parts=parts: parts.pop(0) if parts else b"", close=client.close
            )
            bodies[served] = served.read_rest()

        reading = [
            threading.Thread(target=read, args=arguments)
            for arguments in ((slow, 1500, 0.002), (quick, 65_536, 0.0), (plain, 3000, 0.001))
        ]
        for thread in reading:
            thread.start()
        stop = threading.Event()

        def tick() -> None:
            while not stop.is_set():
                for served in (slow, quick, plain):
                    served.readers.check(time.monotonic())
                time.sleep(dice.random() * 0.003)

        ticking = threading.Thread(target=tick)
        ticking.start()
        for _ in range(80):
            size = dice.choice([1, 1, 1, 1, 1, 30, 30, 300, 300, 2000])
            log.append(*(dice.choice(["a", "a", "é", "😀"]) * size for _ in range(dice.randint(1, 4))))
            if dice.random() < 0.5:
                time.sleep(dice.choice([0, 0, 0.0005, 0.002]))  # the pace of a model
        finish(log)
        for thread in reading:
            thread.join(20)
        stop.set()
        ticking.join()

    assert len(bodies) == 3
    for served, body in bodies.items():
        assert_whole(body, log)
        assert served.failure is None
        assert served.left == [log.head]


def test_readers_that_vanish_at_any_moment_harm_nobody() -> None:
    dice = random.Random(1)
    log = new_log()
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(Served(log))
        going = [stack.enter_context(Served(log, small=dice.random() < 0.5)) for _ in range(20)]
        there.wait_asleep()
        for served in going:
            for _ in range(dice.randint(0, 30)):
                assert log.append("x" * dice.choice([1, 100, 700]))
                if dice.random() < 0.3:
                    time.sleep(0)
            if dice.random() < 0.5:
                served.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            served.client.close()
        for _ in range(3):
            assert log.append("x")
            time.sleep(0.002)  # a reset comes back between two writes
        finish(log)
        body = there.read_rest()

    assert_whole(body, log)
    assert log.readers == 0
    assert all(isinstance(served.failure, ConnectionError | None) for served in going)


# Ends


@pytest.mark.parametrize("outage", ["silence", "cut"])
def test_others_run_between_the_ends_that_an_outage_makes_due_at_once(
    outage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 40
    gates = [Gate() for _ in range(count)]
    generations = Generations(upstream=FakeUpstream(*[[gate] for gate in gates]), bounds=BOUNDS)
    logs = [new_log() for _ in gates]
    turns = [0]
    seen: list[int] = []

    def take_turns() -> None:
        while True:
            turns[0] += 1
            gevent.sleep(0)

    def note(fact: Fact) -> None:
        if isinstance(fact, GenerationEnded):
            seen.append(turns[0])

    for log in logs:
        generations.start(log, QUESTION)
    for gate in gates:
        gate.wait_reached()
    monkeypatch.setattr(observer, "_listeners", (note,))
    other = gevent.spawn(take_turns)
    try:
        while not turns[0]:
            gevent.sleep(0)
        if outage == "silence":
            generations.check(time.monotonic() + 31)
            assert len(seen) < count // 2, "the clock's own thread waits for the ends"
        else:
            for gate in gates:
                gate.break_off()
        while generations.ending or generations.live:
            gevent.sleep(0.001)
    finally:
        other.kill()
        for gate in gates:
            gate.close()

    assert len(seen) == count
    assert all(later > earlier for earlier, later in pairwise(seen)), "two ends without a turn between them"
    assert all(log.end is not None for log in logs)
