"""The users of a load test, with locust's own pages: `locust -f load/locustfile.py --host URL --scenario storm`.

Each user asks again as soon as it has its answer, so the number of streams at a time is the number of users.
"""

from __future__ import annotations

from typing import Any

from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from load.options import add_user_options
from load.scenarios import prepare
from load.users.openai import OpenAIUser, ResumingOpenAIUser, WholeOpenAIUser
from load.users.reading import ChatUser, ResumingUser
from load.users.slow import SlowUser
from load.users.storm import StormUser
from load.users.waiting import WaitUser

__all__ = [
    "ChatUser",
    "OpenAIUser",
    "ResumingOpenAIUser",
    "ResumingUser",
    "SlowUser",
    "StormUser",
    "WaitUser",
    "WholeOpenAIUser",
]

OF_A_HUNDRED = 100


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser, **_: Any) -> None:
    """Offer what the users need to know."""
    add_user_options(parser)


@events.init.add_listener
def attach(environment: Environment, **_: Any) -> None:
    """Let the scenario say who runs, unless the command names users; they measure at once."""
    counts = prepare(environment, OF_A_HUNDRED)
    environment.measurements.is_measuring = True
    if not environment.parsed_options.user_classes:
        environment.user_classes[:] = counts
    for user_class, count in counts.items():
        user_class.weight = count
