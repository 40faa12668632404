"""`python -m tests.mutants`: which faults do the quick tests not notice?"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.mutants.coverage_map import measure
from tests.mutants.faults import ROOT, load, sample
from tests.mutants.runner import Outcome, Runner

LEAST_SHARE = 0.95


def main(arguments: list[str]) -> int:
    """Run faults, and say which survived. Returns 1 when fewer than LEAST_SHARE were noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--all", action="store_true", help="run all faults instead of a sample of about a quarter")
    parser.add_argument("--room", action="append", help="run all faults of this room and no others; can be repeated")
    parser.add_argument("--fault", action="append", help="run only this fault; can be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="how many faults run at the same time (default: 2)")
    parser.add_argument(
        "--near", action="store_true", help="do not run the whole quick suite for the faults that survive"
    )
    parser.add_argument("--report", type=Path, help="write the table into this file, as Markdown")
    options = parser.parse_args(arguments)
    faults = [
        fault
        for fault in load()
        if fault.room in (options.room or [fault.room]) and fault.name in (options.fault or [fault.name])
    ]
    if not faults:
        parser.error("no such fault")
    if not (options.all or options.room or options.fault):
        faults = sample(faults)
    began = time.monotonic()
    runner = Runner(ROOT, measure(ROOT), jobs=options.jobs, whole=not options.near)
    outcomes = runner.run(faults, lambda outcome: print(_line(outcome), flush=True))
    survivors = [outcome for outcome in outcomes if outcome.killed_by is None]
    share = 1 - len(survivors) / len(outcomes)
    told = f"{len(outcomes) - len(survivors)} of {len(outcomes)} faults were noticed ({share:.1%})"
    told += f" in {(time.monotonic() - began) / 60:.0f} minutes."
    if runner.unsound:
        told += f" Not believed, because they fail without a fault or not always: {', '.join(sorted(runner.unsound))}."
    print("\n".join([*map(_line, survivors), told]))
    if options.report:
        rows = ["| fault | room | noticed by | seconds |", "|---|---|---|---|"]
        rows += [
            f"| {one.fault.name} | {one.fault.room} | {one.killed_by or '**SURVIVED**'} | {one.seconds:.0f} |"
            for one in outcomes
        ]
        options.report.write_text("\n".join([*rows, "", told, ""]), encoding="utf-8")
    return 0 if share >= LEAST_SHARE else 1


def _line(outcome: Outcome) -> str:
    fault = outcome.fault
    return f"{outcome.killed_by or 'SURVIVED'} <- {fault.room}: {fault.name} ({outcome.seconds:.0f} s)"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
