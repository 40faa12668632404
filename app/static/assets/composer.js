// The message box: what the keys mean, Send and Stop, the draft. It must never lose what was typed, never send what an
// input method is still composing, and knows nothing of conversations, models or the network.

import { BUSY } from "./words.js";

const GUARD_MS = 400; // how long the button ignores presses after its meaning changed
const DRAFT_MS = 400;
const KEYS = "Enter sends the message. Shift+Enter starts a new line.";

// Safari ends a composition before it tells the Enter that ended it: not composing any more, but of the code 229.
const isComposed = (event) => event.isComposing || event.keyCode === 229;
/** Whether this is a select that shows its choices; a browser that cannot tell always does. */
const isOpen = (target) =>
  target.localName === "select" && (!CSS.supports("selector(:open)") || target.matches(":open"));
const count = (number) => number.toLocaleString("en");

function codePoints(text) {
  let pairs = 0;
  for (let at = 0; at < text.length - 1; at++) {
    if ((text.charCodeAt(at) & 0xfc00) === 0xd800 && (text.charCodeAt(at + 1) & 0xfc00) === 0xdc00) {
      pairs++;
      at++;
    }
  }
  return text.length - pairs;
}

/**
 * form: holds a textarea, #over (why its text cannot be sent), #send and #hint. onSend(text) -> true when the message was taken; onStop(); onDraft(text),
 * at most every 400 ms, at once when the page is left; onSay(text): a line was shown that a screen reader should say.
 * now() -> epoch milliseconds; isTouch() -> true where Enter makes a new line.
 */
export function createComposer({
  form,
  onSend,
  onStop,
  onDraft = () => {},
  onSay = () => {},
  now = Date.now,
  isTouch = () => matchMedia("(pointer: coarse)").matches,
}) {
  const box = form.querySelector("textarea");
  const button = form.querySelector("#send");
  const over = form.querySelector("#over");
  const hint = form.querySelector("#hint");
  const resting = isTouch() ? "" : KEYS;
  const growsByStyle = getComputedStyle(box).fieldSizing === "content";
  let state = null; // null, or a word while an answer is on its way
  let changedAt = -Infinity; // when the button last changed its meaning, and nothing was typed since
  let most = Infinity; // code points
  let composing = false;
  let waiting = []; // given back while an input method was composing
  let timer = 0;
  let height = { width: 0, length: 0 };

  function tell(text, spoken) {
    const shown = text || resting;
    if (hint.textContent !== shown) hint.textContent = shown;
    if (text && spoken) onSay(text);
  }

  /** Near the limit: how many characters there are. Over it, where the eye is; said once. */
  function judge() {
    const characters = box.value.length <= most * 0.9 ? 0 : codePoints(box.value);
    const isOver = characters > most;
    const line = `The message has ${count(characters)} characters; at most ${count(most)} can be sent. Shorten it.`;
    if (isOver && !over.textContent) onSay(line);
    over.textContent = isOver ? line : "";
    box.ariaInvalid = isOver ? "true" : null;
    tell(characters > most * 0.9 && !isOver ? `${count(characters)} of ${count(most)} characters` : "", false);
  }

  // Only a text that became shorter needs the box collapsed to be measured; the form holds its height meanwhile.
  function fit() {
    if (growsByStyle) return;
    const { length } = box.value;
    const shorter = length < height.length || box.clientWidth !== height.width;
    if (!shorter && box.style.height && box.offsetHeight + 1 < parseFloat(box.style.height)) {
      height.length = length; // as high as it may be
      return;
    }
    if (shorter) {
      form.style.minHeight = `${form.offsetHeight}px`;
      box.style.height = "auto";
    }
    const needed = `${box.scrollHeight + box.offsetHeight - box.clientHeight}px`;
    if (box.style.height !== needed) box.style.height = needed;
    if (shorter) form.style.minHeight = "";
    height = { width: box.clientWidth, length };
  }

  function flush() {
    if (!timer) return;
    clearTimeout(timer);
    timer = 0;
    onDraft(box.value);
  }

  function changed() {
    fit();
    judge();
    if (!timer) timer = setTimeout(flush, DRAFT_MS);
  }

  function put(text, caret) {
    box.value = text;
    box.setSelectionRange(caret, caret);
    changed();
  }

  function send() {
    const text = box.value;
    if (!text.trim()) return;
    if (state) return tell(BUSY, true);
    if (over.textContent) return onSay(over.textContent);
    if (onSend(text) !== true) return;
    put("", 0);
    flush();
  }

  function stop() {
    if (state !== "stopping") onStop();
  }

  function giveBack(text) {
    if (composing) return void waiting.push(text);
    const typed = box.value.trim() ? box.value : "";
    const before = typed ? `${text.trimEnd()}\n\n` : text;
    put(before + typed, before.length + (typed ? box.selectionEnd : 0));
    flush();
  }

  box.addEventListener("input", () => {
    changedAt = -Infinity;
    changed();
  });
  box.addEventListener("blur", flush);
  box.addEventListener("compositionstart", () => (composing = true));
  box.addEventListener("compositionend", () => {
    composing = false;
    setTimeout(() => waiting.splice(0).forEach(giveBack)); // once the text of the composition is in
  });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || isComposed(event)) return;
    if (event.shiftKey || event.altKey || (isTouch() && !event.ctrlKey && !event.metaKey)) return;
    event.preventDefault();
    if (!event.repeat) send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !state || event.defaultPrevented || event.repeat) return;
    if (isComposed(event)) return;
    // What is open is closed: the choices, a dialog, the drawer. A menu and a title have taken the key.
    if (isOpen(event.target) || document.querySelector("dialog[open]") || form.closest("[inert]")) return;
    event.preventDefault();
    stop();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (now() - changedAt < GUARD_MS) return;
    if (state) return stop();
    send();
  });
  button.addEventListener("mousedown", (event) => event.preventDefault()); // the box keeps the caret (and the keyboard)
  addEventListener("pagehide", flush);
  document.addEventListener("visibilitychange", () => document.hidden && flush());
  new ResizeObserver(() => box.clientWidth !== height.width && fit()).observe(box);
  button.type = "submit";
  box.disabled = button.disabled = false; // until here nobody would have taken what is typed
  hint.textContent = resting;
  fit();

  return {
    /** state: the state of the answer that is on its way ("stopping" once Stop was pressed), or null. */
    busy(next) {
      if (Boolean(next) !== Boolean(state)) {
        changedAt = now();
        button.textContent = next ? "Stop" : "Send";
        form.classList.toggle("busy", Boolean(next));
        if (!next && hint.textContent === BUSY) judge();
      }
      state = next || null;
      button.ariaDisabled = state === "stopping" ? "true" : null;
    },
    /** Shows another conversation's draft; a draft that was not handed over yet is dropped: `flush` before. */
    setDraft(text) {
      clearTimeout(timer);
      put(text, text.length);
      clearTimeout(timer);
      timer = 0;
    },
    /** Puts a message that could not be sent before what was typed meanwhile. */
    giveBack,
    /** Hands the draft over now, if it has changed. */
    flush,
    get text() {
      return box.value;
    },
    /** Where a keyboard would pop up, nothing. */
    focus() {
      if (!isTouch()) box.focus({ preventScroll: true });
    },
    /** A line below the box until the next input; also said. "" takes it away. */
    say: (text, spoken = true) => tell(text, spoken),
    /** The most characters (code points) a message may have. */
    limit(characters) {
      most = characters ?? Infinity;
      judge();
    },
  };
}
