"""The committer writes for many logs at once: what goes together, what becomes of faults, what it says of Valkey."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app import errors
from app.streams.interface import new_stream_id
from app.streams.shared import committer as room
from app.streams.shared.commands import Commands
from app.streams.shared.committer import Commit, Committer
from app.streams.shared.connection import Connection
from app.streams.shared.records import Damaged, Stream
from app.streams.shared.replies import Behind, Done, Missing, Written
from tests.harness.chaos import BlackholeAfter, ChaosProxy, CutAfter, Pass
from tests.harness.valkey import Database, Valkey
from tests.unit.conftest import Events
from tests.unit.shared import ORIGIN, PATIENCE_SECONDS, Worker, wait_until, workers

COMMANDS = Commands(tag="test", worker="me", live_seconds=60.0, kept_seconds=60.0)
LONG = 30.0


class Writing:
    """A log with parts that are given one after the other, and what became of each."""

    def __init__(self, *parts: tuple[str, ...], ends: bool = False, is_awaited: bool = False) -> None:
        self.is_awaited = is_awaited
        self.stream = Stream(new_stream_id(), ORIGIN, None, "me", 1)
        self.parts = list(parts)
        self.given: list[Commit] = []
        self.ends = ends
        self.replies: list[Any] = []
        self.lost = 0
        self.refused = 0
        self._head = 0

    def commit(self) -> Commit | None:
        if not self.parts:
            return None
        records = [record.encode() for record in self.parts.pop(0)]
        commit = Commit(COMMANDS.keys(self.stream.stream_id), 1, self._head + 1, records)
        if self._head == 0:
            commit.restore = COMMANDS.restore(self.stream)
        self._head += len(records)
        if self.ends and not self.parts:
            commit.finish = COMMANDS.finish(self.stream, self._head, b"the end", "done", frees_key=False)
        self.given.append(commit)
        return commit

    def committed(self, reply: Any) -> None:
        self.replies.append(reply)

    def finished(self, reply: Any) -> None:
        self.replies.append(reply)

    def not_committed(self) -> None:
        self.lost += 1
        self.parts = [tuple(record.decode() for commit in self.given for record in commit.records)]
        self._head = 0
        self.given = []

    def not_committable(self) -> None:
        self.refused += 1


class Batches:
    """Stand before a connection: write down each batch, and hold them while the test likes."""

    def __init__(self, connection: Connection) -> None:
        self.sent: list[list[Any]] = []
        self.goes = threading.Event()
        self.goes.set()
        self.holds = 0
        self._ask = connection.ask
        connection.ask = self.ask  # type: ignore[method-assign]

    def ask(self, commands: Any, **more: Any) -> list[Any]:
        self.sent.append(list(commands))
        self.holds += 1
        self.goes.wait()
        self.holds -= 1
        return self._ask(commands, **more)

    def streams(self) -> list[int]:
        """Tell for each command that commits how many streams it is for, batch by batch."""
        script = room.script(room.scripts.COMMIT, [])[1]
        return [
            command[2] // 2
            for batch in self.sent
            for command in batch
            if command[0] == "EVALSHA" and command[1] == script
        ]


class Running:
    """A committer, and what stands around it."""

    def __init__(self, url: str, **options: Any) -> None:
        self.backs = 0
        self.connection = Connection(url, name="committing", timeout_seconds=options.pop("timeout_seconds", 5.0))
        self.batches = Batches(self.connection)
        self.committer = Committer(self.connection, live_ms=60_000, back=self._back)

    def _back(self) -> None:
        self.backs += 1

    def start(self) -> Running:
        self.committer.start()
        return self

    def changed(self, *logs: Any) -> None:
        for log in logs:
            self.committer.changed(log)

    def hold(self) -> None:
        """Have a batch on its way for as long as the test likes."""
        self.batches.goes.clear()
        self.committer.post([("PING",)], lambda _: None)
        wait_until(lambda: self.batches.holds == 1, "a batch is on its way")

    def end(self) -> None:
        self.batches.goes.set()
        self.committer.stop()
        self.committer.join()


@pytest.fixture
def make() -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def run(url: str, **options: Any) -> Running:
        made.append(Running(url, **options).start())
        return made[-1]

    yield run
    for running in made:
        running.end()


@pytest.fixture
def running(make: Callable[..., Running], valkey_database: Database) -> Running:
    running = make(valkey_database.url)
    running.committer.ask(("PING",))
    running.batches.sent.clear()
    return running


def entries(database: Database, log: Writing) -> list[bytes]:
    return [
        value
        for _, fields in database.client.xrange(COMMANDS.keys(log.stream.stream_id)[1])
        for value in fields.values()
    ]


# What goes together


def test_what_is_changed_while_a_batch_is_on_its_way_goes_into_the_next_one(
    running: Running, valkey_database: Database
) -> None:
    logs = [Writing((f"{number}", "é")) for number in range(20)]
    running.hold()
    running.changed(*logs, *logs)
    running.batches.goes.set()
    wait_until(lambda: all(log.replies for log in logs), "all are told")
    assert [log.replies for log in logs] == [[Written(2, False)]] * 20
    assert running.batches.streams() == [20]
    assert [entries(valkey_database, log) for log in logs] == [[b"%d" % number, "é".encode()] for number in range(20)]


class Rests(threading.Event):
    """Write down how long the committer rests at most, until it is told to hurry."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.hurried: list[bool] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.hurried.append(self.is_set())
        self.seconds.append(timeout)
        return super().wait(timeout)


@pytest.fixture
def rests(running: Running, monkeypatch: pytest.MonkeyPatch) -> Rests:
    """Have the committer rest without end, unless somebody waits for it."""
    rests = running.committer._hurry = Rests()
    monkeypatch.setattr(room, "SPACING_SECONDS", 1000.0)
    return rests


def test_batch_rests_behind_records_and_not_behind_questions(running: Running, rests: Rests) -> None:
    for _ in range(3):
        running.committer.ask(("PING",))
    assert rests.seconds == []
    first, *logs = [Writing(("a",)) for _ in range(6)]
    running.changed(first)
    wait_until(lambda: rests.seconds, "it rests")
    assert 900.0 < rests.seconds[0] <= 1000.0, "from the beginning of the batch"
    running.changed(*logs)
    heard: list[Any] = []
    running.committer.post([("ECHO", "a")], heard.append)
    assert heard == []
    assert all(not log.replies for log in logs)
    rests.set()
    wait_until(lambda: all(log.replies for log in logs) and heard, "all are told")
    assert running.batches.streams() == [1, 5]


@pytest.mark.parametrize("what", ["question", "record"])
def test_batch_that_somebody_waits_for_goes_at_once_with_all_that_has_gathered(
    running: Running, rests: Rests, what: str
) -> None:
    for number in range(1, 4):
        running.changed(Writing(("a",)))
        wait_until(lambda number=number: len(rests.seconds) == 2 * number - 1, "it rests")
        gathered = Writing(("b",))
        running.changed(gathered)
        assert not gathered.replies
        if what == "question":
            assert running.committer.ask(("ECHO", "c")) == [b"c"]
        else:
            awaited = Writing(("c",), is_awaited=True)
            running.changed(awaited)
            wait_until(lambda awaited=awaited: awaited.replies, "it is told")
        assert gathered.replies == [Written(1, False)]
        wait_until(lambda number=number: len(rests.seconds) == 2 * number, "it rests again")
        rests.set()
    assert running.batches.streams() == [1, 1 if what == "question" else 2] * 3
    assert rests.hurried == [False] * 6, "a hurry that is over hurries nothing more"


def test_committer_that_rests_is_stopped_at_once(running: Running, rests: Rests) -> None:
    running.changed(Writing(("a",)))
    wait_until(lambda: rests.seconds, "it rests")
    running.committer.stop()
    wait_until(lambda: not running.committer._thread.is_alive(), "it has ended")


def test_questions_ride_along_behind_what_is_written_and_get_their_own_answers(
    running: Running, valkey_database: Database
) -> None:
    log = Writing(("a", "b"), ends=True)
    key = COMMANDS.keys(log.stream.stream_id)[1]
    heard: list[Any] = []
    running.hold()
    running.changed(log)
    running.committer.post([("XLEN", key), ("ECHO", "posted")], heard.append)
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(running.committer.ask, ("ECHO", f"{n}"), ("XLEN", key)) for n in range(2)]
        wait_until(lambda: len(running.committer._calls) == 3, "they are asked")
        running.batches.goes.set()
        assert [question.result(PATIENCE_SECONDS) for question in asked] == [[b"0", 3], [b"1", 3]]
    assert heard == [[3, b"posted"]]
    assert log.replies == [Written(2, False), Done(0)]
    (batch,) = running.batches.sent[1:]
    assert [command[0] for command in batch[:3]] == ["EVALSHA"] * 3, "the beginning, the records, the end"
    assert len(batch) == 3 + 2 + 4


def test_stream_count_of_one_command_is_bounded(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST_STREAMS", 3)
    logs = [Writing(tuple("x" * (number + 1))) for number in range(7)]
    running.hold()
    running.changed(*logs)
    running.batches.goes.set()
    wait_until(lambda: all(log.replies for log in logs), "all are told")
    assert running.batches.streams() == [3, 3, 1]
    assert len(running.batches.sent) == 2, "in one batch"
    assert [log.replies for log in logs] == [[Written(number + 1, False)] for number in range(7)], "each its own"


def test_size_of_one_batch_is_bounded_and_the_rest_goes_into_the_next(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LARGEST_BATCH_BYTES", 100)
    logs = [Writing(("x" * 60,)) for _ in range(5)]
    running.hold()
    running.changed(*logs)
    running.batches.goes.set()
    wait_until(lambda: all(log.replies for log in logs), "all are told")
    assert running.batches.streams() == [2, 2, 1]
    assert [len(log.given) for log in logs] == [1] * 5, "who has to wait is not asked before"


def test_log_with_nothing_to_write_is_not_in_the_batch(running: Running) -> None:
    nothing, something = Writing(), Writing(("a",))
    running.changed(nothing, something)
    wait_until(lambda: something.replies, "it is told")
    assert (nothing.replies, running.batches.streams()) == ([], [1])


# Faults of one log


class Failing(Writing):
    """Fails where it is told to."""

    def __init__(self, where: str, *parts: tuple[str, ...], ends: bool = False) -> None:
        super().__init__(*parts, ends=ends)
        self.where = where

    def commit(self) -> Commit | None:
        if self.where == "commit":
            raise IndexError
        return super().commit()

    def committed(self, reply: Any) -> None:
        if self.where == "committed":
            raise IndexError
        super().committed(reply)

    def finished(self, reply: Any) -> None:
        if self.where == "finished":
            raise IndexError
        super().finished(reply)


@pytest.mark.parametrize("where", ["commit", "committed", "finished"])
def test_log_that_fails_harms_no_other(running: Running, where: str) -> None:
    before, failing, after = Writing(("a",), ends=True), Failing(where, ("b",), ends=True), Writing(("c",), ends=True)
    running.hold()
    running.changed(before, failing, after)
    running.batches.goes.set()
    wait_until(lambda: failing.refused, "it is told")
    wait_until(lambda: len(after.replies) == len(before.replies) == 2, "so are the others")
    assert before.replies == after.replies == [Written(1, False), Done(0)]
    assert (failing.refused, failing.lost) == (1, 0)
    assert running.committer.ask(("ECHO", "still")) == [b"still"]
    assert running.committer.is_answered


def test_listener_that_fails_harms_no_other(running: Running) -> None:
    heard: list[Any] = []

    def fail(_: list[Any]) -> None:
        raise IndexError

    running.hold()
    running.committer.post([("ECHO", "a")], fail)
    running.committer.post([("ECHO", "b")], heard.append)
    running.batches.goes.set()
    assert running.committer.ask(("ECHO", "c")) == [b"c"]
    assert heard == [[b"b"]]


def test_damaged_stream_is_told_to_its_log_alone(running: Running, valkey_database: Database) -> None:
    lost, well = Writing(("a",), ("b",)), Writing(("a",), ("b",))
    running.changed(lost, well)
    wait_until(lambda: lost.replies and well.replies, "the first part")
    valkey_database.client.delete(COMMANDS.keys(lost.stream.stream_id)[0])
    running.changed(lost, well)
    wait_until(lambda: len(lost.replies) == len(well.replies) == 2, "the second part")
    assert (lost.replies[1], well.replies[1]) == (Missing(), Written(2, False))


def test_records_that_do_not_join_are_told_so(running: Running) -> None:
    log = Writing(("a",), ("b",))
    running.changed(log)
    wait_until(lambda: log.replies, "the first part")
    log._head = 7
    running.changed(log)
    wait_until(lambda: len(log.replies) == 2, "the second part")
    assert log.replies[1] == Behind(1)


# Faults of Valkey


@pytest.mark.parametrize("answers", [True, False], ids=["cut", "silent"])
def test_batch_whose_answer_is_lost_is_sent_again(
    own_valkey: Valkey, make: Callable[..., Running], answers: bool
) -> None:
    """Its callers are told at once, and nobody else hears its answers."""
    with ChaosProxy("127.0.0.1", own_valkey.port, default=Pass()) as proxy:
        running = make(own_valkey.url(port=proxy.port), timeout_seconds=0.5)
        running.committer.ask(("PING",))
        log, heard = Writing(("a", "b")), []
        running.hold()
        proxy.plan(CutAfter(0) if answers else BlackholeAfter(0), Pass())
        proxy.cut_all()
        running.changed(log)
        running.committer.post([("ECHO", "posted")], heard.append)
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(running.committer.ask, ("ECHO", "asked"))
            wait_until(lambda: len(running.committer._calls) == 2, "they are asked")
            running.batches.goes.set()
            with pytest.raises(errors.StoreUnavailable):
                asked.result(PATIENCE_SECONDS)
        wait_until(lambda: log.replies, "it is told")
        assert (log.lost >= 1, log.replies[-1], heard) == (True, Written(2, False), [])
        assert own_valkey.client().xlen(COMMANDS.keys(log.stream.stream_id)[1]) == 2
        running.end()


@pytest.mark.parametrize("answers", [True, False], ids=["cut", "silent"])
def test_records_whose_answer_is_lost_are_written_once(own_valkey: Valkey, answers: bool) -> None:
    """They have arrived, and are sent again."""
    lost = CutAfter(0) if answers else BlackholeAfter(0)
    with (
        ChaosProxy("127.0.0.1", own_valkey.port, default=Pass()) as proxy,
        workers(own_valkey.url(port=proxy.port), 1) as (one,),
    ):
        log = one.begin()
        log.append("a", "b")
        wait_until(lambda: log.head == 2, "the records")
        for number in range(3):
            proxy.plan(lost, Pass())
            proxy.cut_all()
            log.append("c", "d")
            wait_until(lambda number=number: log.stored == 4 + 2 * number, "they are stored", 30.0)
        wait_until(lambda: log.head == 8 and not log.is_unresumable, "all of them", 30.0)
        told = own_valkey.client().xrange(one.store._commands.keys(log.stream_id)[1])
        assert [entry_id for entry_id, _ in told] == [f"{number}-0".encode() for number in range(1, 9)]
        assert b"".join(fields[b"t"] for _, fields in told) == b"abcdcdcd"


def test_batch_that_is_refused_is_sent_again_until_it_is_taken(
    own_valkey: Valkey, make: Callable[..., Running], events: Events
) -> None:
    running = make(own_valkey.url())
    running.committer.ask(("PING",))
    assert (running.backs, running.committer.back_at) == (1, None)
    contact = running.committer.contact_since
    log = Writing(("a", "b"))
    with own_valkey.configured(maxmemory="1"):
        running.changed(log)
        wait_until(lambda: log.lost >= 3, "it is refused, and tries again")
        assert log.replies == []
        assert not running.committer.is_answered
        assert running.committer.contact_since is None
        assert [event["cause"] for event in events.of("store_away")] == ["refused: OOM"], "said once"
        assert events.of("store_back") == []
    wait_until(lambda: log.replies, "it is taken")
    assert log.replies == [Written(2, False)]
    wait_until(lambda: running.backs == 2, "it says so")
    assert running.committer.is_answered
    assert len(events.of("store_back")) == 1
    assert running.committer.back_at is not None
    assert running.committer.contact_since is not None
    assert running.committer.contact_since > (contact or 0.0)


def test_valkey_that_is_a_primary_no_more_is_looked_for_anew(own_valkey: Valkey, make: Callable[..., Running]) -> None:
    """The name may lead to another one now."""
    running = make(own_valkey.url())
    running.committer.ask(("PING",))
    (first,) = own_valkey.connections("committing")
    log = Writing(("a",), ("b",))
    running.changed(log)
    wait_until(lambda: log.replies, "the first part")
    own_valkey.client().execute_command("REPLICAOF", "127.0.0.1", "1")
    running.changed(log)
    wait_until(lambda: log.lost >= 2, "it is refused, and tries again")
    assert running.committer._said == "refused: READONLY"
    wait_until(
        lambda: (now := own_valkey.connections("committing")) and now[0]["id"] != first["id"], "another connection"
    )
    own_valkey.client().execute_command("REPLICAOF", "NO", "ONE")
    wait_until(lambda: len(log.replies) == 2, "it is taken")
    assert log.replies[1] == Written(2, False)


def test_worker_without_work_notices_that_its_valkey_takes_no_writes_any_more(own_valkey: Valkey) -> None:
    """A primary that became a replica keeps its connections; only writes are refused."""
    with (
        Valkey(replica_of=own_valkey) as replica,
        ChaosProxy("127.0.0.1", own_valkey.port) as proxy,
        workers(own_valkey.url(port=proxy.port), 1) as (one,),
    ):
        wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up", "it follows")
        proxy.lead_to(replica.port)
        replica.client().execute_command("REPLICAOF", "NO", "ONE")
        own_valkey.client().execute_command("REPLICAOF", "127.0.0.1", str(replica.port))
        name = f"chatwait-{one.store.worker}"
        wait_until(
            lambda: any(client["name"] == name for client in replica.connections(name)), "it has found the new one"
        )
        wait_until(one.store.ready, "it answers")
        log = one.begin()
        assert log.append("a")
        wait_until(lambda: log.head == 1, "the record")


def test_valkey_that_forgot_the_scripts_is_given_them_again(valkey_database: Database) -> None:
    with workers(valkey_database.url, 1) as (one,):
        log = one.begin()
        valkey_database.client.script_flush()
        log.append("a")
        wait_until(lambda: log.head == 1, "the record")
        assert not log.is_unresumable
        valkey_database.client.script_flush()
        wait_until(lambda: creates(one), "a new one")


def creates(worker: Worker) -> bool:
    try:
        worker.begin()
    except errors.StoreUnavailable:
        return False
    return True


# What it says of Valkey


def test_valkey_is_late_from_when_it_was_asked(running: Running) -> None:
    committer, now = running.committer, time.monotonic
    assert committer.is_answered
    assert not committer.is_late(now() + 1000.0), "nothing is asked"
    running.hold()
    assert not committer.is_late(committer._asked_at + room.AWAY_SECONDS)
    assert committer.is_late(committer._asked_at + room.AWAY_SECONDS + 0.001)
    running.batches.goes.set()
    assert committer.ask(("ECHO", "a")) == [b"a"]
    assert not committer.is_late(now() + 1000.0)


def test_valkey_that_was_never_there_is_late_and_asked_nothing(valkey_database: Database) -> None:
    made = Running(valkey_database.url)
    began = made.committer._failing_since
    assert (began is not None, made.committer.contact_since, made.committer.back_at) == (True, None, None)
    assert not made.committer.is_answered
    assert not made.committer.has_long_answered(0.0)
    assert not made.committer.is_late(began + room.AWAY_SECONDS)
    assert made.committer.is_late(began + room.AWAY_SECONDS + 0.001)
    made.committer._failing_since = began - 2 * room.AWAY_SECONDS
    with pytest.raises(errors.StoreUnavailable):
        made.committer.ask(("PING",))
    assert made.committer._calls == [], "it is refused at once"


def test_valkey_that_answers_late_was_away(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nothing was refused or cut: what happened meanwhile, nobody here knows."""
    contact = running.committer.contact_since
    assert contact is not None
    assert running.committer.has_long_answered(time.monotonic() - contact)
    assert not running.committer.has_long_answered(time.monotonic() - contact + 1000.0)
    monkeypatch.setattr(room, "AWAY_SECONDS", -1.0)  # any answer is a late one
    running.committer.post([("PING",)], lambda _: None)
    wait_until(lambda: running.committer.back_at is not None, "it is noted")
    assert running.committer.contact_since > contact


def test_asker_waits_no_longer_than_it_may_and_its_answer_is_nobody_elses(
    own_valkey: Valkey, make: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ASK_SECONDS", 0.3)
    running = make(own_valkey.url(), timeout_seconds=20.0)
    committer = running.committer
    assert committer.ask(("ECHO", "first")) == [b"first"]
    own_valkey.freeze()
    try:
        with ThreadPoolExecutor(1) as threads:
            late = threads.submit(committer.ask, ("ECHO", "one's"))
            with pytest.raises(errors.StoreUnavailable):
                late.result(20)
    finally:
        own_valkey.thaw()
    wait_until(lambda: committer.is_answered and committer._asked_at is None, "it answers")
    assert committer.ask(("ECHO", "another's")) == [b"another's"]


def test_questions_asked_at_once_get_their_own_answers_though_the_connection_is_killed_again_and_again(
    valkey_database: Database, make: Callable[..., Running]
) -> None:
    committer = make(valkey_database.url).committer
    stop = threading.Event()
    wrong: list[object] = []
    counts = {"answered": 0, "refused": 0}

    def ask(asker: int) -> None:
        """Ask forty times. The first asker goes on until a question was lost, so that some are on any machine."""
        for number in itertools.count():
            if number >= 40 and (asker or counts["refused"]):
                break
            mine = [f"{asker} {number} {place}".encode() for place in range(asker % 3 + 1)]
            try:
                answers = committer.ask(*(("ECHO", text) for text in mine))
            except errors.StoreUnavailable:
                counts["refused"] += 1
                continue
            counts["answered"] += 1
            if answers != mine:
                wrong.append((mine, answers))

    def kill() -> None:
        while not stop.wait(0.02):
            for client in valkey_database.valkey.connections("committing"):
                valkey_database.client.client_kill_filter(_id=client["id"])

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with ThreadPoolExecutor(24) as threads:
            list(threads.map(ask, range(24)))
    finally:
        stop.set()
        killer.join()

    assert wrong == []
    assert counts["answered"] > 100, counts
    assert counts["refused"] > 0, "and some questions were lost on the way"


def test_read_tells_a_key_of_another_kind_from_a_refusal(own_valkey: Valkey, make: Callable[..., Running]) -> None:
    committer = make(own_valkey.url()).committer
    own_valkey.client().set("text", "x")
    assert committer.read(("GET", "text"), ("GET", "none")) == [b"x", None]
    with pytest.raises(Damaged, match="the kind of a key"):
        committer.read(("GET", "text"), ("HGETALL", "text"))
    assert committer.is_answered, "Valkey itself is well"
    with own_valkey.configured(maxmemory="1"), pytest.raises(errors.StoreUnavailable):
        committer.read(("SET", "more", "x"))


def test_committer_that_is_stopped_ends_its_thread_and_its_connection(valkey_database: Database) -> None:
    running = Running(valkey_database.url).start()
    running.connection._connection.client_name = "ending"
    running.committer.ask(("PING",))
    assert valkey_database.valkey.connections("ending")
    running.end()
    assert not running.committer._thread.is_alive()
    wait_until(lambda: not valkey_database.valkey.connections("ending"), "it is let go")
