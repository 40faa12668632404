"""Test which pages of a library's memory are given back, and which never are."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import pytest

from app.platform.memory import release_pages
from tests.requirements import require_or_skip


@pytest.fixture
def linux() -> None:
    require_or_skip("Linux, whose kernel tells what is in memory", sys.platform == "linux")


@pytest.mark.usefixtures("linux")
def test_pages_that_were_changed_are_never_given_back(tmp_path: Path) -> None:
    """They are not the file's any more: relocations, for one, which only look like constants."""
    path = tmp_path / "library.so"
    path.write_bytes(b"a" * mmap.PAGESIZE * 4)
    with path.open("rb") as file:
        area = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    area[0:1] = b"b"
    first = ctypes.c_char.from_buffer(area)
    address = ctypes.c_void_p(ctypes.addressof(first))
    protect = ctypes.CDLL(None).mprotect
    assert protect(address, ctypes.c_size_t(len(area)), mmap.PROT_READ) == 0
    try:
        release_pages(path)
        assert area[0:2] == b"ba"
    finally:
        protect(address, ctypes.c_size_t(len(area)), mmap.PROT_READ | mmap.PROT_WRITE)
        del first
        area.close()


def test_pages_are_left_alone_where_the_kernel_tells_nothing_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)

    release_pages(Path("/nowhere"))
