"""Draw the rooms of `app/` for CONTRIBUTING.md. `python -m tests.rooms` writes the picture anew; `--check` compares.

The picture has an arrow for each import from room to room that no other way stands for: where `web` imports `reading`
and `reading` imports `streams`, an arrow from `web` to `streams` would say nothing new.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grimp

__all__ = ["drawn", "main"]

GUIDE = Path(__file__).parents[1] / "CONTRIBUTING.md"
BEGIN, END = "<!-- python -m tests.rooms -->\n", "\n<!-- end of the rooms -->"


def main(arguments: list[str]) -> int:
    """Write the picture into CONTRIBUTING.md; with `--check` return 1 when it is another one there."""
    text = GUIDE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{GUIDE.name} has no place for the picture, from {BEGIN.strip()} to {END.strip()}")
    wanted = f"{before}{begin}{drawn()}{end}{after}"
    if arguments == ["--check"]:
        if text != wanted:
            print(
                f"The picture in {GUIDE.name} is not that of the code: python -m tests.rooms draws it.", file=sys.stderr
            )
        return int(text != wanted)
    GUIDE.write_text(wanted, encoding="utf-8")
    return 0


def drawn() -> str:
    """Give the picture as a block of Mermaid."""
    arrows = imports()
    lines = [f"  {_box(room)}" for room in arrows]
    lines += [f"  {room} --> {below}" for room in arrows for below in sorted(_needed(room, arrows))]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"])


def imports() -> dict[str, set[str]]:
    """Give the rooms, and for each the rooms that its files import. The first ones are those that none imports."""
    graph = grimp.build_graph("app", cache_dir=None)
    found: dict[str, set[str]] = {}
    for module in graph.modules:
        if (room := _room(module)) is not None:
            below = {_room(imported) for imported in graph.find_modules_directly_imported_by(module)}
            found.setdefault(room, set()).update(name for name in below - {room} if name is not None)
    depth = {room: len(_reached(room, found)) for room in found}
    return {room: found[room] for room in sorted(found, key=lambda room: (-depth[room], room))}


def _room(module: str) -> str | None:
    """Name the room of a module; None for `app` itself, which only wires."""
    return None if module in ("app", "app.__main__") else module.split(".")[1]


def _reached(room: str, arrows: dict[str, set[str]]) -> set[str]:
    return arrows[room].union(*(_reached(below, arrows) for below in arrows[room]))


def _needed(room: str, arrows: dict[str, set[str]]) -> set[str]:
    return {below for below in arrows[room] if not any(below in _reached(other, arrows) for other in arrows[room])}


def _box(room: str) -> str:
    folder = Path(__file__).parents[1] / "app" / room
    return f"{room}[{room}/]" if folder.is_dir() else f"{room}[{room}.py]"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
