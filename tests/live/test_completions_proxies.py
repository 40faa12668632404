"""OpenAI's streams behind real proxies: whole ones come as they are, and those that are cut are resumed."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.proxies import Proxy
from tests.harness.reader import Dropped, open_stream
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token
from tests.harness.valkey import Database
from tests.live.completions import (
    ASKED_FOR,
    OPENING,
    Taken,
    begin,
    every_kind,
    generated,
    kept,
    question,
    resumed,
    url_of,
    without_heartbeats,
)
from tests.live.fronts import KINDS
from tests.live.shared import services
from tests.live.test_completions_cuts import (
    asked_whole,
    assert_every_kind,
    assert_whole_as_chunk,
    at_once,
    cut_live,
    cut_replay,
    finished,
    live_cuts,
    paused,
)
from tests.live.test_proxies_openai import OVER_1_0, over


@pytest.fixture(params=[*KINDS, OVER_1_0])
def through(request: pytest.FixtureRequest, chatwait: ChatWait, tmp_path: Path) -> Iterator[Proxy]:
    with over(request.param, tmp_path, chatwait.port) as proxy:
        yield proxy


def test_stream_is_the_same_behind_a_proxy(through: Proxy, chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Live, and read again. Over HTTP/1.0 its end is the connection's, in order: the reset is for cuts alone."""
    taken = generated(through.base_url, question(upstream, every_kind(paused), **ASKED_FOR))
    assert_every_kind(taken)
    bodies = set()
    for base_url in (through.base_url, chatwait.base_url):
        with open_stream(base_url + taken.location) as connection:
            bodies.add(connection.body())
    assert bodies == {OPENING + without_heartbeats(taken.body)}


def test_streams_cut_at_a_sample_of_bytes_resume_behind_a_proxy(
    through: Proxy, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Replays and live ones; the proof is the same as without the proxy."""
    taken = finished(chatwait, upstream)
    uncut = OPENING + without_heartbeats(taken.body)
    url = through.base_url + taken.location
    cuts = sorted({0, 1, len(OPENING), len(uncut), *random.Random(21).sample(range(len(uncut)), 40)})
    at_once(cuts, lambda size: cut_replay(url, url, uncut, size))
    at_once(live_cuts(uncut, 12), lambda size: cut_live(through.base_url, through.base_url, upstream, size))


def test_answer_that_was_not_streamed_is_the_same_behind_a_proxy(
    through: Proxy, chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    stream_id = asked_whole(chatwait, upstream)
    with open_stream(url_of(through.base_url, stream_id, "?stream=true")) as connection:
        assert_whole_as_chunk(Taken(stream_id, "", connection.body()))


def test_bodies_behind_proxies_break_off_when_their_service_stops_and_go_on_at_the_other_one(
    upstream: ScriptedUpstream, valkey_database: Database, tmp_path: Path
) -> None:
    """Over HTTP/1.0, too, where only a reset tells the proxy that this is no end."""
    script = Script(steps=[Token("a"), Gate("on"), Token("b"), Finish(), Done()])
    with services(upstream, valkey_database.url, DRAIN_SECONDS=3) as (generating, stopping), ExitStack() as stack:
        stream_id = begin(generating.base_url, question(upstream, script))
        readings = []
        for place, kind in enumerate((*KINDS, OVER_1_0)):
            (tmp_path / str(place)).mkdir()
            proxy = stack.enter_context(over(kind, tmp_path / str(place), stopping.port))
            reading = stack.enter_context(open_stream(url_of(proxy.base_url, stream_id, "?stream=true"), timeout=20))
            pieces = reading.pieces()
            received = b""
            while b'"a"' not in received:
                received += next(pieces)
            readings.append((pieces, received))
        stopping.signal(signal.SIGTERM)
        cuts = []
        for pieces, received in readings:
            with pytest.raises(Dropped):
                for piece in pieces:
                    received += piece
            cuts.append(kept(received))
        upstream.open("on")
        stopping.wait_exit(20)
        wholes = {has + resumed(url_of(generating.base_url, stream_id, "?stream=true"), last) for has, last in cuts}
        assert len(wholes) == 1
        assert Taken(stream_id, "", wholes.pop()).text == "ab"
