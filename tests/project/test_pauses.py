"""No test waits for a fixed time, but where the passing of time is what it tests: then the line says so.

A pause in a loop that is left when a fact holds is a look at that fact, and needs no reason. The scripted upstream and
the proxy of the tests make pauses because a test tells them to.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
MAKE_PAUSES = {"harness/exchange.py", "harness/chaos.py"}
"""Their pauses are steps of a test's script."""
LEAVE = (ast.Return, ast.Break, ast.Raise, ast.Assert)
BLOCKS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def is_pause(call: ast.Call) -> bool:
    """Tell whether a call only lets time pass: a sleep that is no mere turn for others, or a wait for nothing."""
    match call:
        case ast.Call(func=ast.Attribute(attr="sleep") | ast.Name(id="sleep"), args=[ast.Constant(value=0)]):
            return False
        case ast.Call(func=ast.Attribute(attr="sleep" | "wait_for_timeout") | ast.Name(id="sleep"), args=[_]):
            return True
        case ast.Call(func=ast.Attribute(attr="wait", value=ast.Call(func=ast.Attribute(attr="Event")))):
            return True  # nobody can set an event that has no name
        case ast.Call(func=ast.Attribute(attr="wait"), args=[ast.Constant(value=float(seconds))]):
            return seconds < 1
    return False


def is_left_for_a_fact(loop: ast.AST) -> bool:
    """Tell whether a loop ends when something holds."""
    inside = [node for part in getattr(loop, "body", ()) for node in ast.walk(part)]
    if isinstance(loop, ast.While):
        return not isinstance(loop.test, ast.Constant) or any(isinstance(node, LEAVE) for node in inside)
    return any(isinstance(node, ast.Return | ast.Break) for node in inside)


def pauses(tree: ast.AST, loop: ast.AST | None = None) -> Iterator[ast.Call]:
    """List the pauses that are no looks at a fact. `loop`: the innermost one of the same function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and is_pause(node) and not (loop and is_left_for_a_fact(loop)):
            yield node
        if isinstance(node, BLOCKS):
            yield from pauses(node)
        else:
            yield from pauses(node, node if isinstance(node, ast.For | ast.AsyncFor | ast.While) else loop)


def reasons(source: str) -> set[int]:
    """List the lines that carry a comment of three words or more."""
    found = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in found if token.type == tokenize.COMMENT]
    return {token.start[0] for token in comments if len(token.string.strip("# ").split()) > 2}


def unexplained(source: str) -> list[int]:
    """List the lines with a pause and no reason."""
    explained = reasons(source)
    found = {call.lineno for call in pauses(ast.parse(source)) if not explained & {call.lineno, call.end_lineno}}
    return sorted(found)


def test_pauses_of_the_tests_are_looks_at_a_fact_or_say_why_time_passes() -> None:
    paths = {str(path.relative_to(TESTS)): path for path in TESTS.rglob("*.py")}
    assert paths.keys() > MAKE_PAUSES
    looked = {name: path.read_text(encoding="utf-8") for name, path in paths.items() if name not in MAKE_PAUSES}
    assert sum(len(list(pauses(ast.parse(source)))) for source in looked.values()) > 20, "premise: they are found"
    assert [f"{name}:{line}" for name, source in looked.items() for line in unexplained(source)] == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("time.sleep(1)", [1]),
        ("await asyncio.sleep(0.5)", [1]),
        ("sleep(seconds)", [1]),
        ("page.wait_for_timeout(500)", [1]),
        ("threading.Event().wait(0.01)", [1]),
        ("never = threading.Event()\nnever.wait(0.05)", [2]),
        ("for _ in range(3):\n    time.sleep(1)", [2]),
        ("while True:\n    time.sleep(1)", [2]),
        ("while not fact():\n    def later():\n        time.sleep(1)", [3]),
        ("while not fact():\n    for _ in range(3):\n        time.sleep(1)", [3]),
        ("time.sleep(1)  # noqa: S1", [1]),
        ("# a line before it, of three words\ntime.sleep(1)", [2]),
        ("time.sleep(1)  # how long is the case", []),
        ("time.sleep(0)", []),
        ("while not fact():\n    time.sleep(1)", []),
        ("while True:\n    if fact():\n        break\n    time.sleep(1)", []),
        ("for _ in range(3):\n    if fact():\n        break\n    time.sleep(1)", []),
        ("while not stop.wait(0.01):\n    look()", []),
        ("assert happened.wait(20.0)", []),
    ],
)
def test_pause_without_a_reason_is_found_by_its_line(source: str, lines: list[int]) -> None:
    assert unexplained(source) == lines
