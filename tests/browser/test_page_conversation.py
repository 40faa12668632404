"""A conversation in the chat page: its order and context, its models, messages that fail, and those not yet sent."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.dialogues import FLOWING, ask, exchange, fragment, learned, partly, pick, turns
from tests.browser.page_steps import assert_whole, gated, open_gates, status
from tests.harness.script import answer, error
from tests.harness.upstream import Done, Event, Finish, Gate, Script, ScriptedUpstream, Token

pytestmark = pytest.mark.browser

TOKENS = ["One ", "two, ", "thr", "ee é🙂 ", "and four."]
TEXT = "".join(TOKENS)
LAST = len(TOKENS)
MODELS = ["small", "large"]
MOST = 200
BUSY = "An answer is on its way."
BROKEN = Event({"error": {"message": "CUDA out of memory", "type": "server_error"}})


@pytest.fixture(scope="module")
def service_settings() -> dict[str, Any]:
    return {"OPENAI_MODEL": MODELS[0], "ALLOWED_MODELS": ",".join(MODELS), "MAX_MESSAGE_CHARS": MOST}


def hint(chat: ChatPage) -> str:
    """Give the line below the text box."""
    return str(chat.page.locator("#hint").inner_text())


@pytest.mark.requirement("page edge 1", "page FR-007", "page scope 3", "page entity Conversation Session")
def test_message_written_while_an_answer_streams_waits_for_its_end(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    """Edge 1: Enter says why nothing is sent, and the text stays."""
    partly(chat, upstream, TOKENS, 2, "First?")
    chat.send("Second?")
    assert hint(chat).startswith(BUSY)
    assert chat.box.input_value() == "Second?"
    assert not chat.has_button("Send")

    open_gates(upstream, 2, LAST + 1)
    assert_whole(chat, upstream, TEXT, LAST)
    chat.wait(lambda: BUSY not in hint(chat), 10, "the line to go")
    assert chat.box.input_value() == "Second?"
    chat.box.press("Enter")
    chat.wait(lambda: chat.states() == ["complete"] * 2, 20, "the second answer")
    assert turns(upstream.completions[-1]) == [("user", "First?"), ("assistant", TEXT), ("user", "Second?")]
    assert chat.box.input_value() == ""


@pytest.mark.requirement("page US1.3", "page US1.4", "page FR-008", "page US1 test", "page US2.1", "page US2.2")
def test_answer_that_appeared_word_by_word_is_kept_whole(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    """US1.2 to US1.4: each token is there before the next one is made, and all of them in the history."""
    partly(chat, upstream, TOKENS, 0)
    chat.wait_shown("Thinking…")
    for number in range(LAST):
        upstream.open(str(number))
        chat.wait_text("".join(TOKENS[: number + 1]))
        chat.wait_shown("Answering…|Still answering")
    assert chat.article().get_attribute("aria-busy") == "true"
    upstream.open(str(LAST))
    kept = assert_whole(chat, upstream, TEXT, LAST)
    assert (kept["finishReason"], kept["model"]) == ("stop", MODELS[0])
    chat.wait_shown(r"Complete\.")
    assert "nswering" not in chat.shown()
    assert chat.article().get_attribute("aria-busy") == "false"
    question = chat.conversation()["messages"][0]
    assert (question["role"], question["content"]) == ("user", "Count.")

    chat.reload()
    assert (chat.states(), chat.text()) == (["complete"], TEXT)
    assert len(upstream.completions) == 1


@pytest.mark.requirement("page FR-010", "page constraint 3")
def test_model_of_the_picker_is_asked_and_streams_and_its_conversation_keeps_it(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    learned(chat.open())
    picker = chat.page.get_by_label("Model")
    assert picker.locator("option").all_inner_texts() == MODELS
    assert picker.input_value() == MODELS[0]
    for model in reversed(MODELS):
        upstream.always(Script(steps=[Token(f"I am {model}, "), Gate(model), Token("complete."), Finish(), Done()]))
        picker.select_option(model)
        record = ask(chat, upstream, f"Who are you, {model}?")
        assert record.json["model"] == model
        chat.wait_text(f"I am {model}, ")
        upstream.open(model)
        chat.wait_state("complete")
        assert chat.stored_answers()[-1]["model"] == model
        chat.new_conversation()

    upstream.always(answer(["Still me."]))
    for model in MODELS:
        pick(chat, f"Who are you, {model}?")
        assert picker.input_value() == model
        chat.reload()
        learned(chat)
        chat.wait(lambda model=model: picker.input_value() == model, 10, "its model")
        assert exchange(chat, upstream, "And now?").json["model"] == model


@pytest.mark.requirement("page FR-010", "page constraint 3")
def test_model_that_was_chosen_is_kept_for_new_conversations_while_it_is_offered(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    picker = learned(chat.open()).page.get_by_label("Model")
    picker.select_option(MODELS[1])
    chat.reload()
    learned(chat)
    assert picker.input_value() == MODELS[1]
    assert exchange(chat, upstream, "First?").json["model"] == MODELS[1]
    chat.new_conversation()
    assert picker.input_value() == MODELS[1]
    other = learned(chat.tab().open())
    assert other.page.get_by_label("Model").input_value() == MODELS[1]

    chat.page.evaluate("localStorage.setItem('chatwait.model', 'of last year')")
    chat.reload()
    learned(chat)
    assert picker.input_value() == MODELS[0]
    chat.page.add_init_script("Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); }")
    chat.reload()
    learned(chat)
    picker.select_option(MODELS[1])
    assert exchange(chat, upstream, "Second?").json["model"] == MODELS[1]
    chat.new_conversation()
    assert picker.input_value() == MODELS[1]


@pytest.mark.requirement("page FR-011", "page FR-003", "page US3.2", "page US3.4", "page US2.3", "page FR-004")
def test_failed_answers_give_their_words_to_the_next_context_and_never_their_errors(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    """US3.4: the partial answer stays, and the error is beside it, in three parts."""
    learned(chat.open())
    upstream.always(answer(["Fine."]))
    exchange(chat, upstream, "First?")
    upstream.then(Script(steps=[Token("Half an "), Token("answer"), BROKEN]))
    ask(chat, upstream, "Second?")
    assert chat.wait_state("failed") == "failed"
    assert chat.text() == "Half an answer"
    box = chat.article().locator(".box p")
    assert box.count() == 3
    assert "3 words are safe here." in box.nth(1).inner_text()
    assert "CUDA" not in chat.shown()
    assert chat.has_button("Ask again")

    upstream.then(error(401))
    ask(chat, upstream, "Third?")
    chat.wait_state("failed")
    assert chat.text() == ""
    assert "Your message is kept." in chat.shown()

    asked = turns(exchange(chat, upstream, "Fourth?"))
    assert asked == [
        ("user", "First?"),
        ("assistant", "Fine."),
        ("user", "Second?"),
        ("assistant", "Half an answer"),
        ("user", "Third?"),
        ("assistant", ""),
        ("user", "Fourth?"),
    ]
    assert chat.states() == ["complete", "failed", "failed", "complete"]
    chat.reload()
    assert chat.states() == ["complete", "failed", "failed", "complete"]
    assert chat.article(1).locator(".box p").count() == 3


@pytest.mark.requirement("page US3.2", "page FR-011")
def test_question_asked_again_after_a_failure_is_answered_and_the_failure_leaves_the_context(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    upstream.then(Script(steps=[Token("Half"), BROKEN]))
    ask(learned(chat.open()), upstream, "First?")
    chat.wait_state("failed")
    upstream.always(answer(["Whole."]))
    chat.press("Ask again")
    chat.wait(lambda: chat.states() == ["failed", "complete"], 20, "the second answer")
    assert turns(upstream.completions[-1]) == [("user", "First?")]
    assert turns(exchange(chat, upstream, "Second?"))[:2] == [("user", "First?"), ("assistant", "Whole.")]


@pytest.mark.requirement("page FR-006", "page FR-011", "page FR-003")
def test_message_that_the_service_refuses_is_given_back_and_never_sent_again(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    """The page does not know the limit here, so it is the service that says it."""
    chat.expect_fault(status(400))
    chat.expect_fault("net::ERR_FAILED")
    chat.page.route("**/v1/models", lambda route: route.abort())
    chat.open()
    exchange(chat, upstream, "First?")
    long = "word " * MOST
    chat.send(long)
    chat.wait_state("failed")
    assert "Not sent." in chat.shown()
    assert "The message is too long." in chat.shown()
    assert "Your message is back in the box below." in chat.shown()
    chat.wait(lambda: chat.box.input_value() == long, 10, "the draft")

    chat.reload()
    assert chat.box.input_value() == long
    chat.send("Short?")
    chat.wait(lambda: chat.states() == ["complete"] * 2, 20, "the refused message to leave, and the answer")
    assert turns(upstream.completions[-1]) == [("user", "First?"), ("assistant", "Hello, world."), ("user", "Short?")]
    assert chat.states() == ["complete"] * 2
    assert chat.page.locator(".bubble").all_inner_texts() == ["First?", "Short?"]


@pytest.mark.requirement("page FR-006")
def test_message_over_the_limit_is_not_sent_when_the_page_knows_it(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    learned(chat.open())
    long = "🙂" * (MOST + 1)
    chat.send(long)
    assert f"The message has {MOST + 1} characters; at most {MOST}" in chat.page.locator("#over").inner_text()
    assert chat.box.input_value() == long
    assert chat.states() == []

    chat.box.press("Backspace")
    chat.box.press("Enter")
    chat.wait_state("complete")
    assert turns(upstream.completions[0]) == [("user", "🙂" * MOST)]


@pytest.mark.requirement("page FR-008", "page edge 5")
def test_draft_is_kept_for_each_conversation_and_survives_a_reload(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    learned(chat.open())
    for title in ("About apples", "About pears"):
        exchange(chat, upstream, title)
        chat.box.fill(f"More {title.lower()}")
        chat.new_conversation()
        assert chat.box.input_value() == ""
    chat.box.fill("Something new")
    chat.reload()
    assert chat.box.input_value() == "Something new"
    for title in ("About apples", "About pears"):
        pick(chat, title)
        assert chat.box.input_value() == f"More {title.lower()}"
    chat.reload()
    assert chat.box.input_value() == "More about pears"
    chat.box.press("Enter")
    chat.wait(lambda: chat.states() == ["complete"] * 2, 20, "the second answer")
    chat.reload()
    assert chat.box.input_value() == ""


@pytest.mark.requirement("page FR-005", "page US2.2")
@pytest.mark.parametrize(
    ("reason", "told", "goes_on"),
    [
        ("length", "Stopped at the length limit.", True),
        ("content_filter", "Ended by the provider's", False),
    ],
)
def test_answer_that_ended_early_says_why_and_is_no_failure(
    chat: ChatPage, upstream: ScriptedUpstream, reason: str, told: str, goes_on: bool
) -> None:
    upstream.always(answer(["Up to ", "here"], finish=reason))
    exchange(learned(chat.open()), upstream, "Tell all.")
    assert told in chat.shown()
    assert chat.text() == "Up to here"
    assert chat.has_button("Continue") is goes_on
    assert "Complete" not in chat.shown()
    assert chat.article().locator(".box").count() == 0
    chat.reload()
    assert (told in chat.shown(), "Complete" in chat.shown(), chat.has_button("Continue")) == (True, False, goes_on)
    if goes_on:
        upstream.always(answer(["and on"]))
        chat.press("Continue")
        chat.wait(lambda: chat.states() == ["complete"] * 2, 20, "the rest")
        assert turns(upstream.completions[-1])[1] == ("assistant", "Up to here")


@pytest.mark.requirement("page FR-006", "page US2.3")
def test_question_that_the_provider_filters_is_a_failure_in_words(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    upstream.always(error(400, "The response was filtered.", code="content_filter"))
    ask(learned(chat.open()), upstream, "Something bad?")
    chat.wait_state("failed")
    assert chat.stored_answers()[-1]["error"]["error_code"] == "content_filtered"
    assert chat.article().locator(".box p").count() == 3


@pytest.mark.long
@pytest.mark.requirement("page SC-007", "page FR-005", "page US2.1", "page US2.2", "page US2.3")
def test_states_of_several_windows_are_told_apart(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    """Each window is another conversation, all in one browser, at the same moment."""
    upstream.when(lambda asked: asked["messages"][-1]["content"] == "streaming", gated(TOKENS))
    upstream.when(lambda asked: asked["messages"][-1]["content"] == "stopped", gated(TOKENS))
    upstream.when(lambda asked: asked["messages"][-1]["content"] == "failed", Script(steps=[Token("One "), BROKEN]))
    upstream.open("0")
    windows = {"streaming": chat, "complete": chat.tab(), "stopped": chat.tab(), "failed": chat.tab()}
    for name, window in windows.items():
        ask(learned(window.open()), upstream, name)
        if name == "stopped":
            window.wait_text(TOKENS[0])
            window.stop()
        window.wait_state(*(FLOWING if name == "streaming" else [name]))

    looks = set()
    for name, window in windows.items():
        assert window.states() in ([[one] for one in FLOWING] if name == "streaming" else [[name]])
        tone = window.article().locator(".box").evaluate_all("boxes => boxes.map((box) => box.dataset.tone)")
        assert tone == (["danger"] if name == "failed" else [])
        assert window.has_button("Stop") is (name == "streaming")
        looks.add(window.article().locator(".status").inner_text())
    assert len(looks) == len(windows)


@pytest.mark.requirement("page edge 7", "page scope 3", "page FR-003")
def test_two_conversations_stream_at_once_in_one_page_and_never_mix(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    for name in ("left", "right"):
        steps = [Token(f"{name} one, "), Gate(name), Token(f"{name} two."), Gate(f"{name} end"), Finish(), Done()]
        upstream.when(lambda asked, name=name: asked["messages"][-1]["content"] == name, Script(steps=steps))
    learned(chat.open())
    for name in ("left", "right"):
        ask(chat, upstream, name)
        chat.wait_text(f"{name} one, ")
        if name == "left":
            left = fragment(chat)
            chat.new_conversation()
    for name in ("right", "left"):
        upstream.open(name)
    chat.wait_text("right one, right two.")
    pick(chat, "left")
    assert fragment(chat) == left
    chat.wait_text("left one, left two.")
    upstream.open("right end")
    upstream.open("left end")
    chat.wait_state("complete")
    pick(chat, "right")
    chat.wait_state("complete")
    assert chat.text() == "right one, right two."
    assert turns(exchange(chat, upstream, "And?"))[:2] == [("user", "right"), ("assistant", "right one, right two.")]
