"""Read the arrows out of a drawing of boxes and lines, as docstrings hold them."""

from __future__ import annotations

import re

__all__ = ["drawn_arrows"]

LINES = {"|": "ns", "-": "ew", "+": "nsew", "v": "n", "^": "s", "<": "e", ">": "w"}
"""Where each character of a line leads to. A head leads back, and forward to what it points at."""

POINTS = {"v": (1, 0), "^": (-1, 0), "<": (0, -1), ">": (0, 1)}
WAYS = {"n": (-1, 0), "s": (1, 0), "e": (0, 1), "w": (0, -1)}
BACK = {"n": "s", "s": "n", "e": "w", "w": "e"}

Place = tuple[int, int]


def drawn_arrows(drawing: str, states: set[str], names: set[str]) -> set[tuple[str, str, str]]:
    """Return each arrow as (name, source, target). A line belongs to the name that stands nearest to it.

    Three ways to draw one are known: a line from state to state; a line with "from A, B" in it; and a sentence,
    "A, B -- name --> C".
    """
    found: set[tuple[str, str, str]] = set()
    rows = []
    said: dict[Place, list[str]] = {}
    for row, line in enumerate(drawing.splitlines()):
        sentence = re.fullmatch(r"\s*((?:[A-Z_]+, )*[A-Z_]+) -- (\w+) -+> ([A-Z_]+)", line)
        if sentence is not None:
            found |= {(sentence[2], source, sentence[3]) for source in sentence[1].split(", ")}
            line = ""
        inside = re.search(r"- (from ((?:[A-Z_]+, )*[A-Z_]+)) -", line)
        if inside is not None:
            said[row, inside.start()] = inside[2].split(", ")
            line = line[: inside.start(1) - 1] + "-" * (len(inside[1]) + 2) + line[inside.end(1) + 1 :]
        rows.append(line)
    words = [(match[0], row, match.start(), match.end()) for row, line in enumerate(rows) for match in _words(line)]
    for cells in _lines(rows, words):
        sources, targets = _ends(cells, rows, [word for word in words if word[0] in states])
        for place, more in said.items():
            sources |= set(more) if place in cells else set()
        if not sources or not targets:
            continue  # it comes from nowhere: so a log begins
        name = min((_distance(cells, word), word[0]) for word in words if word[0] in names)[1]
        found |= {(name, source, target) for source in sources for target in targets}
    return found


def _words(line: str) -> list[re.Match[str]]:
    return [match for match in re.finditer(r"\w+", line) if match[0] != "v"]


def _lines(rows: list[str], words: list[tuple[str, int, int, int]]) -> list[set[Place]]:
    """Find what hangs together."""
    taken = {(row, at) for _, row, begin, end in words for at in range(begin, end)}
    cells = {
        (row, at): sign
        for row, line in enumerate(rows)
        for at, sign in enumerate(line)
        if sign in LINES and (row, at) not in taken
    }
    lines = []
    while cells:
        line, left = set(), [next(iter(cells))]
        while left:
            place = left.pop()
            line.add(place)
            for way in LINES[cells[place]]:
                to = (place[0] + WAYS[way][0], place[1] + WAYS[way][1])
                if to in cells and to not in line and BACK[way] in LINES[cells[to]]:
                    left.append(to)
        lines.append(line)
        for place in line:
            del cells[place]
    return lines


def _ends(cells: set[Place], rows: list[str], states: list[tuple[str, int, int, int]]) -> tuple[set[str], set[str]]:
    """Tell which states a line leaves, and which its heads point at. One blank may stand between."""
    sources, targets = set(), set()
    for row, at in cells:
        sign = rows[row][at]
        ways = [POINTS[sign]] if sign in POINTS else [WAYS[way] for way in LINES[sign]]
        for down, right in ways:
            for steps in (1, 2) if right else (1,):
                place = (row + down * steps, at + right * steps)
                touched = [name for name, line, begin, end in states if line == place[0] and begin <= place[1] < end]
                (targets if sign in POINTS else sources).update(touched)
    return sources, targets


def _distance(cells: set[Place], word: tuple[str, int, int, int]) -> int:
    _, row, begin, end = word
    return min(abs(row - line) + max(begin - at, at - end + 1, 0) for line, at in cells)
