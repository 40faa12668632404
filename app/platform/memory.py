"""Gives pages of memory back to the kernel. Standard library only."""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path

__all__ = ["release_pages"]


def release_pages(path: Path) -> None:
    """Give back the pages of a library's constants. `path` is the library's file.

    The pages are unchanged copies of the file, so the kernel reads them again when they are needed again. Pages that
    were changed are kept. Does nothing where the kernel does not tell which pages were changed (not Linux).
    """
    try:
        areas = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return
    for area in areas:
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r--p .* (/.*)", area)
        if found and found[3] == str(path) and re.search(r"^Anonymous: +0 kB$", area, re.MULTILINE):
            start, end = int(found[1], 16), int(found[2], 16)
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
