"""What a log that this worker writes asks of the store, and what it reports: commands for Valkey, and news for other
parts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from app.observability import facts
from app.observability.observer import tell
from app.streams.interface import End, log_name
from app.streams.shared import records
from app.streams.shared.booking import Unbooked
from app.streams.shared.commands import Commands
from app.streams.shared.committer import Committer
from app.streams.shared.connection import Command
from app.streams.shared.damage import Damage
from app.streams.shared.mailbox import Mailbox, ignore
from app.streams.shared.owned import Owned, OwnedLog
from app.streams.shared.records import Stream

__all__ = ["WritersDesk"]

RECENT_SECONDS = 60.0
"""Ends that were stored so recently are checked when Valkey comes back: a replica may have taken over without them."""

MOST_RECENT = 1000
"""How many of these ends are remembered."""


class WritersDesk:
    """See `app.streams.shared.owned.Desk`."""

    def __init__(
        self,
        *,
        committer: Committer,
        commands: Commands,
        damage: Damage,
        mailbox: Mailbox,
        missed: Callable[[], None],
        followed: Callable[[str], None],
        erased: Callable[[str], None],
    ) -> None:
        """`missed` hears that Valkey has lost a stream, `followed` that another worker writes a stream from now on,
        `erased` that another worker has erased a stream."""
        self.unbooked = Unbooked()
        self.missed = missed
        self.erased = erased
        self._committer = committer
        self._commands = commands
        self._damage = damage
        self._mailbox = mailbox
        self._followed = followed
        self._recent: deque[tuple[float, str]] = deque(maxlen=MOST_RECENT)

    def changed(self, owned: Owned) -> None:
        self._committer.changed(owned)

    def keys(self, stream_id: str) -> tuple[str, str]:
        return self._commands.keys(stream_id)

    def restoring(self, owned: Owned) -> Command:
        return self._commands.restore(self._stream(owned))

    def finishing(self, owned: Owned, end: End) -> Command:
        return self._commands.finish(
            self._stream(owned),
            end.records,
            records.write_end(owned.log.origin, end),
            records.end_kind(end),
            frees_key=end.frees_key,
        )

    def _stream(self, owned: Owned) -> Stream:
        log = owned.log
        return Stream(log.stream_id, log.origin, log.binding, self._commands.worker, owned.fence, log.noted)

    def cancel_asked(self, stream_id: str) -> None:
        self._mailbox.stop(stream_id)

    def damaged(self, stream_id: str, what: str) -> None:
        self._damage.found(stream_id, what)

    def given_up(self, stream_id: str) -> None:
        # A stream without a fence has no owner, and its readers elsewhere are told. A worker that had
        # taken the stream over writes it anew.
        self._committer.post([("HDEL", self.keys(stream_id)[0], "fence")], ignore)

    def taken_over(self, log: OwnedLog, *, is_followed: bool) -> None:
        name, correlation_id = log_name(log.stream_id), log.origin.correlation_id
        if not is_followed:
            tell(facts.StreamCutOff(stream=name, correlation_id=correlation_id))
            return
        tell(facts.StreamFenced(stream=name, correlation_id=correlation_id))
        self._followed(log.stream_id)

    def end_stored(self, stream_id: str) -> None:
        self._recent.append((time.monotonic(), stream_id))

    def take_recent(self) -> list[str]:
        """Return the streams whose end was stored not long ago, each once."""
        since = time.monotonic() - RECENT_SECONDS
        recent, self._recent = self._recent, deque(maxlen=MOST_RECENT)
        return [stream_id for ended_at, stream_id in recent if ended_at > since]
