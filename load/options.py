"""The options of `python -m load`; those of the users are offered to locust's own command as well."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from load.scenarios import SCENARIOS
from load.thresholds import TABLE

LEAST_STORMS = 2


def _number(least: float, below: float = float("inf"), *, or_least: bool = False) -> Callable[[str], float]:
    """Make the reader of a number between two bounds."""

    def number(text: str) -> float:
        value = float(text)
        if not (least < value < below or (or_least and value == least)):
            raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {below:g}")
        return value

    return number


def add_user_options(parser: argparse.ArgumentParser) -> None:
    """Offer what the users need to know."""
    parser.add_argument(
        "--scenario",
        choices=list(SCENARIOS),
        default="steady",
        help="; ".join(f"{name}: {each.sentence}" for name, each in SCENARIOS.items()) + " (default: steady)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=100,
        help="mean length of an answer; max_tokens is drawn around it (default: 100)",
    )
    parser.add_argument(
        "--ttft-ms",
        type=float,
        default=0.0,
        help="how long the mock upstream takes for the first token (default: 0)",
    )
    parser.add_argument(
        "--every",
        type=_number(0),
        default=10.0,
        help="storm: seconds from one storm to the next (default: 10)",
    )
    parser.add_argument(
        "--spread",
        type=_number(0, or_least=True),
        default=1.0,
        help="storm: within how many seconds all readers come back (default: 1)",
    )
    parser.add_argument(
        "--wait-share",
        type=_number(0, 1, or_least=True),
        default=0.5,
        help="mixed: share of all users that use wait mode; --users counts only the others (default: 0.5)",
    )
    parser.add_argument(
        "--slow-share",
        type=_number(0, 1, or_least=True),
        default=0.1,
        help="slow: share of the readers that are slow (default: 0.1)",
    )
    parser.add_argument(
        "--slow-rate",
        type=_number(0),
        default=4096.0,
        help="slow: bytes a second that a slow reader takes (default: 4096)",
    )
    parser.add_argument(
        "--slow-seconds",
        type=_number(0, or_least=True),
        default=10.0,
        help="slow: how long such a reader is slow in each answer before it catches up (default: 10)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="seed of lengths, drops, absences and breaks (default: 1)",
    )
    parser.add_argument(
        "--stamped",
        action="store_true",
        help="with --host: the service's model is load.upstream on this machine",
    )


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m load",
        description="Measure the service under load, and judge it by load/thresholds.toml.",
        epilog="Exit codes: 0 all met, 1 a threshold missed, 2 no measurement, 130 interrupted.",
    )
    add_user_options(parser)
    parser.add_argument(
        "--host",
        help="measure this running service, with whatever model it has (default: start one)",
    )
    parser.add_argument(
        "--users",
        type=int,
        help="readers, without users in wait mode (default: 5 %% more than the table's streams at once)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="how long to measure (default: %(default)g)",
    )
    parser.add_argument(
        "--gap-ms",
        type=float,
        default=50.0,
        help="time between two tokens of the mock upstream (default: %(default)g)",
    )
    parser.add_argument(
        "--error-rate",
        type=float,
        default=0.0,
        help="share of answers that the upstream does not finish (default: 0)",
    )
    parser.add_argument("--thresholds", type=Path, default=TABLE, help="use this table of thresholds")
    parser.add_argument(
        "--report",
        type=Path,
        default=Path(__file__).with_name("report"),
        help="where to write the report",
    )
    options = parser.parse_args(arguments)
    options.every = min(options.every, options.seconds / LEAST_STORMS)
    if options.host:
        options.host = options.host.rstrip("/")
    else:
        options.stamped = True
    return options
