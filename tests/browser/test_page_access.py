"""The page for everybody: axe-core finds nothing in any state and any look, and the keyboard alone is enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.axe import find_by_axe
from tests.browser.chatpage import ChatPage
from tests.browser.conftest import OpenChat
from tests.browser.page_steps import LOST, gated, open_gates
from tests.browser.tab_steps import begin, choose
from tests.harness.chaos import ChaosProxy
from tests.harness.upstream import Close, Script, ScriptedUpstream, Token, answer, error

pytestmark = pytest.mark.browser

PLAIN = {"color_scheme": "light", "forced_colors": "none", "reduced_motion": "no-preference"}  # as Chromium begins
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "narrow": {"viewport": {"width": 320, "height": 640}, "has_touch": False},
    "narrow, dark": {"viewport": {"width": 320, "height": 640}, "color_scheme": "dark"},
    "zoomed": {"viewport": {"width": 640, "height": 360}, "device_scale_factor": 2},  # 1280 × 720 at 200 %
    "forced colours": {"forced_colors": "active"},
    "reduced motion": {"reduced_motion": "reduce"},
}
FINE = (
    "Some **bold** words, `code`, and [a link](https://example.org/).\n\n"
    "# A heading\n\n> A quotation\n\n- one\n- two\n\n1. first\n2. second\n\n"
    "```python\nprint('a rather long line of code, longer than any window of three hundred and twenty pixels')\n```\n\n"
    "| A column | Another column | A third one with a long name |\n|---|---|---|\n| 1 | 2 | 3 |\n\n"
    "Averylongwordwithoutanyplacetobreakitatwhichmustnotmakethewindowscrollsidewaysaveryverylongworditis.\n"
)
WIDE = """
() => {
  const { scrollWidth, clientWidth } = document.documentElement;
  const out = [...document.querySelectorAll("body *")].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.width && box.right > clientWidth + 1 && getComputedStyle(one).position !== "fixed"
      && !one.closest("pre, table, .quiet, nav, [aria-hidden=true], .table");
  });
  return [scrollWidth - clientWidth, out.slice(0, 5).map((one) => one.outerHTML.slice(0, 120))];
}
"""


QUICK = ("light",)


@pytest.fixture(params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in LOOKS])
def look(request: pytest.FixtureRequest) -> dict[str, Any]:
    options: dict[str, Any] = LOOKS[request.param]
    return options


@pytest.fixture
def check() -> Callable[[ChatPage, str], None]:
    """Give `check(chat, state)`: axe finds nothing, and nothing scrolls sideways."""

    def run(chat: ChatPage, state: str) -> None:
        violations, kept = find_by_axe(chat.page)
        told = [
            f"{one['id']}: {one['help']}: {[(node['target'], node['failureSummary']) for node in one['nodes'][:3]]}"
            for one in violations
        ]
        assert told == [], f"{state}: {told}"
        assert kept > 15  # the premise: it has looked
        wide, out = chat.page.evaluate(WIDE)
        assert wide <= 0, f"{state}: {wide} px too wide: {out}"

    return run


@pytest.mark.requirement("page US2 test", "page FR-005")
def test_page_has_nothing_that_axe_finds_before_during_and_after_an_answer(
    open_chat: OpenChat,
    proxy: ChaosProxy,
    upstream: ScriptedUpstream,
    look: dict[str, Any],
    check: Callable[[ChatPage, str], None],
) -> None:
    chat = open_chat(proxy.base_url, **look).open()
    chat.expect_fault(LOST)
    chat.page.locator("#model option").first.wait_for(state="attached")
    check(chat, "empty")
    upstream.always(gated(["One ", "two.\n\n", FINE]))
    begin(chat, "A question with a Averylongwordwithoutanyplacetobreakitatwhichmustnotmakethewindowscrollsideways?")
    check(chat, "waiting")
    upstream.open("0")
    chat.wait_text("One ")
    check(chat, "streaming")
    chat.wait_state("slow")
    check(chat, "slow")
    chat.send("Another one?")
    check(chat, "an answer is on its way")
    proxy.refuse()
    proxy.cut_all()
    chat.wait_state("reconnecting")
    check(chat, "reconnecting")
    proxy.accept()
    open_gates(upstream, 1, 4)
    chat.wait_state("complete", seconds=30)
    check(chat, "complete")
    chat.press("Details")
    check(chat, "details")


# The looks of one size, by the one in which the page is opened.
SIZES = {
    "light": ("light", "dark", "forced colours", "reduced motion"),
    "narrow": ("narrow", "narrow, dark"),
    "zoomed": ("zoomed",),
}
MEDIA = """
() => ({
  color_scheme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light",
  forced_colors: matchMedia("(forced-colors: active)").matches ? "active" : "none",
  reduced_motion: matchMedia("(prefers-reduced-motion: reduce)").matches ? "reduce" : "no-preference",
})
"""


def media_of(chat: ChatPage) -> dict[str, str]:
    """Tell what the page is told about colours and motion."""
    media: dict[str, str] = chat.page.evaluate(MEDIA)
    return media


@pytest.mark.long
@pytest.mark.requirement("page US2.3", "page FR-006")
@pytest.mark.parametrize("size", SIZES)
def test_page_has_nothing_that_axe_finds_after_other_ends_and_in_its_dialogues(
    open_chat: OpenChat,
    proxy: ChaosProxy,
    upstream: ScriptedUpstream,
    check: Callable[[ChatPage, str], None],
    size: str,
) -> None:
    """None of these states ends by itself, so one visit is looked at in each colour of a size."""
    chat = open_chat(proxy.base_url, **LOOKS[size]).open()

    def check_each(state: str) -> None:
        for name in SIZES[size]:
            media = {key: LOOKS[name].get(key, plain) for key, plain in PLAIN.items()}
            chat.page.emulate_media(**media)
            assert media_of(chat) == media
            check(chat, f"{state}, {name}")

    chat.expect_fault(r"the server responded with a status of")
    upstream.always(gated(["One ", "two."]))
    begin(chat, "To be stopped")
    upstream.open("0")
    chat.wait_text("One ")
    chat.stop()
    chat.wait_state("stopped")
    check_each("stopped")

    upstream.always(error(400))
    chat.send("To fail")
    chat.wait_state("failed")
    check_each("failed")
    upstream.always(Script(steps=[Token("A part "), Close()]))
    chat.send("To fail in the middle")
    chat.wait(lambda: chat.states()[2:] == ["failed"], 20, "a failure")
    check_each("failed in the middle")

    interrupt(chat)
    chat.wait_state("interrupted")
    check_each("interrupted, and a notice")
    is_narrow = chat.page.locator("#drawer").is_visible()
    if is_narrow:
        chat.press("Conversations")
        chat.button("New conversation").wait_for()
        check_each("drawer")
    choose_name = "To be stopped"
    chat.page.get_by_role("button", name=f"Options for {choose_name}", exact=True).click()
    check_each("menu")
    chat.page.keyboard.press("Escape")
    choose(chat, choose_name, "Rename")
    check_each("rename")
    chat.page.keyboard.press("Escape")
    choose(chat, choose_name, "Delete")
    chat.page.get_by_role("dialog").wait_for()
    check_each("dialog")
    chat.page.keyboard.press("Escape")
    chat.press("Keyboard shortcuts")
    chat.page.get_by_role("dialog", name="Keyboard shortcuts").wait_for()
    check_each("shortcuts")


INTERRUPT = """
() => {
  const key = "chatwait.conversation." + location.hash.slice(1);
  const conversation = JSON.parse(localStorage.getItem(key));
  Object.assign(conversation.messages.at(-1), { state: "interrupted", error: { code: "connection_lost" } });
  localStorage.setItem(key, JSON.stringify(conversation));
  localStorage.setItem("chatwait.conversation.damaged", "{");
}
"""


def interrupt(chat: ChatPage) -> None:
    """Write into the storage what two minutes without a connection leave there, and a damaged conversation."""
    chat.page.evaluate(INTERRUPT)
    chat.reload()
    chat.page.locator("#notices .box").first.wait_for()


FOCUS = """
() => {
  const one = document.activeElement;
  const style = getComputedStyle(one);
  const name = one.getAttribute("aria-label") || one.labels?.[0]?.textContent || one.textContent;
  return [one.localName, name.trim(), style.outlineStyle !== "none" || style.boxShadow !== "none"];
}
"""


def tab_to(chat: ChatPage, name: str, *, key: str = "Tab") -> None:
    """Press Tab until this has the focus, and shows it. Raises: AssertionError with what had it."""
    met: list[str] = []
    for _ in range(40):
        chat.page.keyboard.press(key)
        kind, found, is_shown = chat.page.evaluate(FOCUS)
        if kind in ("body", "html"):
            continue
        met.append(found[:40])
        if kind != "textarea":
            assert is_shown, f"no sign of the focus on {kind} {found!r}"
        if found == name:
            return
    raise AssertionError(f"{name!r} was not met, but {met}")


@pytest.mark.requirement("page US2 test", "page assumption 5")
@pytest.mark.parametrize("is_narrow", [False, True], ids=["wide", "narrow"])
def test_page_is_used_by_keyboard_alone(
    open_chat: OpenChat, service: Any, upstream: ScriptedUpstream, is_narrow: bool
) -> None:
    options = {"viewport": {"width": 320, "height": 640}} if is_narrow else {}
    chat = open_chat(service.base_url, **options).open()
    keyboard = chat.page.keyboard
    upstream.always(gated(["One ", "two."]))
    assert chat.page.evaluate(FOCUS)[0] == "textarea"
    keyboard.type("First")
    keyboard.press("Enter")
    chat.wait_state("waiting")
    upstream.open("0")
    chat.wait_text("One ")
    chat.page.wait_for_timeout(500)  # Stop ignores the first 400 ms
    keyboard.press("Escape")
    chat.wait_state("stopped")

    upstream.always(answer(["A new ", "answer."]))
    tab_to(chat, "Ask again", key="Shift+Tab")
    keyboard.press("Enter")
    chat.wait(lambda: chat.states() == ["stopped", "complete"], 20, "a new answer")
    tab_to(chat, "Details", key="Shift+Tab") if chat.page.evaluate(FOCUS)[0] == "textarea" else tab_to(chat, "Details")
    keyboard.press("Space")
    chat.page.locator("dl.details").wait_for()

    into_list(chat, is_narrow)
    tab_to(chat, "Options for First")
    keyboard.press("ArrowDown")
    chat.wait(lambda: chat.page.evaluate(FOCUS)[1] == "Rename", 5, "the menu")
    keyboard.press("Enter")
    keyboard.type("Renamed")
    keyboard.press("Enter")
    chat.page.locator("#list .title", has_text="Renamed").wait_for()
    tab_to(chat, "Options for Renamed")
    keyboard.press("Enter")
    keyboard.press("ArrowDown")
    keyboard.press("Enter")
    chat.page.get_by_role("dialog").wait_for()
    keyboard.press("Escape")
    chat.page.get_by_role("dialog").wait_for(state="hidden")
    chat.wait(lambda: chat.page.evaluate(FOCUS)[1] == "Options for Renamed", 5, "the focus where it was")

    tab_to(chat, "New conversation", key="Shift+Tab")
    keyboard.press("Enter")
    chat.wait(lambda: chat.states() == [] and chat.page.evaluate(FOCUS)[0] == "textarea", 5, "a new conversation")
    into_list(chat, is_narrow)
    tab_to(chat, "Renamed")
    keyboard.press("Enter")
    chat.wait(lambda: chat.states() == ["stopped", "complete"], 5, "the conversation")
    into_list(chat, is_narrow)
    tab_to(chat, "Options for Renamed")
    keyboard.press("ArrowUp")
    keyboard.press("Enter")
    tab_to(chat, "Delete")
    keyboard.press("Enter")
    chat.wait(lambda: chat.states() == [] and not chat.page.locator("#list li").count(), 5, "nothing")


def into_list(chat: ChatPage, is_narrow: bool) -> None:
    """Go to the list's first control; in a small window the list is opened before."""
    if is_narrow:
        tab_to(chat, "Conversations", key="Shift+Tab")
        chat.page.keyboard.press("Enter")
        tab_to(chat, "New conversation", key="Shift+Tab")
        return
    tab_to(chat, "New conversation", key="Shift+Tab")
