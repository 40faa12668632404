"""Test the machine that seems new: its clock, and the programs that it has not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests import new_machine
from tests.new_machine import OPTIONAL, main

TELL = """
import json, shutil, subprocess, sys, time
there = [name for name in ("curl", "openssl", "sh", "env") if shutil.which(name)]
child = float(subprocess.check_output([sys.executable, "-c", "import time; print(time.monotonic())"]))
json.dump([time.monotonic(), time.monotonic_ns() / 1e9, child, there], open(sys.argv[1], "w"))
"""


def told(directory: Path, *options: str) -> tuple[float, float, float, list[str]]:
    found = directory / "found.json"
    assert main([*options, sys.executable, "-c", TELL, str(found)]) == 0
    ours, in_nanoseconds, of_child, there = json.loads(found.read_text(encoding="utf-8"))
    return ours, in_nanoseconds, of_child, there


def test_clock_of_a_machine_that_seems_young_goes_on_from_there_in_every_process(tmp_path: Path) -> None:
    for uptime in (5.0, 1023.9, 34_560_000.0):
        begun = time.monotonic()
        ours, in_nanoseconds, of_child, _ = told(tmp_path, "--uptime", str(uptime))
        took = time.monotonic() - begun

        assert uptime <= of_child <= ours <= in_nanoseconds <= uptime + took


def test_programs_that_are_left_out_are_not_found_and_others_are(tmp_path: Path) -> None:
    *_, there = told(tmp_path)
    assert there == ["sh", "env"]

    *_, there = told(tmp_path, "--without", "")
    assert there == [name for name in ("curl", "openssl", "sh", "env") if shutil.which(name)]


def test_exit_code_of_the_command_is_told(tmp_path: Path) -> None:
    assert main([sys.executable, "-c", "raise SystemExit(7)"]) == 7


def test_programs_are_linked_and_pythons_are_called_where_they_are(tmp_path: Path) -> None:
    """An environment that a link in a passing directory made would name that directory for ever."""
    found, links = tmp_path / "found", tmp_path / "links"
    found.mkdir()
    links.mkdir()
    for name in ("python3", "tool", "curl", "data"):
        (found / name).write_text('#!/bin/sh\necho "$0" "$@"\n', encoding="utf-8")
        (found / name).chmod(0o644 if name == "data" else 0o755)

    new_machine.link_programs(links, str(found), OPTIONAL)

    assert (links / "tool").readlink() == found / "tool"
    assert not (links / "curl").exists()
    assert not (links / "data").exists()
    said = subprocess.check_output([links / "python3", "a b"], text=True)
    assert said == f"{found / 'python3'} a b\n"
