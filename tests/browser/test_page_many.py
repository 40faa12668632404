"""Many conversations at once in one browser: four are read at a time, the others wait and say so; all come whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import OpenChat, lan
from tests.browser.page_steps import status
from tests.browser.tab_steps import choose, conversation_id, listed, reading_all, stream_id
from tests.harness.chaos import Answer, ChaosProxy
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token
from tests.live.steps import about, asked, poll

pytestmark = pytest.mark.browser

MOST = 4
MANY = 8
WAITS = r"Waiting: this browser already receives four answers"


@pytest.fixture(scope="module")
def service_settings() -> dict[str, Any]:
    """Give the model time: it says nothing until all eight questions are asked, which takes a busy machine a while."""
    return {"TIMEOUT_SECONDS": 300}


@pytest.fixture(params=["near", pytest.param("lan", marks=pytest.mark.long)])
def chat(
    request: pytest.FixtureRequest, open_chat: OpenChat, service: ChatWait, upstream: ScriptedUpstream
) -> ChatPage:
    """Give a page with Web Locks, and one of plain HTTP on a LAN, where rows in IndexedDB stand in for them."""
    return open_chat(service.base_url if request.param == "near" else lan(service.base_url)).open()


def script(upstream: ScriptedUpstream, number: int) -> str:
    """Answer one question of its own, with a gate before the second word; give the question."""
    steps = [Token(f"{name(number)} "), Gate(name(number)), Token("is answered."), Finish(), Done()]
    about(upstream, Script(steps=steps), f"Question {name(number)}")
    return f"Question {name(number)}"


def name(number: int) -> str:
    return "ABCDEFGHIJ"[number]


def whole(number: int) -> str:
    return f"{name(number)} is answered."


def running(upstream: ScriptedUpstream) -> list[str]:
    """List the questions that the model was asked and has not answered yet."""
    return [one.json["messages"][-1]["content"][-1] for one in upstream.completions if one.finished_at is None]


def ask_in_new(chat: ChatPage, question: str) -> str:
    """Ask in a new conversation, and give its id."""
    chat.new_conversation()
    chat.send(question)
    chat.wait(lambda: chat.states() and conversation_id(chat), 10, "the new conversation")
    return conversation_id(chat)


def show(chat: ChatPage, conversation: str) -> None:
    """Open a conversation from the list, and wait until it is shown: the address tells it before."""
    link = f'#list li[data-id="{conversation}"] a.open'
    chat.page.locator(link).click()
    chat.page.locator(f"{link}[aria-current]").wait_for()
    assert conversation_id(chat) == conversation and chat.states()


def place(number: int) -> str:
    """Tell what stands at an answer that waits, `number` of them before it."""
    others = "1 other is" if number == 1 else f"{number} others are"
    return rf"{others} ahead of this one\." if number else r"This one is next\."


def assert_all_whole(chat: ChatPage, conversations: list[str]) -> None:
    """Wait for all ends and a list at rest, and look at each answer, on the page and in the storage."""
    chat.wait(lambda: not chat.page.locator("#list [data-mark=streaming]").count(), 30, "all ends")
    for number, conversation in enumerate(conversations):
        show(chat, conversation)
        chat.wait_state("complete")
        assert chat.text() == whole(number)
        assert chat.stored_answers()[0]["content"] == whole(number)
        assert len(chat.states()) == 1


def read_all(upstream: ScriptedUpstream, look: Callable[[set[str]], None]) -> list[str]:
    """Let one answer after the other end, and `look` at what is shown, told which have; give the order in which the
    model was asked."""
    done: set[str] = set()
    while len(done) < MANY:
        expected = min(MOST, MANY - len(done))
        poll(
            lambda expected=expected: len(running(upstream)) == expected,
            seconds=20,
            what=lambda: str(running(upstream)),
        )
        assert len(upstream.completions) == len(done) + expected
        look(done)
        first = running(upstream)[0]
        upstream.open(first)
        done.add(first)
    return [one.json["messages"][-1]["content"][-1] for one in upstream.completions]


@pytest.mark.requirement("page edge 7", "page entity Conversation Session", "page SC-005")
def test_eight_conversations_in_one_tab_are_read_four_at_a_time_and_all_come_whole(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    ids = [ask_in_new(chat, script(upstream, number)) for number in range(MANY)]
    assert len(set(ids)) == MANY
    for number in range(MOST, MANY):
        show(chat, ids[number])
        chat.wait_shown(rf"{WAITS}\. {place(number - MOST)}")
        assert chat.state() == "sending"
        assert chat.has_button("Stop")
    show(chat, ids[0])
    chat.wait_text("A ")
    assert chat.state() in ("streaming", "slow")
    show(chat, ids[-1])

    def look(done: set[str]) -> None:
        before = MANY - MOST - 1 - len(done)
        if before >= 0:
            chat.wait_shown(place(before))

    order = read_all(upstream, look)
    assert sorted(order) == [name(number) for number in range(MANY)]
    assert order[MOST:] == sorted(order[MOST:])
    assert_all_whole(chat, ids)


@pytest.mark.long
@pytest.mark.requirement("page edge 7", "page entity Conversation Session", "page SC-005")
def test_eight_tabs_are_read_four_at_a_time_and_all_come_whole(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    tabs = [chat, *(chat.tab().open() for _ in range(MANY - 1))]
    for number, tab in enumerate(tabs):
        tab.send(script(upstream, number))
        tab.wait(lambda tab=tab: tab.states() and conversation_id(tab), 10, "the conversation")

    def look(done: set[str]) -> None:
        for number, tab in enumerate(tabs):
            if name(number) in done:  # it lets the next one read before it has painted its own end
                tab.wait_state("complete")
        seen = [tab.state() for tab in tabs]
        assert seen.count("sending") <= MANY - MOST
        assert seen.count("streaming") + seen.count("slow") <= MOST

    for number, tab in enumerate(tabs[MOST:]):
        tab.wait_shown(rf"{WAITS}\. {place(number)}")
        assert tab.state() == "sending"
    order = read_all(upstream, look)
    assert sorted(order) == [name(number) for number in range(MANY)]
    for number, tab in enumerate(tabs):
        tab.wait_state("complete")
        assert tab.text() == whole(number)
        assert tab.stored_answers()[0]["content"] == whole(number)
    chat.wait(lambda: sorted(listed(chat)) == [f"Question {name(number)}" for number in range(MANY)], 5, "a whole list")


@pytest.mark.long
@pytest.mark.requirement("page edge 7", "page edge 5")
def test_tab_loaded_again_with_eight_answers_on_their_way_reads_four_at_a_time(
    chat: ChatPage, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    ids = [ask_in_new(chat, script(upstream, number)) for number in range(MANY)]
    chat.wait_shown(WAITS)
    before = len(service.log_of("reader_attached"))
    chat.reload()
    chat.wait(lambda: len(service.log_of("reader_attached")) == before + MOST, 20, "four connections")
    chat.wait(lambda: reading_all(service) == MOST, 20, "the old connections to be given up")
    chat.page.wait_for_timeout(1_000)  # nothing may happen, and nothing tells that it does not
    assert len(service.log_of("reader_attached")) == before + MOST
    for number in range(MANY):
        upstream.open(name(number))
    assert_all_whole(chat, ids)
    assert len(upstream.completions) == MANY


@pytest.mark.requirement("page edge 7", "page scope 2")
@pytest.mark.parametrize("is_elsewhere", [False, True], ids=["its tab", "another tab"])
def test_answer_that_waits_for_its_turn_is_stopped_and_never_asked(
    chat: ChatPage, upstream: ScriptedUpstream, is_elsewhere: bool
) -> None:
    ids = [ask_in_new(chat, script(upstream, number)) for number in range(MOST + 1)]
    chat.wait_shown(WAITS)
    other = chat.tab().open(f"#{ids[-1]}") if is_elsewhere else chat
    other.wait_shown(WAITS)
    other.stop()
    for tab in {chat, other}:
        tab.wait_state("stopped")
        tab.button("Send").wait_for()
    poll(lambda: len(running(upstream)) == MOST, seconds=10, what="four answers")

    upstream.open("A")
    show(chat, ids[0])
    chat.wait_state("complete")
    assert running(upstream) == ["B", "C", "D"]
    show(chat, ids[-1])
    chat.press("Ask again")
    upstream.open("E")
    chat.wait(lambda: chat.states() == ["stopped", "complete"], 20, "the new answer")
    assert chat.text() == whole(MOST)
    assert len(asked(upstream, {"message": "Question E"})) == 1
    for number in range(MOST):
        upstream.open(name(number))
    poll(lambda: running(upstream) == [], seconds=10, what="all answers")
    for tab in {chat, other}:
        tab.wait(lambda tab=tab: not tab.page.locator("[data-mark=streaming]").count(), 10, "no answer on its way")


@pytest.mark.long
@pytest.mark.requirement("page edge 7", "page edge 5", "page FR-004")
def test_answer_of_an_earlier_page_that_waits_for_its_turn_is_stopped_and_a_doubt_is_said(
    proxied: ChatPage, proxy: ChaosProxy, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    """After a reload the newest are read first; an older one has been asked already, and a proxy takes its stop."""
    proxied.expect_fault(status(404))
    ids = [ask_in_new(proxied.open(), script(upstream, number)) for number in range(MOST + 1)]
    proxied.wait_shown(WAITS)
    proxied.reload()
    poll(lambda: len(running(upstream)) == MOST + 1, seconds=20, what="the fifth question")
    for one in ids[:MOST]:
        show(proxied, one)
        if "Waiting:" in proxied.shown():
            break
    proxied.wait_shown(WAITS)
    proxy.default = Answer(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    proxied.stop()
    proxied.wait_state("stopped")
    assert "Stopped by you. The server did not confirm the stop." in proxied.shown()
    assert len(running(upstream)) == MOST + 1
    proxied.page.close()


@pytest.mark.long
@pytest.mark.requirement("page edge 7", "page edge 5")
def test_answer_whose_tab_is_closed_while_it_waits_is_asked_by_another_tab(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    ids = [ask_in_new(chat, script(upstream, number)) for number in range(MOST)]
    closing = chat.tab().open()
    last = ask_in_new(closing, script(upstream, MOST))
    closing.wait_shown(WAITS)
    show(chat, last)
    chat.wait_shown(WAITS)
    closing.page.close(run_before_unload=True)
    upstream.open("A")
    chat.wait_text("E ")
    for number in range(MOST + 1):
        upstream.open(name(number))
    chat.wait_state("complete")
    assert chat.text() == whole(MOST)
    assert stream_id(chat)
    assert len(upstream.completions) == MOST + 1
    for conversation in ids:
        show(chat, conversation)
        chat.wait_state("complete")


TELL = """
([id, answer]) => {
  const channel = new BroadcastChannel("chatwait");
  channel.postMessage({ kind: "state", id, answer: { ...answer, state: "complete", queued: false }, length: 0 });
  channel.close();
}
"""


@pytest.mark.requirement("page edge 7", "page edge 5")
def test_answer_that_a_slow_tab_has_brought_to_its_end_while_this_one_waited_is_not_asked_again(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    """That tab had lost its turn to this one, and did not know it yet."""
    ids = [ask_in_new(chat, script(upstream, number)) for number in range(MOST + 1)]
    chat.wait_shown(WAITS)
    other = chat.tab().open()
    other.page.evaluate(TELL, [ids[-1], chat.stored_answers()[-1]])
    chat.wait_state("complete")
    about(upstream, Script(steps=[Token("Sure."), Finish(), Done()]), "Another one")
    chat.send("Another one")  # here, though the other four are being read
    chat.wait(lambda: chat.states() == ["complete", "sending"], 10, "the next answer")
    for number in range(MOST):
        upstream.open(name(number))
    chat.wait(lambda: chat.states() == ["complete"] * 2, 30, "the next answer's end")
    chat.wait(lambda: not chat.page.locator("#list [data-mark=streaming]").count(), 30, "all ends")
    assert asked(upstream, {"message": "Question E"}) == []


@pytest.mark.requirement("page edge 7")
def test_conversation_deleted_while_its_answer_waits_leaves_the_row(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    ids = [ask_in_new(chat, script(upstream, number)) for number in range(MOST + 2)]
    chat.wait_shown(place(1))
    choose(chat, f"Question {name(MOST)}", "Delete")
    chat.press("Delete")
    show(chat, ids[-1])
    chat.wait_shown(place(0))
    for number in range(MOST):
        upstream.open(name(number))
    upstream.open(name(MOST + 1))
    chat.wait_state("complete")
    assert asked(upstream, {"message": f"Question {name(MOST)}"}) == []
