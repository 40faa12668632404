"""A log with long answers and a view that follows it: steps of the tests of follow.js."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.browser.parts import Parts, open_parts

START = """
async () => {
    const { createFollow } = await import("/assets/follow.js");
    const element = (id) => document.getElementById(id);
    const make = (tag, properties, ...children) => {
        const made = Object.assign(document.createElement(tag), properties);
        made.append(...children);
        return made;
    };
    const text = (number) => `Paragraph ${number}. ` + `Words of it that go on for some lines, ${number}. `.repeat(5);
    const log = element("log");
    window.scroller = element("scroller");
    window.answer = (paragraphs) => {
        const prose = make("div", {className: "prose"});
        for (let number = 0; number < paragraphs; number++) prose.append(make("p", {textContent: text(number)}));
        prose.append(make("p", {className: "live", textContent: "The open paragraph. "}));
        const foot = make("div", {className: "foot"}, make("span", {className: "status", textContent: "Answering…"}));
        const article = make("article", {}, prose, foot);
        article.dataset.state = "streaming";
        log.append(article);
        return article;
    };
    const first = answer(2);
    first.append(make("p", {}, make("a", {href: "#first", textContent: "the first link"})));
    window.current = answer(40);
    window.follow = createFollow({scroller, jump: element("jump")});
    follow.pin();

    window.commit = (piece) => { current.querySelector(".live").firstChild.appendData(piece); follow.changed(); };
    window.flow = {on: false, commits: 0};
    window.begin = (piece = "some more words ") => {
        flow.on = true;
        requestAnimationFrame(function frame() {
            if (!flow.on) return;
            commit(piece);
            flow.commits++;
            requestAnimationFrame(frame);
        });
    };
    window.gap = () => scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop;

    // How far a letter at the top of the view goes, looked at after every frame was painted.
    window.watch = (node) => {
        const at = scroller.getBoundingClientRect();
        const found = document.caretPositionFromPoint(log.getBoundingClientRect().left + 40, at.top + 12);
        const range = document.createRange();
        range.setStart(found.offsetNode, found.offset);
        range.setEnd(found.offsetNode, found.offset + 1);
        const place = () => range.getBoundingClientRect().top;
        const start = place();
        window.drift = {most: 0, frames: 0, largestGap: 0, letter: range.toString()};
        const size = () => `${innerWidth} × ${innerHeight}`;
        const channel = new MessageChannel();
        channel.port1.onmessage = ({data}) => {
            requestAnimationFrame(() => channel.port2.postMessage(size()));
            if (data !== size()) return; // the window has changed since that frame, and nothing of it was painted yet
            drift.most = Math.max(drift.most, Math.abs(place() - start));
            drift.largestGap = Math.max(drift.largestGap, gap());
            drift.frames++;
        };
        channel.port2.postMessage(size());
    };
    window.nextFrames = (count) => new Promise(function frame(done) {
        if (count-- > 0) requestAnimationFrame(() => frame(done));
        else done();
    });
}
"""
WHEEL_UP = -400


@contextmanager
def open_log(browser: Any, origin: Any) -> Iterator[Parts]:
    """Open a page whose log is long and pinned to its end, with the mouse over it."""
    with open_parts(browser, origin) as parts:
        parts.run(START)
        parts.run("nextFrames(3)")
        assert parts.run("scroller.scrollTop") > 1000  # the premise: there is much to read
        assert parts.run("[follow.pinned, gap() <= 1, jump.hidden]") == [True, True, True]
        parts.page.locator("#scroller").hover()
        yield parts


def is_detached(parts: Parts) -> bool:
    return parts.run("!follow.pinned && !jump.hidden") is True


def detach(parts: Parts, pixels: int = WHEEL_UP) -> None:
    """Scroll up with the wheel and wait until the view stands."""
    parts.page.mouse.wheel(0, pixels)
    parts.wait(lambda: is_detached(parts), "a detached view")
    rest(parts)


def rest(parts: Parts) -> None:
    """Wait until scrolling has come to its end."""
    parts.run("""async () => {
        for (let same = 0, top = -1; same < 10; await nextFrames(1)) {
            same = scroller.scrollTop === top ? same + 1 : 0;
            top = scroller.scrollTop;
        }
    }""")


def assert_view_stays(parts: Parts, change: Callable[[], None], *, frames: int = 12) -> None:
    """Watch a letter at the top of the view while something changes.

    A change that follow.js is not told of is made in a frame (`nextFrames(1)`): what is seen between two frames was
    never painted.
    """
    parts.run("watch()")
    change()
    parts.run("count => nextFrames(count)", frames)
    drift = parts.run("drift")
    assert drift["frames"] >= frames - 2
    assert drift["most"] <= 1, drift
