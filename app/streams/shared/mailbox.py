"""What workers tell each other: which streams have readers elsewhere, are to be stopped, or are erased.

A message is an entry at its receiver's wake key, which the receiver's tail reads. A message is heard at once, but may
be lost. So a stop is also a member of a set until the stop is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from app.streams.shared.commands import Commands
from app.streams.shared.committer import Committer
from app.streams.shared.connection import Answer, Command, Refusal
from app.streams.shared.log import SharedLog

__all__ = ["Mailbox", "ignore"]

MOST_STOPS = 1000
"""How many of the requested stops one round looks at."""


class Mailbox:
    """The messages of one worker. Nothing here waits."""

    def __init__(
        self,
        committer: Committer,
        commands: Commands,
        *,
        live: dict[str, SharedLog],
        is_read: Callable[[SharedLog], None],
        erased: Callable[[str], None],
    ) -> None:
        """`live` are the logs that this worker writes. `is_read` gets each of them that is read at another worker.
        `erased` gets the id of a stream that another worker has erased."""
        self._committer = committer
        self._commands = commands
        self._live = live
        self._is_read = is_read
        self._erased = erased
        self._stops: set[str] = set()

    # To others

    def nudge(self) -> None:
        """Make this worker's own tail look again at what it follows."""
        self._committer.post([self._commands.wake(self._commands.worker, "follow", "")], ignore)

    def note_reading(self, logs: Iterable[SharedLog]) -> None:
        """Tell producers elsewhere which of their streams are read here: they cancel a stream that nobody reads."""
        by_owner: dict[str, list[str]] = {}
        for log in logs:
            if log.copy is not None:
                by_owner.setdefault(log.copy.owner, []).append(log.stream_id)
        messages: list[Command] = [
            self._commands.wake(owner, "reads", " ".join(ids)) for owner, ids in by_owner.items()
        ]
        if messages:
            self._committer.post(messages, ignore)

    def note_erased(self, stream_id: str, owner: str) -> None:
        """Tell a stream's producer that the stream is erased. Where this gets lost, the producer hears of it with its
        next record, or finds the tombstone."""
        if owner:
            self._committer.post([self._commands.wake(owner, "erased", stream_id)], ignore)

    # From others

    def hear(self, entries: list[Any]) -> None:
        """Take messages. Shape: [[id, [name, value, ...]], ...]."""
        for _, fields in entries:
            for name, value in zip(fields[::2], fields[1::2], strict=True):
                if name == b"cancel":
                    self.stop(value.decode(errors="replace"))
                elif name == b"erased":
                    self._erased(value.decode(errors="replace"))
                elif name == b"reads":
                    for stream_id in value.decode(errors="replace").split():
                        log = self._live.get(stream_id)
                        if log is not None:
                            log.read_elsewhere()
                            self._is_read(log)

    def look_at_stops(self) -> None:
        """Note the stops that others have asked for, and delete those whose streams are over."""
        key = self._commands.stops_key(self._commands.worker)
        self._committer.post([("SRANDMEMBER", key, MOST_STOPS)], self._heard_stops)

    def _heard_stops(self, answers: list[Answer]) -> None:
        key, (told,) = self._commands.stops_key(self._commands.worker), answers
        if isinstance(told, Refusal):
            if told.is_of_a_record:
                self._committer.post([("DEL", key)], ignore)
            return
        over: list[bytes] = []
        for member in told:
            stream_id = member.decode(errors="replace")
            if stream_id in self._live:
                self.stop(stream_id)
            else:
                over.append(member)
        if over:
            self._committer.post([("SREM", key, *over)], ignore)

    def stop(self, stream_id: str) -> None:
        """Note a stop for the next `take_stops`. Ending a stream may take a while, and the calling thread must not
        wait."""
        self._stops.add(stream_id)

    def take_stops(self) -> set[str]:
        """Return the ids of the streams that are to be stopped now, each once."""
        stops, self._stops = self._stops, set()
        return stops


def ignore(_: list[Answer]) -> None:
    """Take answers that nobody needs."""
