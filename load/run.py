"""Measure a service under load from beginning to end: start it, warm it up, load it, judge it, report, stop it.

Exit codes: 0 every threshold is met, 1 one is missed, 2 the run is no measurement, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import math
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.html import get_html_report
from locust.stats import stats_history

from load import report
from load.figures import Window, figures_of
from load.measurements import LAG_PERIOD_SECONDS, Measurements, Progress
from load.options import options_of
from load.processes import (
    Child,
    NotRunning,
    free_port,
    machine_cpu_seconds,
    problem_of,
    start_service,
    start_upstream,
    upstream_port,
)
from load.scenarios import prepare
from load.thresholds import (
    NO_MEASUREMENT,
    BadTable,
    Figure,
    Threshold,
    exit_code,
    judge,
    read_thresholds,
)
from load.users.waiting import WaitUser

INTERRUPTED = 130
PROGRESS_SECONDS = 5.0
WARM_UP_SECONDS = 2.0
LAST_ANSWERS_SECONDS = 40.0  # a stream that is silent for 30 s has given up itself
REST_SECONDS = 8.0  # the service keeps idle connections to its model for five
REST_DESCRIPTORS = 10
GLANCE_SECONDS = 0.25
SPARE = 1.05  # readers for each stream at once that is asked for: some are always between two answers


class Interrupted(Exception):
    """Somebody pressed Ctrl-C."""


class Bench:
    """Run one measurement."""

    def __init__(self, options: argparse.Namespace, thresholds: Sequence[Threshold]) -> None:
        self.options = options
        self.thresholds = thresholds
        self.children: dict[str, Child] = {}
        self.window = Window()
        self._stopped = Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            gevent.signal_handler(number, self._stopped.set)

    def run(self) -> int:
        """Measure, print and write, and give the exit code. Raises: NotRunning, Interrupted."""
        directory: Path = self.options.report
        directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            host = self.options.host or self._start(stack, directory)
            if problem := problem_of(host):
                raise NotRunning(problem)
            environment = self._environment(host)
            try:
                self._load(environment)
            finally:
                environment.stop_timeout = 0
                environment.runner.quit()
            html = get_html_report(environment, show_download_link=False)
        result = self._result(host, environment.measurements)
        page = report.write(result, directory, html)
        print(f"\n{report.table(result)}\nReport: {page}", flush=True)
        return result.exit_code

    def _start(self, stack: ExitStack, directory: Path) -> str:
        options = self.options
        upstream = stack.enter_context(
            start_upstream(
                directory,
                tokens=options.tokens,
                gap_ms=options.gap_ms,
                ttft_ms=options.ttft_ms,
                error_rate=options.error_rate,
                seed=options.seed,
            )
        )
        port = free_port()
        base_url = f"http://127.0.0.1:{upstream_port(upstream, self._pause)}/v1"
        service = stack.enter_context(start_service(directory, port=port, base_url=base_url))
        host = f"http://127.0.0.1:{port}"
        service.wait_until(lambda: not problem_of(host), self._pause)
        self.children = {"service": service, "upstream": upstream}
        return host

    def _environment(self, host: str) -> Environment:
        environment = Environment(
            host=host,
            locustfile="load/locustfile.py",
            parsed_options=self.options,
            stop_timeout=LAST_ANSWERS_SECONDS,
            catch_exceptions=False,
        )
        for user_class, count in prepare(environment, self.options.users).items():
            user_class.fixed_count = count
            environment.user_classes.append(user_class)
        environment.create_local_runner()
        return environment

    def _load(self, environment: Environment) -> None:
        options, measured = self.options, environment.measurements
        count = sum(user_class.fixed_count for user_class in environment.user_classes)
        ramp_seconds = min(max((options.ttft_ms + options.tokens * options.gap_ms) / 1000, 1.0), 10.0)
        print(
            f"{environment.host}: {options.scenario}, {count} users, {ramp_seconds:g} s to start, "
            f"{options.seconds:g} s measured",
            flush=True,
        )
        if "service" in self.children:
            self.window.before = self.children["service"].usage()
        spawned = Event()
        environment.events.spawning_complete.add_listener(lambda **_: spawned.set())
        gevent.spawn(stats_history, environment.runner)
        gevent.spawn(_watch_timers, measured)
        if "service" in self.children:
            gevent.spawn(_watch_service, self.children["service"], measured, self.window)
        progress = Progress(measured)
        # Spread over the length of an answer, so that from then on they also end and begin spread.
        environment.runner.start(count, count / ramp_seconds)
        while not spawned.is_set():
            self._pause(0.1)
        self._pause(WARM_UP_SECONDS)
        self._measure(measured, progress)
        print("The last answers ...", flush=True)
        stopping = gevent.spawn(environment.runner.stop)  # lets every user have its last answer
        while not stopping.ready():
            self._pause(0.1)
        stopping.get()  # raises what it has raised
        measured.is_watching = False
        measured.note_unfinished()
        self._rest()

    def _rest(self) -> None:
        """Wait until the service has given back what the load took, and note what it keeps."""
        service, before = self.children.get("service"), self.window.before
        if service is None or before is None:
            return
        until = time.monotonic() + REST_SECONDS
        while service.usage().descriptors > before.descriptors + REST_DESCRIPTORS and time.monotonic() < until:
            self._pause(0.2)
        self.window.after = service.usage()

    def _measure(self, measured: Measurements, progress: Progress) -> None:
        window = self.window
        window.begin = {name: child.usage() for name, child in self.children.items()}
        begun_at, cpu, machine = (
            time.monotonic(),
            time.process_time(),
            machine_cpu_seconds(),
        )
        measured.is_measuring = measured.is_watching = True
        until = begun_at + self.options.seconds
        while (left := until - time.monotonic()) > 0:
            self._pause(min(left, PROGRESS_SECONDS))
            print(progress.line(), flush=True)
        measured.is_measuring = False
        window.seconds = time.monotonic() - begun_at
        window.generator_cpu_seconds = time.process_time() - cpu
        window.machine_cpu_seconds = machine_cpu_seconds() - machine
        window.end = {name: child.usage() for name, child in self.children.items()}
        window.tokens = measured.tokens

    def _result(self, host: str, measured: Measurements) -> report.Result:
        options = self.options
        figures = figures_of(
            measured,
            self.window,
            users=options.users,
            waiters=WaitUser.fixed_count,
            spread=options.spread,
            stamped=options.stamped,
        )
        for threshold in self.thresholds:
            if threshold.figure == "streams_at_once" and options.users < threshold.bound:
                figures["streams_at_once"] = Figure(None, 0, f"--users {options.users}")
        judged = judge(self.thresholds, figures)
        return report.Result(exit_code(judged), host, vars(options), judged, figures, measured)

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise Interrupted


def _watch_service(service: Child, measured: Measurements, window: Window) -> NoReturn:
    while True:
        if measured.is_watching:
            window.course.append((time.monotonic(), service.glance()))
        gevent.sleep(GLANCE_SECONDS)


def _watch_timers(measured: Measurements) -> NoReturn:
    while True:
        asked_at = time.monotonic()
        gevent.sleep(LAG_PERIOD_SECONDS)
        measured.note_timer(asked_at)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite, and give the exit code."""
    options = options_of(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        thresholds = read_thresholds(options.thresholds, options.scenario)
        if options.users is None:
            bounds = [row.bound for row in thresholds if row.figure == "streams_at_once"]
            options.users = math.ceil(SPARE * bounds[0]) if bounds else 100
        return Bench(options, thresholds).run()
    except (BadTable, NotRunning) as problem:
        print(f"No measurement. {problem}", flush=True)
        return NO_MEASUREMENT
    except Interrupted:
        print("Interrupted: no measurement.", flush=True)
        return INTERRUPTED
