"""The files of pages, by the hash of their tree: instances of every version publish theirs for the others."""

from __future__ import annotations

from app.streams.shared.commands import Commands
from app.streams.shared.committer import Committer
from app.streams.shared.connection import Answer
from app.streams.shared.mailbox import ignore
from app.streams.shared.records import Damaged

__all__ = ["Trees"]

KEPT_SECONDS, PUBLISH_SECONDS = 86_400, 60.0
"""How long Valkey keeps files after their last instance has gone, and how often an instance prolongs that."""


class Trees:
    """Publishes the files of this instance, and finds those of others."""

    def __init__(self, committer: Committer, commands: Commands) -> None:
        self._committer = committer
        self._commands = commands
        self._published: dict[str, bytes] = {}
        self._next_at = 0.0

    def publish(self, name: str, content: bytes) -> None:
        self._published[name] = content
        self.look_again()

    def published(self, name: str) -> bytes | None:
        """Return another instance's files, None when nobody has published them. Raises: StoreUnavailable."""
        key = self._commands.files_key(name)
        content: bytes | None = None
        try:
            (content,) = self._committer.read(("GET", key))
        except Damaged:
            self._committer.post([("DEL", key)], ignore)  # instances that have the files publish them again
        return content

    def look_again(self) -> None:
        """Publish again with the next sweep: Valkey may have lost the files."""
        self._next_at = 0.0

    def sweep(self, now: float) -> None:
        """Units: monotonic seconds."""
        if now >= self._next_at:
            self._next_at = now + PUBLISH_SECONDS
            for name in self._published:
                self._republish(name)

    def _republish(self, name: str) -> None:
        """Prolong the life of files. Send them where Valkey does not have them: at first, and after Valkey has lost
        them."""
        key = self._commands.files_key(name)

        def heard(answers: list[Answer]) -> None:
            if answers[0] == 0:
                self._committer.post([("SET", key, self._published[name], "EX", KEPT_SECONDS)], ignore)

        self._committer.post([("EXPIRE", key, KEPT_SECONDS)], heard)
