"""The chat page behind somebody who wants to know who asks: it says so, loses nothing, and goes on by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import OpenChat
from tests.browser.page_steps import LOST, assert_whole, gated, open_gates, status
from tests.browser.test_page_access import check as check
from tests.browser.test_page_storage import notices
from tests.harness.chaos import Answer, ChaosProxy, Pass
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream
from tests.live.fronts import front
from tests.live.test_proxies_access import let_in

pytestmark = pytest.mark.browser

TOKENS = ["One ", "two, ", "three, ", "four ", "and five."]
TEXT = "".join(TOKENS)
QUESTION = "Count to five."
PAGE = b"<!doctype html><title>Sign in</title><form><input name=user></form>"


def said(line: str, *heads: str, body: bytes = PAGE) -> Answer:
    """Write what somebody on the way answers for himself."""
    head = "\r\n".join([f"HTTP/1.1 {line}", *heads, f"Content-Length: {len(body)}", "Connection: close", "", ""])
    return Answer(head.encode() + body)


HTML = "Content-Type: text/html; charset=utf-8"
REDIRECT = said("302 Found", "Location: /sign-in?back=/", HTML)
WAYS = {
    "redirect": REDIRECT,
    "page": said("200 OK", HTML),
    "401": said("401 Unauthorized", "Content-Type: application/json", body=b'{"error":"no session"}'),
    "403": said("403 Forbidden", HTML),
}


@pytest.fixture
def guarded(proxied: ChatPage) -> ChatPage:
    for code in (401, 403):
        proxied.expect_fault(status(code))
    proxied.expect_fault(LOST)
    return proxied


@pytest.mark.requirement("page FR-006", "page US3.1", "page US3.2", "page SC-007")
def test_answer_whose_sign_in_expires_says_so_and_goes_on_by_itself(
    guarded: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    """Four times over, each time in another way."""
    upstream.always(gated(TOKENS))
    upstream.open("0")
    guarded.open().send(QUESTION)
    guarded.wait_text(TOKENS[0])
    for number, way in enumerate(WAYS.values(), 1):
        proxy.default = way
        proxy.cut_all()
        words = "1 word is" if number == 1 else f"{number} words are"
        guarded.wait_shown(rf"Sign in again\. {words} safe\. The answer then goes on by itself\.")
        assert guarded.text() == "".join(TOKENS[:number])
        assert "Connection lost" not in guarded.shown()
        assert guarded.has_button("Try now")
        if number == 1:
            with guarded.context.expect_page() as opened:
                guarded.press("Sign in")  # where the proxy can ask; here it lets the page pass
            opened.value.wait_for_load_state()
            assert opened.value.url == f"{proxy.base_url}/"
            opened.value.close()
        proxy.default = Pass()
        upstream.open(str(number))
        guarded.wait_text("".join(TOKENS[: number + 1]))
    open_gates(upstream, len(TOKENS), len(TOKENS) + 1)
    assert_whole(guarded, upstream, TEXT, len(TOKENS))


@pytest.mark.requirement("page FR-006", "page US3.2")
def test_message_sent_while_signed_out_is_kept_and_asked_once_somebody_has_signed_in(
    guarded: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    proxy.default = WAYS["403"]  # of the whole site: the models are not told either
    guarded.page.route("**/v1/models", lambda route: route.fulfill(status=403, body="<p>Sign in"))
    guarded.open().send(QUESTION)
    guarded.wait_shown(r"Sign in again\. Your message is kept, and is then sent by itself\.")
    assert upstream.completions == []
    guarded.reload()
    guarded.wait_shown(r"Sign in again\.")
    proxy.default = Pass()  # the models still are not told: a POST that was refused just now is no firewall's refusal
    assert_whole(guarded, upstream, "Hello, world.", 4)


@pytest.mark.requirement("page FR-006")
def test_message_whose_words_a_firewall_refuses_is_given_back(
    guarded: ChatPage, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    """It refuses this one request with the same status as somebody who wants a sign-in; all others pass."""
    proxy.default = WAYS["403"]
    guarded.open().send(QUESTION)
    guarded.wait_state("failed")
    assert "Not sent." in guarded.shown()
    assert "Sign in" not in guarded.shown()
    guarded.wait(lambda: guarded.box.input_value() == QUESTION, 10, "the message to be given back")
    assert upstream.completions == []


@pytest.mark.requirement("page FR-006")
def test_page_opened_while_signed_out_says_so_until_somebody_has_signed_in(
    open_chat: OpenChat,
    service: ChatWait,
    upstream: ScriptedUpstream,
    check: Callable[[ChatPage, str], None],
) -> None:
    with ChaosProxy("127.0.0.1", service.port, default=REDIRECT, marker=b"/v1/") as proxy:
        chat = open_chat(proxy.base_url)
        chat.expect_fault(LOST)
        chat.open()
        chat.wait(lambda: notices(chat), 10, "a notice")
        (notice,) = notices(chat)
        assert notice[0] == "Sign in again."
        assert len(notice) == 3 and all(notice)
        check(chat, "a notice")
        chat.send(QUESTION)
        chat.wait_shown("Sign in again")
        check(chat, "signed out")
        chat.page.emulate_media(color_scheme="dark")
        chat.page.set_viewport_size({"width": 390, "height": 760})
        check(chat, "signed out, dark and narrow")
        with chat.context.expect_page() as opened:
            chat.page.locator("#notices a").click()
        opened.value.close()
        proxy.default = Pass()
        assert_whole(chat, upstream, "Hello, world.", 4)
        chat.wait(lambda: notices(chat) == [], 15, "the notice to go")
        chat.page.close()


@pytest.mark.long
@pytest.mark.requirement("page FR-006", "page US3.1")
def test_answer_behind_nginx_that_asks_a_token_service_goes_on_after_a_new_sign_in(
    open_chat: OpenChat, service: ChatWait, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.always(gated(TOKENS))
    open_gates(upstream, 0, 2)
    with ScriptedUpstream().by(let_in) as tokens:
        changes = {"127.0.0.1:9000": f"127.0.0.1:{tokens.port}"}
        with front("nginx shipped", tmp_path, service.port, "token", changes=changes) as proxy:
            chat = open_chat(proxy.base_url)
            chat.expect_fault(LOST)
            chat.expect_fault(status(401))
            seat = {"name": "seat", "value": "12", "url": proxy.base_url}
            chat.context.add_cookies([seat])
            chat.open().send(QUESTION)
            chat.wait_text("".join(TOKENS[:2]))
            chat.context.clear_cookies()
            proxy.kill()
            proxy.start()
            chat.wait_shown(r"Sign in again\. 2 words are safe\.", seconds=30)
            chat.context.add_cookies([seat])
            open_gates(upstream, 2, len(TOKENS) + 1)
            chat.wait_state("complete", seconds=40)
            assert_whole(chat, upstream, TEXT, len(TOKENS))
            chat.page.close()
