"""Chromium for the tests that need a real browser, the chat page in it, and an origin of the tests' own."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.modules import module_origin as module_origin
from tests.browser.modules import modules as modules
from tests.browser.modules import shared_modules as shared_modules
from tests.harness.chaos import ChaosProxy
from tests.harness.server import ChatWait
from tests.harness.upstream import Script, ScriptedUpstream
from tests.live.steps import poll, settings
from tests.requirements import require_or_skip

OpenChat: TypeAlias = Callable[..., ChatPage]
RunService: TypeAlias = Callable[..., ChatWait]
LAN = "chat.test"  # a name whose pages are no secure context, as on a LAN: neither Web Locks nor crypto.subtle

NO_WORKER = "delete Navigator.prototype.serviceWorker"
"""As where pages are no secure context: 600 tests, each in a new browser context, would each keep the page anew."""

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {LAN} 127.0.0.1",
]


@pytest.fixture(scope="package")
def origin() -> Iterator[str]:
    """Serve an empty page without any policy; give its origin."""
    page = b"<!doctype html><title>A page of another origin</title>"
    with ScriptedUpstream().by(lambda _: Script(headers={"content-type": "text/html; charset=utf-8"}, body=page)) as it:
        yield it.origin


@pytest.fixture(scope="package")
def playwright(chromium_path: str) -> Iterator[Any]:
    """Start playwright; while it runs, no other event loop may in this thread.

    Only where there is a Chromium: its own driver lacks a library (libatomic) on a system that has nothing.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        require_or_skip("playwright (pip install -r requirements-dev.txt)", present=False)
    with sync_playwright() as playwright:
        yield playwright


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test without Chromium before its other fixtures start a service for it."""
    if "chromium_path" in getattr(item, "fixturenames", ()):
        find_chromium()


@pytest.fixture(scope="package")
def chromium_path() -> str:
    """Find the machine's own Chromium."""
    return find_chromium()


def find_chromium() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    require_or_skip("Chromium (apt-get install chromium)", path is not None)
    assert path is not None
    return path


@pytest.fixture(scope="package")
def chromium(playwright: Any, chromium_path: str) -> Iterator[Any]:
    """Run the machine's own Chromium, headless, as playwright likes it: every page counts as visible and as focused.

    Debian builds it without windows too (chromium-headless-shell): a page costs a third of the time there, because
    `chromium --headless` draws a whole browser window around each (measured: 0.25 s against 1.4 s on two cores).
    """
    path = shutil.which("chromium-headless-shell") or chromium_path
    browser = playwright.chromium.launch(executable_path=path, headless=True, args=ARGUMENTS)
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture
def plain_browser(playwright: Any, chromium_path: str, tmp_path: Path) -> Iterator[Any]:
    """Run a Chromium as people have it, with a new profile, and give its browser context.

    Pages behind another one are hidden, have no frames and slow timers, and those that were left are kept alive for
    "back". What playwright launches has none of it: its flags switch off the back/forward cache and the throttling
    (`ignore_default_args` could take them away), and it makes every page believe that it has the focus, which only
    `no_defaults` prevents. In this one, "back" is `page.go_back(wait_until="commit")`: a kept page does not load.
    """
    profile = tmp_path / "profile"
    arguments = [*ARGUMENTS, "--disable-features=HttpsUpgrades,HttpsFirstBalancedModeAutoEnable"]
    arguments += ["--headless", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([chromium_path, *arguments], start_new_session=True, **quiet) as process:
        try:
            told = profile / "DevToolsActivePort"
            poll(lambda: told.exists() and len(told.read_text().split()) == 2, seconds=30, what="Chromium's port")
            port = told.read_text().split()[0]
            browser = playwright.chromium.connect_over_cdp(f"http://127.0.0.1:{port}", no_defaults=True)
            try:
                yield browser.contexts[0]
            finally:
                browser.close()
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


# The chat page


@pytest.fixture(scope="module")
def service_settings() -> dict[str, Any]:
    """Give the service of this module other settings; a module overrides it."""
    return {}


@pytest.fixture(scope="package")
def shared_upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(shared_upstream: ScriptedUpstream) -> ScriptedUpstream:
    """Give the model that the service asks, with nothing scripted yet."""
    shared_upstream.reset()
    return shared_upstream


@pytest.fixture(scope="package")
def services(shared_upstream: ScriptedUpstream) -> Iterator[RunService]:
    """Give `services(**settings)`: the one service of the run that has these, with a heartbeat each second.

    A start costs two seconds of a processor.
    """
    running: dict[str, ChatWait] = {}
    with contextlib.ExitStack() as stack:

        def get(**more: Any) -> ChatWait:
            told = settings(shared_upstream, ALLOWED_HOSTS=f"{LAN},127.0.0.1", **more)
            key = json.dumps(told, sort_keys=True, default=str)
            if key not in running or not running[key].is_running:
                running[key] = stack.enter_context(ChatWait(**told))
            return running[key]

        yield get


@pytest.fixture(scope="module")
def service(services: RunService, service_settings: dict[str, Any]) -> ChatWait:
    """Give the service that all modules share which want the same settings."""
    return services(**service_settings)


@pytest.fixture
def behind_pages() -> Iterator[contextlib.ExitStack]:
    """Hold what must run until the pages are closed: what a page still loads at a test's end is no fault."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def proxy(service: ChatWait, behind_pages: contextlib.ExitStack) -> ChaosProxy:
    """Stand between the page and the service; plans and counts concern the streams, not the page's files."""
    return behind_pages.enter_context(ChaosProxy("127.0.0.1", service.port, marker=b"/chat/streaming"))


@pytest.fixture
def run_service(shared_upstream: ScriptedUpstream, behind_pages: contextlib.ExitStack) -> RunService:
    """Give `run_service(**settings)`: a service of the test's own, which ends after the pages were closed."""
    return lambda **more: behind_pages.enter_context(ChatWait(**settings(shared_upstream, **more)))


@pytest.fixture
def open_chat(
    request: pytest.FixtureRequest, chromium_path: str, behind_pages: contextlib.ExitStack
) -> Iterator[OpenChat]:
    """Give `open_chat(base_url, context=None, **options)`: a ChatPage, not opened yet, of a new browser context.

    Its pages have the worker that shows them without the server only with `worker=True`.
    At the end it closes what it made, and fails for every fault that the test does not expect.
    """
    pages: list[ChatPage] = []
    contexts: list[Any] = []

    def make(base_url: str, context: Any = None, *, worker: bool = False, **options: Any) -> ChatPage:
        if context is None:
            context = request.getfixturevalue("chromium").new_context(**options)
            contexts.append(context)
            if not worker:
                context.add_init_script(NO_WORKER)
        pages.append(ChatPage(context.new_page(), base_url))
        return pages[-1]

    yield make
    faults = [fault for page in pages for fault in page.close()]
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def chat(open_chat: OpenChat, service: ChatWait, upstream: ScriptedUpstream) -> ChatPage:
    """Give a page of the service, not opened yet, in a browser context of its own."""
    return open_chat(service.base_url)


@pytest.fixture
def proxied(open_chat: OpenChat, proxy: ChaosProxy, upstream: ScriptedUpstream) -> ChatPage:
    """Give a page that reaches the service through `proxy`, not opened yet."""
    return open_chat(proxy.base_url)


@pytest.fixture
def lan_chat(open_chat: OpenChat, service: ChatWait, upstream: ScriptedUpstream) -> ChatPage:
    """Give a page in no secure context, as on a LAN without TLS, not opened yet."""
    return open_chat(lan(service.base_url))


@pytest.fixture
def plain_chat(open_chat: OpenChat, plain_browser: Any, service: ChatWait, upstream: ScriptedUpstream) -> ChatPage:
    """Give a page in a Chromium as people have it (`plain_browser`), not opened yet."""
    return open_chat(service.base_url, plain_browser)


def lan(base_url: str) -> str:
    """Name the same service so that its pages are no secure context."""
    return base_url.replace("127.0.0.1", LAN)
