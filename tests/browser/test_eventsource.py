"""A browser's own EventSource, unmodified, over a connection that is cut again and again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.chaos import ChaosProxy, CutAfter
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token
from tests.live.steps import about, asked, begin, log_name, poll, settings

pytestmark = pytest.mark.browser

CUTS = 5
HALF = [Token(f"{number} é🙂\u2028\r\n{'.' * 490}") for number in range(150)]
TEXT = "".join(token.text for token in HALF) * 2

READ = """
(url) => {
    const seen = window.seen = {text: "", starts: 0, done: [], errors: 0, holes: [], last: 0};
    const source = window.source = new EventSource(url);
    source.addEventListener("start", () => seen.starts++);
    source.addEventListener("token", event => {
        const token = JSON.parse(event.data);
        if (seen.last + token.count !== token.sequence) seen.holes.push(token.sequence);
        seen.last = token.sequence;
        seen.text += token.content;
    });
    source.addEventListener("done", event => seen.done.push(JSON.parse(event.data)));
    source.addEventListener("error", () => seen.errors++);
}
"""
HASH = """
async () => {
    const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(window.seen.text));
    return Array.from(new Uint8Array(digest), byte => byte.toString(16).padStart(2, "0")).join("");
}
"""


@pytest.fixture(scope="module")
def chatwait(shared_upstream: ScriptedUpstream, origin: str) -> Iterator[ChatWait]:
    with ChatWait(**settings(shared_upstream, CORS_ORIGINS=origin)) as chatwait:
        yield chatwait


@pytest.mark.requirement("core FR-012", "core assumption 7", "chatwait FR-003", "page US1 test", "page assumption 4")
@pytest.mark.requirement("page dependency 6")
def test_eventsource_over_a_connection_cut_five_times_gets_the_whole_text_and_stops_for_good(
    chatwait: ChatWait, upstream: ScriptedUpstream, chromium: Any, origin: str
) -> None:
    """Every token once, the hash, one generation; after `done` it reconnects, gets 204, and closes."""
    body = about(upstream, Script(steps=[*HALF, Gate("half"), *HALF, Finish(), Done()]))
    stream_id = begin(chatwait.base_url, body)
    page = chromium.new_page()
    try:
        with ChaosProxy("127.0.0.1", chatwait.port) as proxy:
            proxy.plan(*[CutAfter(20_000)] * CUTS)
            statuses: list[int] = []
            page.on("response", lambda response: statuses.append(response.status))
            page.goto(origin)
            statuses.clear()
            page.evaluate(READ, f"{proxy.base_url}/chat/streaming/{stream_id}")
            page.wait_for_function("window.seen.errors >= 2", timeout=20_000)
            upstream.open("half")
            page.wait_for_function("window.source.readyState === EventSource.CLOSED", timeout=45_000)
            seen = page.evaluate("window.seen")
            assert (seen["text"], seen["holes"], len(seen["done"])) == (TEXT, [], 1)
            (end,) = seen["done"]
            assert page.evaluate(HASH) == end["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
            assert (end["status"], end["tokens"], seen["last"]) == ("complete", 300, 300)
            assert seen["starts"] >= 1  # once more for each cut that came before the first token
            assert statuses == [200] * (CUTS + 1) + [204]
            assert proxy.connections >= CUTS + 1
    finally:
        page.close()
    assert len(asked(upstream, body)) == 1
    poll(
        lambda: len(chatwait.log_of("reader_left", stream=log_name(stream_id))) == CUTS + 2,
        seconds=10,
        what="every reader has left",
    )


def test_eventsource_of_a_page_that_is_not_listed_gets_nothing(
    chatwait: ChatWait, upstream: ScriptedUpstream, chromium: Any, origin: str
) -> None:
    """Strangers: the browser keeps the answer from a page whose origin is not in CORS_ORIGINS."""
    body = about(upstream, Script(steps=[*HALF, Finish(), Done()]))
    stream_id = begin(chatwait.base_url, body)
    page = chromium.new_page()
    try:
        page.goto(origin.replace("127.0.0.1", "localhost"))
        page.evaluate(READ, f"{chatwait.base_url}/chat/streaming/{stream_id}")
        page.wait_for_function("window.seen.errors >= 1", timeout=20_000)
        seen = page.evaluate("window.seen")
        assert (seen["text"], seen["starts"], seen["done"]) == ("", 0, [])
        asking = f"fetch('{chatwait.base_url}/models').then(() => 'read', () => 'kept away')"
        assert page.evaluate(asking) == "kept away"
        options = "{method: 'POST', mode: 'no-cors', body: '{}'}"
        post = f"fetch('{chatwait.base_url}/chat/wait', {options}).then(response => response.type)"
        assert page.evaluate(post) == "opaque"
    finally:
        page.close()
    assert len(upstream.completions) == 1
