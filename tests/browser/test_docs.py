"""The contract for people in a real browser: offline, under its policy, and readable on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.http1 import get
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream
from tests.live.steps import poll, settings

pytestmark = pytest.mark.browser

WIDTHS = (320, 375, 768, 1280)
WIDER = "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
CUT_OFF = """
() => Array.from(document.querySelectorAll("main *"))
    .filter(element => element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display !== "inline"
        && element.tagName !== "THEAD" && !element.closest("thead"))
    .map(element => element.tagName + ": " + element.textContent.slice(0, 40))
"""
CONTRAST = """
() => {
    const channel = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const light = colour => {
        const [red, green, blue] = colour.match(/[0-9.]+/g).map(Number);
        return 0.2126 * channel(red) + 0.7152 * channel(green) + 0.0722 * channel(blue);
    };
    const behind = element => {
        for (let one = element; one; one = one.parentElement) {
            const colour = getComputedStyle(one).backgroundColor;
            if (!colour.endsWith(", 0)")) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const ratio = element => {
        const [low, high] = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    return Math.min(...Array.from(document.querySelectorAll("p, a, td, code, summary, h1, h2, li"), ratio));
}
"""


@pytest.fixture(scope="module")
def chatwait() -> Iterator[ChatWait]:
    with ScriptedUpstream() as upstream, ChatWait(**settings(upstream)) as running:
        yield running


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_docs_are_readable_at_any_width_without_help_from_elsewhere(
    chatwait: ChatWait, chromium: Any, scheme: str
) -> None:
    page = chromium.new_page(color_scheme=scheme)
    try:
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url.removeprefix(chatwait.base_url)))
        page.add_init_script("addEventListener('securitypolicyviolation', event => console.error(event.blockedURI))")
        page.goto(f"{chatwait.base_url}/docs")
        for details in page.query_selector_all("details"):
            details.evaluate("element => element.open = true")

        assert page.title() == "ChatWait: the contract"
        assert page.evaluate("document.styleSheets.length") == 1
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 700})
            needed, there = page.evaluate(WIDER)
            assert needed <= there, f"{needed} px at {width} px"
            assert page.evaluate(CUT_OFF) == []
        assert page.evaluate(CONTRAST) >= 4.5
        assert said == []
        assert [re.sub(r"/assets/[0-9a-f]{16}/", "{{assets}}/", url) for url in asked] == [
            "/docs",
            "{{assets}}/docs.css",
        ]
    finally:
        page.close()


def test_docs_open_and_lead_to_every_part_by_keyboard(chatwait: ChatWait, chromium: Any) -> None:
    page = chromium.new_page()
    try:
        page.goto(f"{chatwait.base_url}/docs")
        links = page.evaluate("Array.from(document.querySelectorAll('a[href^=\"#\"]'), link => link.hash)")
        assert links
        assert page.evaluate("links => links.filter(link => !document.querySelector(link))", links) == []

        first = page.locator("details").first
        first.locator("summary").focus()
        page.keyboard.press("Enter")
        assert first.locator("pre").is_visible()
    finally:
        page.close()


def test_docs_ask_for_their_style_once_however_often_they_are_opened(chatwait: ChatWait, chromium: Any) -> None:
    context = chromium.new_context()
    try:
        page = context.new_page()
        seen = len(chatwait.log_of("request_received"))
        for _ in range(3):
            page.goto(f"{chatwait.base_url}/docs")
            assert page.evaluate("document.styleSheets[0].cssRules.length") > 0
        poll(lambda: len(routes_asked(chatwait, seen)) >= 4, seconds=10, what="every request is in the log")

        assert sorted(routes_asked(chatwait, seen)) == ["/assets/<tree>/<name>", "/docs", "/docs", "/docs"]
    finally:
        context.close()


def routes_asked(chatwait: ChatWait, seen: int) -> list[str]:
    return [line["route"] for line in chatwait.log_of("request_received")[seen:]]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_may_load_nothing_that_they_do_not_need(chatwait: ChatWait, path: str) -> None:
    reply = get(f"{chatwait.base_url}{path}")
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))

    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert "http" not in reply.headers["content-security-policy"]
    if path == "/docs":
        assert "script-src" not in policy
