"""The chat page's own HTML, style and policy without its wiring, so that one part of it runs alone in a browser."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.browser.modules import ASSETS, Modules

BODY = re.compile(r"<body>(.*)</body>", re.DOTALL)


def poll_ms(passed: float) -> float:
    """Tell how long to wait before the next look after `passed` seconds: a look costs all processes a millisecond."""
    return min(15 + passed * 100, 80)


class Parts:
    """Hold the page; a test starts the parts that it is about."""

    def __init__(self, context: Any, origin: Any) -> None:
        found = BODY.search((ASSETS.parent / "index.html").read_text(encoding="utf-8"))
        assert found is not None
        html = found[1].replace("\ndisabled>", ">").replace(" disabled>", ">")  # the wiring does that
        self.modules = Modules(context, origin, html, "page.css")
        self.page = self.modules.page

    def run(self, script: str, argument: Any = None) -> Any:
        """Run a script in the page; modules are imported from /assets/."""
        return self.page.evaluate(script, argument)

    def rule(self, text: str) -> None:
        """Add a rule to the page's style."""
        self.run(
            "rule => { const [sheet] = document.styleSheets; sheet.insertRule(rule, sheet.cssRules.length); }", text
        )

    def wait(self, fact: Callable[[], Any] | str, what: str, seconds: float = 15) -> Any:
        """Wait for a fact, or for a script to give something true; give it."""
        since = time.monotonic()
        while True:
            passed = time.monotonic() - since
            found = self.run(fact) if isinstance(fact, str) else fact()
            if found:
                return found
            assert passed < seconds, f"not within {seconds:g} s: {what}"
            self.page.wait_for_timeout(poll_ms(passed))


@contextmanager
def open_parts(browser: Any, origin: Any, **options: Any) -> Iterator[Parts]:
    """Open the page in a browser context of its own (`options`), and fail at the end for every fault of it."""
    context = browser.new_context(**options)
    try:
        parts = Parts(context, origin)
        yield parts
        assert parts.modules.close() == []
    finally:
        context.close()
