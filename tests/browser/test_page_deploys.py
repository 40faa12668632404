"""The chat page over a deploy that changes it: all of it is there behind the proxy, and what is missing is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import OpenChat
from tests.browser.dialogues import exchange
from tests.browser.page_steps import status
from tests.harness.reader import get
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream, answer
from tests.harness.valkey import Valkey, program
from tests.live.fronts import front_of_two
from tests.live.shared import is_ready
from tests.live.steps import poll, settings
from tests.live.versions import another_version, assets_of
from tests.requirements import require_or_skip

pytestmark = pytest.mark.browser

LOADS = 3
MORE_MS = 1_300
"""More than the page waits before it loads itself again."""
A_WHILE_AGO = """() => {
    const tried = JSON.parse(sessionStorage.getItem("chatwait.reloads"));
    sessionStorage.setItem("chatwait.reloads", JSON.stringify({...tried, at: tried.at - 3_600_000}));
}"""


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    require_or_skip("Valkey (pip install -r requirements-dev.txt)", program() is not None)
    with Valkey() as valkey:
        yield valkey


@pytest.mark.long
def test_page_goes_on_through_a_deploy_that_changes_it(
    valkey: Valkey, upstream: ScriptedUpstream, open_chat: OpenChat, tmp_path: Path
) -> None:
    """Both instances are replaced under a page that stays open; pages that are loaded meanwhile are whole."""
    told = settings(upstream, REDIS_URL=valkey.url(valkey.new_database()))
    new_root = another_version(tmp_path)
    upstream.always(answer(["One ", "two."]))
    with (
        ChatWait(**told) as one,
        ChatWait(**told) as two,
        front_of_two("nginx", tmp_path, one.port, two.port) as proxy,
    ):
        chat = open_chat(proxy.base_url).open()
        exchange(chat, upstream, "Before")
        loaded = [path for path in assets_of(one.base_url) if path != "/assets/boot.js"]
        for service in (one, two):
            assert service.stop(30.0) == 0
            service._root = new_root
            service.start()
            poll(lambda service=service: is_ready(service), seconds=20, what="it is ready")
            for _ in range(LOADS):
                chat.tab().open().page.close()
            exchange(chat, upstream, "And now?")
        assert loaded[-1] not in assets_of(one.base_url), "the premise: it is another version"
        icon = loaded[-1].rpartition("/")[0] + "/icon-error.svg"
        assert get(f"{one.base_url}{icon}").status == get(f"{two.base_url}{loaded[-1]}").status == 200
        assert chat.page.evaluate("async (path) => Object.keys(await import(path)).length", loaded[-2]) > 0
        exchange(chat.reload(), upstream, "After")
        assert chat.states() == ["complete"] * 4


# What is missing


class Missing:
    """Have a file of the page not be there, for so many of the times that it is asked for."""

    def __init__(self, chat: ChatPage, name: str, times: int) -> None:
        self.left = times
        self.loads = 0
        chat.expect_fault(status(404))
        chat.page.route(f"**/assets/*/{name}", self._answer)
        chat.page.on("request", self._count)

    def _answer(self, route: Any) -> None:
        self.left -= 1
        if self.left >= 0:
            route.fulfill(status=404, content_type="application/json", body="{}")
        else:
            route.continue_()

    def _count(self, request: Any) -> None:
        self.loads += request.is_navigation_request()


def test_page_of_which_a_part_is_missing_is_loaded_again_once_and_is_whole(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    upstream.always(answer(["One ", "two."]))
    missing = Missing(chat, "words.js", times=1)
    chat.page.goto(chat.base_url)
    chat.wait(lambda: missing.loads == 2 and chat.page.locator("#list button").count(), 20, "the page is loaded again")
    assert chat.page.locator("#broken").count() == 0
    exchange(chat, upstream, "And now?")
    assert missing.loads == 2


@pytest.mark.parametrize("name", ["words.js", "page.css"])
def test_page_of_which_a_part_stays_missing_says_so_and_is_not_loaded_for_ever(chat: ChatPage, name: str) -> None:
    missing = Missing(chat, name, times=1_000)
    chat.page.goto(chat.base_url)
    box = chat.page.locator("#broken[role=alert]")
    again = box.get_by_role("button", name="Load again")
    again.wait_for()
    assert "A part of this page could not be loaded." in box.inner_text()
    assert "Reload the page in a moment." in box.inner_text()
    chat.page.wait_for_timeout(MORE_MS)  # another load would come by now
    assert missing.loads == 2
    chat.page.evaluate(A_WHILE_AGO)
    again.click()
    chat.wait(lambda: missing.loads == 3 and box.count(), 20, "it is still missing")
    chat.page.wait_for_timeout(MORE_MS)  # another load would come by now
    assert missing.loads == 3, "this version was loaded again once, however long ago"
    missing.left = 0
    again.click()
    chat.wait(lambda: missing.loads == 4 and chat.page.locator("#list button").count(), 20, "the page is whole")
    assert chat.page.locator("#broken").count() == 0


def test_page_that_may_keep_nothing_is_not_loaded_again_by_itself(chat: ChatPage) -> None:
    chat.page.add_init_script(
        "delete window.sessionStorage; Object.defineProperty(window, 'sessionStorage', {value: null})"
    )
    missing = Missing(chat, "words.js", times=1_000)
    chat.page.goto(chat.base_url)
    chat.page.get_by_role("button", name="Load again").wait_for()
    chat.page.wait_for_timeout(MORE_MS)  # another load would come by now
    assert missing.loads == 1
