"""What the scripts answer is read into types, and what is no answer of theirs is refused."""

from __future__ import annotations

from typing import Any

import pytest

from app.streams.shared.replies import (
    Behind,
    Done,
    Ended,
    Fenced,
    Missing,
    Spoiled,
    Written,
    read_commit,
    read_finish,
)

NOT_WRITTEN: list[tuple[Any, Any]] = [
    ([b"missing"], Missing()),
    ([b"damaged"], Spoiled()),
    ([b"fenced", 3], Fenced(3)),
    ([b"behind", 2], Behind(2)),
]
COMMITTED = [(0, Written(0, False)), (7, Written(7, False)), ([b"cancel", 7], Written(7, True)), ([b"ended"], Ended(0))]
FINISHED = [([b"done", 4], Done(4)), ([b"ended", 4], Ended(4))]


@pytest.mark.parametrize(("answer", "reply"), [*COMMITTED, *NOT_WRITTEN], ids=str)
def test_answer_of_commit_is_read(answer: Any, reply: Any) -> None:
    read = read_commit(answer)
    assert (type(read), read) == (type(reply), reply)


@pytest.mark.parametrize(("answer", "reply"), [*FINISHED, *NOT_WRITTEN], ids=str)
def test_answer_of_finish_is_read(answer: Any, reply: Any) -> None:
    read = read_finish(answer)
    assert (type(read), read) == (type(reply), reply)


NONE = [None, b"ended", "missing", [], [None], [b"nonsense"], [b"fenced"], [b"behind", b"2"], [b"fenced", None], [3]]


@pytest.mark.parametrize("answer", [*NONE, [b"cancel"], [b"cancel", b"7"], [b"done", 4], True, 1.5], ids=str)
def test_what_is_no_answer_of_commit_is_refused(answer: Any) -> None:
    with pytest.raises((ValueError, TypeError, LookupError)):
        read_commit(answer)


@pytest.mark.parametrize("answer", [*NONE, 7, [b"done"], [b"done", b"4"], [b"ended"], [b"cancel", 7]], ids=str)
def test_what_is_no_answer_of_finish_is_refused(answer: Any) -> None:
    with pytest.raises((ValueError, TypeError, LookupError)):
        read_finish(answer)
