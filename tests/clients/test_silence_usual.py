"""Real clients and a model that says nothing for 25 seconds, with the settings that everybody has."""

from __future__ import annotations

from tests.clients.programs import Program
from tests.clients.steps import CONTENT_CHUNKS, TEXT, about, content_of
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Pause, Script, ScriptedUpstream, Token
from tests.live.steps import settings


def test_silence_of_25_seconds_with_the_usual_settings(clients: list[Program], upstream: ScriptedUpstream) -> None:
    """The head comes after 10 s at most, heartbeats each HEARTBEAT_SECONDS: no client's 15 s are over."""
    body = about(upstream, Script(steps=[Pause(25), *map(Token, CONTENT_CHUNKS), Finish(), Done()]))
    usual = settings(upstream, HEARTBEAT_SECONDS=None, ALLOWED_MODELS="scripted")
    with ChatWait(**usual) as chatwait:
        for client in clients:
            client.begin("stream", chatwait.base_url, request=body, timeout=15.0, retries=0)
        for client in clients:
            saw = client.result()
            assert "raised" not in saw, (client.kind, saw["raised"])
            assert content_of(saw["chunks"]) == TEXT, client.kind
