"""The chat page in a stock Firefox: another engine's streams, storage, selection and policies."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.browser.firefox import Firefox, firefox_path
from tests.browser.page_steps import gated, open_gates
from tests.harness.chaos import ChaosProxy
from tests.harness.script import answer
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream
from tests.requirements import require_or_skip

pytestmark = [pytest.mark.browser, pytest.mark.long]

TOKENS = ["One ", "two, ", "thr", "ee é🙂 ", "and\n\n- four."]
SHOWN = "One two, three é🙂 and\n\nfour."
READY = "document.getElementById('message')?.disabled === false && document.querySelector('#model option') !== null"
ANSWERS = "[...document.querySelectorAll('article[data-state]')]"
STATES = f"{ANSWERS}.map((one) => one.dataset.state)"
TEXT = f"{ANSWERS}.at(-1)?.querySelector('[data-answer]').textContent ?? ''"
DARK = "rgb(22, 21, 19)"
CUT_ICON = re.compile(r"Failed to load .*/icon[a-z-]*\.svg.\. A ServiceWorker intercepted")


@pytest.fixture(scope="module")
def shared_firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    path = firefox_path()
    require_or_skip("Firefox (apt-get install firefox-esr)", path is not None)
    assert path is not None
    with Firefox(path, tmp_path_factory.mktemp("firefox") / "profile", **{"ui.systemUsesDarkTheme": 1}) as firefox:
        yield firefox


@pytest.fixture
def firefox(shared_firefox: Firefox, proxy: ChaosProxy, upstream: ScriptedUpstream) -> Iterator[Firefox]:
    """Give a Firefox that has opened the page through `proxy`; it fails for what its console tells as an error."""
    shared_firefox.goto(proxy.base_url)
    shared_firefox.wait(READY, "the page")
    yield shared_firefox
    assert shared_firefox.errors == []


def send(firefox: Firefox, text: str) -> None:
    """Write a message, and press Enter."""
    firefox.evaluate("document.getElementById('message').focus()")
    firefox.type(text)
    firefox.type("Enter")


def wait_text(firefox: Firefox, text: str) -> None:
    firefox.wait(f"{TEXT} === {json.dumps(text)}", f"the text {text!r}")


@pytest.mark.requirement("page FR-002", "page FR-004", "page SC-006")
def test_firefox_shows_each_token_and_comes_back_after_cuts_and_a_reload(
    firefox: Firefox, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    upstream.always(gated(TOKENS))
    send(firefox, "Count.")
    for number in range(3):
        upstream.open(str(number))
        wait_text(firefox, "".join(TOKENS[: number + 1]))
    proxy.cut_all()
    upstream.open("3")
    wait_text(firefox, "".join(TOKENS[:4]))
    firefox.reload()
    wait_text(firefox, "".join(TOKENS[:4]))
    open_gates(upstream, 4, 6)
    firefox.wait(f"{STATES}.at(-1) === 'complete'", "the end")
    assert firefox.evaluate(TEXT) == SHOWN
    assert firefox.evaluate(f"{ANSWERS}.at(-1).querySelector('[data-answer] ul li').innerText") == "four."
    assert len(upstream.completions) == 1
    assert firefox.evaluate("getComputedStyle(document.body).backgroundColor") == DARK
    firefox.reload()
    wait_text(firefox, SHOWN)
    assert firefox.evaluate(STATES) == ["complete"]
    # The tab's icon changes with the state. What was cut or left by a reload while it was loaded is told as an error.
    firefox.errors[:] = [error for error in firefox.errors if not CUT_ICON.match(error)]


@pytest.mark.requirement("page FR-007")
def test_firefox_stops_by_escape_and_asks_again(firefox: Firefox, upstream: ScriptedUpstream) -> None:
    upstream.always(gated(TOKENS))
    upstream.open("0")
    send(firefox, "Stop me.")
    wait_text(firefox, TOKENS[0])
    firefox.type("Escape")
    firefox.wait(f"{STATES}.at(-1) === 'stopped'", "the stop")
    assert firefox.evaluate(TEXT) == TOKENS[0]
    upstream.always(answer(["Again."]))
    send(firefox, "And now?")
    firefox.wait(f"{STATES}.at(-1) === 'complete'", "the answer")
    assert (firefox.evaluate(STATES), firefox.evaluate(TEXT)) == (["stopped", "complete"], "Again.")


def test_firefox_moves_old_conversations_to_the_archive_and_opens_them(
    firefox: Firefox, proxy: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    write = """(() => {
      for (const [id, at] of [["old", 1000], ["mid", 2000], ["new", 3000]]) {
        const content = `${id} `.repeat(125_000);
        const said = { id: "a", role: "assistant", content, at, state: "complete", asks: "q" };
        const messages = [{ id: "q", role: "user", content: id, at }, said];
        const whole = { v: 2, id, title: id, created: at, updated: at, messages };
        localStorage.setItem(`chatwait.conversation.${id}`, JSON.stringify(whole));
      }
    })()"""
    firefox.evaluate(write)
    firefox.reload()
    firefox.wait("""localStorage["chatwait.conversation.old"].startsWith('{"v":3')""", "the oldest to move")
    firefox.goto(f"{proxy.base_url}/#old")
    firefox.wait(f"{TEXT}.length === 500_000", "its text")
    assert firefox.evaluate("localStorage['chatwait.conversation.new'].length") > 500_000


@pytest.mark.requirement("page FR-004")
def test_firefox_opens_the_page_without_its_server_and_goes_on_by_itself(
    shared_firefox: Firefox, service: ChatWait, upstream: ScriptedUpstream
) -> None:
    firefox = shared_firefox
    upstream.always(gated(TOKENS))
    open_gates(upstream, 0, 3)
    with ChaosProxy("127.0.0.1", service.port) as door:
        firefox.goto(door.base_url)
        firefox.wait(READY, "the page")
        kept = "caches.keys().then(async (names) => (await Promise.all(names.map((name) => caches.match('/')))).length)"
        firefox.wait(kept, "the worker to keep the page")
        send(firefox, "Count.")
        wait_text(firefox, "".join(TOKENS[:3]))
        door.refuse()
        door.cut_all()
        firefox.reload()
        wait_text(firefox, "".join(TOKENS[:3]))
        firefox.wait("document.body.innerText.includes('Reconnecting')", "what it says of the link")
        door.accept()
        open_gates(upstream, 3, 6)
        firefox.wait(f"{STATES}.at(-1) === 'complete'", "the end")
        assert firefox.evaluate(TEXT) == SHOWN
        assert len(upstream.completions) == 1
