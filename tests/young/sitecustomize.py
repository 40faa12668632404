"""Read when a Python starts that has this folder in PYTHONPATH: the machine seems to have booted at another time.

`tests/new_machine.py` sets the variable, for a whole family of processes: all of them agree on the time.
"""

import os
import time

_seconds = float(os.environ["CHATWAIT_TEST_CLOCK_AHEAD"])
_nanoseconds = int(_seconds * 1_000_000_000)
_monotonic, _monotonic_ns = time.monotonic, time.monotonic_ns

time.monotonic = lambda: _monotonic() + _seconds
time.monotonic_ns = lambda: _monotonic_ns() + _nanoseconds
