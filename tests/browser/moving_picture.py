"""Make docs/pictures/plug.png: the plug is pulled in mid-answer, and the answer goes on where it stopped.

The page, the service and the proxy that cuts the connection are real; only the model's words are written here.
`make pictures` runs it. The frames keep the times at which they were taken.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.browser.apng import Frame, join
from tests.browser.chatpage import ChatPage
from tests.harness.chaos import ChaosProxy
from tests.harness.server import ROOT
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token

PICTURE = ROOT / "docs" / "pictures" / "plug.png"
SIZE = {"width": 752, "height": 528}
MOST_BYTES = 1_500_000
LONGEST_FRAME = 400
LAST_FRAME = 3000

QUESTION = "What happens to an answer when the connection breaks?"
BEGINNING = """Nothing. The answer does not live in the connection, but in a log on the server:

1. The model writes, and every token gets a number.
2. The page keeps the number of the last token it has seen.
"""
REST = """3. You pull the plug. The model goes on writing.
4. You put it back. The page asks for the tokens after that number.
"""
END = """
At the end the server sends the SHA-256 of the whole text. The page compares it with its own, and says **complete** \
only when they are the same."""

ON, OFF = "#0b6b5b", "#b3261e"
ASKING = (ON, "Plugged in")
ANSWERING = (ON, "Plugged in: the answer arrives token by token")
CUT = (OFF, "The plug is pulled: every connection is cut, and none is accepted")
BACK = (ON, "Plugged in again: the page asks for the rest")
WHOLE = (ON, "Complete: the SHA-256 of the text is the one that the server sent")

COMPOSE = """
async ([pictures, captions]) => {
  const HIGH = 40, frames = [];
  let before = null;
  for (const [index, picture] of pictures.entries()) {
    const image = await createImageBitmap(await (await fetch("data:image/png;base64," + picture)).blob());
    const whole = new OffscreenCanvas(image.width, image.height + HIGH);
    const brush = whole.getContext("2d", { alpha: false, willReadFrequently: true });
    const [colour, text] = captions[index];
    brush.fillStyle = colour;
    brush.fillRect(0, 0, whole.width, HIGH);
    brush.drawImage(image, 0, HIGH);
    brush.fillStyle = "#ffffff";
    brush.font = "600 16px sans-serif";
    brush.textBaseline = "middle";
    brush.fillText(text, 20, HIGH / 2);
    const now = new Uint32Array(brush.getImageData(0, 0, whole.width, whole.height).data.buffer);
    let left = whole.width, top = whole.height, right = -1, bottom = -1;
    for (let at = 0; at < now.length; at += 1) {
      if (before && now[at] === before[at]) continue;
      const x = at % whole.width, y = (at - x) / whole.width;
      left = Math.min(left, x); right = Math.max(right, x); top = Math.min(top, y); bottom = Math.max(bottom, y);
    }
    before = now;
    if (right < 0) { frames.push(null); continue; }
    const part = new OffscreenCanvas(right - left + 1, bottom - top + 1);
    part.getContext("2d", { alpha: false }).drawImage(whole, -left, -top);
    const bytes = new Uint8Array(await (await part.convertToBlob({ type: "image/png" })).arrayBuffer());
    frames.push([btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")), left, top]);
  }
  return frames;
}
"""
"""Writes each caption above its picture, and gives of each the smallest part that differs from the one before."""


@dataclass
class Film:
    """Take pictures of a page, and remember what was said at each and when it was taken."""

    page: Any
    caption: tuple[str, str] = ASKING
    taken: list[tuple[float, str, tuple[str, str]]] = field(default_factory=list)

    def take(self) -> None:
        """Take one picture."""
        png = self.page.screenshot(animations="disabled", caret="hide")
        self.taken.append((time.monotonic(), base64.b64encode(png).decode(), self.caption))

    def take_while(self, going_on: Callable[[], bool], seconds: float, what: str) -> None:
        """Take pictures as long as something goes on. Raises: AssertionError, after so many seconds."""
        until = time.monotonic() + seconds
        while going_on():
            assert time.monotonic() < until, f"not within {seconds:g} s: the end of {what}"
            self.take()
            self.page.wait_for_timeout(40)
        self.take()

    def develop(self, blank: Any) -> bytes:
        """Make the moving picture on a blank page."""
        found = blank.evaluate(COMPOSE, [[png for _, png, _ in self.taken], [said for _, _, said in self.taken]])
        times = [at for at, _, _ in self.taken]
        frames: list[Frame] = []
        for part, since, until in zip(found, times, [*times[1:], times[-1] + LAST_FRAME / 1000], strict=True):
            shown = round((until - since) * 1000)
            shown = shown if until > times[-1] else min(shown, LONGEST_FRAME)
            if part is None:  # nothing has changed
                last = frames.pop()
                frames.append(Frame(last.png, last.left, last.top, last.milliseconds + shown))
            else:
                frames.append(Frame(base64.b64decode(part[0]), part[1], part[2], shown))
        return join(frames)


def words(text: str) -> list[Token]:
    """Cut a text into tokens, one a word."""
    return [Token(word, pause=0.07) for word in text.replace(" ", " \0").split("\0")]


def make(browser: Any, upstream: ScriptedUpstream, proxy: ChaosProxy) -> bytes:
    """Ask, pull the plug, put it back, and wait for the end."""
    upstream.reset()
    steps = [*words(BEGINNING), Gate("cut"), *words(REST), Gate("back"), *words(END), Finish(), Done()]
    upstream.always(Script(steps=steps))
    context = browser.new_context(viewport=SIZE, reduced_motion="reduce", color_scheme="light")
    try:
        chat = ChatPage(context.new_page(), proxy.base_url).open()
        film = Film(chat.page)
        film.take()
        for at in range(0, len(QUESTION), 4):
            chat.box.press_sequentially(QUESTION[at : at + 4])
            film.take()
        chat.box.press("Enter")
        film.caption = ANSWERING
        film.take_while(lambda: "it has seen" not in chat.text(), 20, "the first half")

        film.caption = CUT
        proxy.refuse()
        proxy.cut_all()
        upstream.open("cut")
        film.take_while(lambda: "words are safe" not in chat.shown(), 20, "the connection")
        pulled = time.monotonic()
        film.take_while(lambda: time.monotonic() < pulled + 3.0, 20, "the pause")

        film.caption = BACK
        proxy.accept()
        film.take_while(lambda: "after that number" not in chat.text(), 20, "the waiting")
        upstream.open("back")
        film.take_while(lambda: chat.state() != "complete", 20, "the second half")
        film.caption = WHOLE
        film.take()
        return film.develop(context.new_page())
    finally:
        upstream.open("cut")
        upstream.open("back")
        proxy.accept()
        context.close()
