"""The OpenMP runtime that llama.cpp needs. A package of requirements-local.txt carries one for systems without it.

The loader finds a library by its name, in a path that it reads when a process starts. So the process starts itself
again, and the path then has a folder in which the carried library has that name. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

__all__ = ["available", "carried", "provide"]

NAME = "libgomp.so.1"
FOLDER = "CHATWAIT_OPENMP_FOLDER"


def carried() -> Path | None:
    """Find the library in the package that carries it, without an import of that package."""
    for file in sorted(Path(sysconfig.get_path("platlib")).glob("pykdtree.libs/libgomp-*.so*")):
        return file
    return None


def available() -> bool:
    """Tell whether llama.cpp finds the library after `provide`. Other systems than Linux need no library."""
    return sys.platform != "linux" or carried() is not None or _loads()


def provide(*command: str) -> None:
    """Return when this process can load the library, or when no library is here.

    Otherwise `command`, run by the same Python, replaces the process. The new process can load the library, and calls
    this again.
    """
    folder = os.environ.pop(FOLDER, None)
    is_there = _loads()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)  # the library stays loaded
    library = carried()
    if is_there or folder is not None or library is None:
        return  # where no library is here, the import that needs it says so
    folder = tempfile.mkdtemp(prefix="chatwait-openmp-")
    Path(folder, NAME).symlink_to(library)
    paths = [folder, *filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))]
    os.execve(
        sys.executable,
        [sys.executable, *command],
        {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(paths), FOLDER: folder},
    )


def _loads() -> bool:
    try:
        ctypes.CDLL(NAME)
    except OSError:
        return False
    return True
