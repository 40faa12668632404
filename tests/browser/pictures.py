"""Make docs/pictures from the real page, a real service and a model that says what this file says.

Run by `make pictures`. Everything that could differ from run to run (texts, window, motion) is fixed.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import sync_playwright

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import ARGUMENTS
from tests.browser.moving_picture import MOST_BYTES as MOST_MOVING_BYTES
from tests.browser.moving_picture import PICTURE, make
from tests.harness.chaos import ChaosProxy
from tests.harness.server import ROOT, ChatWait
from tests.harness.upstream import Close, Done, Finish, Gate, Script, ScriptedUpstream, Step, Token, answer
from tests.live.steps import settings

PICTURES = ROOT / "docs" / "pictures"
WIDE = {"width": 1120, "height": 700}
PHONE = {"width": 375, "height": 700}
MOST_BYTES = 150_000

EARLIER = ("A name for a grey cat", "Bread without yeast", "What is a cursor?")
QUESTION = "How do I read a stream that may break?"
BEGINNING = """Remember where you are, and say so when you come back:

1. Keep the **id** of the last event you have read.
2. When the connection ends without a terminal event, connect again.
3. Send that id, and go on with the next token.

"""
REST = """```js
const response = await fetch(url, {
  headers: { "Last-Event-ID": cursor },
});
```

| event | what it means |
|---|---|
| `token` | a piece of text |
| `done` | complete, with a hash of the whole text |

Nothing is lost, and nothing comes twice."""


def pieces(text: str) -> list[Step]:
    """Cut a text into tokens."""
    return [Token(text[at : at + 12]) for at in range(0, len(text), 12)]


STOPPED_SHORT = Script(steps=[*pieces(BEGINNING), Gate("rest"), *pieces(REST), Finish(), Done()])
WHOLE = Script(steps=[*pieces(BEGINNING + REST), Finish(), Done()])
BROKEN = Script(steps=[*pieces(BEGINNING), Close()])


def send(chat: ChatPage, text: str) -> None:
    """Send a message as a finger does, too: there Enter makes a new line."""
    chat.box.fill(text)
    chat.press("Send")


class Studio:
    """Hold what the pictures are taken of."""

    def __init__(self, browser: Any, upstream: ScriptedUpstream, proxy: ChaosProxy) -> None:
        self.browser = browser
        self.upstream = upstream
        self.proxy = proxy

    @contextmanager
    def page(self, script: Script | None, *, size: dict[str, int] | None = None, **options: Any) -> Iterator[ChatPage]:
        """Open the page after a few earlier conversations, and ask the question if there is an answer to it."""
        self.upstream.reset()
        self.upstream.always(answer(["Here you are."]))
        context = self.browser.new_context(viewport=size or WIDE, reduced_motion="reduce", **options)
        try:
            chat = ChatPage(context.new_page(), self.proxy.base_url).open()
            for message in EARLIER:
                send(chat, message)
                chat.wait_state("complete")
                chat.page.goto(f"{chat.base_url}/#")
                chat.wait(lambda: not chat.states(), 10, "a new conversation")
            chat.open()
            if script:
                self.upstream.always(script)
                send(chat, QUESTION)
            yield chat
        finally:
            self.upstream.open("rest")
            self.proxy.accept()
            context.close()

    def take(self, chat: ChatPage, name: str) -> None:
        """Write the picture."""
        chat.page.mouse.move(0, 0)
        path = PICTURES / f"{name}.png"
        chat.page.screenshot(path=path, animations="disabled", caret="hide")
        size = path.stat().st_size
        print(f"{path.relative_to(ROOT)}  {size} bytes")
        assert size <= MOST_BYTES, f"{name} is larger than {MOST_BYTES} bytes"


def take_empty(studio: Studio) -> None:
    """Nothing is asked yet."""
    with studio.page(None) as chat:
        studio.take(chat, "empty")


def take_streaming(studio: Studio) -> None:
    """The answer is on its way."""
    with studio.page(STOPPED_SHORT) as chat:
        chat.wait_text(lambda text: "next token" in text)
        chat.wait_state("streaming")
        studio.take(chat, "streaming")


def take_reconnecting(studio: Studio) -> None:
    """The connection is lost, and the text that came is safe."""
    with studio.page(STOPPED_SHORT) as chat:
        chat.wait_text(lambda text: "next token" in text)
        studio.proxy.refuse()
        studio.proxy.cut_all()
        chat.wait_shown(r"Next try in 4 s\.")
        studio.take(chat, "reconnecting")


def take_error(studio: Studio) -> None:
    """The model broke off."""
    with studio.page(BROKEN) as chat:
        chat.wait_state("failed")
        studio.take(chat, "error")


def take_dark(studio: Studio) -> None:
    """A whole answer, in the dark."""
    with studio.page(WHOLE, color_scheme="dark") as chat:
        chat.wait_state("complete")
        studio.take(chat, "dark")


def take_phone(studio: Studio) -> None:
    """A whole answer, on a phone."""
    with studio.page(WHOLE, size=PHONE, has_touch=True, is_mobile=True) as chat:
        chat.wait_state("complete")
        studio.take(chat, "phone")


def take_plug(studio: Studio) -> None:
    """The plug is pulled, and the answer goes on: a moving picture."""
    PICTURE.write_bytes(make(studio.browser, studio.upstream, studio.proxy))
    size = PICTURE.stat().st_size
    print(f"{PICTURE.relative_to(ROOT)}  {size} bytes")
    assert size <= MOST_MOVING_BYTES, f"the moving picture is larger than {MOST_MOVING_BYTES} bytes"


TAKES: list[Callable[[Studio], None]] = [
    take_empty,
    take_streaming,
    take_reconnecting,
    take_error,
    take_dark,
    take_phone,
    take_plug,
]


def main() -> int:
    """Take all pictures."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        print("Chromium is missing: apt-get install chromium", file=sys.stderr)
        return 1
    PICTURES.mkdir(parents=True, exist_ok=True)
    with (
        ScriptedUpstream() as upstream,
        ChatWait(**settings(upstream, OPENAI_MODEL="gpt-4o-mini")) as service,
        ChaosProxy("127.0.0.1", service.port) as proxy,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=ARGUMENTS)
        for take in TAKES:
            take(Studio(browser, upstream, proxy))
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
