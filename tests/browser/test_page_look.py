"""How the page looks, in every state: axe, colours, widths, zoom, forced colours, focus, room for fingers."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.axe import find_by_axe
from tests.browser.modules import ASSETS
from tests.browser.parts import Parts, open_parts
from tests.browser.samples import ANSWERS, LIVE, NOW, conversation, question

pytestmark = [pytest.mark.browser, pytest.mark.long]

START = """
async (now) => {
  const [{ createView }, { createComposer }, { createFollow }, { createList }, { createNotices }] = await Promise.all(
    ["view", "composer", "follow", "list", "frame"].map((name) => import(`/assets/${name}.js`)));
  const id = (name) => document.getElementById(name);
  const nothing = () => {};
  const follow = createFollow({ scroller: id("scroller"), jump: id("jump") });
  const composer = createComposer({ form: id("composer"), onSend: () => false, onStop: nothing });
  const view = createView({ log: id("log"), now: () => now, onAction: nothing, onCommit: follow.changed });
  const notices = createNotices({ root: id("notices"), onChange: follow.changed });
  const list = createList({ nav: id("list"), drawer: id("drawer"), onOpen: nothing, onNew: nothing, onRename: nothing,
    onDelete: nothing, onExport: () => "{}", onImport: nothing });
  id("model").append(new Option("gpt-4o-mini"));
  window.t = { follow, composer, view, notices, list };
}
"""
SHOW = """
([messages, state]) => {
  t.view.show(messages && { messages });
  t.composer.busy(state);
  t.follow.pin();
  return new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
}
"""
TITLES = ["Capitals", "A title that is much longer than the list of conversations is wide", "كيف حالك", "x" * 200]
MARKS = ["streaming", "done", "error", None, "damaged", "newer"]
ENTRIES = [
    {"id": f"c{number}", "title": TITLES[number % 4], "updated": NOW, "mark": (MARKS + [None] * 30)[number]}
    for number in range(30)
]
PROBLEM = {
    "code": "storage_full",
    "message": "The browser's storage is full.",
    "detail": "What you see is safe in this window.",
    "action": "Export, then delete what you no longer need.",
}
WIDER = """
() => [document.documentElement, document.querySelector("#scroller"), document.querySelector("#list")]
  .filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.id || one.tagName)
"""
TARGETS = """
() => [...document.querySelectorAll("button, select, textarea, input")]
  .filter((one) => one.checkVisibility({ visibilityProperty: true }))
  .map((one) => [one.textContent || one.ariaLabel || one.id, one.getBoundingClientRect()])
  .filter(([, { width, height }]) => Math.min(width, height) < 43.5).map(([name, { height }]) => `${name}: ${height}`)
"""
COLOURS = """
async (png) => {
  const image = new Image();
  image.src = `data:image/png;base64,${png}`;
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return new Set(new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer)).size;
}
"""
TOKENS = {  # page.md, "How it looks"
    "page surface bubble code": ("#fbfaf7 #ffffff #efebe3 #f4f1eb", "#161513 #1e1d1a #2b2925 #211f1c"),
    "text muted hairline border": ("#1e1c19 #5e5950 #ddd8ce #857e72", "#ece8e0 #ada69a #37342f #857e72"),
    "accent on-accent link ring": ("#0b6460 #ffffff #0b5a8a #0b57d0", "#79c7be #0c1e1c #8cc4ec #8ab4f8"),
    "danger danger-box warning warning-box": ("#9f1d1d #fbebe8 #6f4700 #fbf2dd", "#f2a8a0 #3b1f1c #e9c67f #342a15"),
    "good good-box": ("#1c6637 #e9f4eb", "#93d2a4 #1b3122"),
}
VIEWPORTS = {"wide": (1280, 800), "narrow": (320, 640), "zoomed": (640, 400), "reflow": (320, 256)}


@pytest.fixture(params=[("wide", "dark"), pytest.param(("narrow", "light"), marks=pytest.mark.long)], ids="-".join)
def parts(request: Any, chromium: Any, module_origin: Any) -> Iterator[Parts]:
    size, scheme = request.param
    width, height = VIEWPORTS[size]
    with open_parts(chromium, module_origin, viewport={"width": width, "height": height}, color_scheme=scheme) as parts:
        yield started(parts)


def started(parts: Parts) -> Parts:
    parts.run(START, NOW)
    parts.run("entries => t.list.show(entries, 'c1')", ENTRIES)
    return parts


def show(parts: Parts, name: str | None) -> None:
    state = ANSWERS[name]["state"] if name else None
    parts.run(SHOW, [conversation(name)["messages"] if name else None, state if state in LIVE else None])


def every_state() -> list[dict[str, Any]]:
    return [
        {**message, "id": f"{number}-{message['id']}", "asks": f"{number}-q1"}
        for number, shown in enumerate(ANSWERS.values())
        for message in (question(), shown)
    ]


def found_by_axe(parts: Parts, what: str) -> list[str]:
    violations, kept = find_by_axe(parts.page)
    assert kept > 10  # it has looked
    return [
        f"{what}: {one['id']} {[node['target'] for node in one['nodes']][:3]} {one['nodes'][0]['failureSummary']}"
        for one in violations
    ]


def test_axe_finds_nothing_in_any_state(parts: Parts) -> None:
    """Every state at once, with all its actions and details, under a composer that rests and one that is busy."""
    show(parts, None)
    found = found_by_axe(parts, "empty")
    parts.rule("article .foot .action { display: inline-flex !important; }")
    parts.run(SHOW, [every_state(), None])
    parts.run("() => { for (const one of document.querySelectorAll('[data-action=details]')) one.click(); }")
    assert parts.page.locator(".details").count() > 5
    found += found_by_axe(parts, "at rest")
    parts.run("() => t.composer.busy('stopping')")
    found += found_by_axe(parts, "busy")
    assert found == []


def test_page_in_every_state_is_not_wider_than_the_window(parts: Parts) -> None:
    found = []
    for name in (None, *ANSWERS):
        show(parts, name)
        found += [f"{name}: {one} scrolls sideways" for one in parts.run(WIDER)]
    assert found == []


def test_axe_finds_nothing_in_notices_list_menu_and_dialog(parts: Parts) -> None:
    page = parts.page
    show(parts, "failed")
    parts.run("problem => t.notices.show([problem, { ...problem, id: 'c2' }])", PROBLEM)
    parts.run(
        "() => { document.querySelector('#embedded').hidden = false; t.composer.say('An answer is on its way.'); }"
    )
    found = found_by_axe(parts, "notices")
    if page.locator("#drawer").is_visible():
        parts.run("() => { document.querySelector('#drawer').ariaExpanded = 'true'; }")
        found += found_by_axe(parts, "drawer")
    options = page.locator(".more").nth(1)
    options.click()
    found += found_by_axe(parts, "menu")
    page.get_by_role("menuitem", name="Rename").click()
    found += found_by_axe(parts, "rename")
    page.keyboard.press("Escape")
    options.click()
    page.get_by_role("menuitem", name="Delete").click()
    page.locator("dialog[open]").wait_for()
    found += found_by_axe(parts, "dialog")
    assert found + parts.run(WIDER) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_the_designs_and_every_other_one_is_one_of_them(
    scheme: str, chromium: Any, module_origin: Any
) -> None:
    with open_parts(chromium, module_origin, color_scheme=scheme) as parts:
        for names, schemes in TOKENS.items():
            for name, colour in zip(names.split(), schemes[scheme == "dark"].split(), strict=True):
                read = "name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`)"
                assert parts.run(read, name) == colour, name
    rules = (ASSETS / "page.css").read_text(encoding="utf-8").split("/* Ground */")[1]
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b(?=[;, )])", rules) == []


@pytest.mark.parametrize("size", ["zoomed", "reflow"])
def test_page_at_a_large_zoom_still_shows_text_and_composer_and_needs_no_scrolling_sideways(
    size: str, chromium: Any, module_origin: Any
) -> None:
    width, height = VIEWPORTS[size]
    with open_parts(chromium, module_origin, viewport={"width": width, "height": height}) as parts:
        started(parts)
        for name in ("complete", "failed"):
            show(parts, name)
            assert parts.run(WIDER) == []
            boxes = {one: parts.page.locator(one).bounding_box() for one in ("#scroller", "#message", "#send")}
            assert boxes["#scroller"]["height"] >= 80, boxes
            for one in ("#message", "#send"):
                assert 0 <= boxes[one]["y"] <= height - boxes[one]["height"], boxes


def test_page_in_forced_colours_still_shows_edges_caret_and_pictures(chromium: Any, module_origin: Any) -> None:
    options = {"forced_colors": "active", "color_scheme": "dark"}
    with open_parts(chromium, module_origin, **options) as parts:
        started(parts)
        show(parts, "streaming")
        assert parts.run("() => matchMedia('(forced-colors: active)').matches")
        drawn = parts.run("""
        () => {
          const style = (selector, part) => getComputedStyle(document.querySelector(selector), part);
          const canvas = style("body").backgroundColor;
          return {
            bubble: style(".bubble").borderTopColor !== canvas,
            caret: style("article:last-child .prose p", "::after").borderLeftColor !== canvas,
            current: style(".open[aria-current]").borderTopWidth !== "0px",
            options: style(".more").opacity === "1",
          };
        }
        """)
        assert all(drawn.values()), drawn
        box = parts.page.locator(".more").first.bounding_box()
        inside = {"x": box["x"] + 8, "y": box["y"] + 8, "width": box["width"] - 16, "height": box["height"] - 16}
        assert parts.run(COLOURS, base64.b64encode(parts.page.screenshot(clip=inside)).decode()) > 1
        parts.run(SHOW, [every_state(), None])
        assert found_by_axe(parts, "forced colours") == []


def test_page_for_fingers_has_no_target_under_44_pixels(chromium: Any, module_origin: Any) -> None:
    options = {"viewport": {"width": 375, "height": 720}, "has_touch": True, "is_mobile": True}
    with open_parts(chromium, module_origin, **options) as parts:
        started(parts)
        assert parts.run("() => matchMedia('(pointer: coarse)').matches")
        show(parts, "interrupted")
        assert parts.run(TARGETS) == []
        parts.run("() => { document.querySelector('#drawer').ariaExpanded = 'true'; }")
        parts.page.locator(".more").nth(1).tap()
        assert parts.run(TARGETS) == []


def test_keyboard_focus_is_seen_on_everything_it_reaches(chromium: Any, module_origin: Any) -> None:
    with open_parts(chromium, module_origin) as parts:
        started(parts)
        show(parts, "complete")
        parts.run("() => document.activeElement.blur()")
        reached, unseen = [], []
        for _ in range(90):
            parts.page.keyboard.press("Tab")
            name, seen = parts.run("""
            () => {
              const one = document.activeElement;
              const ringed = (element) => parseFloat(getComputedStyle(element).outlineWidth) >= 1
                && getComputedStyle(element).outlineStyle !== "none";
              return [one.id || one.className || one.tagName, ringed(one) || ringed(one.closest(".field") ?? one)];
            }
            """)
            reached.append(name)
            if not seen and name != "BODY":
                unseen.append(name)
        assert unseen == []
        assert {"new", "open", "more", "scroller", "message", "model", "send", "copy-code", "action"} <= set(reached)


def test_page_holds_still_for_who_wants_no_motion(chromium: Any, module_origin: Any) -> None:
    moving = "() => document.getAnimations().length"
    for motion, expected in (("no-preference", True), ("reduce", False)):
        with open_parts(chromium, module_origin, reduced_motion=motion) as parts:
            started(parts)
            show(parts, "streaming")
            assert (parts.run(moving) > 0) == expected
            show(parts, "waiting")
            assert (parts.run(moving) > 0) == expected


def test_room_for_the_actions_is_there_from_the_start(chromium: Any, module_origin: Any) -> None:
    """An answer's end moves nothing: the row below its text is as high without any button in it."""
    with open_parts(chromium, module_origin) as parts:
        started(parts)
        heights = {}
        for name in ANSWERS:
            show(parts, name)
            heights[name] = parts.page.locator(".foot").last.bounding_box()["height"]
        assert len(set(heights.values())) == 1, heights
