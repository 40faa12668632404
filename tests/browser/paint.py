"""Tell how long after the model's server had written a token the page had painted it.

The page notes, whenever an answer's text has grown, its length and the time: a MutationObserver sees it committed, the
next frame and a message task after it have it painted (up to a frame too late, never too early). A page that is hidden
has no frames; there the commit counts. Joined with the upstream's ledger by the length of the text, so the answer must
be plain prose: what Markdown takes away would be missing from the length.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

from tests.browser.chatpage import ChatPage
from tests.harness.ledger import RequestRecord

NOTE_PAINTS = """
(() => {
  const paints = globalThis.paintsOfTheTest = [];
  const waiting = [];
  const now = () => performance.timeOrigin + performance.now();
  const channel = new MessageChannel();
  channel.port1.onmessage = () => {
    const painted = now();
    for (const paint of waiting.splice(0)) paint[2] = painted;
  };
  let latest = null, length = 0;
  new MutationObserver(() => {
    const answer = [...document.querySelectorAll("[data-answer]")].at(-1);
    if (!answer) return;
    if (answer !== latest) [latest, length] = [answer, 0];
    const grown = answer.textContent.length;
    if (grown <= length) return;
    length = grown;
    const paint = [grown, now(), null];
    paints.push(paint);
    if (document.hidden) paint[2] = paint[1];
    else requestAnimationFrame(() => { waiting.push(paint); channel.port2.postMessage(null); });
  }).observe(document, {subtree: true, childList: true, characterData: true});
})();
"""
NOW = "() => performance.timeOrigin + performance.now()"


@dataclass(frozen=True)
class Paint:
    """One growth of the text: its length then, in UTF-16 units, and when. Units: seconds of `time.monotonic()`."""

    length: int
    committed: float
    painted: float


class PaintClock:
    """Note the paints of a page. To be made before the page is opened."""

    def __init__(self, chat: ChatPage) -> None:
        self._page = chat.page
        self._page.add_init_script(NOTE_PAINTS)

    def paints(self) -> list[Paint]:
        """List the paints since the page was loaded, of every answer, as they came."""
        offset = self._offset()
        noted = self._page.evaluate("paintsOfTheTest")
        return [
            Paint(length, committed / 1000 - offset, painted / 1000 - offset)
            for length, committed, painted in noted
            if painted is not None
        ]

    def delays(self, record: RequestRecord) -> list[float]:
        """List for each token of one answer, the page's last one, how long after its writing it was painted.

        Tokens that were painted together count each. Units: seconds. Raises: AssertionError, if one was not painted.
        """
        delays = []
        paints = _last_answer(self.paints())
        length = 0
        for number, (text, written) in enumerate(record.tokens, 1):
            length += len(text.encode("utf-16-le", "surrogatepass")) // 2
            while paints and paints[0].length < length:
                paints.pop(0)
            assert paints, f"token {number} of {len(record.tokens)}, text of {length} units, was not painted"
            delays.append(paints[0].painted - written)
        return delays

    def _offset(self) -> float:
        """Tell by how much the page's clock is ahead, from the quickest of some exchanges. Units: seconds."""
        quickest, offset = float("inf"), 0.0
        for _ in range(9):
            before = time.monotonic()
            there = self._page.evaluate(NOW) / 1000
            after = time.monotonic()
            if after - before < quickest:
                quickest, offset = after - before, there - (before + after) / 2
        return offset


def _last_answer(paints: list[Paint]) -> list[Paint]:
    """Leave out what belongs to earlier answers: a shorter text than the one before begins an answer."""
    begins = [index for index in range(1, len(paints)) if paints[index].length < paints[index - 1].length]
    return paints[begins[-1] if begins else 0 :]


def summary(delays: list[float]) -> dict[str, Any]:
    """Tell a distribution. Units: milliseconds."""
    if len(delays) == 1:
        delays = delays * 2
    cuts = statistics.quantiles(delays, n=100, method="inclusive")
    figures = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(delays)}
    return {"tokens": len(delays), **{name: round(seconds * 1000, 1) for name, seconds in figures.items()}}
