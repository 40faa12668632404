"""Follows the logs that other workers generate: one blocking read of Valkey for all of them.

The same read covers the worker's own wake key, where other workers leave messages. This worker leaves one there too
when a log is added while the read blocks.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from app import errors
from app.streams.shared.connection import Connection, Refusal, ValkeyAway
from app.streams.shared.records import Damaged

__all__ = ["Followed", "Tail"]

BLOCK_SECONDS = 1.0
ANSWER_SECONDS = 1.5
SPACING_SECONDS = 0.005
"""The least time from one read to the next. Entries that come meanwhile are read together."""

BUSY_SHARE = 4
"""One part in this many of the tail's time may go to taking entries in. Otherwise a worker that follows many logs would
have no time for its own."""

MOST_ENTRIES = 500
LONGEST_PAUSE_SECONDS = 1.0

_TIME = re.compile(rb"([0-9]{1,13})-[0-9]{1,9}")
"""The id of an entry, as Valkey chooses it. Units: milliseconds since 1970."""

AHEAD_MS = 60_000
"""An id further ahead of Valkey's clock is not Valkey's own. A read behind such an id would miss all later messages."""


class Followed(Protocol):
    """A copy of another worker's log."""

    head: int

    def take(self, entries: list[Any]) -> None: ...


class Tail:
    """One thread with one connection."""

    def __init__(
        self,
        connection: Connection,
        *,
        wake: str,
        woken: Callable[[list[Any]], None],
        broken: Callable[[Any, Exception], None],
        nudge: Callable[[], None],
    ) -> None:
        """`woken` gets the entries of the key `wake`. `nudge` adds an entry there. `broken` gets a log that cannot be
        followed any further, and the error."""
        self._connection = connection
        self._wake = wake
        self._woken = woken
        self._broken = broken
        self._nudge = nudge
        self._followed: dict[str, Followed] = {}
        self._last = b"0-0"
        self._valkey_ms = 0
        self._is_stale = self._is_nudged = False
        self._read_keys: dict[bytes, Followed] = {}
        self._stopped = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="tail", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def follow(self, key: str, log: Followed) -> None:
        """Give a log the entries under a key from now on, beginning with the first one that the log does not have."""
        self._followed[key] = log
        self._is_stale = True
        if not self._is_nudged:
            self._is_nudged = True
            self._nudge()  # the current read does not know the log yet

    def unfollow(self, key: str, log: Followed) -> None:
        if self._followed.get(key) is log:
            del self._followed[key]
            self._is_stale = True

    def _run(self) -> None:
        pause = 0.05
        while not self._stopped:
            began = time.monotonic()
            try:
                answer, followed = self._read()
                took = time.monotonic()
                if answer is not None:
                    self._take(answer, followed)
                rest = max(SPACING_SECONDS, BUSY_SHARE * (time.monotonic() - took)) if answer is not None else 0.0
                pause = 0.05
            except ValkeyAway:
                self._last = b"0-0"  # another Valkey's clock may be behind, and hearing a message twice is harmless
                rest, pause = pause, min(2 * pause, LONGEST_PAUSE_SECONDS)
            except Exception:
                logging.getLogger(__name__).exception("messages of other workers could not be read")
                rest = LONGEST_PAUSE_SECONDS
            if rest > (spent := time.monotonic() - began):
                time.sleep(rest - spent)
        self._connection.close()

    def _read(self) -> tuple[list[Any] | None, dict[bytes, Followed]]:
        self._is_nudged = False
        if self._is_stale:
            self._is_stale = False
            self._read_keys = {key.encode(): log for key, log in self._followed.copy().items()}
        followed = self._read_keys
        command = ("XREAD", "COUNT", MOST_ENTRIES, "BLOCK", int(BLOCK_SECONDS * 1000), "STREAMS")
        places = [b"%d-0" % log.head for log in followed.values()]
        answer, now = self._connection.ask(
            [(*command, self._wake, *followed, self._last, *places), ("TIME",)],
            timeout_seconds=BLOCK_SECONDS + ANSWER_SECONDS,
        )
        if isinstance(answer, Refusal):
            if answer.is_of_a_record:
                self._drop_damaged(followed)
                return None, followed
            self._connection.close()
            raise ValkeyAway(answer.code)
        if not isinstance(now, Refusal):
            self._valkey_ms = int(now[0]) * 1000
        return answer, followed

    def _drop_damaged(self, followed: dict[bytes, Followed]) -> None:
        """Find the keys that hold no stream. Valkey refuses the whole read for one such key."""
        keys = [self._wake.encode(), *followed]
        for key, kind in zip(keys, self._connection.ask([("TYPE", key) for key in keys]), strict=True):
            if kind in (b"stream", b"none"):
                continue
            if key in followed:
                self._broken(followed[key], Damaged("entries"))
            else:
                self._renew_wake()

    def _renew_wake(self) -> None:
        """Delete the messages to this worker. No stop is lost, because stops are kept in a set too (`mailbox.py`)."""
        self._connection.ask([("DEL", self._wake)])
        self._last = b"0-0"

    def _take(self, answer: list[Any], followed: dict[bytes, Followed]) -> None:
        for key, entries in answer:
            log = followed.get(key)
            if log is None:
                self._hear(entries)
                continue
            try:
                log.take(entries)
            except (errors.Overloaded, Damaged) as error:
                self._broken(log, error)
            except Exception as error:
                logging.getLogger(__name__).exception("a message of another worker could not be processed")
                self._broken(log, error)

    def _hear(self, entries: list[Any]) -> None:
        last: bytes = entries[-1][0]
        place = _TIME.fullmatch(last)
        if place is None or int(place[1]) > self._valkey_ms + AHEAD_MS:
            self._renew_wake()  # a later message would get an id before this one, and would not be read
        else:
            self._last = last
        self._woken(entries)
