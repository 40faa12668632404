"""A body of OpenAI's stream never ends in order before [DONE], whatever the service does: most clients take a body that
ends in order for a whole answer. Over HTTP/1.1 the last chunk is missing then, over HTTP/1.0 the connection is reset.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.harness.http1 import Wire
from tests.harness.net import HOST
from tests.harness.reader import Connection, Dropped, delete
from tests.harness.server import ChatWait
from tests.harness.upstream import Close, Done, Finish, Gate, Script, ScriptedUpstream, Token, answer
from tests.harness.valkey import Database
from tests.live.completions import (
    OPENING,
    Taken,
    begin,
    frames_of,
    generated,
    kept,
    live,
    question,
    resumed,
    url_of,
    without_heartbeats,
)
from tests.live.rawhttp import raw
from tests.live.shared import SHORT_LEASES, services
from tests.live.steps import log_name, poll, settings

VERSIONS = ("1.1", "1.0")
STALLED_SECONDS = 1.5
PACE = {"app.reading.readers.STALLED_SECONDS": STALLED_SECONDS}
TEXTS = ["Grü", "ß\n", "🙂"]
LARGE = ["é" * 1000] * 2000
"""Six bytes for each character: more than the kernel's buffers hold."""


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Give the version of HTTP that the client speaks."""
    return str(request.param)


class Reading(Connection):
    """A stream that is read over HTTP of a version."""

    def __init__(self, service: ChatWait, stream_id: str, version: str, last_id: str = "", rcvbuf: int | None = None):
        self.wire = Wire(HOST, service.port, timeout=30.0, rcvbuf=rcvbuf)
        self.version = version
        fields = [f"Last-Event-ID: {last_id}"] if last_id else []
        self.wire.send(raw(f"GET {url_of('', stream_id, '?stream=true')} HTTP/{version}", *fields))
        super().__init__(self.wire, "GET")
        assert self.status == 200
        assert ("transfer-encoding" in self.headers) == (version == "1.1")
        # Behind this header a client on Node 20 takes a cut for an end. In HTTP/1.0 every connection ends.
        assert version == "1.0" or self.headers.get("connection") != "close"
        self._rest = self.pieces()

    def to(self, text: str) -> bytes:
        """Read until this text is there."""
        received, wanted = b"", json.dumps(text).encode()
        while wanted not in received:
            received += next(self._rest)
        return received

    def some(self) -> bytes:
        """Read what comes next."""
        return next(self._rest)

    def whole(self) -> bytes:
        """Read the rest of a body that ends in order."""
        received = b"".join(self._rest)  # a reset raises
        assert received.endswith(b"\n\n")
        return received

    def cut(self) -> bytes:
        """Read the rest of a body, which must break off."""
        received = b""
        with pytest.raises(Dropped) as dropped:
            for piece in self._rest:
                received += piece
        assert b"[DONE]" not in received
        assert self.version == "1.1" or dropped.value.by_reset, "it ended in order"
        return received

    def depart(self) -> None:
        """Say that nothing more will be sent, and go on reading."""
        self.wire.socket.shutdown(socket.SHUT_WR)


def gated(gate: str = "never") -> Script:
    """Write the script of an answer that waits in its middle."""
    return Script(steps=[*map(Token, TEXTS), Gate(gate), Token("end"), Finish(), Done()])


def left(service: ChatWait, stream_id: str) -> int:
    """Count the readers that have left a stream, or have said that they send nothing more."""
    return len(service.log_of("reader_left", stream=log_name(stream_id)))


# Whole ones


def test_body_ends_in_order_behind_done(chatwait: ChatWait, upstream: ScriptedUpstream, version: str) -> None:
    """Live, replayed, and from behind the last record."""
    with live(chatwait.base_url, question(upstream, gated("on"))) as stream_id:
        with closing(Reading(chatwait, stream_id, version)) as reading:
            received = reading.to(TEXTS[-1])
            upstream.open("on")
            received += reading.whole()
        taken = Taken(stream_id, "", received)
        assert (taken.text, bool(taken.proof)) == ("".join(TEXTS) + "end", True)
        for after in (0, 2, len(taken.chunks)):
            with closing(Reading(chatwait, stream_id, version, f"{stream_id}.{after}")) as again:
                assert without_heartbeats(received).endswith(again.whole().removeprefix(OPENING))


def test_heartbeats_come_while_the_model_thinks_each_of_one_line(
    chatwait: ChatWait, upstream: ScriptedUpstream, version: str
) -> None:
    """A blank line behind one would end an event for SDKs, which have an id by then."""
    with (
        live(chatwait.base_url, question(upstream, gated("on"))) as stream_id,
        closing(Reading(chatwait, stream_id, version)) as reading,
    ):
        received = reading.to(TEXTS[-1])
        beats = received.count(OPENING)
        while received.count(OPENING) < beats + 2:
            received += reading.some()
        upstream.open("on")
        received += reading.whole()
        assert received.count(b"\n\n") == len(Taken(stream_id, "", received).frames)
        assert OPENING + b"\n" not in received


def assert_ends(body: bytes, stream_id: str, code: str) -> None:
    """Check a stream that has an error before its end."""
    *_, error, last = frames_of(without_heartbeats(body))
    assert (error.id, error.json["error"]["error_code"]) == ("", code)
    number = int(last.id.rpartition(".")[2])
    assert (last.data, last.id) == ("[DONE]", f"{stream_id}.{number}")
    assert last.comment.startswith(f"records={number - 1} sha256=")


def test_failed_stream_ends_in_order_with_its_error_and_done(
    chatwait: ChatWait, upstream: ScriptedUpstream, version: str
) -> None:
    """The error has no number: the cursor behind the last record gives it again, and the end."""
    script = Script(steps=[Token("a"), Gate("on"), Close()])
    with live(chatwait.base_url, question(upstream, script)) as stream_id:
        with closing(Reading(chatwait, stream_id, version)) as failing:
            received = failing.to("a")
            upstream.open("on")
            received += failing.whole()
        with closing(Reading(chatwait, stream_id, version, f"{stream_id}.1")) as again:
            rest = again.whole()
        assert_ends(received, stream_id, "upstream_error")
        assert_ends(rest, stream_id, "upstream_error")
        assert without_heartbeats(received).endswith(without_heartbeats(rest))


def test_stopped_stream_ends_in_order_with_an_error_and_done(
    chatwait: ChatWait, upstream: ScriptedUpstream, version: str
) -> None:
    with (
        live(chatwait.base_url, question(upstream, gated())) as stream_id,
        closing(Reading(chatwait, stream_id, version)) as reading,
    ):
        received = reading.to(TEXTS[-1])
        assert delete(f"{chatwait.base_url}/chat/streaming/{stream_id}").json["status"] == "cancelled"
        assert_ends(received + reading.whole(), stream_id, "cancelled")


# Cut ones


def test_body_of_an_erased_stream_breaks_off(chatwait: ChatWait, upstream: ScriptedUpstream, version: str) -> None:
    stream_id = begin(chatwait.base_url, question(upstream, gated()))
    with closing(Reading(chatwait, stream_id, version)) as reading:
        reading.to(TEXTS[-1])
        assert delete(url_of(chatwait.base_url, stream_id)).status == 200
        reading.cut()


def test_body_of_a_stream_that_is_erased_while_it_is_read_slowly_breaks_off(
    tight: ChatWait, upstream: ScriptedUpstream, version: str
) -> None:
    stream_id = generated(tight.base_url, question(upstream, answer(LARGE))).stream_id
    with closing(Reading(tight, stream_id, version, rcvbuf=4096)) as reading:
        assert delete(url_of(tight.base_url, stream_id)).status == 200
        reading.cut()


def test_reader_that_takes_nothing_is_cut_at_once_when_its_stream_is_erased(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Not after the half minute that a stalled reader has."""
    stream_id = generated(chatwait.base_url, question(upstream, answer(LARGE))).stream_id
    with closing(Reading(chatwait, stream_id, "1.1", rcvbuf=4096)) as reading:
        before = left(chatwait, stream_id)
        assert delete(url_of(chatwait.base_url, stream_id)).status == 200
        poll(lambda: left(chatwait, stream_id) > before, seconds=10, what="it is cut")
        reading.cut()


@pytest.fixture(scope="module")
def tight(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    """A service with room for one reader, and with little patience for those that stall."""
    with ChatWait(pace=PACE, **settings(shared_upstream, MAX_READERS=1, TIMEOUT_SECONDS=20)) as tight:
        yield tight


def test_body_of_a_reader_that_stalls_breaks_off_and_it_reads_on(
    tight: ChatWait, upstream: ScriptedUpstream, version: str
) -> None:
    taken = generated(tight.base_url, question(upstream, answer(LARGE)))
    before = left(tight, taken.stream_id)
    with closing(Reading(tight, taken.stream_id, version, rcvbuf=4096)) as slow:
        poll(lambda: left(tight, taken.stream_id) > before, seconds=20, what="it is dropped")
        has, last_id = kept(slow.cut())
    assert has + resumed(tight.base_url + taken.location, last_id) == without_heartbeats(taken.body)


def test_body_of_a_reader_that_makes_room_for_another_breaks_off(
    tight: ChatWait, upstream: ScriptedUpstream, version: str
) -> None:
    """It has said that it sends nothing more, so it counts as departed; and yet it reads."""
    with live(tight.base_url, question(upstream, gated())) as stream_id, ExitStack() as stack:
        poll(lambda: left(tight, stream_id) == 1, seconds=5, what="who asked has left")
        departed = []
        for count in (2, 3):
            reading = Reading(tight, stream_id, version)
            stack.callback(reading.close)
            reading.to(TEXTS[-1])
            reading.depart()
            poll(lambda count=count: left(tight, stream_id) == count, seconds=5, what="the service to notice")
            departed.append(reading)
        third = Reading(tight, stream_id, version)
        stack.callback(third.close)
        departed[0].cut()
        third.to(TEXTS[-1])


# Whole services


def test_bodies_break_off_when_a_service_stops_that_does_not_generate_them(
    upstream: ScriptedUpstream, valkey_database: Database
) -> None:
    """Their readers are sent to the other one, where the rest is."""
    with services(upstream, valkey_database.url, DRAIN_SECONDS=3) as (generating, stopping), ExitStack() as stack:
        stream_id = begin(generating.base_url, question(upstream, gated("on")))
        readings = [Reading(stopping, stream_id, version) for version in VERSIONS]
        for reading in readings:
            stack.callback(reading.close)
        begun = [reading.to(TEXTS[-1]) for reading in readings]
        stopping.signal(signal.SIGTERM)
        cuts = [kept(first + reading.cut()) for first, reading in zip(begun, readings, strict=True)]
        upstream.open("on")
        stopping.wait_exit(20)
        wholes = [has + resumed(url_of(generating.base_url, stream_id), last_id) for has, last_id in cuts]
        assert wholes[0] == wholes[1]
        assert Taken(stream_id, "", wholes[0]).text == "".join(TEXTS) + "end"


def test_bodies_of_readers_that_are_slow_at_a_stop_break_off(upstream: ScriptedUpstream) -> None:
    """The generation has its end, and they have not read so far when the process is gone."""
    with ChatWait(**settings(upstream, DRAIN_SECONDS=1)) as stopping, ExitStack() as stack:
        stream_id = generated(stopping.base_url, question(upstream, answer(LARGE))).stream_id
        readings = [Reading(stopping, stream_id, version, rcvbuf=4096) for version in VERSIONS]
        for reading in readings:
            stack.callback(reading.close)
        stopping.stop(30)
        for reading in readings:
            reading.cut()


def test_answer_that_a_stop_cuts_off_ends_in_order_with_an_error_and_done(upstream: ScriptedUpstream) -> None:
    with ChatWait(**settings(upstream, DRAIN_SECONDS=1)) as stopping, ExitStack() as stack:
        stream_id = begin(stopping.base_url, question(upstream, gated()))
        readings = [Reading(stopping, stream_id, version) for version in VERSIONS]
        for reading in readings:
            stack.callback(reading.close)
        begun = [reading.to(TEXTS[-1]) for reading in readings]
        stopping.signal(signal.SIGTERM)
        for first, reading in zip(begun, readings, strict=True):
            assert_ends(first + reading.whole(), stream_id, "shutting_down")
        stopping.wait_exit(20)


def test_bodies_of_a_process_that_is_killed_break_off_and_end_with_an_error_elsewhere(
    upstream: ScriptedUpstream, valkey_database: Database
) -> None:
    with services(upstream, valkey_database.url, pace=SHORT_LEASES) as (dying, other), ExitStack() as stack:
        stream_id = begin(dying.base_url, question(upstream, gated()))
        readings = [Reading(dying, stream_id, version) for version in VERSIONS]
        elsewhere = Reading(other, stream_id, "1.0")
        for reading in (*readings, elsewhere):
            stack.callback(reading.close)
        begun = [reading.to(TEXTS[-1]) for reading in (*readings, elsewhere)]
        (pid,) = dying.worker_pids()
        os.kill(pid, signal.SIGKILL)
        cuts = [kept(first + reading.cut()) for first, reading in zip(begun, readings, strict=False)]
        ended = without_heartbeats(begun[-1] + elsewhere.whole())
        assert_ends(ended, stream_id, "producer_lost")
        for has, last_id in cuts:
            assert has + without_heartbeats(resumed(url_of(other.base_url, stream_id), last_id)) == ended
        dying.check_output = False  # gunicorn tells of its worker's death
