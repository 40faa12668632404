"""What a person has of the page who sees nothing, or has no mouse: what is announced, and what has the focus."""

from __future__ import annotations

from typing import Any

from tests.browser.chatpage import ChatPage

# Every text that a live region has ever held, in order, and every frame in which nothing, or something that cannot be
# seen, had the focus, once something had had it.
WATCH = """
addEventListener("DOMContentLoaded", () => {
  window.announced = [];
  window.fallen = [];
  const regions = '[role="status"], [role="alert"], [aria-live="polite"], [aria-live="assertive"]';
  const texts = new Map();
  const listen = () => {
    for (const region of document.querySelectorAll(regions)) {
      const text = region.textContent.trim();
      if (text && texts.get(region) !== text) announced.push(text);
      texts.set(region, text);
    }
  };
  new MutationObserver(listen).observe(document, { childList: true, characterData: true, subtree: true });
  let had = null;
  const look = () => {
    const one = document.activeElement;
    const isThere = one !== document.body && one.checkVisibility({ visibilityProperty: true })
      && !one.closest("[inert]");
    if (had && !isThere) {
      fallen.push(`from ${had}`);
      had = null;
    }
    if (isThere) had = `${one.localName} ${one.getAttribute("aria-label") ?? one.textContent.trim().slice(0, 40)}`;
    requestAnimationFrame(look);
  };
  look();
});
"""
FOCUS = """
() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() => {
  const one = document.activeElement;
  const labels = one.getAttribute("aria-labelledby")?.split(" ").map((id) => document.getElementById(id)?.textContent);
  const name = one.getAttribute("aria-label") || labels?.join(" ") || one.labels?.[0]?.textContent || one.textContent;
  resolve(one === document.body ? "" : name.trim().slice(0, 60));
})))
"""


def watch(chat: ChatPage) -> ChatPage:
    """Hear and see from the next load on."""
    chat.page.add_init_script(WATCH)
    return chat


def announced(chat: ChatPage) -> list[str]:
    """List what was announced since the page was loaded, each as often as it was."""
    said: list[str] = chat.page.evaluate("announced")
    return said


def wait_announced(chat: ChatPage, wanted: list[str], seconds: float = 20, *, progress: bool = True) -> None:
    """Wait until so much was announced, and check that it was exactly this.

    Not `progress`: but for how far the answer is, which a slow machine is told and a fast one not.
    """

    def heard() -> list[str]:
        return [text for text in announced(chat) if progress or not text.startswith("Still ")]

    try:
        chat.wait(lambda: len(heard()) >= len(wanted), seconds, f"{wanted[-1]!r} to be announced")
    finally:
        assert heard() == wanted, announced(chat)


def focus(chat: ChatPage) -> str:
    """Tell the name of what has the focus, once the page has had two frames; "" for nothing."""
    return str(chat.page.evaluate(FOCUS))


def fallen(chat: ChatPage) -> list[str]:
    """List from where the focus has fallen to nothing, or to what cannot be seen."""
    found: list[str] = chat.page.evaluate("fallen")
    return found


def tab_to(chat: ChatPage, name: str, *keys: str) -> None:
    """Press Tab, or these keys in turn, until this has the focus. Raises: AssertionError with what had it."""
    met: list[Any] = []
    for number in range(60):
        chat.page.keyboard.press(keys[number % len(keys)] if keys else "Tab")
        met.append(focus(chat))
        if met[-1] == name:
            return
    raise AssertionError(f"{name!r} was not met, but {met}")
