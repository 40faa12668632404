"""One connection to Valkey, or to Redis from 6.2: batches of commands go out together, answers come back.

This is the only importer of redis. Two things can go wrong. Valkey cannot be reached or does not answer: `ValkeyAway`
is raised. Valkey refuses a command: a `Refusal` is given as its answer, and is not raised.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.retry import Retry

from app.streams.shared import scripts

__all__ = ["Answer", "Command", "Connection", "Refusal", "ValkeyAway", "script"]

Command: TypeAlias = Sequence[bytes | str | int]
Answer: TypeAlias = Any
"""An int, bytes, None, a list of answers, or a Refusal."""

OLDEST: Final = (6, 2)

_SCRIPTS: Final[list[str]] = [getattr(scripts, name) for name in scripts.__all__]
_SHA: Final = {text: hashlib.sha1(text.encode()).hexdigest() for text in _SCRIPTS}


_LOADING: Final[list[Command]] = [("SCRIPT", "LOAD", text) for text in _SCRIPTS]


_KINDS: Final[dict[type[Exception], str]] = {
    redis.ReadOnlyError: "READONLY",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.NoScriptError: "NOSCRIPT",
}


class ValkeyAway(Exception):
    """Valkey cannot be reached, does not answer, or cannot be used by this program. The text is for the log, and never
    holds a password."""


class Refusal(Exception):
    """Valkey's error answer to one command. `code` is its first word, such as OOM or READONLY."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code

    @property
    def is_forgotten(self) -> bool:
        """Valkey does not know the script any more."""
        return self.code == "NOSCRIPT"

    @property
    def is_of_a_record(self) -> bool:
        """A key of the command holds a value of another type. Valkey itself is well."""
        return self.code == "WRONGTYPE"


def script(text: str, keys: Sequence[str], *arguments: bytes | str | int) -> Command:
    """Write the command that runs one of the scripts."""
    return ("EVALSHA", _SHA[text], len(keys), *keys, *arguments)


class Connection:
    """One thread at a time uses it. The first use opens it."""

    def __init__(self, url: str, *, name: str, timeout_seconds: float) -> None:
        """`name` is shown by Valkey's CLIENT LIST. Raises: ValueError when `url` is no URL of Valkey."""
        # Only the library's connection is used. Its client and its pool would choose a connection for each command.
        self._connection: Any = ConnectionPool.from_url(
            url,
            protocol=2,
            client_name=name,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),  # the caller knows what was written, and so when to try again
            health_check_interval=0,
        ).make_connection()
        self._is_open = False

    def ask(self, commands: Sequence[Command], *, timeout_seconds: float | None = None) -> list[Answer]:
        """Send commands in one piece, and return their answers in order. Raises: ValkeyAway."""
        if not commands:
            return []
        try:
            if not self._is_open:
                self._open()
            answers = self._exchange(commands, timeout_seconds)
            forgotten = [at for at, answer in enumerate(answers) if isinstance(answer, Refusal) and answer.is_forgotten]
            if forgotten:  # Valkey has executed none of these
                self._exchange(_LOADING, None)
                again = self._exchange([commands[at] for at in forgotten], timeout_seconds)
                for at, answer in zip(forgotten, again, strict=True):
                    answers[at] = answer
            return answers
        except (redis.RedisError, OSError) as error:
            self.close()
            raise ValkeyAway(_safe(error)) from error
        except BaseException:
            self.close()  # unread answers would be taken for those of the next commands
            raise

    def close(self) -> None:
        """Let go of the connection. The next `ask` opens a new one."""
        self._is_open = False
        self._connection.disconnect()

    def _exchange(self, commands: Sequence[Command], timeout_seconds: float | None) -> list[Answer]:
        # The library would check every argument before it calls hiredis: 2 µs for each record.
        pack: Any = hiredis.pack_command  # its stub says a tuple of one
        packed = b"".join([pack(tuple(command)) for command in commands])
        self._connection.send_packed_command([packed], check_health=False)
        return [self._answer(timeout_seconds) for _ in commands]

    def _answer(self, timeout_seconds: float | None) -> Answer:
        try:
            if timeout_seconds is None:
                return self._connection.read_response()
            return self._connection.read_response(timeout=timeout_seconds)
        except redis.ResponseError as error:
            return Refusal(_code(error))

    def _open(self) -> None:
        connection = self._connection
        connection.connect()
        self._is_open = True
        told, *_ = self._exchange([("INFO", "server"), *_LOADING], None)
        if isinstance(told, Refusal):
            raise redis.RedisError(told.code)
        version = re.search(rb"redis_version:(\d+)\.(\d+)", told)
        if version is not None and (int(version[1]), int(version[2])) < OLDEST:
            raise redis.RedisError("older than Redis 6.2")


def _code(error: redis.ResponseError) -> str:
    """Return the first word of Valkey's error. The library turns the words that it knows into types. In the error of a
    script, Redis 6.2 puts the word of the failed command behind a minus."""
    known = _KINDS.get(type(error))
    if known is not None:
        return known
    inside = re.search(r"-([A-Z]{3,}) ", str(error))
    return inside[1] if inside else str(error).partition(" ")[0]


def _safe(error: BaseException) -> str:
    """Name a failure without an address, a user or a password, which the library's texts may hold."""
    names = [type(error).__name__]
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OSError) and cause.strerror:
        names.append(cause.strerror)
    elif type(error) in (redis.RedisError, redis.ResponseError, redis.AuthenticationError):
        names.append(re.sub(r"[^A-Za-z0-9 .,_-]", "", str(error))[:100])
    return ": ".join(names)
