"""The scripts that Valkey runs, each in one step: nothing comes between a check and the write that depends on it.

The scripts are Lua, in the folder `lua/`. `guarded.lua` stands before each of them.

A stream is a hash and, once it has a record, a key of Valkey's type "stream": an entry for each record,
`<sequence>-0`, and one for the end, `<records + 1>-0`. The hash says whose the stream is: only the worker that holds
its `fence` writes. Every key has a time to live from its first command.

Workers of version 0.1 run their own scripts on the same keys. So a newer version may add only what those scripts
ignore.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["ADOPT", "ATTACH", "CANCEL", "COMMIT", "CREATE", "ERASE", "FINISH", "RESTORE", "WAKE"]

_LUA = Path(__file__).parent / "lua"


def _read(name: str) -> str:
    return "\n".join((_LUA / f"{part}.lua").read_text(encoding="utf-8") for part in ("guarded", name))


ADOPT = _read("adopt")
ATTACH = _read("attach")
CANCEL = _read("cancel")
COMMIT = _read("commit")
CREATE = _read("create")
ERASE = _read("erase")
FINISH = _read("finish")
RESTORE = _read("restore")
WAKE = _read("wake")
