"""The seam of replay and live tail, and connections that are cut: nothing twice, nothing missing."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.chaos import ChaosProxy, CutAfter
from tests.harness.reader import Answer, Dropped, get, open_stream, post, read_answer, read_resuming
from tests.harness.script import encode_json
from tests.harness.server import ChatWait
from tests.harness.upstream import (
    Delta,
    Done,
    Finish,
    Gate,
    Paced,
    Raw,
    Script,
    ScriptedUpstream,
    Step,
    Token,
    answer,
)
from tests.live.steps import about, asked, copy_of_service, cursor, live, new_key, read_on, settings, together

# What breaks line splitters, decoders and cursors; "\ud83d" and "\ude42" are halves of one character.
DELTAS = [
    "Grüße", "\r\n", "", "data: x\n\n", "\x00", "\u2028", "", "\u2029\x85", "日本語", "🙂",
    "👩\u200d👩\u200d👧", "\r", "\n", "\ud83d", "\ude42", "id: cw_x.99\n\n", "\ufeff", '\\u0000"', " ",
    "\x0b\x0c\x1b", "", "end",
]  # fmt: skip
CHUNKS = ["🙂" if text == "\ude42" else text for text in DELTAS if text and text != "\ud83d"]
TEXT = "".join(CHUNKS)
SHA256 = hashlib.sha256(TEXT.encode()).hexdigest()
THREADS = 4


def reference(pause: float = 0.0) -> Script:
    """Write the script of the reference stream. Units: `pause` in seconds, before each chunk."""
    steps: list[Step] = [Delta({"role": "assistant", "content": ""}), Delta({}), Delta({"content": None})]
    return Script(steps=[*steps, *(Token(text, pause) for text in DELTAS), Finish(), Done()])


def assert_whole(got: Answer) -> None:
    assert got.is_complete
    assert got.terminal is not None
    assert got.text == TEXT
    assert got.tokens == len(CHUNKS)
    assert (got.terminal.event, got.terminal.json["sha256"]) == ("done", SHA256)


class CutLink:
    """A proxy of one thread's own that cuts the next connection after so many bytes, and passes the others."""

    def __init__(self, chatwait: ChatWait, *in_turns: ChatWait) -> None:
        """Connections go to all of the services, in turns."""
        self._local = threading.local()
        self._target = chatwait.port
        self._in_turns = [other.port for other in in_turns]
        self._proxies: list[ChaosProxy] = []

    def cut_next(self, *sizes: int) -> ChaosProxy:
        proxy: ChaosProxy | None = getattr(self._local, "proxy", None)
        if proxy is None:
            proxy = self._local.proxy = ChaosProxy("127.0.0.1", self._target, in_turns=self._in_turns).start()
            self._proxies.append(proxy)
        proxy.plan(*map(CutAfter, sizes))
        return proxy

    def close(self) -> None:
        for proxy in self._proxies:
            proxy.stop()


@pytest.fixture
def link(chatwait: ChatWait) -> Iterator[CutLink]:
    link = CutLink(chatwait)
    yield link
    link.close()


# Replay and live tail


def attach_at_random(chatwait: ChatWait, upstream: ScriptedUpstream, readers: int, seed: int) -> None:
    """Let readers attach at random moments of a stream that runs as fast as it can, at any cursor so far."""
    texts = [f"{number}é\n" for number in range(1, 1501)]
    fast = Script(steps=[Gate("go"), Paced(texts, 0.0005), Gate("end"), Finish(), Done()])
    body, choice = about(upstream, fast), random.Random(seed)
    attach_at = [(choice.randrange(1, 1500), min(1.0, 1.3 * choice.random())) for _ in range(readers)]
    with live(chatwait.base_url, body) as stream_id, ThreadPoolExecutor(readers) as pool:
        upstream.wait_reached("go")
        (record,) = asked(upstream, body)

        def attach(moment: int, share: float) -> Answer:
            record.wait_tokens(moment, timeout=30)
            # What the service has, not what the upstream has sent: to a cursor beyond it 409 would be the answer.
            head = get(f"{chatwait.base_url}/chat/wait/{stream_id}", headers={"Prefer": "wait=0"}).json["tokens"]
            after = int(head * share)
            return read_answer(
                f"{chatwait.base_url}/chat/streaming/{stream_id}",
                headers=cursor(stream_id, after),
                after=after,
                prefix="".join(texts[:after]) or None,
                timeout=30,
            )

        waiting = [pool.submit(attach, *at) for at in attach_at]
        upstream.open("go")
        record.wait_tokens(len(texts), timeout=30)
        upstream.open("end")
        for reading in waiting:
            got = reading.result(60)
            assert (got.tokens, got.text) == (len(texts), "".join(texts))
    assert len(asked(upstream, body)) == 1


def test_readers_attaching_while_tokens_come_fast_get_all_of_them(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    attach_at_random(chatwait, upstream, readers=25, seed=1)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_readers_attaching_a_thousand_times_get_all_tokens(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    for seed in range(20):
        upstream.reset()
        attach_at_random(chatwait, upstream, readers=50, seed=seed)


PAUSES = """
import time
from app.dialects.native.frames import NativeFrames
from app.streams.readership import LogReader

read, wait, sleeping = NativeFrames.next_frames, LogReader.wait, 0.12

def read_with_pauses(dialect, reader):
    time.sleep(sleeping)
    sent = read(dialect, reader)
    time.sleep(sleeping)
    return sent

def wait_with_pause(reader):
    time.sleep(sleeping)
    wait(reader)

NativeFrames.next_frames = read_with_pauses
LogReader.wait = wait_with_pause
"""


def test_token_and_terminal_appended_between_reading_and_waiting_are_delivered_once(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Moments all over the forced pauses, for a token, a token with the end, and the end alone."""
    root = copy_of_service(tmp_path, PAUSES)
    with ChatWait(root=root, **settings(shared_upstream)) as chatwait:

        def run(number: int) -> Answer:
            last = [Token("c", 0.03 * number)] if number % 2 else [Token("c"), Gate(f"end {number}")]
            body = about(upstream, Script(steps=[Token("a"), Token("b", 0.07), *last, Finish(), Done()]))
            if not number % 2:
                threading.Timer(0.3 + 0.03 * number, upstream.open, [f"end {number}"]).start()
            return read_answer(f"{chatwait.base_url}/chat/streaming", body)

        for got in together(*(lambda number=number: run(number) for number in range(24))):
            assert (got.text, got.tokens) == ("abc", 3)


def test_resumes_racing_the_last_token_and_the_end_get_both(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Without forced pauses, and often."""
    for number in range(15):
        gate = f"last {number}"
        body = about(upstream, Script(steps=[Token("a"), Gate(gate), Token("b"), Finish(), Done()]))
        with live(chatwait.base_url, body) as stream_id:
            upstream.wait_reached(gate)
            url = f"{chatwait.base_url}/chat/streaming/{stream_id}"
            readers = [lambda url=url: read_answer(url) for _ in range(3)]
            for got in together(*readers, lambda gate=gate: upstream.open(gate))[:3]:
                assert (got.text, got.tokens) == ("ab", 2)


@pytest.mark.requirement("page edge 7", "page scope 4")
def test_two_resumes_with_one_cursor_at_once_both_get_everything(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    body = about(upstream, Script(steps=[Token("a"), Token("b"), Gate("on"), Token("c"), Token("d"), Finish(), Done()]))
    with open_stream(f"{chatwait.base_url}/chat/streaming", json=body) as first:
        answered = Answer()
        answered.begin_connection(first.headers)
        for event in first.events():
            answered.add(event)
            if answered.tokens == 2:
                break
        first.reset()
    assert answered.stream_id is not None

    def resume() -> Answer:
        return read_answer(
            f"{chatwait.base_url}/chat/streaming/{answered.stream_id}",
            headers={"Last-Event-ID": answered.last_event_id},
            after=2,
            prefix="ab",
        )

    for got in together(resume, resume, lambda: upstream.open("on"))[:2]:
        assert (got.text, got.tokens) == ("abcd", 4)
    assert len(asked(upstream, body)) == 1


# Cuts


def finished_reference(chatwait: ChatWait, upstream: ScriptedUpstream) -> tuple[str, dict[str, str], dict[str, str]]:
    """Generate the reference; give its id, its request and its key."""
    body, key = about(upstream, reference()), new_key()
    whole = read_answer(f"{chatwait.base_url}/chat/streaming", body, headers=key)
    assert_whole(whole)
    assert whole.stream_id is not None
    return whole.stream_id, body, key


def replay_cut_once(chatwait: ChatWait, proxy: ChaosProxy, stream_id: str) -> Answer:
    """Attach from the beginning through the proxy, and again with the last id until the end is there."""
    got = Answer(stream_id=stream_id)
    for _ in range(3):
        try:
            read_on(got, chatwait.base_url, via=proxy.base_url)
        except Dropped as drop:
            got.drops.append(str(drop))
        if got.is_complete:
            return got
    raise AssertionError(f"not at the end after three connections: {got.drops}")


def replay_size(chatwait: ChatWait, link: CutLink, stream_id: str) -> int:
    """Measure one whole response, head included. Units: bytes."""
    proxy = link.cut_next()
    before = proxy.bytes_down
    assert_whole(read_answer(f"{chatwait.base_url}/chat/streaming/{stream_id}", via=proxy.base_url))
    return proxy.bytes_down - before


@pytest.mark.requirement("core edge 3", "chatwait FR-003")
def test_replay_cut_after_every_byte_resumes_to_the_same_text(
    chatwait: ChatWait, upstream: ScriptedUpstream, link: CutLink
) -> None:
    """The generation has finished, so what a cut loses is exact."""
    stream_id, body, _ = finished_reference(chatwait, upstream)
    size = replay_size(chatwait, link, stream_id)
    assert size > 1500

    def cut(after: int) -> None:
        got = replay_cut_once(chatwait, link.cut_next(after), stream_id)
        assert_whole(got)
        # The last bytes are the body's own end; before them every cut must have been one.
        assert got.drops or after > size - 10, after
        if not got.drops:
            assert got.connections == 1

    with ThreadPoolExecutor(THREADS) as pool:
        for cutting in [pool.submit(cut, after) for after in range(size)]:
            cutting.result()
    assert len(asked(upstream, body)) == 1


def test_post_cut_in_its_headers_is_repeated_with_its_key_and_attaches(
    chatwait: ChatWait, upstream: ScriptedUpstream, link: CutLink
) -> None:
    """The client knows no id yet: it can only send its request again."""
    _, body, key = finished_reference(chatwait, upstream)
    for after in range(0, 600, 13):
        proxy = link.cut_next(after)
        before = proxy.connections
        got = read_resuming(chatwait.base_url, json=body, headers=key, via=proxy.base_url)
        assert_whole(got)
        assert proxy.connections - before == 2
    assert len(asked(upstream, body)) == 1


def live_size(chatwait: ChatWait, upstream: ScriptedUpstream, link: CutLink) -> int:
    """Measure a live stream, whose frames differ from run to run: a machine that stands still for its 66 ms has it in
    one or two, and it is asked for again. Units: bytes."""
    proxy = link.cut_next()
    for _ in range(20):
        before = proxy.bytes_down
        got = read_resuming(chatwait.base_url, json=about(upstream, reference(0.003)), via=proxy.base_url)
        assert_whole(got)
        if sum(event.event == "token" for event in got.events) > len(CHUNKS) / 3:
            return proxy.bytes_down - before
    raise AssertionError("not a live stream")


def cut_live(chatwait: ChatWait, upstream: ScriptedUpstream, link: CutLink, cuts: Sequence[int]) -> None:
    def cut(after: int) -> None:
        body = about(upstream, reference(0.003))
        proxy = link.cut_next(after)
        assert_whole(read_resuming(chatwait.base_url, json=body, via=proxy.base_url))
        assert len(asked(upstream, body)) == 1

    with ThreadPoolExecutor(THREADS) as pool:
        for cutting in [pool.submit(cut, after) for after in cuts]:
            cutting.result()


@pytest.mark.requirement("core edge 3", "chatwait scenario 3", "chatwait resilience 1")
def test_live_stream_cut_at_a_sample_of_bytes_resumes_to_the_same_text(
    chatwait: ChatWait, upstream: ScriptedUpstream, link: CutLink
) -> None:
    """Live: frame by frame, and each cut is a generation of its own."""
    size = live_size(chatwait, upstream, link)
    cut_live(chatwait, upstream, link, [0, 1, *random.Random(4).sample(range(2, size), 40)])


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.requirement("chatwait scenario 3")
@pytest.mark.parametrize("first", [0, 1, 2])
def test_live_stream_cut_after_every_byte_resumes_to_the_same_text(
    chatwait: ChatWait, upstream: ScriptedUpstream, link: CutLink, first: int
) -> None:
    """After every third one here, so that three can run beside each other."""
    size = live_size(chatwait, upstream, link)
    for begin in range(first, size, 600):
        upstream.reset()  # 3,000 rules would be searched at each request
        cut_live(chatwait, upstream, link, range(begin, min(begin + 600, size), 3))


@pytest.mark.requirement("chatwait edge 1", "chatwait resilience 2")
def test_every_cursor_of_a_finished_stream_gives_what_follows_it(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """A replay is few frames, so cuts of it do not reach the cursors inside."""
    stream_id, _, _ = finished_reference(chatwait, upstream)
    for after in range(len(CHUNKS) + 1):
        got = read_answer(
            f"{chatwait.base_url}/chat/streaming/{stream_id}",
            headers=cursor(stream_id, after),
            after=after,
            prefix="".join(CHUNKS[:after]) or None,
        )
        assert_whole(got)


@pytest.mark.requirement("core risk 3", "chatwait resilience 1", "page US3 test", "page FR-003")
def test_connection_cut_again_and_again_comes_to_the_whole_text(
    chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy
) -> None:
    """Some of the reconnects die before they got anything, and keep their old cursor."""
    body = about(upstream, reference(0.01))
    sizes = [0, 300, 950, 0, 1000, 10, 650, 1100, 0, 0, 560, 1000, 1200, 300]
    proxy.plan(*map(CutAfter, sizes))
    got = read_resuming(chatwait.base_url, json=body, via=proxy.base_url)

    assert_whole(got)
    # On a busy machine tokens come several in a frame, and the answer is whole before the last cuts.
    assert 10 <= proxy.connections <= len(sizes) + 1
    assert len(asked(upstream, body)) == 1


def test_reconnect_that_dies_before_it_got_anything_keeps_its_cursor(
    chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy
) -> None:
    script = Script(steps=[Token("a"), Token("b"), Gate("on"), Token("c"), Finish(), Done()])
    with live(chatwait.base_url, about(upstream, script)) as stream_id:
        upstream.wait_reached("on")
        got = Answer(stream_id=stream_id)
        with open_stream(f"{chatwait.base_url}/chat/streaming/{stream_id}", via=proxy.base_url) as first:
            for event in first.events():
                got.add(event)
                if got.tokens == 2:
                    break
        for size in (0, 1, 200, 570):
            proxy.plan(CutAfter(size))
            with pytest.raises(Dropped):
                read_on(got, chatwait.base_url, via=proxy.base_url)
            assert got.last_event_id == f"{stream_id}.2"
        upstream.open("on")
        read_on(got, chatwait.base_url, via=proxy.base_url)
    assert (got.text, got.tokens, got.is_complete) == ("abc", 3, True)


# Frames


def test_replay_larger_than_a_frame_over_a_link_cut_in_every_frame_gets_through(
    chatwait: ChatWait, upstream: ScriptedUpstream, proxy: ChaosProxy
) -> None:
    texts = [f"{number:05d} naïve\n" for number in range(5000)]
    body, key = about(upstream, answer(texts)), new_key()
    assert post(f"{chatwait.base_url}/chat/wait", body, headers=key).json["tokens"] == 5000
    proxy.default = CutAfter(9500)  # the head, a ping and one frame; the next one is cut
    got = read_resuming(chatwait.base_url, json=body, headers=key, via=proxy.base_url, max_attempts=30)

    assert got.text == "".join(texts)
    assert 8 <= proxy.connections <= 16
    assert max(len(event.data) for event in got.events) <= 8192
    assert len(asked(upstream, body)) == 1


def test_hundred_chunks_in_one_millisecond_have_ids_that_rise(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """They come in one packet, to a reader that is there and to one that comes later."""
    burst = b"".join(
        b"data: " + encode_json({"choices": [{"index": 0, "delta": {"content": f"{number},"}}]}) + b"\n\n"
        for number in range(100)
    )
    body = about(upstream, Script(steps=[Token("first "), Gate("burst"), Raw(burst), Finish(), Done()]))
    with open_stream(f"{chatwait.base_url}/chat/streaming", json=body) as connection:
        got = Answer()
        got.begin_connection(connection.headers)
        for event in connection.events():
            got.add(event)  # which fails when an id does not rise
            if got.tokens == 1 and event.event == "token":
                upstream.open("burst")
    assert (got.verify().tokens, got.text) == (101, "first " + "".join(f"{number}," for number in range(100)))
    again = read_answer(f"{chatwait.base_url}/chat/streaming/{got.stream_id}")
    assert (again.tokens, again.text) == (101, got.text)


def test_same_cursor_asked_twice_on_a_finished_stream_gives_the_same_bytes(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    stream_id, _, _ = finished_reference(chatwait, upstream)
    for after in (0, 1, 7, len(CHUNKS)):
        bodies = []
        for _ in range(2):
            url = f"{chatwait.base_url}/chat/streaming/{stream_id}"
            with open_stream(url, headers=cursor(stream_id, after)) as connection:
                bodies.append(connection.body())
        assert bodies[0] == bodies[1]
        assert b"event: done" in bodies[0]
