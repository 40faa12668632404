"""Writes to Valkey for the whole worker: one pipelined round trip at a time, for all of its logs together.

Records that are appended during a round trip go into the next batch. Each log is told what became of its part of a
batch. Commands of requests (`ask`) go with the same batches. Nothing is lost when a round trip fails: callers are
notified and unstored records are sent again. Sending twice is idempotent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from app import errors
from app.observability import facts
from app.observability.observer import tell
from app.platform.gevent_loop import plain_lock
from app.streams.shared import scripts
from app.streams.shared.connection import Answer, Command, Connection, Refusal, ValkeyAway, script
from app.streams.shared.records import Damaged
from app.streams.shared.replies import CommitReply, FinishReply, read_commit, read_finish

__all__ = ["Commit", "Committer", "Committing"]

SPACING_SECONDS = 0.006
"""The least time between the beginnings of two batches. Records that come meanwhile go together. After a pause a batch
goes at once. So does a batch that somebody waits for: it has a question, the first record of a stream, or an end."""

AWAY_SECONDS = 1.0
"""How long Valkey may take before readers are told that it is away."""

ASK_SECONDS = 3.0
LARGEST_BATCH_BYTES = 1 << 20
MOST_STREAMS = 256
"""How many streams one command commits. Valkey does nothing else while the command runs."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 1.0

T = TypeVar("T")


class Commit:
    """What one log wants written: records, of which the first has the sequence number `first`, each under the name
    `field`.

    `restore` is a command that begins a lost stream anew. `finish` is a command that writes the end."""

    __slots__ = ("fence", "field", "finish", "first", "keys", "records", "restore")

    def __init__(
        self,
        keys: tuple[str, str],
        fence: int,
        first: int,
        records: list[bytes],
        *,
        field: str = "t",
        restore: Command | None = None,
        finish: Command | None = None,
    ) -> None:
        self.keys = keys
        self.fence = fence
        self.field = field
        self.first = first
        self.records = records
        self.restore = restore
        self.finish = finish


class Committing(Protocol):
    """A log, as the committer sees it. No method may wait."""

    @property
    def is_awaited(self) -> bool:
        """A client waits for what is to be written. So the next batch goes at once."""

    def commit(self) -> Commit | None:
        """Return what is to be written now, None for nothing. The log returns the same records again only after
        `not_committed`."""

    def committed(self, reply: CommitReply) -> None: ...

    def finished(self, reply: FinishReply) -> None: ...

    def not_committed(self) -> None: ...

    def not_committable(self) -> None:
        """Hear that the commit or its answer cannot be used. The log is not asked again until it calls `changed`."""


class _Call:
    """Commands whose sender waits for the answers, or is called with them."""

    __slots__ = ("answered", "answers", "commands", "heard")

    def __init__(self, commands: Sequence[Command], heard: Callable[[list[Answer]], None] | None) -> None:
        self.commands = commands
        self.heard = heard
        self.answers: list[Answer] | None = None
        self.answered = threading.Event() if heard is None else None


class Committer:
    """One thread, one connection. `live_ms` is how long a log's entries live at least."""

    def __init__(self, connection: Connection, *, live_ms: int, back: Callable[[], None]) -> None:
        """`back` is called when Valkey answers for the first time, and again after each failure: Valkey may have lost
        data."""
        self._connection = connection
        self._live_ms = live_ms
        self._back = back
        self._lock = plain_lock()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._changed: dict[Committing, None] = {}
        self._calls: list[_Call] = []
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._asked_at: float | None = None
        self._failing_since: float | None = time.monotonic()
        self._pause = FIRST_PAUSE_SECONDS
        self._said: str | None = None
        self.contact_since: float | None = None
        """Since when every round trip has been quick. None while Valkey fails. Units: monotonic seconds."""
        self.back_at: float | None = None
        """When Valkey last answered after a failure or a delay. None before the first one. Units: monotonic seconds."""

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write nothing more. A batch that is on its way may arrive or not."""
        self._stopped = True
        self._hurry.set()
        self._wake.set()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def is_late(self, now: float) -> bool:
        """Tell whether records have waited for Valkey for longer than AWAY_SECONDS. Units: monotonic seconds."""
        asked_at, failing_since = self._asked_at, self._failing_since
        late_at = now - AWAY_SECONDS
        return (asked_at is not None and asked_at < late_at) or (failing_since is not None and failing_since < late_at)

    def has_long_answered(self, seconds: float) -> bool:
        """Tell whether every round trip of the last `seconds` has been quick."""
        since = self.contact_since
        return since is not None and time.monotonic() - since >= seconds

    @property
    def is_answered(self) -> bool:
        """Valkey answers quickly and refuses nothing."""
        return self._failing_since is None and not self.is_late(time.monotonic())

    def changed(self, log: Committing) -> None:
        """Ask this log for a commit with the next batch. Never waits."""
        with self._lock:
            self._changed[log] = None
        if log.is_awaited and not self._hurry.is_set():
            self._hurry.set()
        if not self._wake.is_set():
            self._wake.set()

    def post(self, commands: Sequence[Command], heard: Callable[[list[Answer]], None]) -> None:
        """Send commands with the next batch. `heard` gets the answers in the committer's thread. When the batch fails,
        `heard` is not called. Never waits."""
        self._add(_Call(commands, heard))

    def ask(self, *commands: Command) -> list[Answer]:
        """Send commands with the next batch, and wait for their answers. Raises: StoreUnavailable."""
        if self.is_late(time.monotonic()):
            raise errors.StoreUnavailable(retry_after_seconds=2)
        call = _Call(commands, None)
        self._add(call)
        self._hurry.set()
        assert call.answered is not None
        call.answered.wait(ASK_SECONDS)
        if call.answers is None:
            raise errors.StoreUnavailable(retry_after_seconds=2)
        return call.answers

    def read(self, *commands: Command) -> list[Answer]:
        """Ask for stored values. Raises: StoreUnavailable; Damaged when a key holds a value of another type."""
        answers = self.ask(*commands)
        for answer in answers:
            if isinstance(answer, Refusal):
                if answer.is_of_a_record:
                    raise Damaged("the kind of a key")
                raise errors.StoreUnavailable(retry_after_seconds=2)
        return answers

    def _add(self, call: _Call) -> None:
        with self._lock:
            self._calls.append(call)
        self._wake.set()

    # The thread

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait()
            self._wake.clear()
            self._hurry.clear()
            began = time.monotonic()
            with self._lock:
                calls, self._calls = self._calls, []
                changed, self._changed = self._changed, {}
            try:
                if calls or changed:
                    self._round(began, changed, calls)
            except ValkeyAway as error:
                self._failed(began, str(error), changed, calls)
                time.sleep(self._pause)
                self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            except Exception:
                logging.getLogger(__name__).exception("a batch could not be written")
                self._failed(began, "an internal error", changed, calls)
                time.sleep(LONGEST_PAUSE_SECONDS)
            else:
                left = began + SPACING_SECONDS - time.monotonic()
                if changed and left > 0:
                    self._hurry.wait(left)
        self._connection.close()

    def _round(self, began: float, changed: Iterable[Committing], calls: list[_Call]) -> None:
        commands: list[Command] = []
        batches: list[list[Committing]] = []
        finishing: list[Committing] = []
        keys: list[str] = []
        arguments: list[bytes | str | int] = [self._live_ms]
        commits: list[Command] = []
        finishes: list[Command] = []
        size = 0

        def cut() -> None:
            nonlocal keys, arguments
            commits.append(script(scripts.COMMIT, keys, *arguments))
            keys, arguments = [], [self._live_ms]

        for log in changed:
            if size > LARGEST_BATCH_BYTES:
                self.changed(log)
                continue
            commit = _commit_of(log)
            if commit is None:
                continue
            if commit.restore is not None:
                commands.append(commit.restore)
            if not keys:
                batches.append([])
            batches[-1].append(log)
            keys += commit.keys
            arguments += (commit.fence, commit.field, commit.first, len(commit.records))
            arguments += commit.records
            size += sum(map(len, commit.records))
            if len(keys) >= 2 * MOST_STREAMS:
                cut()
            if commit.finish is not None:
                finishes.append(commit.finish)
                finishing.append(log)
        if keys:
            cut()
        restores = len(commands)
        commands += commits
        commands += finishes
        for call in calls:
            commands += call.commands
        self._asked_at = began
        try:
            answers = self._connection.ask(commands)
        finally:
            self._asked_at = None
        self._take(began, answers, restores, batches, finishing, calls)

    def _take(
        self,
        began: float,
        answers: list[Answer],
        restores: int,
        batches: list[list[Committing]],
        finishing: list[Committing],
        calls: list[_Call],
    ) -> None:
        refusals = (answer for answer in answers if isinstance(answer, Refusal))
        refusal = next((answer for answer in refusals if not answer.is_of_a_record), None)
        at = restores
        for batch in batches:
            told = answers[at]
            at += 1
            if isinstance(told, Refusal):
                for log in batch:
                    log.not_committed()
            else:
                for log, answer in zip(batch, told, strict=True):
                    if not _tell(log.committed, read_commit, answer):
                        log.not_committable()
        for log in finishing:
            if isinstance(answers[at], Refusal):
                log.not_committed()
            elif not _tell(log.finished, read_finish, answers[at]):
                log.not_committable()
            at += 1
        self._judge(began, refusal)
        for call in calls:
            self._answer(call, answers[at : at + len(call.commands)])
            at += len(call.commands)
        if refusal is not None:
            if refusal.code == "READONLY":
                self._connection.close()  # a primary no more: the name may lead to another Valkey
            for batch in batches:
                for log in batch:
                    self.changed(log)
            time.sleep(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def _judge(self, began: float, refusal: Refusal | None) -> None:
        """Note whether Valkey answers, and whether it answers quickly."""
        now = time.monotonic()
        if refusal is None and (self._said is not None or now - began > AWAY_SECONDS):
            self.back_at = now
        if refusal is not None:
            self.contact_since = None  # other workers' signs of life may be refused too
        elif self.contact_since is None or now - began > AWAY_SECONDS:
            self.contact_since = now
        if refusal is not None:
            self._say(f"refused: {refusal.code}")
            self._failing_since = self._failing_since or began
        elif self._failing_since is not None:
            self._failing_since = None
            self._pause = FIRST_PAUSE_SECONDS
            if self._said is not None:
                self._said = None
                tell(facts.StoreBack())
            self._back()

    def _failed(self, began: float, why: str, changed: Iterable[Committing], calls: list[_Call]) -> None:
        self.contact_since = None
        self._failing_since = self._failing_since or began
        self._say(why)
        for log in changed:
            log.not_committed()
            self.changed(log)
        for call in calls:
            if call.answered is not None:
                call.answered.set()

    def _say(self, why: str) -> None:
        """Log each reason once, not at each attempt."""
        if why != self._said:
            self._said = why
            tell(facts.StoreAway(cause=why))

    def _answer(self, call: _Call, answers: list[Answer]) -> None:
        call.answers = answers
        if call.answered is not None:
            call.answered.set()
        elif call.heard is not None:
            _tell(call.heard, list, answers)


def _commit_of(log: Committing) -> Commit | None:
    """Return the commit of one log. None when the log fails: the others are written all the same."""
    try:
        return log.commit()
    except Exception:
        logging.getLogger(__name__).exception("a log could not be written")
        log.not_committable()
        return None


def _tell(hear: Callable[[T], None], read: Callable[[Answer], T], answer: Answer) -> bool:
    """Give one answer to `hear`. False when that fails: the other answers are given all the same."""
    try:
        hear(read(answer))
    except Exception:
        logging.getLogger(__name__).exception("an answer from Valkey could not be processed")
        return False
    return True
