"""The end of a log is booked once, by the worker whose end it is, under the right name, with all resumes."""

from __future__ import annotations

import threading

import pytest

from app.streams.shared.booking import BOOKED, CUT_OFF_BOOKED, Booking, Unbooked
from app.streams.shared.log import SharedLog
from app.streams.shared.state import State
from tests.harness.chaos import ChaosProxy
from tests.harness.valkey import Database, Valkey
from tests.harness.valkey_fixtures import EACH_KIND
from tests.unit.ends import end_with, terminal_of
from tests.unit.shared import PATIENCE_SECONDS, wait_until, workers

LONG = 30.0
"""The lease of workers that are not to be taken for dead, though Valkey is away for longer than usual."""


@pytest.fixture(params=EACH_KIND)
def database(request: pytest.FixtureRequest) -> Database:
    """Give each test that does Valkey no harm one of each kind."""
    database: Database = request.getfixturevalue(f"{request.param}_database")
    return database


def booked(log: SharedLog) -> list[tuple[str, int]]:
    """Have a log's end booked, and give the list that it is written to: the line's name, and the resumes."""
    lines: list[tuple[str, int]] = []
    log.book(lambda name: lines.append((name, log.resumes)))
    return lines


def test_resumes_are_counted_at_every_worker_when_the_end_is_booked(database: Database) -> None:
    with workers(database.url, 3) as (one, two, three):
        log = one.begin()
        with log.reader(0), log.reader(0):
            pass
        copies = [worker.store.find(log.stream_id) for worker in (two, three)]
        for copy in copies:
            with copy.reader(0), copy.reader(0):
                pass
        for worker in (one, two, three):
            worker.store.flush()
        assert log.finish(end_with())
        lines = booked(log)
        assert log.settle(PATIENCE_SECONDS)
        wait_until(lambda: lines, "the line")
        assert lines == [("response_complete", 5)]
        with two.store.find(log.stream_id).reader(0):
            pass
        two.store.flush()
        assert database.client.hget(one.store._commands.keys(log.stream_id)[0], "attached") == b"6", "it has ended"
        assert len(one.store._desk.unbooked) == 0


def test_resumes_of_a_log_whose_worker_died_are_those_of_all(database: Database) -> None:
    with workers(database.url, 2) as (dying, heir):
        log = dying.begin()
        with log.reader(0):
            dying.store.flush()
        copy = heir.store.find(log.stream_id)
        lines: list[tuple[str, int]] = []
        with copy.reader(0), copy.reader(0):
            lost, heir.store._lost = heir.store._lost, lambda log, error: (lost(log, error), lines.append(booked(log)))
            dying.crash()
            assert copy.settle(PATIENCE_SECONDS)
        wait_until(lambda: lines and lines[0], "the line")
        assert lines == [[("response_complete", 2)]]


def test_log_that_was_taken_over_is_booked_by_its_heir_alone(database: Database) -> None:
    """Its end was decided here, and could not be stored any more."""
    with workers(database.url, 2) as (stopped, other):
        log = stopped.begin()
        log.append("a")
        wait_until(lambda: log.head == 1, "the chunk")
        heirs_lines: list[list[tuple[str, int]]] = []
        lost = other.store._lost
        other.store._lost = lambda log, error: (lost(log, error), heirs_lines.append(booked(log)))
        copy = other.store.find(log.stream_id)
        database.client.delete(stopped.store._commands.life_key(stopped.store.worker))
        stopped._ticks = False  # gives no sign of life
        assert copy.settle(PATIENCE_SECONDS)
        assert log.finish(end_with()), "it does not know it yet"
        lines = booked(log)
        wait_until(lambda: log.end is not None, "the end that the other one wrote")
        assert (terminal_of(log).event, lines, len(stopped.store._desk.unbooked)) == ("failed", [], 0)
        wait_until(lambda: heirs_lines and heirs_lines[0], "the line")
        assert heirs_lines == [[("response_complete", 0)]]


def test_log_that_goes_on_for_its_own_readers_alone_is_booked_under_another_name(own_valkey: Valkey) -> None:
    """Whether its end came before it heard that another worker had taken it over, or after."""
    with (
        ChaosProxy("127.0.0.1", own_valkey.port) as proxy,
        workers(own_valkey.url(port=proxy.port), 1) as (one,),
        workers(own_valkey.url(), 1) as (two,),
    ):
        before, after = one.begin(), one.begin()
        copies = [two.store.find(log.stream_id) for log in (before, after)]
        proxy.refuse()
        proxy.cut_all()
        for log in (before, after):
            log.append("a")
            wait_until(lambda log=log: log.head == 1, "it is shown all the same")
        assert before.finish(end_with())
        lines = booked(before)
        assert before.settle(PATIENCE_SECONDS)
        assert lines == [], "whose end it is, nobody here knows"
        assert all(copy.settle(PATIENCE_SECONDS) for copy in copies)
        proxy.accept()
        wait_until(lambda: before.state is State.CUT_OFF and after.state is State.CUT_OFF, "it knows")
        assert after.finish(end_with())
        assert lines == booked(after) == [("response_cut_off", 0)]


def test_log_whose_end_is_stored_late_is_booked_then_or_when_its_worker_ends(own_valkey: Valkey) -> None:
    with (
        ChaosProxy("127.0.0.1", own_valkey.port) as proxy,
        workers(own_valkey.url(port=proxy.port), 1, lease_seconds=LONG) as (one,),
    ):
        for comes_back in (True, False):
            log = one.begin()
            proxy.refuse()
            proxy.cut_all()
            log.append("a")
            assert log.finish(end_with())
            lines = booked(log)
            assert log.settle(PATIENCE_SECONDS)
            assert lines == []
            if comes_back:
                proxy.accept()
                wait_until(lambda lines=lines: lines, "the line")
                wait_until(one.store.ready, "Valkey is back")
            else:
                one.store.close()
            assert lines == [("response_complete", 0)]


# One end


def test_line_is_written_once_in_whatever_order_its_parts_come() -> None:
    for name_first in (True, False):
        unbooked, lines = Unbooked(), []
        booking = Booking(unbooked)
        parts = [lambda: booking.by(lines.append), lambda: booking.under(BOOKED)]  # noqa: B023
        for part in parts[::-1] if name_first else parts:
            assert lines == []
            part()
        assert (lines, len(unbooked)) == ([BOOKED], 0)
        booking.under(CUT_OFF_BOOKED)
        unbooked.book_all(CUT_OFF_BOOKED)
        assert lines == [BOOKED]


def test_first_name_stands() -> None:
    unbooked, lines = Unbooked(), []
    booking = Booking(unbooked)
    booking.under(CUT_OFF_BOOKED)
    booking.under(BOOKED)
    assert len(unbooked) == 0, "there is no line yet"
    booking.by(lines.append)
    assert lines == [CUT_OFF_BOOKED]


def test_end_that_another_worker_books_is_not_booked_here() -> None:
    unbooked, lines = Unbooked(), []
    booking = Booking(unbooked)
    booking.by(lines.append)
    assert len(unbooked) == 1
    booking.leave()
    booking.leave()
    booking.under(BOOKED)
    unbooked.book_all(BOOKED)
    assert (lines, len(unbooked)) == ([], 0)


def test_what_waits_when_the_worker_ends_is_booked_then_each_once() -> None:
    unbooked, lines = Unbooked(), []
    bookings = [Booking(unbooked) for _ in range(3)]
    for booking in bookings:
        booking.by(lines.append)
    bookings[0].under(CUT_OFF_BOOKED)
    unbooked.book_all(BOOKED)
    unbooked.book_all(BOOKED)
    assert (lines, len(unbooked)) == ([CUT_OFF_BOOKED, BOOKED, BOOKED], 0)


def test_line_is_written_by_one_of_many_threads() -> None:
    for _ in range(50):
        unbooked, lines, barrier = Unbooked(), [], threading.Barrier(4)
        booking = Booking(unbooked)
        booking.by(lines.append)

        def name(barrier: threading.Barrier = barrier, booking: Booking = booking) -> None:
            barrier.wait(PATIENCE_SECONDS)
            booking.under(BOOKED)

        threads = [threading.Thread(target=name) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (lines, len(unbooked)) == ([BOOKED], 0)


def test_line_is_written_once_by_two_threads_that_have_both_found_it() -> None:
    class Meeting(Unbooked):
        """The other thread comes right before this one takes the line."""

        others = 1

        def pop(self, booking: Booking) -> bool:
            if self.others:
                self.others = 0
                booking.under(BOOKED)
            return super().pop(booking)

    lines: list[str] = []
    booking = Booking(Meeting())
    booking.by(lines.append)
    booking.under(BOOKED)
    assert lines == [BOOKED]


def test_line_that_fails_is_not_written_again() -> None:
    unbooked = Unbooked()
    booking = Booking(unbooked)
    asked: list[str] = []

    def fail(name: str) -> None:
        asked.append(name)
        raise IndexError

    booking.by(fail)
    with pytest.raises(IndexError):
        booking.under(BOOKED)
    booking.under(BOOKED)
    assert (asked, len(unbooked)) == ([BOOKED], 0)
