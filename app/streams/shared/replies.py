"""What the scripts `commit.lua` and `finish.lua` answer for one stream, as types."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

__all__ = [
    "Behind",
    "CommitReply",
    "Done",
    "Ended",
    "Erased",
    "Fenced",
    "FinishReply",
    "Missing",
    "Spoiled",
    "Written",
    "read_commit",
    "read_finish",
]


class Written(NamedTuple):
    """Valkey has the records up to `head`. `is_cancelled`: somebody has asked for the stream's end."""

    head: int
    is_cancelled: bool


class Done(NamedTuple):
    """Valkey has the end. `attached`: how many readers have attached, as far as Valkey knows."""

    attached: int


class Ended(NamedTuple):
    """Valkey had the end before, from this worker."""

    attached: int


class Missing(NamedTuple):
    """Valkey has lost the stream, or a part of it."""


class Erased(NamedTuple):
    """The stream was erased for good."""


class Spoiled(NamedTuple):
    """The stream's keys hold something that this program does not write."""


class Fenced(NamedTuple):
    """Another worker writes the stream, which has the records up to `head`."""

    head: int


class Behind(NamedTuple):
    """Valkey has the records up to `head`, and the records that were sent begin further on."""

    head: int


NotWritten: TypeAlias = Missing | Erased | Spoiled | Fenced | Behind
CommitReply: TypeAlias = Written | Ended | NotWritten
FinishReply: TypeAlias = Done | Ended | NotWritten


def read_commit(answer: Any) -> CommitReply:
    """Raises: ValueError, TypeError or LookupError when it is none of the answers."""
    if type(answer) is int:
        return Written(answer, False)
    if answer[0] == b"cancel":
        return Written(_number(answer[1]), True)
    if answer[0] == b"ended":
        return Ended(0)
    return _not_written(answer)


def read_finish(answer: Any) -> FinishReply:
    """Raises: ValueError, TypeError or LookupError when it is none of the answers."""
    if answer[0] == b"done":
        return Done(_number(answer[1]))
    if answer[0] == b"ended":
        return Ended(_number(answer[1]))
    return _not_written(answer)


def _not_written(answer: Any) -> NotWritten:
    kind = answer[0]
    if kind == b"missing":
        return Missing()
    if kind == b"erased":
        return Erased()
    if kind == b"damaged":
        return Spoiled()
    if kind == b"fenced":
        return Fenced(_number(answer[1]))
    if kind == b"behind":
        return Behind(_number(answer[1]))
    raise ValueError("a script's answer")


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("a script's number")
    return value
