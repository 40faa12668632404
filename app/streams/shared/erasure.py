"""Streams that are erased for good, by this worker or by another one. A tombstone keeps each from coming back."""

from __future__ import annotations

from collections.abc import Callable

from app import errors
from app.streams.interface import StreamLog
from app.streams.retention import Retention
from app.streams.shared import records
from app.streams.shared.commands import Commands
from app.streams.shared.committer import Committer
from app.streams.shared.connection import Refusal
from app.streams.shared.copies import Copies
from app.streams.shared.damage import Damage
from app.streams.shared.log import SharedLog
from app.streams.shared.mailbox import Mailbox

__all__ = ["Erasure"]


class Erasure:
    """Erases streams, and hears of those that others have erased."""

    def __init__(
        self,
        *,
        committer: Committer,
        commands: Commands,
        copies: Copies,
        damage: Damage,
        mailbox: Mailbox,
        retention: Retention[SharedLog],
        abort: Callable[[str], object],
    ) -> None:
        """`abort` stops a generation of this worker without an end."""
        self._committer = committer
        self._commands = commands
        self._copies = copies
        self._damage = damage
        self._mailbox = mailbox
        self._retention = retention
        self._abort = abort

    def erase(self, log: StreamLog) -> None:
        """Erase a stream on Valkey and here. Raises: StoreUnavailable."""
        assert isinstance(log, SharedLog)
        (answer,) = self._committer.ask(self._commands.erase(log.stream_id, log.binding))
        if isinstance(answer, Refusal):
            raise errors.StoreUnavailable(retry_after_seconds=2)
        if log.copy is not None:
            self._mailbox.note_erased(log.stream_id, log.copy.owner)
        self.forget(log)

    def erase_unread(self, stream_id: str) -> None:
        """Erase a stream of which no copy is here. Raises: StreamUnknown, StreamExpired, StoreUnavailable."""
        with self._damage.is_gone(stream_id):
            (told,) = self._committer.read(("HGETALL", self._commands.keys(stream_id)[0]))
            if not told:
                raise self._copies.unknown()
            stream = records.read_stream(stream_id, told)
            self._committer.read(self._commands.erase(stream_id, stream.binding))
        self._mailbox.note_erased(stream_id, stream.owner)

    def forget(self, log: SharedLog) -> None:
        """Forget a log here that is erased on Valkey."""
        with self._retention.lock:
            if self._copies.remove(log):
                self._retention.discount(log)
            else:
                self._retention.remove(log)
        log.erase()
        self._abort(log.stream_id)

    def heard(self, stream_id: str) -> None:
        """Hear that another worker has erased a stream of this one."""
        with self._retention.lock:
            log = self._retention.live.get(stream_id) or self._retention.finished.get(stream_id)
        if log is not None:
            self.forget(log)

    def look_for_tombstone(self, log: SharedLog) -> None:
        """Look whether another worker has erased a log that has ended: no news of it comes here any more. A log that
        goes on is told. Raises: StreamUnknown, StoreUnavailable."""
        if self._committer.read(("EXISTS", self._commands.tombstone_key(log.stream_id))) != [0]:
            self.forget(log)
            raise errors.StreamUnknown
