"""Each worker gives a sign of life. The streams of a dead worker are taken over, each once."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from app import errors
from app.streams.shared import records
from app.streams.shared.commands import Commands
from app.streams.shared.committer import Committer
from app.streams.shared.connection import Answer, Command, Refusal
from app.streams.shared.copies import Copies
from app.streams.shared.damage import Damage
from app.streams.shared.log import SharedLog
from app.streams.shared.records import Damaged

__all__ = ["LEASE_SECONDS", "Leases"]

LEASE_SECONDS = 3.0
"""A worker that gave no sign of life for so long is taken for dead."""

MOST_ADOPTED = 256
"""How many streams one batch takes over."""


class Leases:
    """This worker's sign of life, and its look at those of others."""

    def __init__(
        self,
        *,
        copies: Copies,
        committer: Committer,
        commands: Commands,
        damage: Damage,
        lease_seconds: float,
        look_again: Callable[[], None],
        adopt: Callable[[SharedLog, int, bool], bool],
        drop: Callable[[SharedLog], None],
    ) -> None:
        """`look_again` hears that Valkey may have lost data. `adopt` gets a copy, its new fence, and whether Valkey has
        lost the stream: the copy becomes this worker's log and is ended. `drop` forgets a log that has not ended."""
        self._copies = copies
        self._committer = committer
        self._commands = commands
        self._damage = damage
        self._lease_seconds = lease_seconds
        self._look_again = look_again
        self._adopt = adopt
        self._drop = drop
        self._silent: set[str] = set()
        self._is_adopting = False

    def renew(self) -> None:
        """Give a sign of life. If the last one is gone before its time, Valkey has lost data."""
        key, lease_ms = self._commands.life_key(self._commands.worker), int(self._lease_seconds * 1000)

        def heard(answers: list[Answer]) -> None:
            if answers[0] == 0:
                self._look_again()

        # PEXPIRE comes first, because a Valkey without free memory refuses SET and takes PEXPIRE.
        self._committer.post([("PEXPIRE", key, lease_ms), ("SET", key, "1", "PX", lease_ms)], heard)

    def look_at_owners(self) -> None:
        """Take over what silent workers have left."""
        if not self._may_judge():
            return
        owners = list({log.copy.owner for log in self._copies.all() if log.copy is not None})

        def heard(answers: list[Answer]) -> None:
            if not self._may_judge():
                return  # Valkey was away while the question waited
            silent = {owner for owner, answer in zip(owners, answers, strict=True) if answer == 0}
            gone = silent & self._silent  # silent twice: Valkey may have lost the sign of a worker that lives
            self._silent = silent
            gone.add(self._commands.worker)  # a stream that we adopted, whose answer got lost, is still a copy
            orphans = [log for log in self._copies.all() if log.copy is not None and log.copy.owner in gone]
            if orphans and not self._is_adopting:
                self._is_adopting = True
                threading.Thread(target=self._adopt_all, args=(orphans,), name="adoption", daemon=True).start()

        if owners:
            self._committer.post([("EXISTS", self._commands.life_key(owner)) for owner in owners], heard)

    def _may_judge(self) -> bool:
        """Tell whether a missing sign of life means a dead worker. While Valkey is away, every lease may lapse."""
        return self._committer.has_long_answered(self._lease_seconds)

    def _adopt_all(self, logs: list[SharedLog]) -> None:
        try:
            for begin in range(0, len(logs), MOST_ADOPTED):
                some = [(log, log.copy) for log in logs[begin : begin + MOST_ADOPTED]]
                commands: list[Command] = []
                for log, copy in some:
                    owner, fence = (copy.owner, copy.fence) if copy is not None else ("", 0)
                    commands.append(self._commands.adopt(log.stream_id, owner, fence))
                    commands.append(("HMGET", self._commands.keys(log.stream_id)[0], "owner", "fence", "end", "head"))
                answers = self._committer.ask(*commands)
                for (log, _), told in zip(some, answers[1::2], strict=True):
                    self._try_to_adopt(log, told)
        except errors.ChatError:
            pass  # the next round goes on with it
        finally:
            self._is_adopting = False

    def _try_to_adopt(self, log: SharedLog, told: Answer) -> None:
        """Go on with one log. If that fails, the others are adopted all the same."""
        if isinstance(told, Refusal) and not told.is_of_a_record:
            return
        try:
            with self._damage.is_gone(log.stream_id):
                if isinstance(told, Refusal):
                    raise Damaged("the kind of a key")
                self._adopt_one(log, *told)
        except errors.StreamExpired:
            self._drop(log)  # its readers come back, and are told
        except errors.ChatError:
            pass  # the next round goes on with it
        except Exception:
            logging.getLogger(__name__).exception("a log could not be taken over")
            self._drop(log)

    def _adopt_one(self, log: SharedLog, owner: Any, fence: Any, end: Any, head: Any) -> None:
        """Go on with a log by what Valkey has now: the stream is ours to end, or another worker's, or lost."""
        reach = records.read_number(head, "head") if owner is not None else 0
        is_ours = owner == self._commands.worker.encode() and end is None
        copy, is_followed = log.copy, log.is_followed
        if copy is None or not is_followed:
            if is_ours and log.is_dropped:
                self._copies.find(log.stream_id, None)  # the next round ends it
            return
        if owner is None:
            # Valkey has lost the stream. A producer that lives writes it anew. Otherwise this copy is all that is left.
            now = time.monotonic()
            copy.missed_since = copy.missed_since or now
            if now - copy.missed_since >= self._lease_seconds:
                # Other workers may take the stream over too. Random fences make it unlikely that two of them hold the
                # same one.
                self._adopt(log, copy.fence + 1 + secrets.randbelow(1 << 30), True)
        elif not is_ours:
            copy.owner = records.read_owner(owner)
            copy.fence, copy.missed_since = records.read_number(fence, "fence", least=1), None
        else:
            while log.head < reach and log.is_followed and self._copies.read_on(log):
                pass
            if log.is_followed:
                self._adopt(log, records.read_number(fence, "fence", least=1), False)
