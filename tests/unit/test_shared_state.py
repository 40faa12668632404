"""Every step of a shared log is an arrow of the drawing in app/streams/shared/state.py, taken by what causes it.

What readers see is looked at before and behind each one. A step that the state of a log does not have changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from app.streams.interface import Binding, End, Totals
from app.streams.readership import Readership
from app.streams.shared import desk as desk_room
from app.streams.shared import owned as owned_room
from app.streams.shared import state as state_room
from app.streams.shared.log import SharedLog
from app.streams.shared.records import write_end
from app.streams.shared.replies import Behind, Done, Fenced, Written
from app.streams.shared.state import (
    ADOPTED,
    ANSWERED,
    ARROWS,
    CAUGHT_UP,
    CUT_OFF,
    DROPPED,
    END_READ,
    END_STORED,
    LATE,
    TAKEN_OVER,
    Arrow,
    State,
    step,
)
from tests.harness.chaos import ChaosProxy
from tests.harness.valkey import Database, Valkey
from tests.harness.valkey_fixtures import EACH_KIND
from tests.unit.drawing import drawn_arrows
from tests.unit.ends import end_with, terminal_of
from tests.unit.shared import ORIGIN, PATIENCE_SECONDS, Step, Worker, steps_taken, wait_until, workers
from tests.unit.standing import StandingDesk, begun, copied, store_all

LONG = 30.0
"""The lease of workers that are not to be taken for dead, though Valkey is away for longer than usual."""


@pytest.fixture(params=EACH_KIND)
def database(request: pytest.FixtureRequest) -> Database:
    """Give each test that does Valkey no harm one of each kind."""
    database: Database = request.getfixturevalue(f"{request.param}_database")
    return database


class Seen(NamedTuple):
    """What readers of a log see."""

    state: State
    head: int
    stored: int
    is_unresumable: bool
    is_foreign: bool
    has_ended: bool


def seen(log: SharedLog) -> Seen:
    assert log.text() == log.records.until(log.head)
    return Seen(log.state, log.head, log.stored, log.is_unresumable, log.is_foreign, log.end is not None)


def of(log: SharedLog, steps: list[Step]) -> list[tuple[State, Arrow, State | None]]:
    return [(taken.before, taken.arrow, taken.after) for taken in list(steps) if taken.log is log]


def stored(worker: Worker, *records: str) -> SharedLog:
    log = worker.begin()
    log.append(*records)
    wait_until(lambda: log.head == log.stored == len(records), "the records")
    return log


# The diagram


def test_drawing_and_arrows_say_the_same() -> None:
    drawn = drawn_arrows(state_room.__doc__ or "", {state.name for state in State}, {arrow.name for arrow in ARROWS})
    assert drawn == {(arrow.name, source.name, arrow.target.name) for arrow in ARROWS for source in arrow.sources}


def test_drawing_without_a_line_or_a_source_says_something_else() -> None:
    """The reader of drawings notices."""
    text = state_room.__doc__ or ""
    states, names = {state.name for state in State}, {arrow.name for arrow in ARROWS}
    whole = drawn_arrows(text, states, names)
    for part, less in (
        ("from STORED, AHEAD, CATCHING_UP", "from STORED, CATCHING_UP ------"),
        ("ENDED -- cut_off", "------- cut_off"),
        ("STORED <----", "STORED -----"),
        ("AHEAD <------+", "AHEAD -------+"),
        ("|  ENDED", "|       "),
    ):
        assert part in text
        assert drawn_arrows(text.replace(part, less), states, names) != whole, part


def test_arrows_are_all_that_the_room_names_and_reach_every_state() -> None:
    assert {getattr(state_room, name) for name in state_room.__all__ if name.isupper() and name != "ARROWS"} == set(
        ARROWS
    )
    assert {arrow.name.upper() for arrow in ARROWS} == {
        name for name, value in vars(state_room).items() if isinstance(value, Arrow)
    }
    assert {arrow.target for arrow in ARROWS} == set(State)


@pytest.mark.parametrize("arrow", ARROWS, ids=lambda arrow: arrow.name)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_step_goes_along_arrows_and_nowhere_else(state: State, arrow: Arrow) -> None:
    if state in arrow.sources:
        assert step(state, arrow) is arrow.target
        return
    with pytest.raises(RuntimeError, match=rf"^{arrow.name} is no step from {state.name}$"):
        step(state, arrow)


def test_states_say_what_readers_here_have() -> None:
    traits = {
        state.name: "".join(
            letter
            for letter, has in zip("auw", (state.shows_ahead, state.is_unresumable, state.is_written), strict=True)
            if has
        )
        for state in State
    }
    assert traits == {
        "STORED": "w",
        "AHEAD": "auw",
        "CATCHING_UP": "uw",
        "CUT_OFF": "au",
        "FOLLOWED": "",
        "ENDED": "w",
        "DROPPED": "",
    }
    assert len({state.meaning for state in State}) == len(State)


# Every state and everything that is asked of a log


def ahead(desk: StandingDesk) -> SharedLog:
    log = begun(desk, "a")
    log.append("b")
    log.show_late()
    return log


def catching_up(desk: StandingDesk) -> SharedLog:
    log = ahead(desk)
    log.show_stored(1)
    return log


def cut_off(desk: StandingDesk) -> SharedLog:
    log = begun(desk, "a")
    log.append("b")
    log.cut_off()
    return log


def ended(desk: StandingDesk) -> SharedLog:
    log = begun(desk, "a")
    log.finish(end_with())
    store_all(log)
    assert log.owned is not None
    log.owned.finished(Done(0))
    return log


def dropped(desk: StandingDesk) -> SharedLog:
    log = begun(desk, "a")
    log.drop()
    return log


MADE: dict[State, Callable[[StandingDesk], SharedLog]] = {
    State.STORED: lambda desk: begun(desk, "a"),
    State.AHEAD: ahead,
    State.CATCHING_UP: catching_up,
    State.CUT_OFF: cut_off,
    State.FOLLOWED: lambda desk: copied("a"),
    State.ENDED: ended,
    State.DROPPED: dropped,
}


def end_of(log: SharedLog) -> End:
    return end_with()(log.records.totals())


def take_end(log: SharedLog) -> None:
    log.take([[b"%d-0" % (log.head + 1), [b"e", write_end(log.origin, end_of(log))]]])


def take_record(log: SharedLog) -> None:
    log.take([[b"%d-0" % (log.head + 1), [b"t", b"more"]]])


ASKED: dict[str, tuple[Callable[[SharedLog], object], dict[State, State]]] = {
    "show_late": (lambda log: log.show_late(), {State.STORED: State.AHEAD, State.CATCHING_UP: State.AHEAD}),
    "show_stored, all": (
        lambda log: log.show_stored(len(log.records)),
        {State.AHEAD: State.STORED, State.CATCHING_UP: State.STORED},
    ),
    "show_stored, a part": (lambda log: log.show_stored(1), {State.AHEAD: State.CATCHING_UP}),
    "cut_off": (
        lambda log: log.cut_off(),
        dict.fromkeys((State.STORED, State.AHEAD, State.CATCHING_UP, State.ENDED), State.CUT_OFF),
    ),
    "hand_over": (
        lambda log: log.hand_over(len(log.records)),
        dict.fromkeys((State.STORED, State.AHEAD, State.CATCHING_UP), State.FOLLOWED),
    ),
    "hand_over, less than was shown": (lambda log: log.hand_over(0), {}),
    "adopt": (lambda log: log.adopt(StandingDesk(), 2, is_lost=False), {State.FOLLOWED: State.STORED}),
    "take, a record": (take_record, {State.FOLLOWED: State.FOLLOWED}),
    "take, the end": (take_end, {State.FOLLOWED: State.ENDED}),
    "end_stored": (
        lambda log: log.end_stored(log.end or end_of(log)),
        dict.fromkeys((State.STORED, State.AHEAD, State.CATCHING_UP), State.ENDED),
    ),
    "drop": (
        lambda log: log.drop(),
        dict.fromkeys((State.STORED, State.AHEAD, State.CATCHING_UP, State.CUT_OFF, State.FOLLOWED), State.DROPPED),
    ),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_log_that_is_asked_for_a_step_takes_it_where_its_state_has_it_and_else_stays_as_it_is(
    state: State, asked: str
) -> None:
    log = MADE[state](StandingDesk())
    before, text, end = seen(log), log.text(), log.end
    assert before.state is state
    ask, targets = ASKED[asked]

    with steps_taken() as steps:
        answer = ask(log)

    assert log.state is targets.get(state, state)
    assert all(taken.after is not None for taken in steps), "nothing is refused: the log looks first"
    if state in targets:
        assert answer in (None, True)
        return
    assert answer in (None, False)
    if asked == "end_stored":
        return  # it is shown whatever the state: Valkey has it
    assert (seen(log), log.text(), log.end) == (before, text, end)


# Each arrow, by what causes it


def test_late_shows_what_is_not_stored_and_answered_and_caught_up_take_that_back(own_valkey: Valkey) -> None:
    with workers(own_valkey.url(), 1, lease_seconds=LONG) as (one,), steps_taken() as steps:
        log = stored(one, "a")
        assert seen(log) == (State.STORED, 1, 1, False, False, False)
        own_valkey.freeze()
        try:
            log.append("b")
            wait_until(lambda: log.state is State.AHEAD, "Valkey is late")
            wait_until(lambda: log.head == 2, "it is shown")
            assert seen(log) == (State.AHEAD, 2, 1, True, False, False)
            log.append("c")
            assert seen(log) == (State.AHEAD, 3, 1, True, False, False)
        finally:
            own_valkey.thaw()
        wait_until(lambda: log.state is State.STORED, "all is stored")
        wait_until(lambda: log.stored == 3, "all is stored")
        assert seen(log) == (State.STORED, 3, 3, False, False, False)
        assert of(log, steps) == [
            (State.STORED, LATE, State.AHEAD),
            (State.AHEAD, ANSWERED, State.CATCHING_UP),
            (State.CATCHING_UP, CAUGHT_UP, State.STORED),
        ]


def test_log_that_catches_up_shows_no_more_until_it_has_and_may_be_late_again() -> None:
    desk = StandingDesk()
    log = begun(desk, "a")
    log.append("b", "c")
    log.show_late()
    assert seen(log) == (State.AHEAD, 3, 1, True, False, False)
    log.owned.committed(Written(2, False))
    assert seen(log) == (State.CATCHING_UP, 3, 2, True, False, False)
    log.append("d")
    assert seen(log) == (State.CATCHING_UP, 3, 2, True, False, False)
    with log.reader(3) as reader:
        told: list[Any] = []
        reader._asleep = True
        reader.deliver = lambda piece: told.append(piece.text) or True  # type: ignore[func-returns-value]
        log.show_late()
        assert seen(log) == (State.AHEAD, 4, 2, True, False, False)
        assert told == ["d"]
    log.owned.committed(Written(4, False))
    assert seen(log) == (State.STORED, 4, 4, False, False, False)


def test_end_that_is_decided_keeps_a_log_from_being_resumable_until_it_is_stored() -> None:
    desk = StandingDesk()
    log = ahead(desk)
    assert log.finish(end_with())
    assert seen(log) == (State.AHEAD, 2, 1, True, False, True), "its readers go on to the end"
    log.owned.commit()
    log.owned.committed(Written(2, False))
    assert seen(log) == (State.CATCHING_UP, 2, 2, True, False, True)
    log.show_late()
    assert log.state is State.CATCHING_UP, "readers have it all"
    log.owned.finished(Done(0))
    assert seen(log) == (State.ENDED, 2, 2, False, False, True)
    assert log.end_read


@pytest.mark.parametrize("source", sorted(END_STORED.sources, key=lambda state: state.name), ids=lambda s: s.name)
def test_end_stored_shows_the_end_whatever_readers_had(source: State) -> None:
    desk = StandingDesk()
    log = MADE[source](desk)
    assert log.finish(end_with())
    assert log.owned.commit() is not None
    log.owned._written = len(log.records)  # another answer has said so
    assert log.state is source
    log.owned.finished(Done(3))
    assert log.state is State.ENDED
    log.show_stored(len(log.records))
    assert (log.state, log.end_read, log.settle(0), log.attached_elsewhere) == (State.ENDED, True, True, 3)
    assert "end_stored" in desk.heard


def test_end_is_stored_and_read_elsewhere(database: Database) -> None:
    with workers(database.url, 2) as (one, two), steps_taken() as steps:
        log = stored(one, "a")
        copy = two.store.find(log.stream_id)
        assert seen(copy) == (State.FOLLOWED, 1, 1, False, True, False)
        assert log.finish(end_with())
        assert copy.settle(PATIENCE_SECONDS)
        assert log.settle(PATIENCE_SECONDS)
        wait_until(lambda: log.state is State.ENDED, "it is stored")
        assert seen(log) == (State.ENDED, 1, 1, False, False, True)
        assert seen(copy) == (State.ENDED, 1, 1, False, True, True)
        assert of(log, steps) == [(State.STORED, END_STORED, State.ENDED)]
        assert of(copy, steps) == [(State.FOLLOWED, END_READ, State.ENDED)]


def test_end_that_comes_while_valkey_is_away_is_stored_behind_what_was_shown(own_valkey: Valkey) -> None:
    with workers(own_valkey.url(), 1, lease_seconds=LONG) as (one,), steps_taken() as steps:
        log = stored(one, "a")
        own_valkey.freeze()
        try:
            log.append("b")
            wait_until(lambda: log.state is State.AHEAD, "Valkey is late")
            assert log.finish(end_with())
            assert log.settle(PATIENCE_SECONDS)
            assert seen(log) == (State.AHEAD, 2, 1, True, False, True)
        finally:
            own_valkey.thaw()
        wait_until(lambda: log.state is State.ENDED, "it is stored")
        assert seen(log) == (State.ENDED, 2, 2, False, False, True)
        assert [arrow for _, arrow, _ in of(log, steps)] == [LATE, ANSWERED, END_STORED]


def test_worker_that_gives_no_sign_of_life_is_taken_over_and_its_log_adopted_and_ended(database: Database) -> None:
    with workers(database.url, 2) as (one, two), steps_taken() as steps:
        log = stored(one, "a")
        copy = two.store.find(log.stream_id)
        one._ticks = False
        database.client.delete(one.store._commands.life_key(one.store.worker))
        assert copy.settle(PATIENCE_SECONDS)
        wait_until(lambda: copy.state is State.ENDED, "it is ended")
        assert seen(copy) == (State.ENDED, 1, 1, False, False, True)
        assert of(copy, steps) == [
            (State.FOLLOWED, ADOPTED, State.STORED),
            (State.STORED, END_STORED, State.ENDED),
        ]
        assert of(log, steps) == [], "it does not know it yet"
        assert log.append("b")
        assert log.settle(PATIENCE_SECONDS)
        assert seen(log) == (State.ENDED, 1, 1, False, True, True)
        assert log.end == copy.end
        assert of(log, steps) == [
            (State.STORED, TAKEN_OVER, State.FOLLOWED),
            (State.FOLLOWED, END_READ, State.ENDED),
        ]


@pytest.mark.parametrize("source", sorted(TAKEN_OVER.sources, key=lambda state: state.name), ids=lambda s: s.name)
def test_taken_over_keeps_what_was_shown_and_takes_the_rest_from_the_other_worker(source: State) -> None:
    desk = StandingDesk()
    log = MADE[source](desk)
    log.append("of ours")
    shown = log.head
    with log.reader(shown) as reader:
        reader._asleep = True
        log.owned.committed(Fenced(shown))
        assert not reader._asleep, "it is woken: the log is resumable again, or another's"
    assert seen(log) == (State.FOLLOWED, shown, shown, False, True, False)
    assert (len(log.records), log.is_followed, log.owned) == (shown, True, None)
    assert desk.heard[-1] == ("taken_over", True)
    assert (log.copy.owner, log.copy.fence) == ("", 0), "whose it is, is looked up"
    assert not log.append("more")
    assert not log.finish(end_with())
    take_record(log)
    take_end(log)
    assert seen(log) == (State.ENDED, shown + 1, shown + 1, False, True, True)


@pytest.mark.parametrize("source", [State.STORED, State.AHEAD, State.CATCHING_UP], ids=lambda s: s.name)
def test_fence_cuts_a_log_off_whose_readers_have_more(source: State) -> None:
    """From STORED, when Valkey has lost some of what it had, and another worker has gone on without it."""
    desk = StandingDesk()
    log = MADE[source](desk)
    shown = log.head
    lines: list[str] = []
    log.owned.committed(Fenced(shown - 1))
    assert seen(log)[:2] == (State.CUT_OFF, shown)
    assert (log.is_unresumable, log.is_foreign) == (True, False)
    assert desk.heard[-1] == ("taken_over", False)
    desk.take()
    assert log.append("more"), "it goes on for those who read it here"
    assert log.head == len(log.records)
    assert log.owned.commit() is None
    assert log.finish(end_with())
    log.book(lines.append)
    assert (terminal_of(log).event, log.state, lines) == ("done", State.CUT_OFF, ["response_cut_off"])
    assert desk.take() == [], "and Valkey is given nothing"


@pytest.mark.parametrize("source", [State.STORED, State.AHEAD, State.CATCHING_UP], ids=lambda s: s.name)
def test_damage_beyond_repair_cuts_a_log_off(source: State) -> None:
    desk = StandingDesk()
    log = MADE[source](desk)
    lines: list[str] = []
    for repairs in range(owned_room.MOST_REPAIRS):
        log.owned.not_committable()
        assert log.state is source
        assert desk.take()[-2:] == [("damaged", "its record"), "changed"], repairs
    log.owned.not_committable()
    assert (log.state, log.head, log.is_unresumable) == (State.CUT_OFF, len(log.records), True)
    assert desk.take() == [("damaged", "its record"), "given_up"]
    assert log.finish(end_with())
    log.book(lines.append)
    assert lines == ["response_complete"], "nobody else ends it"


def test_log_of_whom_valkey_has_lost_some_is_cut_off_when_another_worker_goes_on_without_it(
    database: Database,
) -> None:
    with workers(database.url, 1) as (one,), steps_taken() as steps:
        log = stored(one, "a", "b")
        database.client.hset(one.store._commands.keys(log.stream_id)[0], mapping={"head": 1, "bytes": 1, "fence": 9})
        log.append("c")
        wait_until(lambda: log.state is State.CUT_OFF, "it is cut off")
        wait_until(lambda: log.head == 3, "it goes on for its readers")
        assert seen(log) == (State.CUT_OFF, 3, 2, True, False, False)
        assert of(log, steps) == [(State.STORED, CUT_OFF, State.CUT_OFF)]


def test_log_that_has_ended_is_cut_off_when_valkey_loses_its_end_and_takes_it_from_another_worker(
    database: Database,
) -> None:
    with workers(database.url, 1) as (one,), steps_taken() as steps:
        log = stored(one, "a")
        assert log.finish(end_with())
        assert log.settle(PATIENCE_SECONDS)
        wait_until(lambda: log.state is State.ENDED, "it is stored")
        hash_key, _ = one.store._commands.keys(log.stream_id)
        database.client.hdel(hash_key, "end")
        database.client.hset(hash_key, "fence", 2)
        one.store._look_again()
        wait_until(lambda: log.state is State.CUT_OFF, "it is cut off")
        assert seen(log) == (State.CUT_OFF, 1, 1, True, False, True)
        assert terminal_of(log).event == "done", "its readers have what they were given"
        assert of(log, steps) == [
            (State.STORED, END_STORED, State.ENDED),
            (State.ENDED, CUT_OFF, State.CUT_OFF),
        ]


def test_log_that_was_away_is_cut_off_or_handed_over_by_what_its_readers_have(own_valkey: Valkey) -> None:
    with (
        ChaosProxy("127.0.0.1", own_valkey.port) as proxy,
        workers(own_valkey.url(port=proxy.port), 1) as (one,),
        workers(own_valkey.url(), 1) as (two,),
        steps_taken() as steps,
    ):
        more, no_more = stored(one, "a"), stored(one, "a")
        copies = [two.store.find(log.stream_id) for log in (more, no_more)]
        proxy.refuse()
        proxy.cut_all()
        more.append("b")
        wait_until(lambda: more.state is State.AHEAD and no_more.state is State.AHEAD, "Valkey is away")
        assert seen(no_more) == (State.AHEAD, 1, 1, True, False, False)
        assert all(copy.settle(PATIENCE_SECONDS) for copy in copies)
        proxy.accept()
        wait_until(lambda: more.state is State.CUT_OFF, "it is cut off")
        assert no_more.settle(PATIENCE_SECONDS)
        assert seen(more) == (State.CUT_OFF, 2, 1, True, False, False)
        assert seen(no_more) == (State.ENDED, 1, 1, False, True, True)
        assert no_more.end == copies[1].end
        assert of(no_more, steps)[-2:] == [
            (State.AHEAD, TAKEN_OVER, State.FOLLOWED),
            (State.FOLLOWED, END_READ, State.ENDED),
        ]
        assert of(more, steps)[-1] == (State.AHEAD, CUT_OFF, State.CUT_OFF)


def test_copy_is_dropped_and_its_readers_are_sent_away(database: Database) -> None:
    with workers(database.url, 2) as (one, two), steps_taken() as steps:
        log = stored(one, "a")
        copy = two.store.find(log.stream_id)
        with copy.reader(1) as reader:
            two.store.drop(copy)
            assert reader.is_released
        assert (seen(copy), two.store.used_bytes) == ((State.DROPPED, 1, 1, False, True, False), 0)
        two.store.drop(copy)
        assert of(copy, steps) == [(State.FOLLOWED, DROPPED, State.DROPPED)]
        assert of(log, steps) == []


def test_log_that_was_not_begun_after_all_is_dropped(database: Database) -> None:
    """Another worker has begun one with the same key."""
    key = Binding("k" * 64, "f" * 64)
    with workers(database.url, 2) as (one, two), steps_taken() as steps:
        log, created = one.store.create(ORIGIN, key)
        assert created
        copy, created = two.store.create(ORIGIN, key)
        assert (created, copy.stream_id) == (False, log.stream_id)
        (gone,) = [taken for taken in steps if taken.arrow is DROPPED]
        assert (gone.before, gone.after, gone.log.head) == (State.STORED, State.DROPPED, 0)
        assert gone.log.stream_id != log.stream_id
        assert two.store.live == 0


@pytest.mark.parametrize("source", sorted(DROPPED.sources, key=lambda state: state.name), ids=lambda s: s.name)
def test_log_that_is_dropped_gives_valkey_nothing_more(source: State) -> None:
    desk = StandingDesk()
    log = MADE[source](desk)
    assert log.drop()
    desk.take()
    if log.owned is not None:
        log.owned.changed()
        assert log.owned.commit() is None
        log.owned.committed(Behind(0))
        log.owned.not_committable()
    else:
        take_record(log)
    assert (log.state, desk.take()) == (State.DROPPED, [])
    with log.reader(0) as reader:
        assert reader.is_released


def test_adopted_log_is_written_from_what_its_copy_has() -> None:
    for is_lost in (False, True):
        desk = StandingDesk()
        log = copied("a", "b")
        assert log.adopt(desk, 7, is_lost=is_lost)
        assert seen(log) == (State.STORED, 2, 0 if is_lost else 2, False, False, False)
        assert log.append("c"), "it goes on"
        commit = log.owned.commit()
        assert (commit.fence, commit.first, commit.records) == (
            7,
            1 if is_lost else 3,
            [b"a", b"b", b"c"][0 if is_lost else 2 :],
        )
        assert (commit.restore is not None) is is_lost
        assert log.head == 2, "stored before shown"


def test_end_of_a_copy_of_another_text_takes_no_step() -> None:
    log = copied("a")
    other = end_with()(Totals(1, 1, "0" * 64, "b"))
    with pytest.raises(Exception, match="the text that its end tells of"):
        log.take([[b"2-0", [b"e", write_end(ORIGIN, other)]]])
    assert seen(log) == (State.FOLLOWED, 1, 1, False, True, False)


# Two threads at the same moment


def test_readers_are_told_of_what_is_not_stored_when_valkey_answers_in_that_moment(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread finds that Valkey is late, another takes its answer."""
    with workers(database.url, 1) as (one,):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        one.pause()
        log.append("b")
        monkeypatch.setattr(Readership, "nudge", lambda self: monkeypatch.undo() or log.owned._has_written(1))

        log.show_late()

        assert (log.head, log.stored, log.is_unresumable) == (2, 1, True)
        one.go_on()
        wait_until(lambda: not log.is_unresumable, "it is stored")
        assert log.stored == 2


@pytest.mark.parametrize("ends", [False, True])
def test_log_that_is_given_up_shows_no_more_of_its_own_in_that_moment(
    database: Database, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """One thread hears that it has been taken over, another finds that Valkey is late."""
    with workers(database.url, 2) as (one, two):
        log = one.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        copy = two.store.find(log.stream_id)
        one.pause()
        database.client.delete(one.store._commands.life_key(one.store.worker))
        assert copy.settle(PATIENCE_SECONDS)
        log.append("b")
        if ends:
            log.finish(end_with())
        monkeypatch.setattr(desk_room, "tell", lambda _: log.show_late())

        log.owned._fenced(1)

        assert (log.is_foreign, log.head, log.is_unresumable) == (True, 1, False)
        one.go_on()
        assert log.settle(PATIENCE_SECONDS)
        assert log.end == copy.end


def test_end_that_is_written_while_the_log_changes_hands_is_not_the_logs() -> None:
    """It was another worker's for a moment, and has come back: the end that it got then stands."""
    desk = StandingDesk()
    log = MADE[State.STORED](desk)

    def write(totals: Totals) -> End:
        assert log.hand_over(log.head)
        assert log.adopt(desk, 9, is_lost=False)
        assert log.finish(end_with("failed"))
        return end_with()(totals)

    assert log.finish(write) is False
    assert log.owned.end.status == "failed"
