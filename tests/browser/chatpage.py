"""Drive the chat page as its user does, and collect what must not happen in it.

Must never reach into the page's modules: it sees the page's stable hooks, and the storage as any script would.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import urlsplit

from tests.browser.parts import poll_ms

STOP_MS = 500  # Stop ignores the first 400 ms
ANSWERS = "article[data-state]"
STATES = f"[...document.querySelectorAll('{ANSWERS}')].map((one) => one.dataset.state)"
VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy violation: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`));
"""
STORED = """
() => localStorage.getItem("chatwait.conversation." + decodeURIComponent(location.hash.slice(1)))
"""


class ChatPage:
    """Drive one page of the chat; `tab` gives another one of the same browser."""

    def __init__(self, page: Any, base_url: str) -> None:
        self.page = page
        self.context = page.context
        self.base_url = base_url
        self.faults: list[str] = []
        self._expected: list[re.Pattern[str]] = []
        self._tabs: list[ChatPage] = []
        page.add_init_script(VIOLATIONS)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.faults.append(f"page error: {error}\n{error.stack or ''}"))
        page.on("crash", lambda _: self.faults.append("the page crashed"))
        page.on("request", self._asked)

    # Going there and away

    def open(self, fragment: str = "") -> Self:
        """Go to the page, or to `#<conversation>` in it, and wait until one can write."""
        self.page.goto(f"{self.base_url}/{fragment}")
        return self._ready()

    def reload(self) -> Self:
        """Load the page again, and wait until one can write."""
        self.page.reload()
        return self._ready()

    def tab(self) -> ChatPage:
        """Make another tab of this browser, not opened yet; it is closed with this one, and its faults are asserted."""
        tab = ChatPage(self.context.new_page(), self.base_url)
        tab._expected = self._expected
        self._tabs.append(tab)
        return tab

    def close(self) -> list[str]:
        """Close this page and its tabs, and list the faults that were not expected."""
        faults = [fault for tab in self._tabs for fault in tab.close()]
        if not self.page.is_closed():
            self.page.close()
        return faults + self.unexpected

    def expect_fault(self, pattern: str) -> None:
        """Take faults that match (re.search) as part of the test, in every tab."""
        self._expected.append(re.compile(pattern))

    @property
    def unexpected(self) -> list[str]:
        """List the faults that no test expects."""
        return [fault for fault in self.faults if not any(one.search(fault) for one in self._expected)]

    # What one does

    @property
    def box(self) -> Any:
        """Give the text box."""
        return self.page.get_by_role("textbox", name="Message", exact=True)

    def send(self, text: str) -> None:
        """Write a message and press Enter."""
        self.box.fill(text)
        self.box.press("Enter")

    def stop(self) -> None:
        """Press Stop, once it is no longer ignored."""
        button = self.button("Stop")
        button.wait_for()
        self.page.wait_for_timeout(STOP_MS)  # it is ignored until then
        button.click()

    def press(self, name: str) -> None:
        """Press the button of exactly this name, the last one that is visible."""
        self.button(name).click(timeout=10_000)

    def new_conversation(self) -> None:
        """Go to an empty conversation, and wait until it is shown."""
        self.press("New conversation")
        self.wait(lambda: not self.page.evaluate("location.hash") and self.states() == [], 10, "an empty conversation")

    def button(self, name: str) -> Any:
        """Give the last visible button of exactly this name."""
        return self.page.get_by_role("button", name=name, exact=True).filter(visible=True).last

    def has_button(self, name: str) -> bool:
        """Tell whether such a button is visible."""
        return bool(self.page.get_by_role("button", name=name, exact=True).filter(visible=True).count())

    # What one sees

    def article(self, index: int = -1) -> Any:
        """Give an answer's article."""
        return self.page.locator(ANSWERS).nth(index)

    def states(self) -> list[str]:
        """List the answers' states."""
        states: list[str] = self.page.evaluate(STATES)  # a locator that is asked for them costs thrice
        return states

    def state(self, index: int = -1) -> str:
        """Tell an answer's state; "" when there is no such answer."""
        return str(self._at(index, "one => one.dataset.state"))

    def text(self, index: int = -1) -> str:
        """Tell an answer's text as it stands in the page; "" when there is no such answer."""
        return str(self._at(index, "one => one.querySelector('[data-answer]').textContent"))

    def shown(self, index: int = -1) -> str:
        """Tell all that stands at an answer: text, status, errors, and its visible buttons.

        An answer that is new, or far from the view, has none of it laid out before the next frame.
        """
        for _ in range(20):
            if (text := str(self._at(index, "one => one.innerText || '\\n'"))) != "\n":
                return text
            self.page.wait_for_timeout(50)
        return ""

    def sequence(self, index: int = -1) -> int:
        """Tell the cursor's number of an open answer."""
        return int(self._at(index, "one => one.dataset.sequence") or 0)

    def wait_state(self, *states: str, seconds: float = 20, index: int = -1) -> str:
        """Wait until an answer is in one of these states, and tell which."""
        self.wait(lambda: self.state(index) in states, seconds, f"state {' or '.join(states)}")
        return self.state(index)

    def wait_text(self, wanted: str | Callable[[str], bool], seconds: float = 20, index: int = -1) -> str:
        """Wait until an answer's text is this, or satisfies this, and give it."""
        right = wanted if callable(wanted) else wanted.__eq__
        self.wait(lambda: right(self.text(index)), seconds, f"the text {wanted!r:.200}")
        return self.text(index)

    def wait_shown(self, pattern: str, seconds: float = 20, index: int = -1) -> str:
        """Wait until something that matches (re.search) stands at an answer, and give all that stands there."""
        self.wait(lambda: re.search(pattern, self.shown(index)), seconds, f"{pattern!r} to be shown")
        return self.shown(index)

    def wait(self, fact: Callable[[], Any], seconds: float, what: str) -> None:
        """Wait for something about the page. Raises: AssertionError, which tells how the page is."""
        since = time.monotonic()
        while not fact():
            passed = time.monotonic() - since
            assert passed < seconds, f"not within {seconds:g} s: {what}; {self._told()}"
            self.page.wait_for_timeout(poll_ms(passed))  # the page's events are taken meanwhile

    # What it keeps

    def conversation(self) -> dict[str, Any]:
        """Give the stored record of the conversation that is shown; {} when none is stored."""
        stored = self.page.evaluate(STORED)
        record: dict[str, Any] = json.loads(stored) if stored else {}
        return record

    def stored_answers(self) -> list[dict[str, Any]]:
        """List the stored answers of the conversation that is shown."""
        return [one for one in self.conversation().get("messages", []) if one["role"] == "assistant"]

    # Its own

    def _ready(self) -> Self:
        self.box.wait_for()
        # What the scripts make; without them there is a box too, but nobody who listens to it.
        self.page.locator("#list").get_by_role("button", include_hidden=True).first.wait_for(state="attached")
        return self

    def _at(self, index: int, read: str) -> Any:
        """Read something of an answer at once, without waiting for it."""
        found = self.page.evaluate(
            f"index => {{ const one = [...document.querySelectorAll('{ANSWERS}')].at(index);"
            f" return one ? ({read})(one) : ''; }}",
            index,
        )
        return found or ""

    def _told(self) -> str:
        try:
            return f"states {self.states()}, the last one shows {self.shown()[-600:]!r}, faults {self.faults[-5:]}"
        except Exception as problem:  # noqa: BLE001 (the page may be gone, and that is no reason to hide what failed)
            return f"the page cannot be read: {problem}"

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning", "assert"):
            self.faults.append(f"console {message.type}: {message.text} ({message.location.get('url', '')})")

    def _asked(self, request: Any) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob", "about") and address.netloc != urlsplit(self.base_url).netloc:
            self.faults.append(f"request to another host: {request.url}")
