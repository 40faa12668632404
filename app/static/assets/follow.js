// Where the log stands: at its end while the reader is there, else exactly where the reader left it. It must never move
// what somebody reads or has selected, and costs one read and at most one write of the layout a commit.

const HOLD_MS = 250; // after a wheel, a key: the reader's own scrolling begins
const LATE_MS = 500; // while text flows, a scroll to the end arrives where the end was
const SLICE_MS = 6; // of a frame, to measure messages in
const UP = new Set(["ArrowUp", "PageUp", "Home"]);
const EDITABLE = "input, textarea, select, dialog, [role=menu]";

/** What is at a point of the window: a text and the place in it, or an element. -> {node, offset} or null */
function findAt(x, y) {
  const caret = document.caretPositionFromPoint?.(x, y);
  const range = caret ? null : document.caretRangeFromPoint?.(x, y); // Safari
  const node = caret?.offsetNode ?? range?.startContainer;
  const offset = caret?.offset ?? range?.startOffset;
  return node ? { node: node.childNodes[offset] ?? node, offset } : null;
}

/** The top edge of a node, or of one character of a text, in CSS pixels from the window's top. */
function topOf(node, offset) {
  if (node.nodeType !== Node.TEXT_NODE) return node.getBoundingClientRect().top;
  const range = document.createRange();
  const from = Math.max(0, Math.min(offset, node.length - 1));
  range.setStart(node, from);
  range.setEnd(node, Math.min(node.length, from + 1));
  return range.getBoundingClientRect().top;
}

/** scroller: the element that scrolls, with the log inside; jump: the button "Jump to latest". */
export function createFollow({ scroller, jump }) {
  const log = scroller.querySelector("[role=log]") ?? scroller.firstElementChild;
  const room = document.createElement("div"); // keeps a detached view's place when what is below it gets shorter
  let pinned = true;
  let anchor = null; // {path: [{node, index, y}] from the log down, offset}: what stands at the top of the view
  let top = 0; // scrollTop as the reader or this module left it
  let end = 0; // the largest scrollTop at the last look
  let ends = []; // [{at, end}] of the last moments
  let heldUntil = 0;
  let held = 0; // a timer
  let pressed = false; // a finger, or the mouse on the text or the scroll bar
  const measuredAt = new WeakMap(); // message -> the log's width then
  let unmeasured = []; // messages
  let heights = []; // [message, px] of the others, until all are known
  let width = 0; // of the log
  let frame = 0;
  let allowed = false; // the selection was there when the reader asked for the end

  function pick() {
    const view = scroller.getBoundingClientRect();
    const x = (log.firstElementChild ?? log).getBoundingClientRect().left + 2;
    anchor = null;
    for (let y = view.top + 2; y < view.bottom && !anchor; y += 24) {
      const found = findAt(x, y);
      if (!found || found.node === log || !log.contains(found.node)) continue;
      const path = [];
      for (let node = found.node; node !== log; node = node.parentNode) {
        const index = Array.prototype.indexOf.call(node.parentNode.childNodes, node);
        path.unshift({ node, index, y: topOf(node, found.offset) });
      }
      anchor = { path, offset: found.offset };
    }
  }

  /** How far the anchor, or what stands at its place after its block was built again, is from where it was, in px. */
  function shift() {
    let last = null;
    for (const step of anchor?.path ?? []) {
      const parent = last ? last.node : log;
      const node = step.node.parentNode === parent ? step.node : parent.childNodes[step.index];
      if (!node || node.nodeName !== step.node.nodeName) break;
      if (node.nodeType === Node.TEXT_NODE && anchor.offset > node.length) break;
      step.node = node;
      last = step;
    }
    return last ? topOf(last.node, anchor.offset) - last.y : 0;
  }

  /**
   * What is far from the view is not laid out (page.css), and its height a guess, which would be mended under the
   * reader's scrolling. So all are measured between frames, and told at once while no hand is at it.
   */
  function learn() {
    width = log.clientWidth;
    const all = [...log.querySelectorAll('article:not([aria-busy="true"])')];
    unmeasured = all.filter((one) => measuredAt.get(one) !== width);
    heights = [];
    frame ||= requestAnimationFrame(learnSome);
  }

  function learnSome() {
    const until = performance.now() + SLICE_MS;
    while (unmeasured.length && performance.now() < until) {
      const one = unmeasured.pop();
      heights.push([one, one.lastElementChild.getBoundingClientRect().bottom - one.getBoundingClientRect().top]);
    }
    const isDue = !unmeasured.length && !pressed && performance.now() >= heldUntil;
    frame = isDue ? 0 : requestAnimationFrame(learnSome);
    if (!isDue) return;
    for (const [one, height] of heights) {
      one.style.containIntrinsicHeight = `auto ${height}px`; // what was near once, the browser remembers
      measuredAt.set(one, width);
    }
  }

  function selecting() {
    const selection = document.getSelection();
    return Boolean(selection?.rangeCount && !selection.isCollapsed && selection.getRangeAt(0).intersectsNode(log));
  }

  function measure() {
    const at = performance.now();
    end = Math.max(0, scroller.scrollHeight - scroller.clientHeight);
    ends = ends.filter((one) => at - one.at < LATE_MS);
    ends.push({ at, end });
  }

  function reached(place) {
    const at = performance.now();
    return place >= Math.min(end, ...ends.filter((one) => at - one.at < LATE_MS).map((one) => one.end)) - 2;
  }

  function keep(place) {
    room.style.top = pinned ? "0" : `${Math.max(0, place + scroller.clientHeight - 1)}px`;
  }

  function show() {
    const hidden = pinned || top >= end - 2;
    if (jump.hidden === hidden) return;
    if (hidden && document.activeElement === jump) scroller.focus({ preventScroll: true });
    jump.hidden = hidden;
  }

  /** resized: the browser, not the reader, may have moved the view since the last look. */
  function settle(resized) {
    measure();
    if (pinned && top < end - 1 && !allowed && selecting()) {
      pinned = false;
      pick();
    }
    if (!pinned) stay(resized);
    else if (!pressed && performance.now() >= heldUntil) {
      if (Math.abs(scroller.scrollTop - end) >= 0.5) scroller.scrollTop = end;
      top = end;
    }
    show();
  }

  function stay(resized) {
    const now = scroller.scrollTop;
    const shifted = shift();
    for (const one of ends) one.end += shifted; // what came above moves them too
    const moved = shifted + (resized ? 0 : now - top);
    const place = Math.abs(moved) < 0.5 ? now : now + moved;
    keep(place);
    if (place !== now) scroller.scrollTop = place;
    top = resized ? place : top + place - now; // a reader's own step in between is still to be told
  }

  function scrolled() {
    const now = scroller.scrollTop;
    const moved = now - top;
    if (Math.abs(moved) <= 1) return;
    const most = scroller.scrollHeight - scroller.clientHeight;
    if (moved < 0 && most < top - 1 && now >= most - 1) return settle(true); // the browser, not the reader
    top = now;
    if (pinned && moved < 0 && now < most - 2) pinned = false;
    else if (!pinned && moved > 0 && reached(now)) {
      pinned = true;
      settle(false);
    }
    if (!pinned) pick();
    keep(top);
    show();
  }

  function pin() {
    pinned = allowed = true;
    heldUntil = 0;
    keep(0);
    settle(false);
    learn();
  }

  /** The reader is about to scroll: a write of ours would end the browser's own scrolling. */
  function hold() {
    heldUntil = performance.now() + HOLD_MS;
    clearTimeout(held);
    held = setTimeout(settle, HOLD_MS + 1);
  }

  function press(down) {
    pressed = down;
    if (!down) hold();
  }

  function key(event) {
    const { target } = event;
    if (event.defaultPrevented || target.closest?.(EDITABLE)) return;
    if (target !== document.body && !scroller.contains(target)) return;
    if (UP.has(event.key) || (event.key === " " && event.shiftKey)) hold();
    else if (event.key === "End" && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      pin();
    }
  }

  room.className = "room";
  room.setAttribute("aria-hidden", "true");
  Object.assign(room.style, { position: "absolute", top: "0", width: "1px", height: "1px", visibility: "hidden" });
  Object.assign(scroller.style, { scrollBehavior: "auto", overflowAnchor: "none" });
  if (getComputedStyle(scroller).position === "static") scroller.style.position = "relative";
  if (!scroller.hasAttribute("tabindex")) scroller.tabIndex = 0; // for the keys
  scroller.append(room);
  jump.hidden = true;

  const quiet = { passive: true };
  scroller.addEventListener("scroll", scrolled, quiet);
  scroller.addEventListener("wheel", (event) => event.deltaY < 0 && hold(), quiet);
  scroller.addEventListener("touchstart", () => press(true), quiet);
  for (const name of ["touchend", "touchcancel"]) scroller.addEventListener(name, () => press(false), quiet);
  scroller.addEventListener("pointerdown", (event) => {
    if (event.button === 0 && event.pointerType === "mouse") press(true);
  });
  // The release of a scroll bar is told by no event of its own.
  addEventListener("pointermove", (event) => pressed && !event.buttons && press(false), quiet);
  for (const name of ["pointerup", "pointercancel", "dragend", "blur"]) {
    addEventListener(name, () => pressed && press(false));
  }
  document.addEventListener("keydown", key);
  document.addEventListener("selectionchange", () => (allowed = false));
  document.addEventListener("visibilitychange", () => document.hidden || settle(true));
  jump.addEventListener("click", pin);

  const watcher = new ResizeObserver((entries) => {
    settle(entries.some((entry) => entry.target === scroller));
    if (log.clientWidth !== width) learn(); // the same text has other lines
  });
  watcher.observe(scroller);
  for (const child of scroller.children) if (child !== room) watcher.observe(child);

  return {
    /** After every commit, every other change of the log, and every change around it. */
    changed: () => document.hidden || settle(false),
    /** To the end, and stay there: on the reader's own message, and when a conversation is opened. */
    pin,
    get pinned() {
      return pinned;
    },
  };
}
