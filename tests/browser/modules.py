"""The page's modules by themselves, in a real browser and under the page's policy: the `modules` fixture.

Must never run the service: what a module needs of it, a test gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.ledger import RequestRecord
from tests.harness.upstream import Script, ScriptedUpstream

ASSETS = Path(__file__).parents[2] / "app" / "static" / "assets"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types chatwait-worker"
)
CONTENT_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy violation: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`));
"""


class Modules:
    """Hold one page that loads modules; `tab` gives another one of the same browser and origin.

    `faults` collects errors of the page and of its console; a test that expects one takes it out.
    """

    def __init__(self, context: Any, origin: _Origin, body: str = "", style: str = "") -> None:
        self.context = context
        self.base_url = origin.base_url
        self.page = context.new_page()
        self.faults: list[str] = []
        self._origin = origin
        self._tabs: list[Modules] = []
        self.page.add_init_script(VIOLATIONS)
        self.page.on("pageerror", lambda error: self.faults.append(f"page error: {error}\n{error.stack or ''}"))
        self.page.on(
            "console",
            lambda message: self.faults.append(message.text) if message.type in ("error", "warning") else None,
        )
        self.open(body, style)

    def open(self, body: str = "", style: str = "") -> Modules:
        """Load the page anew, with this HTML as its body and this file of the assets as its style sheet."""
        link = f'<link rel="stylesheet" href="/assets/{style}">' if style else ""
        html = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Modules</title>{link}<body>{body}'
        self.page.goto(self._origin.put(html))
        return self

    def run(self, source: str, arg: Any = None) -> Any:
        """Call a JavaScript function in the page and give what it returns, as JSON would; it may be async.

        It takes `(load, arg)`; `await load("stream")` gives the module stream.js. Raises: what it throws.
        """
        return self.page.evaluate(f"([arg]) => ({source})((name) => import(`/assets/${{name}}.js`), arg)", [arg])

    def tab(self) -> Modules:
        """Open another page of this browser and origin; it is closed, and its faults are asserted, with this one."""
        self._tabs.append(Modules(self.context, self._origin))
        return self._tabs[-1]

    def close(self) -> list[str]:
        """Close this page and its tabs, and list their faults."""
        self.page.close()
        return self.ended()

    def ended(self) -> list[str]:
        """Close the tabs, and list their faults and this page's, which begins anew."""
        faults = [fault for tab in self._tabs for fault in tab.close()] + self.faults
        self._tabs, self.faults = [], []
        return faults


class _Origin:
    """Say what is served: the assets and the pages that tests put, each under the strict policy."""

    def __init__(self) -> None:
        self.base_url = ""
        self._pages: list[str] = []

    def put(self, html: str) -> str:
        self._pages.append(html)
        return f"{self.base_url}/{len(self._pages) - 1}"

    def answer(self, record: RequestRecord) -> Script:
        folder, _, name = record.path[1:].rpartition("/")
        known = {path.name: path for path in ASSETS.iterdir()} if folder == "assets" else {}
        if folder == "" and name.isdigit():
            return _file(200, "text/html; charset=utf-8", self._pages[int(name)].encode())
        if name in known:
            return _file(200, CONTENT_TYPES[known[name].suffix], known[name].read_bytes())
        return _file(204 if name == "favicon.ico" else 404, "text/plain", b"")


def _file(status: int, content_type: str, body: bytes) -> Script:
    headers = {
        "Content-Type": content_type,
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    return Script(status, headers, body=body)


@pytest.fixture(scope="package")
def module_origin() -> Iterator[_Origin]:
    """Serve the assets for tests of modules."""
    origin = _Origin()
    with ScriptedUpstream(ledger=False).by(origin.answer) as server:
        origin.base_url = server.origin
        yield origin


@pytest.fixture(scope="package")
def shared_modules(chromium: Any, module_origin: _Origin) -> Iterator[Modules]:
    context = chromium.new_context()
    yield Modules(context, module_origin)
    context.close()


@pytest.fixture
def modules(shared_modules: Modules) -> Iterator[Modules]:
    """Give a page that is loaded anew, with nothing stored; fail at the end for every fault that is left.

    The page is the same for all tests: a new one costs a process and six times as much.
    """
    shared_modules.page.evaluate("localStorage.clear()")
    yield shared_modules.open()
    assert shared_modules.ended() == []
