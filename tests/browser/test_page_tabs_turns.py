"""Whose turn it is: tabs that take over, let go and pass on what was pressed, and a turn that is refused."""

from __future__ import annotations

import json

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import OpenChat, lan
from tests.browser.dialogues import exchange, partly, turns
from tests.browser.page_steps import LOST, gated, open_gates, status
from tests.browser.tab_steps import attached, begin, conversation_id, hint, other_tab, reading, stream_id, wait_attached
from tests.harness.chaos import Answer, ChaosProxy, Pass
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token, answer

pytestmark = [pytest.mark.browser, pytest.mark.long]

TOKENS = ["One ", "two, ", "and three."]
TEXT = "".join(TOKENS)
LAST = len(TOKENS)
ROUNDS = 4
HELD_MS = 500  # a third of the time that a message waits for its turn
BUSY = b"HTTP/1.1 503 Busy\r\nRetry-After: 90\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
PUT = "([key, value]) => { localStorage.setItem(key, value); localStorage.removeItem('chatwait.index'); }"
BE_SLOW = "ms => setTimeout(() => { const until = performance.now() + ms; while (performance.now() < until); })"
SEND_AFTER_THE_END = """
ms => {
  const send = document.querySelector("#send");
  const enter = () => document.querySelector("#composer textarea").dispatchEvent(
    new KeyboardEvent("keydown", {key: "Enter", bubbles: true, cancelable: true}));
  const watch = new MutationObserver(() => {
    if (send.textContent !== "Send") return;
    watch.disconnect();
    setTimeout(enter, ms);
  });
  watch.observe(send, {childList: true, characterData: true, subtree: true});
}
"""


@pytest.fixture(params=["near", pytest.param("lan", marks=pytest.mark.long)])
def tab(request: pytest.FixtureRequest, open_chat: OpenChat, service: ChatWait, upstream: ScriptedUpstream) -> ChatPage:
    """Give a page with Web Locks, and one of plain HTTP on a LAN, where rows in IndexedDB stand in for them."""
    chat = open_chat(service.base_url if request.param == "near" else lan(service.base_url)).open()
    assert chat.page.evaluate("Boolean(navigator.locks)") is (request.param == "near")
    return chat


def interrupt(chat: ChatPage) -> None:
    """Leave, and come back to what two minutes without a network leave of an answer, with none of its text."""
    id_, record = conversation_id(chat), chat.conversation()
    chat.page.goto(f"{chat.base_url}/docs")
    error = {"code": "connection_lost", "retryable": True}
    record["messages"][-1].update(state="interrupted", error=error, content="", sequence=0)
    chat.page.evaluate(PUT, [f"chatwait.conversation.{id_}", json.dumps(record)])
    chat.open(f"#{id_}")
    assert (chat.state(), chat.text()) == ("interrupted", "")


def test_answer_reconnected_in_a_tab_that_is_closed_is_read_on_by_the_other_one(
    tab: ChatPage, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    upstream.always(gated(TOKENS))
    upstream.open("0")
    begin(tab)
    tab.wait_text(TOKENS[0])
    stream = stream_id(tab)
    interrupt(tab)
    other = other_tab(tab)
    assert other.state() == "interrupted"
    before = attached(service, stream)

    tab.press("Reconnect")
    for chat in (tab, other):
        chat.wait_text(TOKENS[0])
        chat.wait_state("streaming", "slow")
    wait_attached(tab, service, stream, before + 1)
    tab.wait(lambda: reading(service, stream) == 1, 15, "the service to see that the first page has left")
    tab.page.close(run_before_unload=True)
    other.wait(lambda: attached(service, stream) == before + 2, 15, "the other tab to read")
    open_gates(upstream, 1, LAST + 1)
    other.wait_state("complete")
    assert other.text() == TEXT
    assert len(upstream.completions) == 1


def test_message_sent_right_after_an_end_is_taken_though_two_other_tabs_waited_to_read(
    tab: ChatPage, upstream: ScriptedUpstream
) -> None:
    """The end gives the turn to a tab that waited; here it is slow to see that there is nothing to read for it."""
    ends = [f"end {number}" for number in range(ROUNDS)]
    upstream.then(*(Script(steps=[Token(f"No. {end}"), Gate(end), Finish(), Done()]) for end in ends))
    begin(tab, "Question 0?")
    others = [other_tab(tab) for _ in range(2)]
    for number, end in enumerate(ends):
        for chat in (tab, *others):
            chat.wait(lambda chat=chat, count=number + 1: len(chat.states()) == count, 10, f"answer {number}")
            chat.wait_text(f"No. {end}")
        if number + 1 < ROUNDS:
            tab.box.fill(f"Question {number + 1}?")
            tab.page.evaluate(SEND_AFTER_THE_END, 40 * number)
            for other in others:
                other.page.evaluate(BE_SLOW, HELD_MS)
        upstream.open(end)
    for chat in (tab, *others):
        chat.wait(lambda chat=chat: chat.states() == ["complete"] * ROUNDS, 10, "the last end")
    assert tab.box.input_value() == ""
    assert "on its way" not in hint(tab)
    assert [record.json["messages"][-1]["content"] for record in upstream.completions] == [
        f"Question {number}?" for number in range(ROUNDS)
    ]


def test_try_now_in_a_tab_that_does_not_read_is_done_by_the_one_that_reads(
    proxied: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    """The next try of its own is a minute and a half away."""
    proxied.expect_fault(LOST)
    proxied.expect_fault(status(503))
    partly(proxied, upstream, TOKENS, 1)
    other = other_tab(proxied)
    other.wait_text(TOKENS[0])
    proxy.default = Answer(BUSY)
    proxy.cut_all()
    for chat in (proxied, other):
        chat.wait_state("reconnecting")
        chat.wait_shown(r"in (8\d|90) s")
    proxy.default = Pass()

    other.press("Try now")
    for chat in (other, proxied):
        chat.wait_state("streaming", "slow", seconds=15)
    open_gates(upstream, 1, LAST + 1)
    for chat in (other, proxied):
        chat.wait_state("complete")
        assert chat.text() == TEXT
    assert len(upstream.completions) == 1


def test_ask_again_refused_keeps_the_question_the_partial_answer_and_the_context(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    chat.expect_fault(status(403))
    partly(chat, upstream, TOKENS, 1, "First?")
    chat.stop()
    chat.wait_state("stopped")
    chat.page.route("**/v1/chat/streaming", lambda route: route.fulfill(status=403, body="no"))
    chat.press("Ask again")
    chat.wait(lambda: chat.states() == ["stopped", "failed"], 10, "the refusal")
    assert chat.page.locator(".bubble").all_inner_texts() == ["First?"]
    assert chat.text(0) == TOKENS[0]

    chat.page.unroute("**/v1/chat/streaming")
    upstream.reset()
    upstream.always(answer(["Sure."]))
    chat.send("Second?")
    chat.wait(lambda: chat.states() == ["stopped", "complete"], 10, "the refused answer to leave, and the next one")
    assert turns(upstream.completions[0]) == [("user", "First?"), ("assistant", TOKENS[0]), ("user", "Second?")]
    assert chat.page.locator(".bubble").all_inner_texts() == ["First?", "Second?"]
    chat.reload()
    assert [chat.text(number) for number in range(2)] == [TOKENS[0], "Sure."]
    kept = [(one["role"], one["content"]) for one in chat.conversation()["messages"]]
    assert kept == [("user", "First?"), ("assistant", TOKENS[0]), ("user", "Second?"), ("assistant", "Sure.")]
    assert turns(exchange(chat, upstream, "Third?"))[:2] == [("user", "First?"), ("assistant", TOKENS[0])]
