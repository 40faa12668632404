"""Where the log stands while answers flow into it: when it is pinned to its end, and when not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.browser.follow_steps import assert_view_stays, detach, is_detached, open_log, rest
from tests.browser.parts import Parts

pytestmark = [pytest.mark.browser, pytest.mark.long]


@pytest.fixture
def parts(chromium: Any, module_origin: Any) -> Iterator[Parts]:
    with open_log(chromium, module_origin) as parts:
        yield parts


def test_pinned_view_is_at_the_end_after_every_frame(parts: Parts) -> None:
    before = parts.run("scroller.scrollHeight")
    parts.run("() => { begin('more words that make lines soon, '); watch(); }")
    parts.run("nextFrames(90)")
    assert parts.run("scroller.scrollHeight") > before + 300
    assert parts.run("drift.frames") > 80
    assert parts.run("drift.largestGap") <= 1
    assert parts.run("[follow.pinned, jump.hidden]") == [True, True]


def test_pinned_view_follows_what_grows_without_being_told(parts: Parts) -> None:
    """A box at the end, a resize of the window, a composer that grows: the end stays in view."""
    parts.run(
        "() => { log.append(Object.assign(document.createElement('div'), {className: 'box', textContent: 'x'})); }"
    )
    parts.wait("gap() <= 1", "the end after a box came")
    parts.page.locator("#message").fill("\n" * 8)
    parts.wait("gap() <= 1", "the end above a higher composer")
    parts.page.set_viewport_size({"width": 500, "height": 500})
    parts.wait("gap() <= 1", "the end in a smaller window")
    parts.page.set_viewport_size({"width": 1200, "height": 800})
    parts.wait("gap() <= 1", "the end in a larger window")
    assert parts.run("follow.pinned") is True


def by_wheel(parts: Parts) -> None:
    parts.page.mouse.wheel(0, -120)


def by_key(parts: Parts) -> None:
    parts.page.locator("#scroller").focus()
    parts.page.keyboard.press("PageUp")


def by_arrow(parts: Parts) -> None:
    parts.page.locator("#scroller").focus()
    parts.page.keyboard.press("ArrowUp")


def by_home(parts: Parts) -> None:
    parts.page.locator("#scroller").focus()
    parts.page.keyboard.press("Home")


def by_finding(parts: Parts) -> None:
    assert parts.run("() => { getSelection().collapse(log, 0); return find('Paragraph 7.'); }") is True


def by_tab_key(parts: Parts) -> None:
    parts.run("document.getElementById('jump').previousElementSibling.focus()")
    parts.page.keyboard.press("Tab")


def by_touch(parts: Parts) -> None:
    devtools = parts.page.context.new_cdp_session(parts.page)

    def touch(what: str, *points: int) -> None:
        found = [{"x": 600, "y": y} for y in points]
        devtools.send("Input.dispatchTouchEvent", {"type": what, "touchPoints": found})

    touch("touchStart", 200)
    for y in range(210, 460, 25):
        touch("touchMove", y)
    touch("touchEnd")


@pytest.mark.parametrize("way", [by_wheel, by_key, by_arrow, by_home, by_touch, by_finding, by_tab_key])
def test_reader_who_goes_up_in_a_flood_detaches_and_the_view_stays(parts: Parts, way: Callable[[Parts], None]) -> None:
    parts.run("begin()")
    parts.run("nextFrames(10)")
    way(parts)
    parts.wait(lambda: is_detached(parts), "a detached view")
    rest(parts)
    assert parts.run("gap()") > 30
    commits = parts.run("flow.commits")
    assert_view_stays(parts, lambda: None, frames=60)
    assert parts.run("flow.commits") >= commits + 50


@contextmanager
def open_with_bar(playwright: Any, chromium_path: str, origin: Any) -> Iterator[tuple[Parts, float, float]]:
    """Open the log in a Chromium that shows scroll bars; give the page, and where the bar is and ends, in px."""
    shown = {"args": ["--no-sandbox", "--disable-gpu"], "ignore_default_args": ["--hide-scrollbars"]}
    browser = playwright.chromium.launch(executable_path=chromium_path, **shown)
    try:
        with open_log(browser, origin) as parts:
            left, right, bottom = parts.run("""() => {
                const box = scroller.getBoundingClientRect();
                return [box.left + scroller.clientLeft + scroller.clientWidth, box.right, box.bottom];
            }""")
            assert right - left > 5  # the premise: there is a scroll bar
            yield parts, (left + right) / 2, bottom
    finally:
        browser.close()


def test_scroll_bar_that_is_held_holds_the_view_until_it_is_released(
    playwright: Any, chromium_path: str, module_origin: Any
) -> None:
    with open_with_bar(playwright, chromium_path, module_origin) as (parts, x, bottom):
        parts.page.mouse.move(x, bottom - 30)
        parts.page.mouse.down()
        before = parts.run("scroller.scrollTop")
        parts.run("begin()")
        parts.run("nextFrames(30)")
        assert parts.run("[scroller.scrollTop, gap() > 20]") == [before, True]  # nothing moves under the hand
        parts.page.mouse.up()
        parts.page.mouse.move(x - 300, bottom - 100)
        parts.wait("follow.pinned && gap() <= 1", "the end")


def test_reader_who_drags_the_scroll_bar_detaches(playwright: Any, chromium_path: str, module_origin: Any) -> None:
    with open_with_bar(playwright, chromium_path, module_origin) as (parts, x, bottom):
        parts.run("begin()")

        def drag() -> bool:
            parts.page.mouse.up()
            parts.page.mouse.move(x, bottom - 30)
            parts.wait("gap() <= 1", "the end")
            before = parts.run("scroller.scrollTop")
            parts.page.mouse.down()
            parts.page.mouse.move(x, bottom - 250, steps=5)
            parts.run("nextFrames(5)")
            return parts.run("scroller.scrollTop") < before

        # A busy Chromium may tell of the press and then move nothing: the premise is that it does.
        parts.wait(drag, "a scroll bar that is dragged")
        parts.wait(lambda: is_detached(parts), "a detached view")
        rest(parts)
        assert_view_stays(parts, lambda: None, frames=30)
        parts.page.mouse.up()
        assert_view_stays(parts, lambda: None, frames=30)


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_jump_works_by_keyboard_and_keeps_the_focus_in_the_messages(parts: Parts, key: str) -> None:
    detach(parts)
    parts.run("begin()")
    parts.page.locator("#scroller").focus()
    parts.page.keyboard.press("Tab")
    parts.wait("() => document.activeElement.id !== 'scroller'", "the focus goes on")
    parts.page.locator("#jump").focus()
    parts.page.keyboard.press(key)
    parts.wait("follow.pinned && jump.hidden && gap() <= 1", "the end")
    assert parts.run("document.activeElement.id") == "scroller"
    parts.run("watch()")
    parts.run("nextFrames(20)")
    assert parts.run("drift.largestGap") <= 1


def test_jump_is_hidden_where_there_is_nothing_to_jump_to(parts: Parts) -> None:
    parts.run("() => { log.replaceChildren(); current = answer(1); follow.pin(); }")
    parts.run("nextFrames(2)")
    parts.page.mouse.wheel(0, -300)
    parts.run("nextFrames(10)")
    assert parts.run("[follow.pinned, jump.hidden]") == [True, True]
    parts.run("begin('more words ')")
    parts.wait("scroller.scrollHeight > scroller.clientHeight + 300", "more than the view holds")
    assert parts.run("gap()") <= 1


def test_view_never_moves_while_text_of_it_is_selected(parts: Parts) -> None:
    parts.run("begin()")
    box = parts.page.locator(".live").last.bounding_box()
    parts.page.mouse.move(box["x"] + 30, box["y"] + 10)
    parts.page.mouse.down()
    parts.run("watch()")
    parts.run("nextFrames(30)")  # pressed, and nothing selected yet
    assert parts.run("drift.most") <= 1
    parts.page.mouse.move(box["x"] + 200, box["y"] + 12, steps=4)
    parts.page.mouse.up()
    assert parts.run("getSelection().toString().length") > 5
    parts.run("nextFrames(60)")
    assert parts.run("drift.most") <= 1
    assert is_detached(parts)

    parts.page.locator("#message").click()
    parts.run("nextFrames(30)")
    assert parts.run("drift.most") <= 1  # nothing jumps when it is given up either
    parts.page.get_by_role("button", name="Jump to latest").click()
    parts.wait("follow.pinned && gap() <= 1", "the end")


def test_jump_goes_to_the_end_though_text_is_selected(parts: Parts) -> None:
    detach(parts)
    parts.run("() => getSelection().selectAllChildren(current.querySelector('p'))")
    parts.run("begin()")
    parts.run("nextFrames(5)")
    parts.run("() => { jump.focus(); }")
    parts.page.keyboard.press("Enter")
    assert parts.run("getSelection().toString().length") > 5  # the premise
    parts.run("nextFrames(20)")
    assert parts.run("[follow.pinned, gap() <= 1]") == [True, True]


def test_selection_elsewhere_does_not_hold_the_view(parts: Parts) -> None:
    parts.run("() => getSelection().selectAllChildren(document.getElementById('title'))")
    parts.run("begin()")
    parts.run("nextFrames(40)")
    assert parts.run("[follow.pinned, gap() <= 1]") == [True, True]


def test_reader_who_scrolls_to_the_end_of_a_flood_is_pinned_again(parts: Parts) -> None:
    parts.run("begin('words in a flood that makes a line in every frame, or nearly so, of this page ')")
    detach(parts, -600)
    for _ in range(5):
        parts.page.mouse.wheel(0, 3000)
        parts.page.wait_for_timeout(150)  # the pace of a hand
    parts.wait("follow.pinned && jump.hidden", "a pinned view")
    parts.run("watch()")
    parts.run("nextFrames(20)")
    assert parts.run("drift.largestGap") <= 1


def test_reader_who_arrives_where_the_end_just_was_is_pinned_again(parts: Parts) -> None:
    """Text came while the scrolling was on its way: without this, nobody could ever reach the end of a flood."""
    detach(parts, -600)
    parts.run("() => { const at = performance.now() + 1000; window.later = 0; performance.now = () => at + later; }")
    arrive = """(ms) => {
        follow.changed();
        const end = scroller.scrollTop + gap();
        commit("and many more words ".repeat(200));
        later += ms;
        scroller.scrollTop = end;
    }"""
    parts.run(arrive, 700)
    parts.run("nextFrames(5)")
    assert is_detached(parts)  # that end was long ago

    parts.run(arrive, 300)
    parts.wait("follow.pinned && jump.hidden && gap() <= 1", "a pinned view")


def test_reader_who_stops_short_of_the_end_is_not_pinned(parts: Parts) -> None:
    detach(parts, -600)
    parts.page.wait_for_timeout(600)  # so long after, no earlier place counts as the end
    parts.page.mouse.wheel(0, 500)
    rest(parts)
    assert 60 < parts.run("gap()") < 140
    assert_view_stays(parts, lambda: parts.run("begin()"), frames=30)


def test_end_key_pins(parts: Parts) -> None:
    parts.run("begin()")
    detach(parts)
    parts.page.locator("#scroller").focus()
    parts.page.keyboard.press("End")
    parts.wait("follow.pinned && gap() <= 1", "the end")


def test_commits_cost_one_layout_each_and_scrolling_is_never_smooth(parts: Parts) -> None:
    parts.rule("#scroller { scroll-behavior: smooth; }")
    assert parts.run("getComputedStyle(scroller).scrollBehavior") == "auto"
    devtools = parts.page.context.new_cdp_session(parts.page)
    devtools.send("Performance.enable")

    def layouts() -> float:
        metrics = devtools.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "LayoutCount")

    for is_pinned in (True, False):
        if not is_pinned:
            detach(parts)
        before, commits = layouts(), parts.run("flow.commits")
        parts.run("begin()")
        parts.run("nextFrames(100)")
        parts.run("() => { flow.on = false; }")
        counted = parts.run("flow.commits") - commits
        assert counted > 80
        assert layouts() - before <= counted * 1.2 + 10, "pinned" if is_pinned else "detached"
