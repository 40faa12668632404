"""Two instances with one Valkey behind the shipped proxies, restarted one after the other, as a deploy does it.

Readers come back as an EventSource does: with the id of the last event, after any end that is no terminal event. Any
status but 200 is a visible error, since an EventSource would give up.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from load.events import EventParser
from tests.harness import tap
from tests.harness.answer import Answer
from tests.harness.reader import Reply, get, post, read_answer
from tests.harness.server import ROOT, ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token, answer, error
from tests.harness.valkey import Valkey, program
from tests.live.fronts import NAMES, front_of_two
from tests.live.many import Asker, run_all
from tests.live.shared import SHORT_LEASES, is_ready
from tests.live.steps import about, asked, begin, log_name, new_key, poll, settings
from tests.live.versions import another_version, assets_of
from tests.requirements import require_or_skip

RAMP_SECONDS = 10.0
"""Over how long readers of another's answers are sent away, when the drain has twice that time."""

TOKENS = 30


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    require_or_skip("Valkey (pip install -r requirements-dev.txt)", program() is not None)
    with Valkey() as valkey:
        yield valkey


@pytest.fixture
def handing_over() -> Iterator[None]:
    """Let streams end without a terminal event, between two frames: their process is being replaced."""
    tap.RUN.handing_over = True
    yield
    tap.RUN.handing_over = False


@contextmanager
def two_instances(valkey: Valkey, upstream: ScriptedUpstream, **more: object) -> Iterator[tuple[ChatWait, ChatWait]]:
    """Run two services that share a Valkey's database of their own."""
    url = valkey.url(valkey.new_database())
    told = settings(upstream, **{"REDIS_URL": url, "DRAIN_SECONDS": 25, "TIMEOUT_SECONDS": 30, **more})
    with ChatWait(**told) as one, ChatWait(**told) as two:
        for service in (one, two):
            poll(lambda service=service: is_ready(service), seconds=20, what="it is ready")
        yield one, two


@pytest.fixture(scope="module")
def survivor(valkey: Valkey, shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    """The one that stays, of all tests that end the other one."""
    url = valkey.url(valkey.new_database())
    with ChatWait(pace=SHORT_LEASES, **settings(shared_upstream, REDIS_URL=url, TIMEOUT_SECONDS=30)) as survivor:
        yield survivor


@contextmanager
def beside(survivor: ChatWait, **more: object) -> Iterator[ChatWait]:
    """Run another one over the same database, that a test may end."""
    with ChatWait(pace=SHORT_LEASES, **survivor.settings | more) as other:
        for service in (survivor, other):
            poll(lambda service=service: is_ready(service), seconds=20, what="it is ready")
        yield other


def attached(service: ChatWait, stream_id: str) -> int:
    """Count who has come to read a stream there."""
    return len(service.log_of("reader_attached", stream=log_name(stream_id)))


@dataclass
class Crowd:
    """Readers that ask one question after another until they are told to stop, and read every answer to its end.

    Each leaves once within every answer and comes back, so that about half of them read at the instance that does not
    generate. Every other one sends no Idempotency-Key.
    """

    url: str
    count: int
    texts: list[str]
    answers: list[Answer] = field(default_factory=list)
    visible: list[str] = field(default_factory=list)
    closed_at: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Read until `stopping` is set, and then to the end of what was begun."""
        run_all(
            [lambda number=number: self._visit(number) for number in range(self.count)], at_once=self.count, seconds=200
        )

    async def _visit(self, number: int) -> None:
        await asyncio.sleep(random.uniform(0.0, 2.0))  # a crowd does not come at one moment
        while not self.stopping.is_set():
            self.answers.append(await self._read(f"question {random.random()}", new_key() if number % 2 else {}))

    async def _read(self, message: str, key: dict[str, str]) -> Answer:
        got = Answer()
        leaves_at = random.randrange(1, len(self.texts))
        while not got.is_complete:
            if not got.stream_id:
                asking = Asker.ask(f"{self.url}/chat/streaming", {"message": message}, key)
            else:
                asking = Asker.ask(
                    f"{self.url}/chat/streaming/{got.stream_id}", None, {"Last-Event-ID": got.last_event_id}
                )
            asker = await asking
            if asker.status != 200:
                body = b"".join([piece async for piece in asker.pieces()])
                self.visible.append(f"{asker.status} for {'GET' if got.stream_id else 'POST'}: {body[:300]!r}")
                await asker.close()
                await asyncio.sleep(0.5)
                continue
            try:
                await self._read_some(asker, got, leaves_at)
            except (asyncio.IncompleteReadError, ConnectionError) as drop:
                which = asker.headers.get("x-correlation-id")
                self.broken.append(f"{which} after {len(got.events)} events, {got.connections} connections: {drop!r}")
            finally:
                await asker.close()
            leaves_at = len(self.texts) + 1
            await asyncio.sleep(random.uniform(0.0, 0.4))
        assert got.terminal is not None
        assert (got.terminal.event, got.text) == ("done", "".join(self.texts)), got.terminal.data
        return got.verify()

    async def _read_some(self, asker: Asker, got: Answer, leaves_at: int) -> None:
        got.begin_connection(asker.headers)
        parser = EventParser(got.last_event_id)
        async for piece in asker.pieces():
            for event in parser.feed(piece):
                got.add(event)
            if got.tokens >= leaves_at and not got.is_complete:
                return
        if not got.is_complete:
            self.closed_at.append(time.monotonic())


def most_at_once(moments: list[float], seconds: float) -> int:
    """Count how many of these fall, at most, into so short a time."""
    return max(sum(first <= moment < first + seconds for moment in moments) for first in moments)


def restart(service: ChatWait) -> None:
    """Restart as a supervisor does, and wait until the proxy gives it work again."""
    assert service.stop(60.0) == 0
    before = len(service.log_of("stream_started"))
    service.start()
    poll(lambda: len(service.log_of("stream_started")) > before, seconds=30, what="it is given work again")


def roll(valkey: Valkey, name: str, directory: Path, *, readers: int, gap: float, drain: float = 25.0) -> Crowd:
    """Restart both, one after the other, under so many readers; check what they got."""
    texts = [f"word {number} " for number in range(TOKENS)]
    with ScriptedUpstream() as upstream, two_instances(valkey, upstream, DRAIN_SECONDS=drain) as (one, two):
        upstream.always(answer(texts, gap=gap))
        with front_of_two(name, directory, one.port, two.port) as proxy, ThreadPoolExecutor(1) as pool:
            crowd = Crowd(proxy.base_url, readers, texts)
            reading = pool.submit(crowd.run)
            try:
                poll(lambda: len(crowd.answers) >= readers // 4 or reading.done(), seconds=60, what="some answers")
                before = len(upstream.completions)
                for service in (one, two):
                    restart(service)
                    assert not reading.done(), reading.result()
                poll(lambda: len(upstream.completions) > before, seconds=20, what="new answers")
            finally:
                crowd.stopping.set()
            reading.result(120)
        for service in (one, two):
            (finished,) = service.log_of("drain_finished")
            assert finished["cut"] is False
        assert len(upstream.completions) == len(crowd.answers), "each question is asked once"
    assert (crowd.visible, crowd.broken) == ([], [])
    assert any(got.connections > 2 for got in crowd.answers), "somebody was sent away and came back"
    return crowd


@pytest.mark.parametrize("name", ["nginx"])
def test_rolling_restart_loses_nothing_and_shows_nothing(valkey: Valkey, name: str, tmp_path: Path) -> None:
    roll(valkey, name, tmp_path, readers=20, gap=0.1, drain=8.0)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "readers"), [("nginx", 200), ("haproxy", 80)])
def test_rolling_restart_under_live_streams_loses_nothing_and_shows_nothing(
    valkey: Valkey, name: str, readers: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    crowd = roll(valkey, name, tmp_path, readers=readers, gap=0.23)
    assert len(crowd.answers) >= 2 * readers
    at_once, closed = most_at_once(crowd.closed_at, 0.5), len(crowd.closed_at)
    figure = f"{len(crowd.answers)} answers over a rolling restart behind {name}: {closed} readers sent away"
    record_property("figure", f"{figure}, at most {at_once} of them within 0.5 s")
    assert at_once <= max(0.3 * closed, 5), f"{at_once} of {closed} were closed within half a second"


@pytest.mark.long
@pytest.mark.usefixtures("handing_over")
@pytest.mark.parametrize("own", [False, True], ids=["without own generations", "with one of its own"])
def test_drain_sends_readers_of_the_others_answers_away_over_a_while(valkey: Valkey, own: bool) -> None:
    """A ramp: all at once they would be a storm elsewhere. Each is closed without a terminal event."""
    with ScriptedUpstream() as upstream, two_instances(valkey, upstream) as (one, two), ThreadPoolExecutor(2) as pool:
        body = about(upstream, gated("rest"))
        stream_id = begin(one.base_url, body)
        own_body = about(upstream, gated("own"))
        own_id = begin(two.base_url, own_body) if own else ""
        closed_at: list[float] = []
        ends: list[str] = []

        async def read() -> None:
            asker = await Asker.ask(f"{two.base_url}/chat/streaming/{stream_id}")
            assert asker.status == 200
            parser, events = EventParser(), []
            async for piece in asker.pieces():
                events += parser.feed(piece)
            closed_at.append(time.monotonic())
            ends.append(events[-1].event)
            await asker.close()

        reading = pool.submit(run_all, [read] * 100, at_once=100)
        waiting = pool.submit(get, f"{two.base_url}/chat/wait/{stream_id}", timeout=40)
        poll(lambda: len(two.log_of("reader_attached")) >= 101 + own, seconds=20, what="100 readers")
        begun = time.monotonic()
        two.signal(signal.SIGTERM)
        reading.result(60)
        refused = waiting.result(60)
        assert (refused.status, refused.json["error_code"]) == (503, "shutting_down")
        if own:  # what it generates goes on meanwhile
            own_answer = pool.submit(read_answer, f"{two.base_url}/chat/streaming/{own_id}")
            upstream.open("own")
            assert own_answer.result(20).text == "one two three"
        assert two.wait_exit(35.0) == 0
        assert (len(ends), set(ends) - {"token", "ping"}) == (100, set())
        assert most_at_once(closed_at, 0.5) <= 25, [round(at - begun, 1) for at in closed_at]
        assert max(closed_at) - begun > RAMP_SECONDS / 2
        upstream.open("rest")
        assert read_answer(f"{one.base_url}/chat/streaming/{stream_id}").text == "one two three"


@pytest.mark.usefixtures("handing_over")
def test_readers_that_come_while_a_process_ends_are_answered_whole_or_not_at_all(
    survivor: ChatWait, upstream: ScriptedUpstream
) -> None:
    """A proxy may ask another instance for what was not begun; an answer that breaks off is broken for everybody."""
    with beside(survivor, DRAIN_SECONDS=2) as two, ThreadPoolExecutor(1) as pool:
        stream_id = begin(survivor.base_url, about(upstream, gated("rest")))
        whole, broken = [0], list[str]()
        gone = asyncio.Event()

        async def come() -> None:
            while not gone.is_set():
                try:
                    asker = await Asker.ask(f"{two.base_url}/chat/streaming/{stream_id}")
                except (asyncio.IncompleteReadError, ConnectionError):
                    await asyncio.sleep(0.01)
                    if not two.is_running:
                        gone.set()
                    continue
                try:
                    assert asker.status == 200
                    async for _ in asker.pieces():
                        pass
                    whole[0] += 1
                except (asyncio.IncompleteReadError, ConnectionError) as drop:
                    broken.append(repr(drop))
                finally:
                    await asker.close()

        reading = pool.submit(run_all, [come] * 20, at_once=20)
        poll(lambda: len(two.log_of("reader_attached")) >= 20, seconds=20, what="readers")
        two.signal(signal.SIGTERM)
        reading.result(60)
        assert two.wait_exit(5.0) == 0
        assert (broken, whole[0] > 100) == ([], True), whole
        assert two.log_of("drain_finished")[0]["readers"] == 0
        upstream.open("rest")


def gated(gate: str) -> Script:
    return Script(steps=[Token("one "), Token("two "), Gate(gate), Token("three"), Finish(), Done()])


def test_generation_longer_than_the_drain_ends_as_cancelled_for_readers_at_both(
    survivor: ChatWait, upstream: ScriptedUpstream
) -> None:
    """And says so: with its reason, what there was, and in wait mode as what a client may ask again."""
    two = survivor
    with beside(survivor, DRAIN_SECONDS=2) as one, ThreadPoolExecutor(6) as pool:
        body, key = about(upstream, gated("never")), new_key()
        stream_id = begin(one.base_url, body, key)
        reading = [
            pool.submit(read_answer, f"{service.base_url}/chat/streaming/{stream_id}", timeout=30)
            for service in (one, two)
        ]
        waiting = [pool.submit(get, f"{service.base_url}/chat/wait/{stream_id}", timeout=30) for service in (one, two)]
        for service, others in ((one, 1), (two, 0)):
            poll(lambda s=service, n=others: attached(s, stream_id) == 2 + n, seconds=10, what="its readers")
        assert one.stop(30.0) == 0
        for future in reading:
            got = future.result(10)
            assert got.terminal is not None
            assert (got.terminal.event, got.terminal.json["reason"], got.text) == ("cancelled", "shutdown", "one two ")
        told: list[Reply] = [future.result(10) for future in waiting]
        told.append(post(f"{two.base_url}/chat/wait", body, headers=key))  # what it was is known elsewhere, later too
        for reply in told:
            assert (reply.status, reply.json["error_code"]) == (503, "shutting_down")
            assert reply.json["partial"] == {"content": "one two ", "tokens": 2}
        assert len(asked(upstream, body)) == 1
        assert one.log_of("drain_finished")[0]["cut"] is True


@pytest.mark.parametrize("name", NAMES)
def test_question_whose_instance_dies_is_not_asked_twice(
    valkey: Valkey, survivor: ChatWait, upstream: ScriptedUpstream, name: str, tmp_path: Path
) -> None:
    """The proxy sends the POST again, under the key that it gave it: at the other instance it meets the same stream.

    haproxy asks once more after a 503. After that of `producer_lost` it would ask the dead instance, if it still took
    that one for alive. The lease is shorter here than in the service, and so is the time between haproxy's checks.
    """
    checks = {"check inter 1s": "check inter 250ms"} if name == "haproxy" else {}
    with (
        beside(survivor) as dying,
        front_of_two(name, tmp_path, dying.port, survivor.port, changes=checks) as proxy,
        ThreadPoolExecutor(4) as pool,
    ):
        before = stored(valkey, survivor)
        for number in range(4):  # the proxy chooses whom it asks
            body = about(upstream, Script(steps=[Token("one "), Gate(f"end {number}"), Finish(), Done()]))
            waiting = pool.submit(post, f"{proxy.base_url}/chat/wait", body, timeout=40)
            upstream.wait_reached(f"end {number}")
            if dying.log_of("stream_started"):
                break
        dying.wait_for_log("reader_attached")
        poll(lambda: stored(valkey, survivor) > before + number, seconds=10, what="the tokens are stored")
        dying.kill()
        for others in range(number):
            upstream.open(f"end {others}")
        told = waiting.result(60)
        assert (told.status, told.json["error_code"]) == (503, "producer_lost")
        assert told.json["partial"] == {"content": "one ", "tokens": 1}
        assert len(asked(upstream, body)) == 1


def stored(valkey: Valkey, service: ChatWait) -> int:
    """Count the tokens that Valkey has of all streams of a service."""
    client = valkey.client(int(str(service.settings["REDIS_URL"]).rpartition("/")[2]))
    kinds = {key: client.type(key) for key in client.scan_iter()}
    return sum(client.xlen(key) for key, kind in kinds.items() if kind == b"stream" and b"wake" not in key)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_failing_model_takes_no_instance_out(valkey: Valkey, name: str, tmp_path: Path) -> None:
    """Its 503 is asked for once more at most, is told as it is, and the next question is answered by either."""
    with (
        ScriptedUpstream() as upstream,
        two_instances(valkey, upstream) as (one, two),
        front_of_two(name, tmp_path, one.port, two.port) as proxy,
    ):
        upstream.always(error(503))
        for _ in range(6):
            told = post(f"{proxy.base_url}/chat/wait", {"message": "Hi"}, timeout=60)
            assert (told.status, told.json["error_code"]) == (503, "upstream_unavailable")

        def booked(service: ChatWait) -> int:
            return len(service.log_of("response_complete"))

        poll(lambda: booked(one) + booked(two) >= 6, seconds=5, what="a line of each question")
        begun = [booked(one), booked(two)]
        assert sum(begun) <= 18
        upstream.always(answer(["a"]))
        for _ in range(6):
            assert post(f"{proxy.base_url}/chat/wait", {"message": "Hi"}).status == 200
        for service, before in zip((one, two), begun, strict=True):
            poll(lambda s=service, before=before: booked(s) > before, seconds=5, what="a question to each")


def test_compose_files_health_check_tells_whether_work_is_taken(survivor: ChatWait, upstream: ScriptedUpstream) -> None:
    """A stopping instance lives, and is not ready."""
    compose = yaml.safe_load((ROOT / "deploy" / "compose-shared.yaml").read_text(encoding="utf-8"))
    python, *script = compose["services"]["one"]["healthcheck"]["test"][1:]
    assert python == "python"
    with beside(survivor) as one:

        def check() -> tuple[int, str]:
            values = {"PATH": os.environ["PATH"], "OPENAI_API_KEY": "sk-test", "PORT": str(one.port)}
            command = [sys.executable, *script]
            done = subprocess.run(command, cwd=ROOT, env=values, capture_output=True, text=True, timeout=30)
            return done.returncode, done.stdout + done.stderr

        assert check() == (0, "GET /ready: 200\n")
        begin(one.base_url, about(upstream, gated("rest")))
        one.signal(signal.SIGTERM)
        one.wait_for_log("drain_started")
        assert check() == (1, "GET /ready: 503\n")
        upstream.open("rest")
        assert one.wait_exit(20.0) == 0


def test_page_of_either_version_gets_all_that_it_loads_behind_a_proxy(tmp_path: Path) -> None:
    """In the middle of a deploy: each page is of one instance, and half of what it loads is asked of the other one.

    The instances share no Valkey here, so only the proxy can have asked on.
    """
    for name in NAMES:
        (tmp_path / name).mkdir()
    with (
        ScriptedUpstream() as upstream,
        ChatWait(**settings(upstream)) as one,
        ChatWait(root=another_version(tmp_path), **settings(upstream)) as two,
        front_of_two("nginx", tmp_path / "nginx", one.port, two.port) as nginx,
        front_of_two("haproxy", tmp_path / "haproxy", one.port, two.port) as haproxy,
    ):
        versions = [assets_of(service.base_url) for service in (one, two)]
        assert not set(versions[0][1:]) & set(versions[1][1:])
        assert get(f"{two.base_url}{versions[0][-1]}").status == 404, "the premise: one instance lacks it"
        for proxy in (nginx, haproxy):
            seen = {assets_of(proxy.base_url)[-1] for _ in range(4)}
            assert seen == {version[-1] for version in versions}, "the premise: pages of both versions"
            told = [get(f"{proxy.base_url}{path}").status for _ in range(2) for paths in versions for path in paths]
            assert set(told) == {200}, proxy.name
            nowhere = get(f"{proxy.base_url}/assets/{'0' * 16}/app.js")
            assert (nowhere.status, nowhere.json["error_code"]) == (404, "not_found")


def test_instance_serves_what_the_page_of_another_version_loads_also_when_that_has_gone(
    valkey: Valkey, tmp_path: Path
) -> None:
    url = valkey.url(valkey.new_database())
    with ScriptedUpstream() as upstream, ChatWait(**settings(upstream, REDIS_URL=url)) as new:
        with ChatWait(root=another_version(tmp_path), **settings(upstream, REDIS_URL=url)) as old:
            theirs = assets_of(old.base_url)
            kept = {path: get(f"{old.base_url}{path}").body for path in theirs}
            poll(lambda: get(f"{new.base_url}{theirs[-1]}").status == 200, seconds=20, what="it is published")
        replies = {path: get(f"{new.base_url}{path}") for path in theirs}
        assert {path: reply.body for path, reply in replies.items()} == kept
        assert {reply.headers["cache-control"] for path, reply in replies.items() if path != theirs[0]} == {
            "public, max-age=31536000, immutable"
        }
        assert get(f"{new.base_url}/assets/{'0' * 16}/app.js").status == 404
