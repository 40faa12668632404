"""The states of a log that several workers share, as one of them has it.

                 begun                                         copied
                   |                                              |
                   v          adopted                             v
      +-------> STORED <-------------------------------------- FOLLOWED
      |          |  |                                          ^  |  |
      |     late |  |             taken_over                   |  |  | end_read
      |          v  +-- from STORED, AHEAD, CATCHING_UP -------+  |  v
      |        AHEAD <------+                                     |  ENDED
      |          |          | late                                |
      |  answered|          |                                     | dropped
      |          v          |                                     v
      +---- CATCHING_UP ----+                                  DROPPED
    caught_up

    STORED, AHEAD, CATCHING_UP -- end_stored --> ENDED
    STORED, AHEAD, CATCHING_UP, CUT_OFF -- dropped -----> DROPPED
    STORED, AHEAD, CATCHING_UP, ENDED -- cut_off --> CUT_OFF

Each arrow says below what it means. A worker owns a log that is STORED, AHEAD, CATCHING_UP or CUT_OFF. It may have
owned or copied a log that is ENDED or DROPPED.

An end has steps of its own beside these states: it is being written (`_is_closed`), decided (`Owned.end`), and shown to
readers (`SharedLog.end`). Readers of a log that is AHEAD or CUT_OFF get the end as soon as it is decided. An AHEAD
log becomes ENDED only when Valkey has the end. A CUT_OFF log never does.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = [
    "ADOPTED",
    "ANSWERED",
    "ARROWS",
    "CAUGHT_UP",
    "CUT_OFF",
    "DROPPED",
    "END_READ",
    "END_STORED",
    "LATE",
    "TAKEN_OVER",
    "Arrow",
    "State",
    "step",
]


class State(Enum):
    """Which records readers here may have, compared with those that Valkey has."""

    STORED = ("readers have nothing that is not stored",)
    AHEAD = ("Valkey is away: readers get records before they are stored", "ahead", "unresumable")
    CATCHING_UP = ("Valkey is back: readers get no more until all that they have is stored", "unresumable")
    CUT_OFF = ("the log goes on for the readers here alone", "ahead", "unresumable", "unwritten")
    FOLLOWED = ("another worker writes the log, and this is a copy", "unwritten")
    ENDED = ("readers have the end, and it is stored",)
    DROPPED = ("this worker keeps the log no more", "unwritten")

    def __init__(self, meaning: str, *traits: str) -> None:
        self.meaning = meaning
        self.shows_ahead = "ahead" in traits
        """Readers get a record as soon as it is appended."""
        self.is_unresumable = "unresumable" in traits
        """Readers have, or may get, what no other worker can give them."""
        self.is_written = "unwritten" not in traits
        """A worker that owns the log gives Valkey what is new, and what Valkey has lost."""


class Arrow(NamedTuple):
    """A step from some states to another one."""

    name: str
    sources: frozenset[State]
    target: State


def _arrow(name: str, *sources: State, to: State) -> Arrow:
    return Arrow(name, frozenset(sources), to)


LATE = _arrow("late", State.STORED, State.CATCHING_UP, to=State.AHEAD)
"""Valkey has not answered for a while."""

ANSWERED = _arrow("answered", State.AHEAD, to=State.CATCHING_UP)
"""Valkey answers again."""

CAUGHT_UP = _arrow("caught_up", State.CATCHING_UP, to=State.STORED)
"""All that readers have is stored."""

END_STORED = _arrow("end_stored", State.STORED, State.AHEAD, State.CATCHING_UP, to=State.ENDED)
"""The end is stored, and so is all before it."""

TAKEN_OVER = _arrow("taken_over", State.STORED, State.AHEAD, State.CATCHING_UP, to=State.FOLLOWED)
"""Another worker took this one for dead, and writes the stream now. Readers here have nothing that the other worker
lacks."""

CUT_OFF = _arrow("cut_off", State.STORED, State.AHEAD, State.CATCHING_UP, State.ENDED, to=State.CUT_OFF)
"""Another worker took this one for dead, and readers here have more than that worker has. Or the stream is damaged
beyond repair on Valkey. A log that has ended can be cut off too: Valkey may lose its end, and then take another
worker's."""

ADOPTED = _arrow("adopted", State.FOLLOWED, to=State.STORED)
"""The worker that wrote the log is gone, and this one ends it."""

END_READ = _arrow("end_read", State.FOLLOWED, to=State.ENDED)
"""The copy has got the end."""

DROPPED = _arrow(
    "dropped", State.STORED, State.AHEAD, State.CATCHING_UP, State.CUT_OFF, State.FOLLOWED, to=State.DROPPED
)
"""The log was not begun after all, or nobody reads the copy, or the copy cannot go on."""

ARROWS = (LATE, ANSWERED, CAUGHT_UP, END_STORED, TAKEN_OVER, CUT_OFF, ADOPTED, END_READ, DROPPED)


def step(state: State, arrow: Arrow) -> State:
    """Return the state behind an arrow. Raises: RuntimeError when the arrow does not begin at this state."""
    if state not in arrow.sources:
        raise RuntimeError(f"{arrow.name} is no step from {state.name}")
    return arrow.target
