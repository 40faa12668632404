"""The chat page when an answer does not come to its end: the partial is kept, and one can go on from there."""

from __future__ import annotations

import signal

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import OpenChat, RunService
from tests.browser.page_steps import LOST, assert_whole, gated, open_gates, status
from tests.harness.chaos import ChaosProxy
from tests.harness.reader import delete, post
from tests.harness.upstream import Done, Event, Finish, Gate, Script, ScriptedUpstream, Token, error

pytestmark = pytest.mark.browser

TOKENS = ["One ", "two, ", "three, ", "and four."]
HALF = TOKENS[0] + TOKENS[1]
QUESTION = "Count to four."
BROKEN = {"error": {"message": "The scripted model broke.", "type": "server_error", "code": None}}
THREE_PARTS = "one => [...one.querySelectorAll('.box p')].map(part => part.textContent)"


def begin(chat: ChatPage, upstream: ScriptedUpstream) -> ChatPage:
    """Read two of four tokens; the others are behind the gates 2 and 3, the end behind 4."""
    upstream.always(gated(TOKENS))
    open_gates(upstream, 0, 2)
    chat.open()
    chat.send(QUESTION)
    chat.wait_text(HALF)
    upstream.wait_reached("2")
    return chat


def assert_partial_is_kept(chat: ChatPage, state: str, happened: str) -> None:
    """Check what is shown of an answer that ended too soon, and what is stored of it; the words are not in its text."""
    assert chat.state() == state
    assert chat.text() == HALF
    parts = chat.article().evaluate(THREE_PARTS)
    assert len(parts) == 3
    assert all(parts)
    assert happened in parts[0]
    assert "2 words are safe" in parts[1]
    answer = chat.stored_answers()[-1]
    assert (answer["state"], answer["content"]) == (state, HALF)
    assert not chat.has_button("Stop")
    assert {name for name in ("Ask again", "Continue", "Copy") if chat.has_button(name)} == {
        "Ask again",
        "Continue",
        "Copy",
    }


def assert_action_works(chat: ChatPage, upstream: ScriptedUpstream, action: str) -> None:
    """Press an action of an answer that ended too soon, and see what it does."""
    upstream.reset()
    if action == "Copy":
        chat.context.grant_permissions(["clipboard-read", "clipboard-write"])
        chat.press("Copy")
        chat.wait(lambda: chat.page.evaluate("navigator.clipboard.readText()") == HALF, 5, "the partial to be copied")
        return
    chat.press(action)
    chat.wait(lambda: len(chat.states()) == 2, 10, "a second answer")
    chat.wait_state("complete")
    assert chat.text() == "Hello, world."
    assert chat.text(0) == HALF
    (asked,) = upstream.completions
    turns = [(turn["role"], turn["content"]) for turn in asked.json["messages"] if turn["role"] != "system"]
    if action == "Ask again":
        assert turns == [("user", QUESTION)]
    else:
        assert turns[:2] == [("user", QUESTION), ("assistant", HALF)]
        assert len(turns) == 3
        assert turns[2][0] == "user"
        assert "continue" in turns[2][1].lower()


@pytest.mark.requirement("page US3.2", "page FR-004", "page FR-011", "page SC-006")
@pytest.mark.parametrize(
    "action", ["Continue", *(pytest.param(action, marks=pytest.mark.long) for action in ("Ask again", "Copy"))]
)
def test_page_of_a_service_that_was_restarted_keeps_the_partial_and_goes_on(
    open_chat: OpenChat, run_service: RunService, upstream: ScriptedUpstream, action: str
) -> None:
    """A restart forgets every stream: 404."""
    service = run_service()
    chat = open_chat(service.base_url)
    chat.expect_fault(LOST)
    chat.expect_fault(status(404))
    begin(chat, upstream)
    service.kill()
    chat.wait_state("reconnecting")
    chat.wait_shown("Connection lost. 2 words are safe")
    service.start()
    chat.wait_state("interrupted", seconds=30)
    assert_partial_is_kept(chat, "interrupted", "The server no longer has this answer.")
    assert_action_works(chat, upstream, action)


@pytest.mark.long
@pytest.mark.requirement("page US3.2", "page FR-004", "page SC-006")
def test_page_that_comes_back_when_the_answer_has_expired_keeps_the_partial(
    run_service: RunService, open_chat: OpenChat, upstream: ScriptedUpstream
) -> None:
    """The service remembers that there was one: 410."""
    service = run_service(RETENTION_SECONDS=1)
    with ChaosProxy("127.0.0.1", service.port) as proxy:
        chat = begin(open_chat(proxy.base_url), upstream)
        chat.expect_fault(LOST)
        chat.expect_fault(status(410))
        proxy.refuse()
        proxy.cut_all()
        chat.wait_state("reconnecting")
        open_gates(upstream, 2, 5)
        url = f"{service.base_url}/chat/wait/{chat.stored_answers()[-1]['streamId']}"

        def is_gone() -> bool:
            chat.page.wait_for_timeout(1_500)  # each look at it lets it live for a second more
            return delete(url).status == 410

        chat.wait(is_gone, 20, "the answer to expire")
        proxy.accept()
        chat.wait_state("interrupted", seconds=30)
        assert_partial_is_kept(chat, "interrupted", "The server no longer has this answer.")
        assert_action_works(chat, upstream, "Continue")
        chat.page.close()


@pytest.mark.requirement("page US3.4", "page US2.3", "page US3.2", "page FR-004", "page FR-006", "page SC-007")
@pytest.mark.parametrize("action", ["Ask again", "Continue", "Copy"])
def test_page_of_a_model_that_fails_in_mid_answer_keeps_the_partial_and_goes_on(
    chat: ChatPage, upstream: ScriptedUpstream, action: str
) -> None:
    upstream.always(Script(steps=[*map(Token, TOKENS[:2]), Gate("broken"), Event(BROKEN)]))
    chat.open()
    chat.send(QUESTION)
    chat.wait_text(HALF)
    assert chat.wait_state("streaming") == "streaming"
    upstream.open("broken")
    chat.wait_state("failed")
    assert_partial_is_kept(chat, "failed", "The model")
    assert "scripted" not in chat.page.content()  # what a provider says is not for people
    chat.reload()
    assert_partial_is_kept(chat, "failed", "The model")
    assert_action_works(chat, upstream, action)


@pytest.mark.requirement("page US3.2", "page FR-006", "page US2.3")
def test_page_of_a_model_that_fails_before_its_first_word_can_ask_again(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    upstream.always(error(401, "Incorrect API key provided."))
    chat.open()
    chat.send(QUESTION)
    chat.wait_state("failed")
    parts = chat.article().evaluate(THREE_PARTS)
    assert len(parts) == 3
    assert parts[1] == "Your message is kept."
    assert chat.text() == ""
    assert not chat.has_button("Continue")
    upstream.reset()
    chat.press("Ask again")
    chat.wait(lambda: len(chat.states()) == 2, 10, "a second answer")
    assert_whole(chat, upstream, "Hello, world.", 4)
    assert chat.page.locator("article.question").count() == 1


@pytest.mark.requirement("page FR-006", "page US3.2")
def test_page_whose_message_is_refused_gives_it_back(
    run_service: RunService, open_chat: OpenChat, upstream: ScriptedUpstream
) -> None:
    """A page that knows the limit does not send it; this one was kept from asking for the limits."""
    service = run_service(MAX_MESSAGE_CHARS=20)
    chat = open_chat(service.base_url)
    chat.expect_fault(status(400))
    chat.expect_fault("net::ERR_FAILED.*/models")
    chat.page.route("**/models", lambda route: route.abort())
    chat.open()
    long = "A message of more than twenty characters."
    chat.send(long)
    chat.wait_state("failed")
    chat.wait(lambda: chat.box.input_value() == long, 5, "the message to be given back")
    assert "20" in chat.shown()
    assert "Your message is back in the box below." in chat.shown()
    assert upstream.completions == []

    chat.send("A short one.")
    chat.wait(lambda: chat.states() == ["complete"], 10, "the refused pair to leave the log")
    assert_whole(chat, upstream, "Hello, world.", 4)
    assert [one["content"] for one in chat.conversation()["messages"]] == ["A short one.", "Hello, world."]


@pytest.mark.requirement("page FR-006")
def test_page_that_knows_the_limit_says_so_and_sends_nothing(
    run_service: RunService, open_chat: OpenChat, upstream: ScriptedUpstream
) -> None:
    service = run_service(MAX_MESSAGE_CHARS=20)
    chat = open_chat(service.base_url).open()
    chat.page.locator("#model option").first.wait_for(state="attached")
    long = "A message of more than twenty characters."
    chat.send(long)
    chat.wait(lambda: "at most 20" in chat.page.locator("#over").inner_text(), 5, "the limit to be told")
    assert (chat.states(), chat.box.input_value()) == ([], long)
    chat.send("A short one.")
    chat.wait_state("complete")
    assert len(upstream.completions) == 1


@pytest.mark.long
@pytest.mark.requirement("page FR-006", "page US2.1")
def test_page_of_a_busy_service_says_so_and_gets_its_turn(
    run_service: RunService, open_chat: OpenChat, upstream: ScriptedUpstream
) -> None:
    service = run_service(MAX_ACTIVE_STREAMS=1)
    upstream.then(Script(steps=[Gate("first"), Token("x"), Finish(), Done()]))
    taken = post(f"{service.base_url}/chat/wait", json={"message": "first"}, headers={"Prefer": "wait=0"})
    assert taken.status == 202
    upstream.wait_reached("first")

    chat = open_chat(service.base_url)
    chat.expect_fault(status(503))
    chat.open()
    chat.send(QUESTION)
    chat.wait_shown("The server is busy")
    assert chat.state() == "reconnecting"
    assert len(upstream.completions) == 1
    upstream.open("first")
    chat.wait_state("complete", seconds=30)
    assert chat.text() == "Hello, world."
    assert len(upstream.completions) == 2


@pytest.mark.long
@pytest.mark.requirement("page US3.4", "page FR-004", "page SC-006")
def test_page_of_a_service_that_is_stopped_keeps_the_partial(
    run_service: RunService, open_chat: OpenChat, upstream: ScriptedUpstream
) -> None:
    service = run_service(DRAIN_SECONDS=1)
    chat = begin(open_chat(service.base_url), upstream)
    service.signal(signal.SIGTERM)
    chat.wait_state("interrupted")
    assert_partial_is_kept(chat, "interrupted", "The server was stopped or restarted during this answer.")
    service.wait_exit(30)
    service.start()
    assert_action_works(chat, upstream, "Continue")


@pytest.mark.long
@pytest.mark.requirement("page US3.3", "page FR-004", "page SC-006")
def test_page_that_comes_back_to_an_abandoned_answer_keeps_what_there_was(
    run_service: RunService, open_chat: OpenChat, upstream: ScriptedUpstream
) -> None:
    service = run_service(ABANDONED_SECONDS=1)
    with ChaosProxy("127.0.0.1", service.port) as proxy:
        chat = begin(open_chat(proxy.base_url), upstream)
        chat.expect_fault(LOST)
        proxy.refuse()
        proxy.cut_all()
        chat.wait_state("reconnecting")
        upstream.completions[0].wait_closed(timeout=20)
        proxy.accept()
        chat.wait_state("interrupted", seconds=30)
        assert_partial_is_kept(chat, "interrupted", "no page was reading it")
        assert_action_works(chat, upstream, "Ask again")
        chat.page.close()
