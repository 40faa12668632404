"""The message box in a real browser: keys, an input method, Stop, the draft, the limit, and how it grows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.parts import Parts, open_parts

pytestmark = pytest.mark.browser

START = """
async ({isTaken, isTouch}) => {
    const { createComposer } = await import("/assets/composer.js");
    window.clock = 10_000;
    window.taken = isTaken;
    window.told = {sent: [], stops: 0, drafts: [], said: []};
    window.composer = createComposer({
        form: document.getElementById("composer"),
        onSend: (text) => { told.sent.push(text); return window.taken; },
        onStop: () => told.stops++,
        onDraft: (text) => told.drafts.push(text),
        onSay: (text) => told.said.push(text),
        now: () => clock,
        ...(isTouch === null ? {} : {isTouch: () => isTouch}),
    });
}
"""


NO_FIELD_SIZING = "#message { field-sizing: fixed !important; }"
KEY = "addEventListener('keydown', event => (window.key = [event.keyCode, event.isComposing]), true)"


class Composer:
    """Drive the message box."""

    def __init__(self, parts: Parts, *, is_taken: bool = True, is_touch: bool | None = None) -> None:
        self.parts = parts
        self.page = parts.page
        parts.run(START, {"isTaken": is_taken, "isTouch": is_touch})
        self.box = self.page.get_by_role("textbox", name="Message", exact=True)
        self.devtools = self.page.context.new_cdp_session(self.page)

    def told(self, what: str) -> Any:
        return self.parts.run("what => told[what]", what)

    def busy(self, state: str | None, *, since_ms: int = 1000) -> None:
        self.parts.run("state => composer.busy(state)", state)
        self.parts.run("ms => { window.clock += ms; }", since_ms)

    def compose(self, text: str) -> None:
        options = {"text": text, "selectionStart": len(text), "selectionEnd": len(text)}
        self.devtools.send("Input.imeSetComposition", options)

    def press_229(self, name: str) -> None:
        """Press a key that the input method takes: real, with the code 229, and without a text of its own."""
        key = {"key": name, "code": name, "windowsVirtualKeyCode": 229}
        self.devtools.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **key})
        self.devtools.send("Input.dispatchKeyEvent", {"type": "keyUp", **key})

    def hint(self) -> str:
        return str(self.page.inner_text("#hint"))

    def over(self) -> str:
        """Tell what stands at the text because it is too long."""
        return str(self.page.inner_text("#over"))


@pytest.fixture
def parts(chromium: Any, module_origin: Any) -> Iterator[Parts]:
    with open_parts(chromium, module_origin) as parts:
        yield parts


@pytest.fixture
def composer(parts: Parts) -> Composer:
    return Composer(parts)


def test_enter_sends_and_shift_enter_makes_a_new_line(composer: Composer) -> None:
    composer.box.click()
    composer.page.keyboard.type("one")
    composer.page.keyboard.press("Shift+Enter")
    composer.page.keyboard.type("two")
    assert composer.told("sent") == []
    composer.page.keyboard.press("Enter")

    assert composer.told("sent") == ["one\ntwo"]
    assert composer.box.input_value() == ""
    assert composer.page.evaluate("document.activeElement.id") == "message"
    assert composer.told("drafts")[-1] == ""


def test_enter_that_is_held_down_sends_once(composer: Composer) -> None:
    composer.parts.run("() => { window.taken = false; }")
    composer.box.fill("once")
    for _ in range(3):
        composer.page.keyboard.down("Enter")  # the second and third repeat
    composer.page.keyboard.up("Enter")

    assert composer.told("sent") == ["once"]
    assert composer.box.input_value() == "once"


@pytest.mark.parametrize("text", ["", "   ", " \n\t\u00a0\u2003 "])
def test_blank_text_is_never_sent_by_key_or_button(composer: Composer, text: str) -> None:
    composer.box.fill(text)
    composer.box.press("Enter")
    composer.page.get_by_role("button", name="Send", exact=True).click()

    assert composer.told("sent") == []
    assert composer.box.input_value() == text


def test_input_method_enter_that_ends_a_composition_never_sends(composer: Composer) -> None:
    composer.box.click()
    composer.parts.run(KEY)
    composer.compose("にほん")
    composer.press_229("Enter")
    assert composer.page.evaluate("key") == [229, True]  # the premise: a real key in a real composition
    assert composer.told("sent") == []
    composer.page.keyboard.press("Enter")
    assert composer.page.evaluate("key") == [13, True]  # as some input methods tell it
    assert composer.told("sent") == []

    composer.box.fill("")
    composer.compose("にほん")
    composer.devtools.send("Input.insertText", {"text": "日本"})
    assert composer.box.input_value() == "日本"
    composer.page.keyboard.press("Enter")
    assert composer.told("sent") == ["日本"]


def test_input_method_in_the_order_of_safari_never_sends(composer: Composer) -> None:
    """There the composition ends first, and then comes its Enter: not composing any more, with the key code 229."""
    composer.box.click()
    composer.parts.run(KEY)
    composer.compose("にほん")
    composer.devtools.send("Input.insertText", {"text": "日本"})
    composer.press_229("Enter")
    assert composer.page.evaluate("key") == [229, False]
    assert composer.told("sent") == []

    composer.page.keyboard.press("Enter")
    assert composer.told("sent") == ["日本"]


def test_input_method_escape_takes_back_a_composition_and_stops_nothing(composer: Composer) -> None:
    composer.busy("streaming")
    composer.box.click()
    composer.compose("に")
    composer.page.keyboard.press("Escape")
    assert composer.told("stops") == 0

    composer.devtools.send("Input.insertText", {"text": "日"})
    composer.page.keyboard.press("Escape")
    assert composer.told("stops") == 1


def test_enter_on_touch_makes_a_new_line_and_the_button_sends(chromium: Any, module_origin: Any) -> None:
    phone = {"has_touch": True, "is_mobile": True, "viewport": {"width": 390, "height": 700}}
    with open_parts(chromium, module_origin, **phone) as parts:
        composer = Composer(parts)
        assert parts.run("matchMedia('(pointer: coarse)').matches") is True
        composer.box.tap()
        composer.page.keyboard.type("one")
        composer.page.keyboard.press("Enter")
        composer.page.keyboard.type("two")
        assert composer.told("sent") == []
        assert composer.hint() == ""
        composer.page.get_by_role("button", name="Send", exact=True).tap()
        assert composer.told("sent") == ["one\ntwo"]

        parts.run("() => { document.activeElement.blur(); composer.focus(); }")
        assert parts.run("document.activeElement.id") != "message"  # no keyboard pops up


def test_stop_ignores_the_first_400_ms_and_escape_does_not(composer: Composer) -> None:
    composer.busy("sending", since_ms=0)
    stop = composer.page.get_by_role("button", name="Stop", exact=True)
    for wait_ms in (0, 399):
        composer.parts.run("ms => { window.clock = 10_000 + ms; }", wait_ms)
        stop.click()
        assert composer.told("stops") == 0, wait_ms
    composer.parts.run("() => { window.clock = 10_401; }")
    stop.click()
    assert composer.told("stops") == 1

    composer.busy(None)
    composer.busy("sending", since_ms=0)
    composer.page.keyboard.press("Escape")
    assert composer.told("stops") == 2


def test_stop_that_comes_late_does_not_send_what_was_typed_meanwhile(composer: Composer) -> None:
    composer.busy("streaming")
    composer.box.fill("the next question")
    composer.busy(None, since_ms=100)
    button = composer.page.locator("#send")
    button.click()  # it was meant for Stop
    assert composer.told("sent") == []

    composer.box.press("End")
    composer.page.keyboard.type("?")
    button.click()
    assert composer.told("sent") == ["the next question?"]


def test_enter_while_busy_says_why_and_keeps_the_text(composer: Composer) -> None:
    composer.busy("streaming")
    composer.box.click()
    composer.page.keyboard.type("Next, please")
    composer.page.keyboard.press("Enter")

    assert composer.told("sent") == []
    assert composer.box.input_value() == "Next, please"
    assert composer.hint().startswith("An answer is on its way.")
    assert composer.told("said") == [composer.hint()]
    composer.busy("stopping")
    assert composer.hint().startswith("An answer is on its way.")
    composer.busy(None)
    assert not composer.hint().startswith("An answer")
    composer.page.keyboard.press("Enter")
    assert composer.told("sent") == ["Next, please"]


def test_escape_stops_from_anywhere_but_where_it_closes_something(composer: Composer) -> None:
    composer.page.keyboard.press("Escape")
    assert composer.told("stops") == 0  # nothing to stop
    composer.busy("streaming")
    model = composer.page.locator("#model")
    composer.parts.run("() => document.querySelector('#model').append(new Option('one'), new Option('two'))")
    model.focus()
    composer.page.keyboard.press("Space")
    composer.parts.wait("document.querySelector('#model').matches(':open')", "the choices")
    model.dispatch_event("keydown", {"key": "Escape", "bubbles": True})  # some browsers tell the page too
    composer.page.keyboard.press("Escape")
    composer.parts.wait("!document.querySelector('#model').matches(':open')", "the choices to be closed")
    assert composer.told("stops") == 0
    composer.page.keyboard.press("Escape")
    assert composer.told("stops") == 1  # nothing is open any more
    composer.page.locator("#shortcuts").focus()  # in the list
    composer.page.keyboard.press("Escape")
    assert composer.told("stops") == 2
    composer.page.locator("#scroller").focus()
    composer.page.keyboard.press("Escape")
    assert composer.told("stops") == 3
    composer.busy("stopping")
    assert composer.page.locator("#send").get_attribute("aria-disabled") == "true"
    composer.page.keyboard.press("Escape")
    assert composer.told("stops") == 3  # it was asked for already


def test_limit_is_told_in_code_points_before_anything_is_sent(composer: Composer) -> None:
    composer.parts.run("() => composer.limit(1000)")
    composer.box.fill("🙂" * 899 + "ab")  # 901 characters, 1,800 of a browser's
    assert composer.hint() == "901 of 1,000 characters"
    composer.box.fill("🙂" * 1001)
    line = "The message has 1,001 characters; at most 1,000 can be sent. Shorten it."
    assert composer.over() == line
    assert composer.box.get_attribute("aria-invalid") == "true"
    assert composer.told("said") == [line]
    composer.page.keyboard.type("abc")
    assert composer.over() == line.replace("1,001", "1,004")
    assert composer.told("said") == [line]  # not with every letter
    composer.box.press("Enter")
    assert composer.told("sent") == []
    assert composer.told("said") == [line, composer.over()]

    composer.box.fill("🙂" * 1000)
    assert composer.over() == ""
    assert composer.box.get_attribute("aria-invalid") is None
    composer.box.press("Enter")
    assert composer.told("sent") == ["🙂" * 1000]


@pytest.mark.parametrize("size", [(1280, 800), (390, 800), (320, 300)])
def test_message_that_is_too_long_is_told_between_the_text_and_the_button(
    chromium: Any, module_origin: Any, size: tuple[int, int]
) -> None:
    """Seen at once however small the window is, described to who cannot see it, and in the colour of an error."""
    width, height = size
    with open_parts(chromium, module_origin, viewport={"width": width, "height": height}) as parts:
        composer = Composer(parts)
        parts.run("() => { composer.limit(100); document.querySelector('#model').append(new Option('gpt-4o-mini')); }")
        composer.box.press_sequentially("a few words")
        at_rest = composer.page.locator(".field").bounding_box()
        assert composer.page.locator("#over").bounding_box() is None  # no room for nothing
        composer.box.fill("word " * 30)
        boxes = {one: composer.page.locator(one).bounding_box() for one in (".field", "#over", "#message", "#send")}
        field, over = boxes[".field"], boxes["#over"]
        assert field["y"] <= over["y"] and over["y"] + over["height"] <= field["y"] + field["height"], boxes
        assert over["y"] >= 0 and over["y"] + over["height"] <= height, boxes
        assert field["width"] == at_rest["width"]
        for one in ("#message", "#send"):
            assert boxes[one]["y"] >= 0 and boxes[one]["y"] + boxes[one]["height"] <= height, boxes
        look = "one => [getComputedStyle(one).color, parseFloat(getComputedStyle(one).fontSize)]"
        colour, font = composer.page.locator("#over").evaluate(look)
        assert (colour, font) == ("rgb(159, 29, 29)", 15)
        snapshot = composer.page.locator("#composer").aria_snapshot()
        assert "The message has 150 characters; at most 100 can be sent. Shorten it." in snapshot
        described = "one => one.getAttribute('aria-describedby').split(' ').map((id) => document.getElementById(id).id)"
        assert composer.box.evaluate(described) == ["over", "hint"]


def test_fields_for_fingers_are_large_enough_for_a_phone_not_to_zoom(chromium: Any, module_origin: Any) -> None:
    """Every field that takes the focus, whatever it is: iOS zooms into letters under 16 pixels."""
    script = """
    async () => {
      const { createList } = await import("/assets/list.js");
      const nothing = () => {};
      const nav = document.getElementById("list");
      const list = createList({ nav, onOpen: nothing, onNew: nothing, onRename: nothing, onDelete: nothing,
        onExport: nothing, onImport: nothing });
      list.show([{ id: "a", title: "One", updated: 0 }], "a");
      document.getElementById("drawer").ariaExpanded = "true";
      nav.querySelector(".more").click();
      nav.querySelector("[role=menuitem]").click();
      return [...document.querySelectorAll("input, select, textarea, [contenteditable]")]
        .filter((one) => one.type !== "file")
        .map((one) => [one.id || one.className, parseFloat(getComputedStyle(one).fontSize)]);
    }
    """
    with open_parts(chromium, module_origin, viewport={"width": 390, "height": 720}, has_touch=True) as parts:
        sizes = dict(parts.run(script))
        assert set(sizes) == {"message", "model", "rename"}
        assert min(sizes.values()) >= 16, sizes


def test_draft_is_told_seldom_while_typing_and_at_once_when_left(composer: Composer) -> None:
    composer.box.click()
    composer.page.keyboard.type("a draft of some length that takes a while", delay=5)
    typed = len(composer.box.input_value())
    composer.parts.wait("told.drafts.at(-1) === composer.text", "the draft is told")
    assert len(composer.told("drafts")) < typed / 2

    before = len(composer.told("drafts"))
    composer.page.keyboard.type("!")
    composer.page.locator("#model").focus()
    assert composer.told("drafts")[before:] == ["a draft of some length that takes a while!"]


def test_draft_of_another_conversation_is_shown_and_not_told_as_this_one(composer: Composer) -> None:
    composer.box.fill("of the first")
    composer.parts.run("() => { window.told.drafts = []; composer.setDraft('of the second'); }")
    assert composer.box.input_value() == "of the second"
    composer.page.wait_for_timeout(600)  # longer than a draft waits
    assert composer.told("drafts") == []


def test_message_that_failed_comes_back_before_what_was_typed_meanwhile(composer: Composer) -> None:
    composer.box.fill("failed")
    composer.box.press("Enter")
    composer.page.keyboard.type("new")
    composer.page.keyboard.press("ArrowLeft")
    composer.parts.run("() => composer.giveBack('failed')")
    composer.page.keyboard.type("|")

    assert composer.box.input_value() == "failed\n\nne|w"  # the caret is where it was
    composer.box.fill("")
    composer.parts.run("() => composer.giveBack('failed')")
    assert composer.box.input_value() == "failed"
    assert composer.told("drafts")[-1] == "failed"


def test_message_comes_back_only_after_the_composition(composer: Composer) -> None:
    composer.box.click()
    composer.compose("にほん")
    composer.parts.run("() => composer.giveBack('failed')")
    assert composer.box.input_value() == "にほん"
    composer.devtools.send("Input.insertText", {"text": "日本"})
    composer.parts.wait("composer.text === 'failed\\n\\n日本'", "both texts")


@pytest.mark.parametrize("growth", ["by style", "by script"])
def test_box_grows_and_shrinks_without_a_jump_of_what_is_above(parts: Parts, growth: str) -> None:
    if growth == "by script":  # as in a browser without field-sizing
        parts.rule(NO_FIELD_SIZING)
    parts.run("""() => {
        window.scroller = document.getElementById("scroller");
        window.nextFrame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        document.getElementById("log").append(...Array.from({length: 100}, (_, number) => {
            const line = document.createElement("p");
            line.textContent = `line ${number}`;
            return line;
        }));
    }""")
    composer = Composer(parts)
    heights = []
    for count in (1, 4, 8, 100, 101, 3, 1):
        composer.box.fill("\n".join(["text"] * count))
        heights.append(composer.box.bounding_box()["height"])
    one, four, eight, most, same, three, last = heights
    assert one < four < eight < most == same == parts.page.viewport_size["height"] * 0.4
    assert three < four
    assert last == one
    composer.box.fill("\n".join(["text"] * 8))
    parts.run("() => { scroller.scrollTop = 100_000; window.least = scroller.scrollTop; }")
    parts.run("nextFrame()")
    composer.page.keyboard.press("Backspace")  # shorter, and as high as before
    parts.run("nextFrame()")
    assert parts.run("scroller.scrollTop") == parts.run("least")

    parts.page.set_viewport_size({"width": 400, "height": 720})
    composer.box.fill("word " * 60)
    high = composer.box.bounding_box()["height"]
    parts.page.set_viewport_size({"width": 1200, "height": 720})
    parts.wait(lambda: composer.box.bounding_box()["height"] < high, "less height for the wider box")


@pytest.mark.parametrize("growth", ["by style", "by script"])
def test_paste_of_100_kb_is_quick(parts: Parts, growth: str) -> None:
    if growth == "by script":
        parts.rule(NO_FIELD_SIZING)
    composer = Composer(parts)
    parts.run("() => composer.limit(8000)")
    text = "".join(f"{number}: some words of a pasted text\n" for number in range(3000))
    assert len(text) > 95_000
    parts.run("""() => {
        const box = document.getElementById("message");
        box.addEventListener("input", () => (window.begun = performance.now()), true);
        box.addEventListener("input", () => { window.took = performance.now() - begun; });
    }""")
    parts.run(
        """text => {
            const other = Object.assign(document.createElement("textarea"), {value: text});
            document.body.append(other);
            other.select();
            document.execCommand("copy");
            other.remove();
        }""",
        text,
    )
    composer.box.focus()
    begun = time.monotonic()
    composer.page.keyboard.press("ControlOrMeta+v")
    assert parts.run("composer.text.length") == len(text)
    assert time.monotonic() - begun < 10
    took = parts.run("took")
    composer.page.keyboard.type("x")
    assert parts.run("composer.text.length") == len(text) + 1
    assert composer.over().startswith(f"The message has {len(text) + 1:,} characters")
    assert took < 2000
    assert parts.run("took") < 2000
