"""Test how an answer's parts come into its log, and the three outcomes: it goes on, it is over, it is unwanted."""

from __future__ import annotations

import threading
import time

import pytest

from app import errors
from app.generation.intake import Intake, Phase
from app.streams.interface import Origin, StreamLog
from app.streams.memory.store import MemoryStore
from app.upstream.interface import Part
from tests.unit.ends import end_with
from tests.unit.fakes import done, finish, texts


class Taking:
    """An intake and its log."""

    def __init__(self, room: int = 100) -> None:
        store = MemoryStore(max_active=10, budget_bytes=10_000_000, retention_seconds=60)
        self.log: StreamLog = store.create(Origin("c-1", "gpt-4o-mini", "2026-11-21T09:00:00.000Z"))[0]
        self.stopped = threading.Event()
        self.intake = Intake(self.log, started=time.monotonic(), room=room, stopped=self.stopped)

    def take(self, *parts: Part) -> tuple[bool, Phase, str]:
        return self.intake.take(parts), self.intake.phase, self.log.text()


def test_answer_goes_on_until_its_end_and_then_takes_nothing_but_its_bytes_end() -> None:
    taking = Taking()

    assert taking.take(*texts("a", "b")) == (True, Phase.GOES_ON, "ab")
    assert taking.take() == (True, Phase.GOES_ON, "ab")
    assert taking.take(finish()) == (True, Phase.GOES_ON, "ab")
    assert taking.take(Part("c"), done(), Part("d")) == (False, Phase.OVER, "abc")
    assert taking.take(*texts("e")) == (True, Phase.OVER, "abc")


def test_answer_whose_generation_was_stopped_is_unwanted() -> None:
    taking = Taking()
    taking.take(*texts("a"))
    taking.stopped.set()

    assert taking.take(*texts("b"), done()) == (False, Phase.UNWANTED, "a")


@pytest.mark.parametrize("last", [[], [done()]], ids=["in the middle", "with its end"])
def test_answer_whose_log_has_ended_is_unwanted(last: list[Part]) -> None:
    taking = Taking()
    taking.take(*texts("a"))
    assert taking.log.finish(end_with())

    assert taking.take(*texts("b"), *last) == (False, Phase.UNWANTED, "a")


def test_answer_that_is_too_long_keeps_what_fits_and_fails() -> None:
    taking = Taking(room=2)
    with pytest.raises(errors.UpstreamError):
        taking.take(*texts("a", "b", "c"))

    assert (taking.log.text(), taking.intake.phase) == ("ab", Phase.GOES_ON)


def test_time_of_the_first_token_is_that_of_the_first_text_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    taking = Taking()
    at = time.monotonic()
    for seconds, part in ((1, Part()), (2, Part("a")), (3, Part("b"))):
        monkeypatch.setattr(time, "monotonic", lambda now=at + seconds: now)
        taking.take(part)

    assert 1900 < (taking.intake.first_token_ms or 0) <= 2000
