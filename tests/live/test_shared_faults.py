"""What happens to Valkey, and what clients see of it: never a hole without a word."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from tests.harness.answer import Answer
from tests.harness.chaos import ChaosProxy, Late, Pass
from tests.harness.pace import Pace
from tests.harness.reader import delete, get, post, read_answer
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Paced, Script, ScriptedUpstream, Token
from tests.harness.valkey import Valkey, program
from tests.live.shared import SHORT_LEASE_SECONDS, SHORT_LEASES, is_ready, read_at, services
from tests.live.steps import about, begin, log_name, poll, settings, wait_asked
from tests.requirements import require_or_skip

GAP_SECONDS = 0.05


@dataclass
class Cluster:
    """Two services, the Valkey that they share, and the way of each to it."""

    valkey: Valkey
    one: ChatWait
    other: ChatWait
    ways: list[ChaosProxy]

    def cut_off(self) -> None:
        for way in self.ways:
            way.refuse()
            way.cut_all()

    def connect(self) -> None:
        for way in self.ways:
            way.accept()

    def connect_anew(self) -> None:
        """Cut what there is, and wait for both connections of each service."""
        for way in self.ways:
            connections = way.connections + 2
            way.cut_all()
            way.wait_until(lambda way=way, connections=connections: way.connections >= connections)
        wait_ready(self.one, self.other)


@contextmanager
def clustered(upstream: ScriptedUpstream, pace: Pace | None = None) -> Iterator[Cluster]:
    require_or_skip("a Valkey or Redis server", program() is not None)
    with ExitStack() as running:
        valkey = running.enter_context(Valkey())
        ways = [running.enter_context(ChaosProxy("127.0.0.1", valkey.port)) for _ in range(2)]
        one, other = [
            running.enter_context(ChatWait(pace=pace, **settings(upstream, REDIS_URL=valkey.url(port=way.port))))
            for way in ways
        ]
        yield Cluster(valkey, one, other, ways)


@pytest.fixture(scope="module")
def lasting_cluster(shared_upstream: ScriptedUpstream) -> Iterator[Cluster]:
    """Live through everything that is done to Valkey. Its leases are short: tests wait until they lapse."""
    with clustered(shared_upstream, SHORT_LEASES) as cluster:
        yield cluster


@pytest.fixture
def cluster(lasting_cluster: Cluster, upstream: ScriptedUpstream) -> Cluster:
    wait_ready(lasting_cluster.one, lasting_cluster.other)
    return lasting_cluster


def paced(upstream: ScriptedUpstream, seconds: float) -> tuple[dict[str, str], list[str]]:
    """Have something answered for so long, evenly."""
    texts = [f"{number}é " for number in range(int(seconds / GAP_SECONDS))]
    return about(upstream, Script(steps=[Paced(texts, GAP_SECONDS), Finish(), Done()])), texts


def assert_done(answer: Answer, texts: list[str]) -> None:
    assert answer.terminal is not None
    assert (answer.terminal.event, answer.text) == ("done", "".join(texts))


def wait_ready(*running: ChatWait) -> None:
    for service in running:
        poll(lambda service=service: is_ready(service), seconds=10, what="ready again")


def test_service_whose_valkey_is_not_there_says_so_and_works_once_it_is(
    upstream: ScriptedUpstream, own_valkey: Valkey
) -> None:
    own_valkey.kill()
    body = about(upstream, Script(steps=[Token("a"), Finish(), Done()]))
    with ChatWait(**settings(upstream, REDIS_URL=own_valkey.url())) as chatwait:
        url = chatwait.base_url
        assert get(f"{url}/health").status == 200
        ready = get(f"{url}/ready")
        assert (ready.status, ready.json["parts"]["store"]) == (503, "unavailable")
        stream = "cw_" + "x" * 22
        for reply in (
            post(f"{url}/chat/wait", body),
            post(f"{url}/chat/streaming", body),
            get(f"{url}/chat/streaming/{stream}"),
            get(f"{url}/chat/wait/{stream}"),
            delete(f"{url}/chat/streaming/{stream}"),
        ):
            error = reply.json
            assert (reply.status, error["error_code"], error["retryable"]) == (503, "store_unavailable", True)
            assert all(error[part] for part in ("message", "detail", "action"))
            assert int(reply.headers["retry-after"]) == error["retry_after_seconds"]
        assert upstream.completions == [], "nothing was asked, so nothing is paid"
        assert chatwait.wait_for_log("store_away")["level"] == "ERROR"
        assert len(chatwait.log_of("store_away")) == 1
        own_valkey.start()
        wait_ready(chatwait)
        assert post(f"{url}/chat/wait", body).json["content"] == "a"
        chatwait.wait_for_log("store_back")
        assert len(chatwait.log_of("store_back")) == 1


def test_question_that_waits_for_valkey_while_its_process_ends_is_answered(
    upstream: ScriptedUpstream, own_valkey: Valkey
) -> None:
    body = about(upstream, Script(steps=[Token("a"), Finish(), Done()]))
    with (
        ChatWait(**settings(upstream, REDIS_URL=own_valkey.url(), DRAIN_SECONDS=10)) as chatwait,
        ThreadPoolExecutor(1) as pool,
    ):
        wait_ready(chatwait)
        own_valkey.freeze()
        asking = pool.submit(post, f"{chatwait.base_url}/chat/wait", body)
        chatwait.wait_for_log("request_received", method="POST")
        time.sleep(0.1)  # the question has reached the Valkey that does not answer
        chatwait.signal(signal.SIGTERM)
        chatwait.wait_for_log("drain_started")
        time.sleep(0.6)  # a process that does not wait for it would have ended by now
        own_valkey.thaw()
        told = asking.result()
        assert (told.status, told.json["content"]) == (200, "a")
        assert chatwait.wait_exit(15.0) == 0


def test_valkey_that_wants_a_password_gets_the_urls_and_no_line_shows_one(
    upstream: ScriptedUpstream, own_valkey: Valkey
) -> None:
    right, wrong = "canary-password-of-valkey", "canary-password-that-is-wrong"
    own_valkey.client().config_set("requirepass", right)
    for user, says in ((f":{wrong}@", "invalid username-password"), ("", "required")):
        url = own_valkey.url().replace("//", f"//{user}")
        with ChatWait(**settings(upstream, REDIS_URL=url, LOG_LEVEL="DEBUG")) as chatwait:
            assert says in chatwait.wait_for_log("store_away")["cause"]
            assert not is_ready(chatwait)
        assert not [line for line in chatwait.lines + chatwait.stderr_lines if "canary" in line]
    url = own_valkey.url().replace("//", f"//default:{right}@")
    with ChatWait(**settings(upstream, REDIS_URL=url, LOG_LEVEL="DEBUG")) as chatwait:
        wait_ready(chatwait)
        body = about(upstream, Script(steps=[Token("a"), Finish(), Done()]))
        assert post(f"{chatwait.base_url}/chat/wait", body).json["content"] == "a"
        own_valkey.kill()
        chatwait.wait_for_log("store_away")
    assert not [line for line in chatwait.lines + chatwait.stderr_lines if "canary" in line]


@pytest.mark.parametrize("how", ["killed and restarted empty", "silent", "cut off"])
def test_stream_goes_on_while_valkey_is_away_for_longer_than_a_lease(
    upstream: ScriptedUpstream, cluster: Cluster, how: str
) -> None:
    go_on_while_away(upstream, cluster, how, away=SHORT_LEASE_SECONDS + 0.5, all_in_all=6)


@pytest.mark.long
def test_stream_goes_on_while_valkey_is_away_for_five_seconds(upstream: ScriptedUpstream) -> None:
    """The leases are the real ones."""
    with clustered(upstream) as cluster:
        wait_ready(cluster.one, cluster.other)
        go_on_while_away(upstream, cluster, "killed and restarted empty", away=5, all_in_all=9)


def go_on_while_away(upstream: ScriptedUpstream, cluster: Cluster, how: str, *, away: float, all_in_all: float) -> None:
    """Take Valkey away from an answer that takes so long in all. Units: seconds."""
    body, texts = paced(upstream, all_in_all)
    one, other = cluster.one, cluster.other
    with ThreadPoolExecutor(4) as pool:
        stream_id = begin(one.base_url, body)
        own = [pool.submit(read_at, [one.base_url], stream_id, timeout=30.0) for _ in range(2)]
        elsewhere = pool.submit(read_at, [other.base_url], stream_id, timeout=30.0)
        wait_asked(upstream, body).wait_tokens(20)
        match how:
            case "killed and restarted empty":
                cluster.valkey.kill()
            case "silent":
                cluster.valkey.freeze()
            case _:
                cluster.cut_off()
        one.wait_for_log("store_away")
        time.sleep(away)  # how long it is away is the case
        refused = post(f"{one.base_url}/chat/wait", {"message": "Hi"})
        assert (refused.status, refused.json["error_code"]) == (503, "store_unavailable")
        assert not is_ready(one)
        match how:
            case "killed and restarted empty":
                cluster.valkey.start()
            case "silent":
                cluster.valkey.thaw()
            case _:
                cluster.connect()
        wait_ready(one, other)
        late = pool.submit(read_at, [other.base_url], stream_id, timeout=30.0)
        for reading in own:
            answer = reading.result()
            assert_done(answer, texts)
            assert [event for event, _ in answer.resumability] == ["unresumable", "resumable"]
            assert answer.connections == 1, "its reader was not disturbed"
            _assert_no_pause(answer)
        for reading in (elsewhere, late):
            assert_done(reading.result(), texts)
            assert reading.result().resumability == []
        assert_done(read_answer(f"{other.base_url}/chat/streaming/{stream_id}"), texts)


def _assert_no_pause(answer: Answer) -> None:
    """A second after Valkey is away its readers go on; a ping comes only after one without a word."""
    pings = [event for event in answer.events if event.event == "ping"]
    assert len(pings) <= 3, "it stood still"


def test_answer_that_ends_while_valkey_is_away_is_stored_when_it_is_back(
    upstream: ScriptedUpstream, cluster: Cluster
) -> None:
    one, other = cluster.one, cluster.other
    body = about(upstream, Script(steps=[Token("a"), Gate("end"), Token("b"), Finish(), Done()]))
    with ThreadPoolExecutor(1) as pool:
        stream_id = begin(one.base_url, body)
        reading = pool.submit(read_at, [one.base_url], stream_id)
        wait_asked(upstream, body).wait_tokens(1)
        cluster.cut_off()
        upstream.open("end")
        answer = reading.result()
        assert_done(answer, ["a", "b"])
        assert answer.resumability[0][0] == "unresumable"
        cluster.connect()
        wait_ready(one, other)
        poll(
            lambda: get(f"{other.base_url}/chat/wait/{stream_id}", headers={"Prefer": "wait=0"}).status == 200,
            seconds=10,
            what="its end is stored",
        )
        assert_done(read_answer(f"{other.base_url}/chat/streaming/{stream_id}"), ["a", "b"])


def test_valkey_that_is_slow_by_200_ms_makes_everything_that_late_and_nothing_wrong(
    upstream: ScriptedUpstream, cluster: Cluster
) -> None:
    one, other = cluster.one, cluster.other
    for way in cluster.ways:
        way.default = Late(0.2)
    cluster.connect_anew()
    said = len(one.log_of("store_away"))
    with ThreadPoolExecutor(12) as pool:
        asked = [paced(upstream, 3) for _ in range(4)]
        reading: list[tuple[Future[Answer], list[str]]] = []
        for body, texts in asked:
            stream_id = begin(one.base_url, body)
            reading += [(pool.submit(read_at, [service.base_url], stream_id), texts) for service in (one, other, other)]
        for future, texts in reading:
            assert_done(future.result(), texts)
            assert future.result().resumability == []
    assert is_ready(one)
    assert len(one.log_of("store_away")) == said
    for way in cluster.ways:
        way.default = Pass()
    cluster.connect_anew()


@pytest.mark.parametrize(
    "setting", [{"maxmemory": "1"}, {"min_replicas_to_write": "1"}], ids=["out of memory", "takes no writes"]
)
def test_valkey_that_refuses_writes_lets_readers_go_on_and_is_completed_afterwards(
    upstream: ScriptedUpstream, cluster: Cluster, setting: dict[str, str]
) -> None:
    body, texts = paced(upstream, 4)
    one, other = cluster.one, cluster.other
    with ThreadPoolExecutor(2) as pool:
        stream_id = begin(one.base_url, body)
        reading = pool.submit(read_at, [one.base_url], stream_id)
        elsewhere = pool.submit(read_at, [other.base_url], stream_id)
        wait_asked(upstream, body).wait_tokens(20)
        with cluster.valkey.configured(**setting):
            poll(lambda: not is_ready(one), seconds=5, what="it says so")
            refused = post(f"{one.base_url}/chat/wait", {"message": "Hi"})
            assert (refused.status, refused.json["error_code"]) == (503, "store_unavailable")
            said = len(one.log_of("chunks_sent"))
            poll(lambda: len(one.log_of("chunks_sent")) > said + 1, seconds=10, what="its readers go on")
        assert_done(reading.result(), texts)
        assert [event for event, _ in reading.result().resumability] == ["unresumable", "resumable"]
        assert_done(elsewhere.result(), texts)
        assert one.log_of("store_away")[-1]["cause"].startswith("refused: ")


def test_failover_to_a_replica_goes_on_where_it_was(upstream: ScriptedUpstream, own_valkey: Valkey) -> None:
    """The name leads to another server from one moment to the next; the old one refuses writes."""
    body, texts = paced(upstream, 6)
    with Valkey(replica_of=own_valkey) as replica:
        poll(lambda: replica.client().info("replication")["master_link_status"] == "up", seconds=10, what="it follows")
        with (
            ChaosProxy("127.0.0.1", own_valkey.port) as way,
            services(upstream, own_valkey.url(port=way.port)) as (one, other),
            ThreadPoolExecutor(2) as pool,
        ):
            stream_id = begin(one.base_url, body)
            reading = pool.submit(read_at, [one.base_url], stream_id)
            elsewhere = pool.submit(read_at, [other.base_url], stream_id)
            wait_asked(upstream, body).wait_tokens(30)
            way.lead_to(replica.port)
            own_valkey.client().execute_command("REPLICAOF", "127.0.0.1", str(replica.port))
            replica.client().execute_command("REPLICAOF", "NO", "ONE")
            way.cut_all()
            for future in (reading, elsewhere):
                assert_done(future.result(), texts)
            assert_done(read_answer(f"{other.base_url}/chat/streaming/{stream_id}"), texts)
            assert replica.client().exists(f"{{chatwait}}:{stream_id}:log")


def test_host_that_is_cut_off_alone_is_taken_for_dead_and_its_own_readers_get_the_whole(
    upstream: ScriptedUpstream, cluster: Cluster
) -> None:
    """Only one of the two cannot reach Valkey, for longer than its lease: it cannot be told from a dead one."""
    body, texts = paced(upstream, 6)
    alone, other, way = cluster.one, cluster.other, cluster.ways[0]
    with ThreadPoolExecutor(2) as pool:
        stream_id = begin(alone.base_url, body)
        own = pool.submit(read_at, [alone.base_url], stream_id)
        elsewhere = pool.submit(read_at, [other.base_url], stream_id, timeout=30.0)
        wait_asked(upstream, body).wait_tokens(20)
        way.refuse()
        way.cut_all()
        lost = elsewhere.result()
        assert lost.terminal is not None
        assert lost.terminal.json["error"]["error_code"] == "producer_lost"
        assert "".join(texts).startswith(lost.text)
        assert lost.tokens >= 10
        way.accept()
        assert_done(own.result(), texts)
        assert [event for event, _ in own.result().resumability] == ["unresumable"], "and never `resumable`"
        alone.wait_for_log("stream_cut_off", stream=log_name(stream_id))
        again = read_answer(f"{other.base_url}/chat/streaming/{stream_id}")
        assert again.terminal is not None
        assert (again.terminal.event, again.text) == ("failed", lost.text)


def test_services_that_lost_valkey_together_do_not_take_each_other_for_dead(
    upstream: ScriptedUpstream, cluster: Cluster
) -> None:
    """Every lease has lapsed when it is back; each waits one before it judges the others."""
    body, texts = paced(upstream, 6)
    with ThreadPoolExecutor(2) as pool:
        stream_id = begin(cluster.one.base_url, body)
        reading = [
            pool.submit(read_at, [service.base_url], stream_id, timeout=30.0)
            for service in (cluster.one, cluster.other)
        ]
        wait_asked(upstream, body).wait_tokens(10)
        cluster.valkey.freeze()
        time.sleep(SHORT_LEASE_SECONDS + 1)  # every lease lapses
        cluster.valkey.thaw()
        for future in reading:
            assert_done(future.result(), texts)


def test_connections_to_valkey_are_two_for_one_reader_and_for_many(
    upstream: ScriptedUpstream, cluster: Cluster
) -> None:
    one, other = cluster.one, cluster.other
    with ThreadPoolExecutor(60) as pool:
        counts = []
        for readers in (1, 60):
            gate = f"{readers} readers"
            asked = [about(upstream, Script(steps=[Token("a"), Gate(gate), Finish(), Done()])) for _ in range(readers)]
            streams = [begin(one.base_url, body) for body in asked]
            before = len(other.log_of("reader_attached"))
            reading = [pool.submit(read_at, [other.base_url], stream_id) for stream_id in streams]
            upstream.wait_reached(gate, count=readers, timeout=20)
            poll(
                lambda all_of_them=before + readers: len(other.log_of("reader_attached")) >= all_of_them,
                seconds=20,
                what="all of them",
            )
            counts.append(len(cluster.valkey.connections()))
            upstream.open(gate)
            for future in reading:
                assert future.result().text == "a"
    assert counts == [4, 4]
