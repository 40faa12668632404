"""The chat page refreshed, left, closed and crashed in mid-answer: the answer goes on, whole, and is paid once."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from playwright.sync_api import Error

from tests.browser.chatpage import ChatPage
from tests.browser.dialogues import FLOWING, ask, exchange, fragment, learned, partly, turns
from tests.browser.page_steps import LOST, assert_whole, gated, open_gates
from tests.harness.chaos import BlackholeAfter, ChaosProxy
from tests.harness.upstream import RequestRecord, ScriptedUpstream

pytestmark = pytest.mark.browser

TOKENS = ["One ", "two, ", "thr", "ee é🙂 ", "and four."]
TEXT = "".join(TOKENS)
LAST = len(TOKENS)
REFRESHES = 20


def finish(upstream: ScriptedUpstream, record: RequestRecord) -> None:
    """Let the model end its answer while nobody looks."""
    open_gates(upstream, 0, LAST + 1)
    record.wait_finished()


def come_back(chat: ChatPage, hash_: str) -> ChatPage:
    """Open the conversation in a new page of the same browser."""
    return chat.tab().open(hash_)


@pytest.mark.requirement("page edge 5", "page US3.3", "page FR-004", "page FR-008")
def test_page_refreshed_in_mid_answer_shows_what_there_was_and_the_rest(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    partly(chat, upstream, TOKENS, 3)
    hash_ = fragment(chat)

    chat.reload()
    assert chat.text() == "".join(TOKENS[:3])
    assert fragment(chat) == hash_
    assert chat.has_button("Stop")
    chat.wait_state(*FLOWING)
    open_gates(upstream, 3, LAST + 1)
    answer = assert_whole(chat, upstream, TEXT, LAST)
    assert answer["sequence"] == LAST
    assert chat.has_button("Send")


@pytest.mark.long
@pytest.mark.requirement("page edge 5", "page US3.3", "page FR-003")
def test_page_refreshed_twenty_times_in_one_answer_has_every_token_once(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    """Every other refresh comes while the token is on its way."""
    tokens = [f"token{number} é🙂 " for number in range(REFRESHES + 1)]
    partly(chat, upstream, tokens, 1)
    for number in range(1, REFRESHES + 1):
        upstream.open(str(number))
        if number % 2:
            chat.wait_text("".join(tokens[: number + 1]))
        chat.reload()
        assert chat.text() in ("".join(tokens[:number]), "".join(tokens[: number + 1]))
    upstream.open(str(REFRESHES + 1))
    assert_whole(chat, upstream, "".join(tokens), len(tokens))
    assert len(chat.stored_answers()) == 1


@pytest.mark.requirement("page edge 5", "page US3.3", "page constraint 1")
def test_page_refreshed_paints_what_is_stored_before_anything_answers(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    partly(chat, upstream, TOKENS, 3)
    upstream.open("3")  # a token that is not stored yet, perhaps
    held: list[Any] = []
    chat.page.route(lambda url: "/v1/" in url, lambda route: held.append(route))

    chat.reload()
    assert chat.text() in ("".join(TOKENS[:3]), "".join(TOKENS[:4]))
    assert chat.state() in (*FLOWING, "reconnecting")  # the latter on a slow machine
    chat.wait(lambda: any("/streaming/" in route.request.url for route in held), 10, "the page to ask")
    assert chat.text() in ("".join(TOKENS[:3]), "".join(TOKENS[:4]))

    chat.page.unroute_all()
    for route in held:
        with contextlib.suppress(Error):  # it has given up on that one
            route.continue_()
    open_gates(upstream, 4, LAST + 1)
    assert_whole(chat, upstream, TEXT, LAST)


@pytest.mark.requirement("page US3.3", "page FR-008", "page US1.4")
@pytest.mark.parametrize("there", [0, 3])
def test_answer_that_ends_while_no_page_is_open_is_there_in_full(
    chat: ChatPage, upstream: ScriptedUpstream, there: int
) -> None:
    record = partly(chat, upstream, TOKENS, there)
    hash_ = fragment(chat)
    chat.page.close()
    finish(upstream, record)

    again = come_back(chat, hash_)
    assert_whole(again, upstream, TEXT, LAST)


@pytest.mark.requirement("page FR-008", "page SC-006")
def test_stored_part_that_was_altered_is_found_by_the_hash_and_read_again(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    """The altered text is as long as the right one: only its hash tells."""
    record = partly(chat, upstream, TOKENS, 3)
    hash_, right = fragment(chat), "".join(TOKENS[:3])
    chat.page.goto(f"{chat.base_url}/health")
    alter = "([key, a, b]) => localStorage.setItem(key, localStorage.getItem(key).replaceAll(a, b))"
    wrong = right.replace("One", "Ten")
    key = f"chatwait.conversation.{hash_[1:]}"
    chat.page.evaluate(alter, [key, right, wrong])
    assert f'"{wrong}"' in chat.page.evaluate("key => localStorage.getItem(key)", key)

    chat.open(hash_)
    assert chat.text() == wrong
    finish(upstream, record)
    assert_whole(chat, upstream, TEXT, LAST)


@pytest.mark.requirement("page FR-008", "page SC-006")
@pytest.mark.parametrize("wrong", ["One, two, three é🙂 ", "One to, thr"], ids=["a sign more", "a sign less"])
def test_stored_part_that_was_altered_is_found_by_its_characters_where_there_is_no_hash(
    lan_chat: ChatPage, upstream: ScriptedUpstream, wrong: str
) -> None:
    """Over plain HTTP a browser has no SHA-256: the count is all there is."""
    part = 3 if wrong.endswith("thr") else 4
    record = partly(lan_chat, upstream, TOKENS, part)
    assert lan_chat.page.evaluate("globalThis.crypto.subtle === undefined")
    hash_, right = fragment(lan_chat), "".join(TOKENS[:part])
    lan_chat.page.goto(f"{lan_chat.base_url}/health")
    alter = "([key, a, b]) => localStorage.setItem(key, localStorage.getItem(key).replaceAll(a, b))"
    lan_chat.page.evaluate(alter, [f"chatwait.conversation.{hash_[1:]}", right, wrong])

    lan_chat.open(hash_)
    assert lan_chat.text() == wrong
    finish(upstream, record)
    assert_whole(lan_chat, upstream, TEXT, LAST)


@pytest.mark.requirement("page US3.3")
@pytest.mark.parametrize(
    "browser", ["chat", pytest.param("plain_chat", marks=pytest.mark.long)], ids=["loaded anew", "kept for back"]
)
@pytest.mark.parametrize(
    "is_over", [False, pytest.param(True, marks=pytest.mark.long)], ids=["still going", "over meanwhile"]
)
def test_page_left_for_another_and_come_back_to_goes_on(
    request: pytest.FixtureRequest, browser: str, is_over: bool, upstream: ScriptedUpstream
) -> None:
    """With "back" a browser may show the very page that was left, in which nothing is loaded."""
    chat: ChatPage = request.getfixturevalue(browser)
    record = partly(chat, upstream, TOKENS, 2)
    hash_ = fragment(chat)
    chat.page.evaluate("window.isSame = true")
    chat.page.goto(f"{chat.base_url}/docs")
    upstream.open("2")
    record.wait_tokens(3)
    if is_over:
        finish(upstream, record)
    chat.page.go_back(wait_until="commit")
    chat.box.wait_for()
    assert fragment(chat) == hash_
    chat.wait(lambda: chat.page.evaluate("document.readyState") == "complete", 10, "the page")
    assert chat.page.evaluate("window.isSame === true") is (browser == "plain_chat")
    if not is_over:
        chat.wait_text("".join(TOKENS[:3]))
        chat.wait_state(*FLOWING)
        open_gates(upstream, 3, LAST + 1)
    assert_whole(chat, upstream, TEXT, LAST)


@pytest.mark.requirement("page US3.3", "page SC-006")
@pytest.mark.parametrize(
    "is_over", [False, pytest.param(True, marks=pytest.mark.long)], ids=["still going", "over meanwhile"]
)
def test_page_whose_tab_crashed_is_whole_in_a_new_one(
    chat: ChatPage, upstream: ScriptedUpstream, is_over: bool
) -> None:
    record = partly(chat, upstream, TOKENS, 2)
    hash_ = fragment(chat)
    chat.expect_fault("^the page crashed")
    open_gates(upstream, 2, 3)  # it may be lost with the tab
    with contextlib.suppress(Error):
        chat.page.goto("chrome://crash", timeout=5_000)
    again = chat.tab()
    again.wait(lambda: "the page crashed" in chat.faults, 10, "the crash")
    if is_over:
        finish(upstream, record)
    again.open(hash_)
    open_gates(upstream, 3, LAST + 1)
    assert_whole(again, upstream, TEXT, LAST)


@pytest.mark.requirement("page edge 5", "page SC-006")
def test_page_refreshed_before_the_answers_headers_pays_once(
    proxied: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    """The page does not know the stream's id yet: the key that was stored with the question finds it."""
    upstream.always(gated(TOKENS))
    learned(proxied.open())
    proxy.plan(BlackholeAfter(0))
    ask(proxied, upstream)
    assert proxied.states() == ["sending"]

    proxied.reload()
    assert proxied.page.locator(".bubble").inner_text() == "Count."
    open_gates(upstream, 0, LAST + 1)
    assert_whole(proxied, upstream, TEXT, LAST)
    assert proxied.box.input_value() == ""


@pytest.mark.requirement("page edge 5", "page edge 2")
@pytest.mark.parametrize("state", ["waiting", pytest.param("slow", marks=pytest.mark.long), "reconnecting"])
def test_page_refreshed_in_any_state_goes_on(chat: ChatPage, upstream: ScriptedUpstream, state: str) -> None:
    there = 0 if state == "waiting" else 2
    partly(chat, upstream, TOKENS, there)
    if state == "reconnecting":
        chat.expect_fault(LOST)
        chat.page.route(lambda url: "/v1/chat/" in url, lambda route: route.abort("connectionrefused"))
        chat.reload()  # what is routed is what is asked from now on
    chat.wait_state(state)

    chat.reload()
    assert chat.text() == "".join(TOKENS[:there])
    chat.wait_state(state)
    chat.page.unroute_all()
    open_gates(upstream, there, LAST + 1)
    assert_whole(chat, upstream, TEXT, LAST)


@pytest.mark.requirement("page FR-011", "page edge 5", "page US1.4")
def test_dialogue_after_a_refresh_in_mid_answer_carries_everything(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    partly(chat, upstream, TOKENS, 3, "First?")
    chat.reload()
    open_gates(upstream, 3, LAST + 1)
    assert_whole(chat, upstream, TEXT, LAST)

    assert turns(exchange(chat, upstream, "Second?")) == [
        ("user", "First?"),
        ("assistant", TEXT),
        ("user", "Second?"),
    ]
    chat.reload()
    assert chat.states() == ["complete"] * 2
    assert turns(exchange(chat, upstream, "Third?"))[2:] == [
        ("user", "Second?"),
        ("assistant", TEXT),
        ("user", "Third?"),
    ]
