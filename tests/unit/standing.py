"""What stands around a shared log in place of its store, where a test must hold a moment that passes."""

from __future__ import annotations

from typing import Any

from app.streams.interface import Binding, End, new_stream_id
from app.streams.shared.booking import Unbooked
from app.streams.shared.connection import Command
from app.streams.shared.log import SharedLog
from app.streams.shared.owned import Owned
from app.streams.shared.records import Stream
from app.streams.shared.replies import Written
from tests.unit.shared import ORIGIN

__all__ = ["StandingDesk", "StandingKeeper", "begun", "copied", "store_all"]


class StandingKeeper:
    """Keep a log in no memory in particular, and write down what it tells."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def make_room_for(self, log: SharedLog, size: int) -> None:
        self.heard.append("make_room_for")

    def release_prompt(self, log: SharedLog) -> None:
        self.heard.append("release_prompt")

    def ended(self, log: SharedLog) -> None:
        self.heard.append("ended")

    def used(self, log: SharedLog) -> None:
        self.heard.append("used")

    def attached(self, log: SharedLog) -> None:
        self.heard.append("attached")


class StandingDesk:
    """Give an owned log its commands, and write down what it tells."""

    def __init__(self) -> None:
        self.unbooked = Unbooked()
        self.heard: list[Any] = []

    def changed(self, owned: Owned) -> None:
        self.heard.append("changed")

    def keys(self, stream_id: str) -> tuple[str, str]:
        return stream_id, f"{stream_id}:log"

    def restoring(self, owned: Owned) -> Command:
        return ("RESTORE", owned.fence)

    def finishing(self, owned: Owned, end: End) -> Command:
        return ("FINISH", owned.fence, end.records)

    def missed(self) -> None:
        self.heard.append("missed")

    def cancel_asked(self, stream_id: str) -> None:
        self.heard.append(("cancel_asked", stream_id))

    def damaged(self, stream_id: str, what: str) -> None:
        self.heard.append(("damaged", what))

    def given_up(self, stream_id: str) -> None:
        self.heard.append("given_up")

    def taken_over(self, log: Any, *, is_followed: bool) -> None:
        self.heard.append(("taken_over", is_followed))

    def end_stored(self, stream_id: str) -> None:
        self.heard.append("end_stored")

    def take(self) -> list[Any]:
        """Return what was heard since the last look."""
        heard, self.heard = self.heard, []
        return heard


def begun(desk: StandingDesk, *records: str, binding: Binding | None = None) -> SharedLog:
    """Begin a log with records that are stored."""
    log = SharedLog.begun(StandingKeeper(), desk, Stream(new_stream_id(), ORIGIN, binding, "me", 1), prompt_bytes=0)
    if records:
        assert log.append(*records)
        store_all(log)
    return log


def copied(*records: str) -> SharedLog:
    """Make a copy of another worker's log that has these records."""
    log = SharedLog.copied(StandingKeeper(), Stream(new_stream_id(), ORIGIN, None, "another", 1))
    log.take([[b"%d-0" % place, [b"t", record.encode()]] for place, record in enumerate(records, 1)])
    return log


def store_all(log: SharedLog) -> None:
    """Do what the committer does when Valkey takes all that the log has."""
    assert log.owned is not None
    commit = log.owned.commit()
    assert commit is not None
    log.owned.committed(Written(commit.first - 1 + len(commit.records), False))
