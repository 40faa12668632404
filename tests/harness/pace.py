"""Shorten a wait that is built into the service: gunicorn loads `tests.harness.pace:paced(…)` instead of `wsgi:app`.

The service has no setting for its leases and its patience with slow clients, and nobody can meet one by accident: only
this loader, which is outside of the service, changes such a number, while its module is loaded in the worker. A
test of each wait keeps the real one.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

Pace = dict[str, float]
"""Seconds, by the dotted name of a constant: `{"app.streams.shared.leases.LEASE_SECONDS": 1.5}`."""


def target(pace: Pace, *, probe: bool) -> str:
    """Write what gunicorn is told to load."""
    return f"tests.harness.pace:paced({pace!r}, probe={probe})"


def paced(pace: Pace, *, probe: bool) -> Any:
    """Build the service with these constants; called in the worker, after gevent has patched.

    Raises: LookupError when a module has no such number, or was loaded before; OSError when there is no such module.
    """
    wanted: dict[str, Pace] = {}
    for name, seconds in pace.items():
        module, _, constant = name.rpartition(".")
        wanted.setdefault(module, {})[constant] = seconds
    if loaded := wanted.keys() & sys.modules.keys():
        raise LookupError(f"loaded already: {loaded}")
    finder = _Finder(wanted)
    for module in wanted:
        finder.loader(module).get_code(module)  # a name that is wrong fails here, wherever the module is needed first
    sys.meta_path.insert(0, finder)
    if probe:
        from tests.harness.probe import probed

        return probed()
    from wsgi import app

    return app


class _Finder(MetaPathFinder):
    """Find the modules whose constants are changed."""

    def __init__(self, wanted: dict[str, Pace]) -> None:
        self._wanted = wanted

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self.loader(fullname)) if fullname in self._wanted else None

    def loader(self, fullname: str) -> _Loader:
        """Give what loads one of them."""
        path = Path(*fullname.split(".")).with_suffix(".py")  # gunicorn runs where the service lies
        return _Loader(fullname, str(path.absolute()), self._wanted[fullname])


class _Loader(SourceFileLoader):
    """Compile a module with other numbers in its constants, past Python's cache of what was compiled."""

    def __init__(self, fullname: str, path: str, constants: Pace) -> None:
        super().__init__(fullname, path)
        self._constants = constants

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(self.get_data(self.path), self.path)
        left = dict(self._constants)
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in left:
                node.value = ast.copy_location(ast.Constant(left.pop(node.targets[0].id)), node.value)
        if left:
            raise LookupError(f"{fullname} has no {', '.join(left)}")
        code: CodeType = compile(tree, self.path, "exec", dont_inherit=True)
        return code
