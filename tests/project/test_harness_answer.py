"""Test that the folded answer accepts what the contract promises, and really fails on everything else."""

import hashlib
import json
from typing import Any

import pytest

from load.events import Event
from tests.harness.answer import Answer
from tests.harness.http1 import Headers

SID = "abc-123"


def event(name: str, number: int | None, /, **data: Any) -> Event:
    return Event(name, json.dumps(data), None if number is None else f"{SID}.{number}")


def start() -> Event:
    return event("start", 0, stream_id=SID)


def token(sequence: int, content: str, count: int = 1) -> Event:
    return event("token", sequence, sequence=sequence, count=count, content=content, is_final=False)


def ping(tokens: int, number: int | None = None) -> Event:
    return event("ping", number, phase="generating", tokens=tokens)


def unresumable(tokens: object, number: int | None = None) -> Event:
    return event("unresumable", number, tokens=tokens)


def resumable(tokens: object, number: int | None = None) -> Event:
    return event("resumable", number, tokens=tokens)


def terminal(text: str, tokens: int, name: str = "done", /, **changes: Any) -> Event:
    data = {
        "sequence": tokens + 1,
        "is_final": True,
        "status": {"done": "complete"}.get(name, name),
        "tokens": tokens,
        "characters": len(text),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    return event(name, tokens + 1, **{**data, **changes})


def fold(*events: Event, **options: Any) -> Answer:
    answer = Answer(**options)
    answer.begin_connection(Headers([("X-Stream-Id", SID)]))
    for item in events:
        answer.add(item)
    return answer.verify()


WHOLE = [start(), token(1, "H\u00e9"), ping(1), token(3, "l\U0001f600o", 2)]


def test_answer_given_a_whole_stream_puts_it_together() -> None:
    answer = fold(*WHOLE, terminal("H\u00e9l\U0001f600o", 3))

    assert (answer.text, answer.tokens, answer.last_event_id) == ("H\u00e9l\U0001f600o", 3, f"{SID}.4")
    assert answer.terminal is not None
    assert answer.terminal.event == "done"


@pytest.mark.parametrize("name", ["cancelled", "failed"])
def test_answer_takes_every_terminal(name: str) -> None:
    assert fold(start(), token(1, "a"), terminal("a", 1, name)).is_complete


def test_answer_ignores_an_event_that_it_does_not_know() -> None:
    assert fold(start(), Event("weather", "rain"), terminal("", 0)).text == ""


def test_answer_notes_what_may_not_be_resumable_and_moves_no_cursor() -> None:
    answer = Answer()
    answer.begin_connection(Headers([]))
    seen = []
    for item in (start(), unresumable(0), token(1, "a"), resumable(2), token(2, "b"), ping(2), unresumable(2), ping(2)):
        answer.add(item)
        seen.append(answer.unresumable_after)

    assert seen == [None, 0, 0, None, None, None, 2, 2]
    assert answer.resumability == [("unresumable", 0), ("resumable", 2), ("unresumable", 2)]
    assert answer.last_event_id == f"{SID}.2"
    answer.add(terminal("ab", 2))
    assert (answer.verify().text, answer.unresumable_after) == ("ab", 2)


def test_answer_on_the_next_connection_is_resumable_until_it_says_otherwise() -> None:
    answer = Answer()
    for opening, number in ((start(), 1), (ping(1, 1), 2)):
        answer.begin_connection(Headers([]))
        assert answer.unresumable_after is None
        for item in (opening, unresumable(0), token(number, "a")):
            answer.add(item)
    answer.add(resumable(2))

    assert [name for name, _ in answer.resumability] == ["unresumable", "unresumable", "resumable"]


def test_answer_over_two_connections_goes_on_where_it_was() -> None:
    answer = Answer()
    answer.begin_connection(Headers([("X-Stream-Id", SID)]))
    for item in (start(), token(1, "a")):
        answer.add(item)
    answer.begin_connection(Headers([]))
    for item in (ping(2, 1), token(2, "b"), ping(2), terminal("ab", 2)):
        answer.add(item)

    assert (answer.verify().text, answer.connections) == ("ab", 2)


def test_answer_that_had_only_start_takes_a_second_start_on_the_next_connection() -> None:
    answer = Answer()
    for _ in range(2):
        answer.begin_connection(Headers([]))
        answer.add(start())
    answer.add(terminal("", 0))

    assert answer.verify().connections == 2


def test_answer_from_the_middle_judges_the_hash_only_with_the_prefix() -> None:
    tail = [token(2, "b"), terminal("ab", 2)]

    assert fold(*tail, after=1).text == "b"
    assert fold(*tail, after=1, prefix="a").text == "ab"
    with pytest.raises(AssertionError, match="SHA-256"):
        fold(*tail, after=1, prefix="x")


BROKEN: dict[str, tuple[list[Event], str]] = {
    "a hole": ([start(), token(1, "a"), token(3, "c"), terminal("ac", 2)], r"after .1 comes .3 with a count of 1"),
    "a duplicate": ([start(), token(1, "a"), token(1, "a")], "does not rise"),
    "a step back": ([start(), token(2, "ab", 2), token(1, "a")], "does not rise"),
    "a wrong count": ([start(), token(1, "ab", 2)], r"after .0 comes .1 with a count of 2"),
    "a count of zero": ([start(), token(0, "a", 0)], "does not rise|count"),
    "an empty token": ([start(), token(1, "")], "no count or no content"),
    "a token that is final": (
        [start(), event("token", 1, sequence=1, count=1, content="a", is_final=True)],
        "is final",
    ),
    "a token without an id": (
        [start(), event("token", None, sequence=1, count=1, content="a", is_final=False)],
        "the id of a frame is not",
    ),
    "a wrong hash": ([start(), token(1, "a"), terminal("b", 1)], "SHA-256"),
    "wrong characters": ([start(), token(1, "a"), terminal("a", 1, characters=2)], "characters"),
    "wrong tokens": ([start(), token(1, "a"), terminal("a", 1, tokens=2)], "tokens is wrong"),
    "a lost last token": ([start(), token(1, "a"), terminal("ab", 2)], "tokens is wrong: got 2, wanted 1"),
    "a wrong terminal sequence": ([start(), terminal("", 0, sequence=2)], "sequence of the terminal"),
    "a terminal that is not final": ([start(), terminal("", 0, is_final=False)], "is not final"),
    "a terminal of another id": (
        [start(), Event("done", terminal("", 0).data, f"{SID}.2")],
        "the id of a frame is not",
    ),
    "a wrong status": ([start(), terminal("", 0, status="failed")], "status"),
    "a true for a one": ([start(), token(1, "a"), terminal("a", 1, tokens=True)], "tokens is wrong"),
    "two terminals": ([start(), terminal("", 0), terminal("", 0)], "something follows the terminal"),
    "a ping after the end": ([start(), terminal("", 0), ping(0)], "something follows the terminal"),
    "no terminal": ([start(), token(1, "a")], "without a terminal"),
    "nothing at all": ([], "without a terminal"),
    "a foreign id": ([start(), Event("token", token(1, "a").data, "other.1")], "another id"),
    "an id without a number": ([Event("token", token(1, "a").data, f"{SID}.x")], "is not <stream_id>"),
    "a later ping with an id": ([start(), token(1, "a"), ping(1, 1)], "id of a ping"),
    "a first ping without a cursor": ([ping(0), token(1, "a")], "id of a ping"),
    "a ping behind the log": ([start(), token(1, "a"), ping(0)], "a ping says"),
    "a late start": ([start(), start()], "does not rise"),
    "a late start of someone who has seen nothing": ([Event("weather", "rain"), start()], "not the first"),
    "unresumable first": ([unresumable(0), start()], "unresumable is the first event"),
    "unresumable twice": ([start(), unresumable(0), token(1, "a"), unresumable(0)], "out of turn"),
    "resumable first": ([start(), token(1, "a"), resumable(1)], "out of turn"),
    "resumable twice": ([start(), unresumable(0), resumable(0), resumable(0)], "out of turn"),
    "unresumable with an id": ([start(), token(1, "a"), unresumable(1, 2)], "has an id"),
    "resumable with an id": ([start(), unresumable(0), resumable(0, 1)], "has an id"),
    "unresumable without a number": ([start(), unresumable(None)], "how many tokens"),
    "unresumable with a true": ([start(), unresumable(True)], "how many tokens"),
    "unresumable below zero": ([start(), unresumable(-1)], "how many tokens"),
    "resumable behind": (
        [start(), unresumable(0), token(1, "a"), resumable(0)],
        "have come: 0, after .1",
    ),
    "unresumable after the end": ([start(), terminal("", 0), unresumable(0)], "something follows the terminal"),
    "an unknown event with an id": ([start(), Event("weather", "rain", f"{SID}.1")], "not known"),
    "data that is no JSON": ([start(), Event("token", "{", f"{SID}.1")], "not a JSON object"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_answer_given_a_broken_stream_says_what_differs(name: str) -> None:
    events, problem = BROKEN[name]
    with pytest.raises(AssertionError, match=problem):
        fold(*events)


@pytest.mark.parametrize("number", [None, 0, 2])
def test_answer_resumed_in_the_middle_refuses_a_ping_without_its_cursor(number: int | None) -> None:
    with pytest.raises(AssertionError, match="id of a ping"):
        fold(ping(2, number), token(2, "b"), after=1)


def test_answer_resumed_in_the_middle_refuses_a_start() -> None:
    answer = Answer()
    answer.begin_connection(Headers([]))
    answer.add(start())
    answer.add(token(1, "a"))
    answer.begin_connection(Headers([]))

    with pytest.raises(AssertionError, match="does not rise"):
        answer.add(start())
