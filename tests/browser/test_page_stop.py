"""Stop in the chat page, in every state of an answer: the model's connection is closed, and what came is kept."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Error

from tests.browser.chatpage import STOP_MS, ChatPage
from tests.browser.dialogues import ask, exchange, learned, partly, turns
from tests.browser.page_steps import LOST, gated, status
from tests.harness.chaos import Answer, BlackholeAfter, ChaosProxy
from tests.harness.script import answer
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Paced, RequestRecord, Script, ScriptedUpstream, Stall, Token

pytestmark = pytest.mark.browser

TOKENS = ["One ", "two, ", "thr", "ee é🙂 ", "and four."]
TEXT = "".join(TOKENS)
LAST = len(TOKENS)
SOON_SECONDS = 5.0
RACES = 6
CONTINUE = "Continue exactly where you stopped."
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
ESCAPE_AT_ONCE = """() => {
  const send = document.querySelector("#send");
  const escape = new KeyboardEvent("keydown", { key: "Escape", bubbles: true });
  const press = (_, observer) => {
    observer.disconnect();
    document.querySelector("#message").dispatchEvent(escape);
  };
  new MutationObserver(press).observe(send, { childList: true });
}"""
STOP_IF_THERE = """() => {
  const button = document.querySelector("#send");
  if (button.textContent === "Stop") button.click();
}"""


def assert_stopped(chat: ChatPage, record: RequestRecord, text: str, tokens: int) -> dict[str, Any]:
    """Check that an answer is stopped, with this text and for the model too; give its record."""
    record.wait_closed(timeout=SOON_SECONDS)
    chat.wait_state("stopped", seconds=SOON_SECONDS)
    assert chat.text() == text
    kept = chat.stored_answers()[-1]
    assert (kept["state"], kept["content"], kept["tokens"], kept["reason"]) == ("stopped", text, tokens, "client")
    assert kept["error"] is None
    assert "Stopped by you." in chat.shown()
    assert "did not confirm" not in chat.shown()
    assert chat.has_button("Continue")
    assert chat.has_button("Ask again")
    assert chat.has_button("Send")
    return kept


@pytest.mark.requirement("page US1.3", "page FR-004", "page scope 2")
def test_stop_at_the_fiftieth_token_closes_the_models_connection_and_keeps_fifty(
    chat: ChatPage, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    tokens = [f"word{number} " for number in range(50)]
    upstream.always(Script(steps=[Paced(tokens, 0.01), Stall()]))
    record = ask(chat.open(), upstream)
    chat.wait_text("".join(tokens))
    assert record.peer_closed_at is None

    chat.stop()
    kept = assert_stopped(chat, record, "".join(tokens), 50)
    assert kept["sequence"] == 50
    assert len(upstream.completions) == 1
    chat.reload()
    assert chat.states() == ["stopped"]
    assert chat.text() == "".join(tokens)


@pytest.mark.requirement("page FR-004", "page scope 2")
def test_stop_by_escape_stops(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    record = partly(chat, upstream, TOKENS, 2)
    chat.box.press("Escape")
    assert_stopped(chat, record, "".join(TOKENS[:2]), 2)


@pytest.mark.requirement("page FR-004", "page edge 5")
def test_stop_after_a_refresh_stops(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    record = partly(chat, upstream, TOKENS, 2)
    chat.reload()
    chat.stop()
    assert_stopped(chat, record, "".join(TOKENS[:2]), 2)


@pytest.mark.requirement("page FR-004", "page US3.1")
def test_stop_after_a_resume_stops(proxied: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream) -> None:
    proxied.expect_fault(LOST)
    record = partly(proxied, upstream, TOKENS, 2)
    proxy.cut_all()
    upstream.open("2")
    proxied.wait_text("".join(TOKENS[:3]))
    proxied.stop()
    assert assert_stopped(proxied, record, "".join(TOKENS[:3]), 3)["reconnects"] == 1


@pytest.mark.requirement("page FR-004", "page US3.1")
def test_stop_while_reconnecting_is_done_once_the_link_is_back(
    proxied: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    proxied.expect_fault(LOST)
    record = partly(proxied, upstream, TOKENS, 2)
    proxy.refuse()
    proxy.cut_all()
    proxied.wait_state("reconnecting")
    proxied.stop()
    proxied.wait_shown("Stopping…")
    assert record.peer_closed_at is None

    proxy.accept()
    assert_stopped(proxied, record, "".join(TOKENS[:2]), 2)


@pytest.mark.long
@pytest.mark.requirement("page FR-004", "page US3.1", "page FR-006")
def test_stop_that_the_server_never_hears_of_is_said_to_be_unconfirmed(
    proxied: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    proxied.expect_fault(LOST)
    partly(proxied, upstream, TOKENS, 2)
    proxy.refuse()
    proxy.cut_all()
    proxied.wait_state("reconnecting")
    proxied.stop()
    proxied.wait_state("stopped", seconds=30)
    assert "Stopped by you. The server did not confirm the stop." in proxied.shown()
    assert proxied.text() == "".join(TOKENS[:2])
    assert proxied.has_button("Send")

    proxy.accept()
    upstream.always(answer(["Yes."]))
    exchange(proxied, upstream, "And now?")
    assert proxied.states() == ["stopped", "complete"]


@pytest.mark.requirement("page FR-004", "page US3.1", "page FR-006")
def test_stop_that_only_a_proxy_says_something_to_is_asked_again_until_the_service_confirms(
    proxied: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    """Its 404 means nothing: the model writes on, and is paid for it."""
    proxied.expect_fault(status(404))
    record = partly(proxied, upstream, TOKENS, 2)
    asked = proxy.connections
    proxy.plan(Answer(b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<p>x"))
    proxied.stop()
    proxy.wait_until(lambda: proxy.connections == asked + 1, 10, "the first stop")
    proxied.wait_shown("Stopping…")
    upstream.open("2")
    proxied.wait_text("".join(TOKENS[:3]))
    assert record.peer_closed_at is None
    assert_stopped(proxied, record, "".join(TOKENS[:3]), 3)
    assert proxy.connections == asked + 2


@pytest.mark.requirement("page FR-004", "page scope 2")
def test_stop_before_the_first_token_stops(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    record = partly(chat, upstream, TOKENS, 0)
    chat.stop()
    record.wait_closed(timeout=SOON_SECONDS)
    chat.wait_state("stopped", seconds=SOON_SECONDS)
    assert chat.text() == ""
    assert chat.stored_answers()[-1]["reason"] == "client"
    assert chat.has_button("Ask again")
    assert not chat.has_button("Continue")


@pytest.mark.requirement("page FR-004", "page scope 2")
def test_stop_before_the_answers_headers_stops_once_they_are_there(
    proxied: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    """The stop has no address yet; a silent connection is given up after 2.5 heartbeats, and the next one tells it."""
    upstream.always(gated(TOKENS))
    learned(proxied.open())
    proxy.plan(BlackholeAfter(0))
    record = ask(proxied, upstream)
    assert proxied.state() == "sending"
    proxied.stop()
    proxied.wait_shown("Stopping…")
    assert record.peer_closed_at is None

    record.wait_closed(timeout=15)
    proxied.wait_state("stopped")
    assert "did not confirm" not in proxied.shown()
    assert len(upstream.completions) == 1


@pytest.mark.requirement("page FR-007", "page US2.1")
def test_stop_in_its_first_moments_is_ignored_so_that_a_double_click_on_send_sends(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    upstream.always(gated(TOKENS))
    upstream.open("0")
    learned(chat.open())
    chat.page.clock.set_fixed_time(NOON)  # no time passes for the page
    chat.box.fill("Count.")
    chat.button("Send").click()
    chat.wait_text(TOKENS[0])
    chat.button("Stop").click()
    chat.page.wait_for_timeout(STOP_MS)  # a stop that was taken would show by now
    assert chat.state() == "streaming"
    assert "Stopping" not in chat.shown()

    chat.page.clock.set_fixed_time(NOON + timedelta(milliseconds=STOP_MS))
    chat.button("Stop").click()
    chat.wait_state("stopped")


@pytest.mark.requirement("page FR-004", "page scope 2")
def test_stop_before_anything_was_sent_sends_nothing(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    learned(chat.open())
    chat.page.evaluate(ESCAPE_AT_ONCE)
    chat.send("Count.")
    chat.wait_state("stopped")
    assert upstream.completions == []
    chat.box.press("x")
    assert chat.has_button("Send")

    chat.press("Ask again")
    chat.wait(lambda: chat.states() == ["stopped", "complete"], 20, "the answer")
    assert len(upstream.completions) == 1


@pytest.mark.long
@pytest.mark.requirement("page US1.3", "page FR-004", "page FR-008")
def test_stop_that_races_the_end_leaves_one_of_both_and_never_loses_a_word(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    chat.open()
    for race in range(RACES):
        upstream.always(Script(steps=[Token("All "), Gate(f"race {race}"), Token("of it."), Finish(), Done()]))
        record = ask(chat, upstream, f"Race {race}?")
        chat.wait_text("All ")
        chat.page.wait_for_timeout(STOP_MS)  # Stop is ignored until then
        if race % 2:
            upstream.open(f"race {race}")
            chat.page.evaluate(STOP_IF_THERE)
        else:
            chat.button("Stop").click()
            upstream.open(f"race {race}")
        state = chat.wait_state("complete", "stopped")
        kept = chat.stored_answers()[-1]
        assert (kept["state"], kept["content"]) == (state, chat.text())
        assert kept["tokens"] == kept["sequence"] == {"All ": 1, "All of it.": 2}[kept["content"]]
        assert state == "stopped" or kept["content"] == "All of it."
        record.wait_closed() if record.finished_at is None else None
        chat.wait(lambda: chat.has_button("Send"), 10, "that the next message can be sent")
    assert len(chat.states()) == RACES


@pytest.mark.long
@pytest.mark.requirement("page US1.3", "page FR-008")
def test_stop_that_is_still_on_its_way_when_the_answer_ends_changes_nothing(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    partly(chat, upstream, TOKENS, LAST)
    held: list[Any] = []
    over: list[str] = []

    def hold(route: Any) -> None:
        if route.request.method == "DELETE":
            held.append(route)
        else:
            route.continue_()

    chat.page.route(lambda url: "/v1/chat/" in url, hold)
    for event in ("requestfinished", "requestfailed"):
        chat.page.on(event, lambda request: over.append(request.method))
    chat.stop()
    chat.wait(lambda: held, 10, "the stop")
    upstream.open(str(LAST))
    chat.wait_state("complete")
    with contextlib.suppress(Error):  # on a slow machine the page has given up waiting for it
        held[0].continue_()
    chat.wait(lambda: "DELETE" in over, 10, "the end of the stop")
    assert chat.states() == ["complete"]
    assert chat.text() == TEXT
    assert chat.has_button("Send")


@pytest.mark.requirement("page FR-011", "page FR-004", "page US3.2")
def test_message_after_a_stop_carries_the_partial_answer(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    partly(chat, upstream, TOKENS, 3)
    chat.stop()
    chat.wait_state("stopped")
    upstream.always(answer(["Yes."]))
    assert turns(exchange(chat, upstream, "Is that all?")) == [
        ("user", "Count."),
        ("assistant", "".join(TOKENS[:3])),
        ("user", "Is that all?"),
    ]
    assert chat.states() == ["stopped", "complete"]


@pytest.mark.requirement("page US3.2", "page FR-011")
def test_continue_after_a_stop_asks_to_go_on_behind_the_partial_answer(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    partly(chat, upstream, TOKENS, 3)
    chat.stop()
    chat.wait_state("stopped")
    upstream.always(answer(["and the rest."]))
    chat.press("Continue")
    chat.wait(lambda: chat.states() == ["stopped", "complete"], 10, "the continuation")
    assert turns(upstream.completions[-1]) == [
        ("user", "Count."),
        ("assistant", "".join(TOKENS[:3])),
        ("user", CONTINUE),
    ]
    assert (chat.text(0), chat.text(1)) == ("".join(TOKENS[:3]), "and the rest.")


@pytest.mark.long
@pytest.mark.requirement("page US3.2", "page FR-011", "page FR-003")
def test_ask_again_after_a_stop_asks_the_same_and_only_the_new_answer_goes_on(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    partly(chat, upstream, TOKENS, 3)
    chat.stop()
    chat.wait_state("stopped")
    upstream.always(answer(["Whole."]))
    chat.press("Ask again")
    chat.wait(lambda: chat.states() == ["stopped", "complete"], 10, "the new answer")
    assert turns(upstream.completions[-1]) == [("user", "Count.")]
    assert chat.text(0) == "".join(TOKENS[:3])
    assert chat.page.locator(".bubble").count() == 1

    assert turns(exchange(chat, upstream, "Thanks?")) == [
        ("user", "Count."),
        ("assistant", "Whole."),
        ("user", "Thanks?"),
    ]
