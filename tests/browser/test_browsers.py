"""The browsers of these tests are what the tests take them for, and what watches their pages sees."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import OpenChat, lan
from tests.browser.paint import PaintClock, summary
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Paced, Script, ScriptedUpstream

pytestmark = pytest.mark.browser

NOTED = """
window.noted = [];
addEventListener("pageshow", (event) => noted.push(event.persisted ? "kept" : "new"));
addEventListener("visibilitychange", () => noted.push(document.visibilityState), true);
"""
TICKS = """
() => new Promise((told) => {
  let ticks = 0, frames = 0;
  const frame = () => { frames++; requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
  const timer = setInterval(() => ticks++, 20);
  setTimeout(() => { clearInterval(timer); told([ticks, frames]); }, 2000);
})
"""
HAS = "() => [isSecureContext, Boolean(navigator.locks), Boolean(crypto.subtle)]"


@pytest.mark.long
def test_plain_browser_hides_a_page_behind_another_and_slows_it(plain_browser: Any, origin: str) -> None:
    page = plain_browser.new_page()
    page.add_init_script(NOTED)
    page.goto(origin)
    assert page.evaluate("document.visibilityState") == "visible"
    awake_ticks, awake_frames = page.evaluate(TICKS)

    front = plain_browser.new_page()
    front.goto(origin)
    front.bring_to_front()
    _until(page, "hidden")
    ticks, frames = page.evaluate(TICKS)

    assert awake_frames > 0
    assert frames == 0
    assert ticks < awake_ticks  # once a second, where a timer of 20 ms was started
    page.bring_to_front()
    _until(page, "visible")


def test_plain_browser_keeps_a_page_that_was_left(plain_browser: Any, origin: str) -> None:
    page = plain_browser.new_page()
    page.add_init_script(NOTED)
    page.goto(f"{origin}/one")
    page.evaluate("window.mark = 'the same page'")
    page.goto(f"{origin}/two")
    assert page.evaluate("window.mark") is None
    page.go_back(wait_until="commit")
    _until(page, "kept")
    assert page.evaluate("window.mark") == "the same page"


@pytest.mark.long
def test_page_is_secure_on_the_loopback_and_not_on_a_lan(open_chat: OpenChat, service: ChatWait) -> None:
    near, far = open_chat(service.base_url), open_chat(lan(service.base_url))
    for chat in (near, far):
        assert chat.page.goto(f"{chat.base_url}/docs").status == 200
    assert near.page.evaluate(HAS) == [True, True, True]
    assert far.page.evaluate(HAS) == [False, False, False]


def test_faults_of_a_page_are_heard(chat: ChatPage, origin: str) -> None:
    """A test of the driver: it must not be deaf."""
    chat.page.goto(f"{chat.base_url}/docs")
    chat.expect_fault("never said")
    chat.page.evaluate(
        """(origin) => {
          console.error("an error"); console.warn("a warning"); console.log("no fault");
          setTimeout(() => { throw new Error("thrown"); });
          Promise.reject(new Error("rejected"));
          fetch(origin).catch(() => 0);
        }""",
        origin,
    )
    wanted = ["console error: an error", "console warning: a warning", "page error: thrown", "page error: rejected"]
    wanted += [f"policy violation: connect-src {origin}"]
    chat.wait(lambda: all(any(one in fault for fault in chat.faults) for one in wanted), 5, "all faults")
    assert chat.unexpected == chat.faults
    assert not any("no fault" in fault for fault in chat.faults)

    chat.page.goto(origin)
    assert f"request to another host: {origin}/" in chat.faults
    chat.expect_fault("")
    assert chat.unexpected == []


def _until(page: Any, noted: str) -> None:
    for _ in range(200):
        if noted in page.evaluate("noted"):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{noted!r} was never noted, only {page.evaluate('noted')}")


def test_paint_clock_tells_when_text_was_there(open_chat: OpenChat, origin: str) -> None:
    chat = open_chat(origin)
    clock = PaintClock(chat)
    chat.page.goto(origin)
    chat.page.evaluate("document.body.append(document.createElement('p'))")
    chat.page.evaluate("document.querySelector('p').dataset.answer = ''")
    before = time.monotonic()
    chat.page.evaluate("document.querySelector('p').append('abc')")
    after = time.monotonic()
    chat.page.evaluate("document.querySelector('p').firstChild.appendData('é🙂')")
    chat.wait(lambda: len(clock.paints()) == 2, 5, "two paints")
    first, second = clock.paints()
    assert (first.length, second.length) == (3, 6)
    assert before - 0.02 <= first.committed <= after + 0.02
    assert first.committed <= first.painted <= second.painted


def test_paint_clock_sees_text_that_is_held_back(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    clock = PaintClock(chat)
    tokens = [f"word{number} " for number in range(60)]
    upstream.always(Script(steps=[Gate("begin"), Paced(tokens, 0.02), Finish(), Done()]))
    chat.open()
    chat.send("Tell me.")
    chat.wait_state("waiting")
    upstream.open("begin")
    chat.wait_text(lambda text: "word9 " in text)
    chat.page.evaluate("() => { const until = performance.now() + 500; while (performance.now() < until); }")
    chat.wait_state("complete")
    chat.wait_text("".join(tokens))
    length = len("".join(tokens))
    chat.wait(lambda: clock.paints()[-1].length == length, 5, "the last frame")
    delays = clock.delays(upstream.completions[0])
    assert len(delays) == 60
    assert min(delays) > 0
    assert max(delays) > 0.3
    assert summary(delays)["max"] == round(max(delays) * 1000, 1)
