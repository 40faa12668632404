"""The scenarios: who the users are, how many of each, and what happens to them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import gevent
from locust.env import Environment

from load.measurements import Measurements
from load.users.asking import Asking
from load.users.openai import OpenAIUser, ResumingOpenAIUser, WholeOpenAIUser
from load.users.reading import ChatUser, ResumingUser
from load.users.slow import SlowUser
from load.users.storm import Storm, StormUser
from load.users.waiting import WaitUser

Counts = Mapping[type[Asking], int]


@dataclass(frozen=True)
class Scenario:
    """Hold one mix of users; `counts` says how many of each there are to so many readers."""

    sentence: str
    counts: Callable[[int, argparse.Namespace], Counts]


def _steady(readers: int, _: argparse.Namespace) -> Counts:
    resuming = -(-readers // 10) if readers > 1 else 0
    return {ChatUser: readers - resuming, ResumingUser: resuming, WaitUser: -(-readers // 10)}


def _storm(readers: int, _: argparse.Namespace) -> Counts:
    return {StormUser: readers}


def _mixed(readers: int, options: argparse.Namespace) -> Counts:
    return {ChatUser: readers, WaitUser: round(readers * options.wait_share / (1 - options.wait_share))}


def _slow(readers: int, options: argparse.Namespace) -> Counts:
    slow = math.ceil(readers * options.slow_share)
    return {ChatUser: readers - slow, SlowUser: slow}


def _openai(readers: int, _: argparse.Namespace) -> Counts:
    resuming = -(-readers // 10) if readers > 1 else 0
    return {OpenAIUser: readers - resuming, ResumingOpenAIUser: resuming, WholeOpenAIUser: -(-readers // 10)}


def _both(readers: int, options: argparse.Namespace) -> Counts:
    half = max(readers // 2, 1)
    return {**_steady(readers - half, options), **_openai(half, options)}


SCENARIOS: dict[str, Scenario] = {
    "steady": Scenario(
        "nine in ten read along, one in ten loses the connection; one more for every ten waits", _steady
    ),
    "openai": Scenario("as steady, over OpenAI's chat completions", _openai),
    "both": Scenario("half of the users of steady, and half of those of openai", _both),
    "storm": Scenario("all readers are cut at one moment, again and again, and come back within a second", _storm),
    "mixed": Scenario("as many wait for the whole answer as read along (--wait-share)", _mixed),
    "slow": Scenario("a tenth of the readers take less than their models write (--slow-share)", _slow),
}


def prepare(environment: Environment, readers: int) -> Counts:
    """Give the environment what its users write into, and what happens to them; say how many there are of each."""
    options = environment.parsed_options
    environment.measurements = Measurements()
    environment.storm = Storm(environment.measurements, options.every)
    if options.scenario == "storm":
        gevent.spawn(environment.storm.run)
    counts = SCENARIOS[options.scenario].counts(readers, options)
    return {user_class: count for user_class, count in counts.items() if count}
