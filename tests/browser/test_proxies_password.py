"""A browser whose user gave a password to the proxy: its fetch and its EventSource are let in, and come back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token
from tests.live.fronts import NAMES
from tests.live.steps import about, asked, settings
from tests.live.test_proxies_access import guarded

pytestmark = pytest.mark.browser

ASK = """
async (body) => {
    const headers = {"Content-Type": "application/json", "Prefer": "wait=0", "Idempotency-Key": crypto.randomUUID()};
    const answer = await fetch("/chat/wait", {method: "POST", headers, body: JSON.stringify(body)});
    return [answer.status, await answer.json()];
}
"""
READ = """
(stream_id) => {
    const seen = window.seen = {text: "", done: 0, errors: 0};
    const source = window.source = new EventSource(`/chat/streaming/${stream_id}`);
    source.addEventListener("token", event => seen.text += JSON.parse(event.data).content);
    source.addEventListener("done", () => seen.done++);
    source.addEventListener("error", () => seen.errors++);
}
"""


@pytest.fixture(scope="module")
def chatwait() -> Iterator[tuple[ChatWait, ScriptedUpstream]]:
    with ScriptedUpstream() as upstream, ChatWait(**settings(upstream)) as chatwait:
        yield chatwait, upstream


@pytest.mark.parametrize("name", NAMES)
def test_browser_with_a_password_reads_a_stream_over_a_restart_of_the_proxy(
    name: str, chatwait: tuple[ChatWait, ScriptedUpstream], chromium: Any, tmp_path: Path
) -> None:
    service, upstream = chatwait
    body = about(upstream, Script(steps=[Token("one "), Gate(name), Token("two"), Finish(), Done()]))
    with guarded(name, tmp_path, service.port) as proxy:
        credentials = {"username": "alice", "password": "open sesame"}
        context = chromium.new_context(http_credentials=credentials, bypass_csp=True)
        try:
            page = context.new_page()
            assert page.goto(proxy.base_url).status == 200
            status, told = page.evaluate(ASK, body)
            assert status == 202
            page.evaluate(READ, told["stream_id"])
            page.wait_for_function("window.seen.text === 'one '", timeout=20_000)
            proxy.kill()
            page.wait_for_function("window.seen.errors >= 1", timeout=20_000)
            proxy.start()
            upstream.open(name)
            page.wait_for_function("window.source.readyState === EventSource.CLOSED", timeout=30_000)
            seen = page.evaluate("window.seen")
            assert (seen["text"], seen["done"]) == ("one two", 1)
        finally:
            context.close()
    assert len(asked(upstream, body)) == 1
