"""What the chat page's policies keep out, tried in a real browser: code, styles, other hosts, frames, openers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.conftest import ARGUMENTS
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream, answer
from tests.live.steps import settings

pytestmark = pytest.mark.browser

NAME = "chat.lan"
"""A name of a private network: plain HTTP, which a browser takes for unsafe, unlike localhost."""

TRIED = {
    "markup": "document.body.innerHTML = '<b>x</b>'",
    "markup beside": "document.body.insertAdjacentHTML('beforeend', '<b>x</b>')",
    "written": "document.write('<b>x</b>')",
    "evaluated": "eval('1')",
    "a function of text": "new Function('1')",
    "a policy": "trustedTypes.createPolicy('any', {createHTML: text => text})",
    "the worker's policy": "trustedTypes.createPolicy('chatwait-worker', {createScriptURL: text => text})",
    "a worker's address": "new Worker('/sw.js')",
    "a script's address": "document.createElement('script').src = '/x.js'",
    "a plugin's": "document.createElement('object').data = '/docs'",
}
LOADED = {
    "an inline script": "add('script', element => element.append('window.ran = true'))",
    "a module of another host": "import('{elsewhere}/x.js').catch(() => 0)",
    "an inline style": "add('style', element => element.append('body {{ color: red }}'))",
    "a style attribute": "add('p', element => element.setAttribute('style', 'color: red'))",
    "a style of another host": "add('link', link => {{ link.rel = 'stylesheet'; link.href = '{elsewhere}/' }})",
    "a picture of another host": "add('img', element => element.src = '{elsewhere}/')",
    "a frame": "add('iframe', element => element.src = '/docs')",
    "a base": "add('base', element => element.href = '{elsewhere}/')",
    "a form": "add('form', element => element.action = '{elsewhere}/')",
    "a connection to another host": "fetch('{elsewhere}/').catch(() => 0)",
    "a service worker": "navigator.serviceWorker.register('/sw.js').catch(() => 0)",
    "a service worker of another host": "navigator.serviceWorker.register('{elsewhere}/').catch(() => 0)",
    "a beacon to another host": "navigator.sendBeacon('{elsewhere}/')",
}
FRAME = """
(url) => {
    const frame = document.createElement("iframe");
    frame.src = url;
    document.body.append(frame);
}
"""
REFUSED = """
(act) => new Promise(done => {
    const add = (name, fill) => {
        const element = document.createElement(name);
        fill(element);
        (name === "base" ? document.head : document.body).append(element);
        if (name === "form") element.submit();
    };
    document.addEventListener("securitypolicyviolation", event => done(event.effectiveDirective), {once: true});
    setTimeout(() => done("nothing was refused"), 5000);
    ACT;
})
"""


@pytest.fixture(scope="module")
def chatwait() -> Iterator[ChatWait]:
    hosts = f"127.0.0.1,localhost,{NAME}"
    with ScriptedUpstream() as upstream, ChatWait(**settings(upstream, ALLOWED_HOSTS=hosts)) as running:
        upstream.always(answer(["Hi."]))
        yield running


@pytest.fixture
def page(chatwait: ChatWait, chromium: Any) -> Iterator[Any]:
    page = chromium.new_page()
    page.goto(f"{chatwait.base_url}/")
    yield page
    page.close()


@pytest.mark.parametrize("how", TRIED)
def test_text_never_becomes_markup_or_code(page: Any, how: str) -> None:
    later = "done => setTimeout(() => { try { ACT; done('done') } catch (error) { done(error.name) } })"
    thrown = page.evaluate(f"() => new Promise({later.replace('ACT', TRIED[how])})")  # at once, eval is the debugger's

    assert thrown in ("TypeError", "EvalError")


@pytest.mark.parametrize("what", LOADED)
def test_what_is_not_the_pages_own_is_refused(page: Any, origin: str, what: str) -> None:
    refused = page.evaluate(REFUSED.replace("ACT", LOADED[what].format(elsewhere=origin)))

    directives = {"script-src-elem", "style-src-elem", "style-src-attr", "img-src", "frame-src", "base-uri"}
    directives |= {"form-action", "connect-src", "require-trusted-types-for"}
    assert refused in directives, refused
    assert page.evaluate("window.ran") is None


@pytest.mark.parametrize("path", ["/", "/docs", "/health", "/nowhere"])
def test_page_is_in_no_frame_of_another_page(chatwait: ChatWait, chromium: Any, origin: str, path: str) -> None:
    page = chromium.new_page()
    try:
        page.goto(origin)
        with page.expect_console_message(lambda message: "frame-ancestors 'none'" in message.text):
            page.evaluate(FRAME, f"{chatwait.base_url}{path}")
        assert not any(frame.url.startswith(chatwait.base_url) for frame in page.frames)
    finally:
        page.close()


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_page_that_another_one_opened_is_out_of_its_reach(
    chatwait: ChatWait, chromium: Any, origin: str, path: str
) -> None:
    context = chromium.new_context()
    try:
        page = context.new_page()
        page.goto(origin)
        with context.expect_page() as opened:
            page.evaluate("url => void (window.held = window.open(url))", f"{chatwait.base_url}{path}")
        opened.value.wait_for_load_state()

        assert opened.value.evaluate("window.opener") is None
        assert page.evaluate("window.held.closed") is True
    finally:
        context.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", NAME])
def test_page_posts_as_its_own_origin_and_tells_others_nothing_on_every_kind_of_host(
    chatwait: ChatWait, chromium: Any, origin: str, host: str
) -> None:
    """The policy of no referrer must not make the page a stranger to its own service."""
    arguments = [*ARGUMENTS, f"--host-resolver-rules=MAP {NAME} 127.0.0.1"]
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    browser = chromium.browser_type.launch(executable_path=path, headless=True, args=arguments)
    try:
        page = browser.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"http://{host}:{chatwait.port}/")
        asked = "{method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{\"message\": \"Hi\"}'}"
        assert page.evaluate("isSecureContext") is (host != NAME)
        assert page.evaluate(f"fetch('/chat/wait', {asked}).then(reply => reply.status)") == 200

        with page.expect_request(f"{origin}/") as followed:
            page.evaluate("url => { location.href = url }", origin)
        assert "referer" not in followed.value.all_headers()
        assert [text for text in said if "Policy" in text] == []
    finally:
        browser.close()
