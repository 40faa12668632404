"""A message and a token go the ways that DESIGN.md tells: the stack of calls is looked at where each way ends."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import pytest

from app import create_app
from app.generation.live import Generations
from app.server import direct
from app.settings import Settings
from app.upstream.client import OpenAIUpstream
from app.upstream.connection import Connection
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token
from tests.project.test_design import APP, way
from tests.unit.generations import BOUNDS, QUESTION
from tests.unit.readings import new_log
from tests.unit.test_loop_direct import Served, wait_until


def callers() -> list[str]:
    """List the files of `app/` that are on the stack, the outermost first, each once for all calls within it."""
    files: list[str] = []
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = os.path.relpath(frame.f_code.co_filename, APP)
        if not file.startswith(".."):
            files.append(file)
        frame = frame.f_back
    return [file for file, _ in groupby(reversed(files))]


def told(title: str) -> list[str]:
    """List the files of a way's numbered lines, each once for all lines within it."""
    return [file for file, _ in groupby(step.file for step in way(title) if step.number)]


def wait_until_over(generations: Generations) -> None:
    """Wait until every generation has given its connection back. One that comes later would be closed by nobody."""
    wait_until(lambda: not generations._live, "a generation goes on")


def test_token_goes_its_way_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: list[list[str]] = []

    def write(descriptor: int, data: bytes) -> int:
        stacks.append(callers())
        return os.write(descriptor, data)

    monkeypatch.setattr(direct, "os", SimpleNamespace(write=write))
    log = new_log()
    with ScriptedUpstream() as server:
        server.then(Script(steps=[Token("one"), Gate("asleep"), Token("two"), Finish(), Done()]))
        upstream = OpenAIUpstream(base_url=server.base_url, api_key="")
        with Served(log) as served:
            generations = Generations(upstream=upstream, bounds=BOUNDS)
            generations.start(log, QUESTION)
            wait_until(lambda: log.head == 1 and served.reader.after == 1, "the reader has not had the first token")
            served.wait_asleep()
            stacks.clear()
            server.open("asleep")
            body = served.read_rest()
        wait_until_over(generations)
        upstream.close()

    assert body.count(b"event: token") == 2
    (stack,) = stacks
    begin = stack.index("platform/gevent_loop.py")
    assert stack[begin:] == told("The way of a token")


def test_message_goes_its_way_down(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: list[list[str]] = []
    start, gathered = Generations.start, Connection.gathered

    def watched_start(*arguments: Any) -> None:
        stacks.append(callers())
        start(*arguments)

    def watched_gathered(*arguments: Any) -> memoryview:
        stacks.append(callers())
        return gathered(*arguments)

    monkeypatch.setattr(Generations, "start", watched_start)
    monkeypatch.setattr(Connection, "gathered", watched_gathered)
    with ScriptedUpstream() as server:
        server.then(Script(steps=[Token("one"), Finish(), Done()]))
        names = {"openai_model": "m", "allowed_models": ("m",), "allowed_hosts": ("localhost",)}
        app = create_app(replace(Settings(), openai_base_url=server.base_url, **names))
        try:
            answer = app.test_client().post("/chat/streaming", json={"message": "Hello"})
            assert answer.data.count(b"event: token") == 1
        finally:
            wait_until_over(app.extensions["chatwait"].generations)
            app.extensions["chatwait"].close()

    asked, sent = stacks
    assert [*asked[asked.index("routes/chat.py") :], *sent, "upstream/connection.py"] == told("The way of a message")
    assert set(asked[: asked.index("routes/chat.py")]) == {"web/closing.py"}
