"""The faults: one TOML file for each room of `app/`, named after it.

`tests` lists the files of tests that are run for the whole room, after those that cover a fault's line. A `[[fault]]`
has a `name` that says what breaks, the `path`, the `old` text, which occurs once, and the `new` text. Its own `tests`
are run before the room's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["FOLDER", "ROOT", "Fault", "load", "room_of", "sample"]

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent

ALONE = {
    "__init__": "worker",
    "shutdown": "worker",
    "settings": "errors",
    "setting_values": "errors",
    "__main__": "errors",
}
"""Files that are small rooms, and the room whose faults hold theirs."""

FEWEST = 4
"""How many faults of each room a sample has at least."""

PARTS = ("memory", "shared")
"""Folders that are rooms inside a room."""


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    room: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]
    """Files of tests, in the order in which they are run: the fault's own, then the room's."""
    first: int
    """How many of these are the fault's own."""

    def broken(self, text: str) -> str:
        """Return a file's text with the fault. Raises: ValueError unless the old text occurs once and changes."""
        if text.count(self.old) != 1 or self.old == self.new:
            raise ValueError(f"{self.name}: its text occurs {text.count(self.old)} times in {self.path}")
        return text.replace(self.old, self.new)

    def lines(self, text: str) -> range:
        """Return the numbers of the lines that the fault changes, from 1."""
        old, new = self.old.split("\n"), self.new.split("\n")
        first = text[: text.index(self.old)].count("\n") + 1
        last = first + len(old) - (0 if old[-1] else 1)
        same = next((at for at, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), 0)
        return range(min(first + same, last - 1), last)


def room_of(path: str) -> str:
    """Name the room that a file of `app/` lies in, as the file of its faults is named."""
    _, *folders, file = PurePosixPath(path).parts
    if not folders:
        return ALONE.get(PurePosixPath(file).stem, PurePosixPath(file).stem)
    if folders[0] == "static":
        return "page"
    return "_".join([folders[0], *(part for part in folders[1:2] if part in PARTS)])


def load(folder: Path = FOLDER) -> list[Fault]:
    """Read all faults, by room."""
    faults: list[Fault] = []
    for file in sorted(folder.glob("*.toml")):
        told = tomllib.loads(file.read_text(encoding="utf-8"))
        for one in told["fault"]:
            own = one.get("tests", [])
            tests = tuple(dict.fromkeys([*own, *told["tests"]]))
            faults.append(Fault(one["name"], file.stem, one["path"], one["old"], one["new"], tests, len(own)))
    return faults


def sample(faults: Sequence[Fault]) -> list[Fault]:
    """Choose about a quarter of the faults: always the same ones, spread over each room, and at least FEWEST of it."""
    rooms: dict[str, list[Fault]] = {}
    for fault in faults:
        rooms.setdefault(fault.room, []).append(fault)
    chosen: list[Fault] = []
    for those in rooms.values():
        count = min(len(those), max(FEWEST, len(those) // 4))
        chosen += [those[place * len(those) // count] for place in range(count)]
    return chosen
