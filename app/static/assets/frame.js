// What stands around the conversation: the drawer, the dialog with the keys, the notices above the messages, and the
// focus, which must never fall to nothing: when what has it vanishes, and nobody else gives it away, it goes `home`, and
// to the messages where there is no going home.

const WRITING = "input, textarea, select, [role=menu]";

const isThere = (one) =>
  one.isConnected && !one.disabled && one.checkVisibility?.({ visibilityProperty: true }) !== false;

/** element(id); home() puts the focus where one writes, or does nothing where a keyboard would pop up. */
export function createFrame({ element, home }) {
  const parts = ["list", "main", "drawer", "shade", "keys", "scroller"];
  const [nav, main, drawer, shade, keys, scroller] = parts.map(element);
  let last = null; // what has the focus
  const isOpen = () => drawer.ariaExpanded === "true";

  /** The drawer of small windows; what is behind it cannot be reached. */
  function showList(open) {
    if (open === isOpen()) return;
    drawer.ariaExpanded = String(open);
    main.inert = open;
    (open ? (nav.querySelector("[aria-current]") ?? nav.querySelector(".new")) : drawer).focus();
  }

  function rescue() {
    if (!last || (last.localName === "textarea" && last.isConnected) || isThere(last)) return;
    last = null;
    if (isOpen()) nav.querySelector(".new").focus();
    else {
      home();
      const { activeElement } = document; // what is hidden keeps the focus until the next frame
      if (activeElement === document.body || !isThere(activeElement)) scroller.focus({ preventScroll: true });
    }
  }

  document.addEventListener("focusin", ({ target }) => (last = target));
  document.addEventListener("focusout", () => {
    queueMicrotask(() => {
      if (last && document.activeElement === document.body && isThere(last)) last = null; // as the reader wants
    });
  });
  const look = () => (last?.closest("dialog") ? setTimeout(rescue) : rescue()); // a dialog gives it back itself
  const attributeFilter = ["hidden", "disabled", "open"];
  new MutationObserver(look).observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter });

  document.addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
    if (key === "Escape" && isOpen()) showList(false);
    else if (key === "?" && !event.ctrlKey && !event.metaKey && !target.closest(WRITING)) keys.showModal();
    else return;
    event.preventDefault();
  });
  drawer.addEventListener("click", () => showList(true));
  for (const one of [element("leave"), shade]) one.addEventListener("click", () => showList(false));
  matchMedia("(width < 760px)").addEventListener("change", () => showList(false));
  element("shortcuts").addEventListener("click", () => keys.showModal());
  keys.querySelector("button").addEventListener("click", () => keys.close());
  return { showList };
}

/** What is wrong, until it is mended or put away. `onChange`: the room for the messages has changed. */
export function createNotices({ root, onChange }) {
  const away = new Set();
  const boxes = new Map(); // what is shown: one that was made again would be said again
  return { show };

  /** `problems`: of store.problems(), each in three parts. */
  function show(problems) {
    const due = new Map(problems.map((problem) => [`${problem.code} ${problem.id ?? ""}`, problem]));
    for (const gone of away) if (!due.has(gone)) away.delete(gone); // should it come back, it is said again
    for (const key of boxes.keys()) if (!due.has(key)) drop(key);
    for (const [key, problem] of due) {
      if (away.has(key) || boxes.has(key)) continue;
      boxes.set(key, box(problem, () => putAway(key)));
      root.append(boxes.get(key));
      onChange();
    }
  }

  function putAway(key) {
    const { nextElementSibling, previousElementSibling } = boxes.get(key);
    away.add(key);
    drop(key);
    (nextElementSibling ?? previousElementSibling)?.querySelector("button").focus();
  }

  function drop(key) {
    boxes.get(key).remove();
    boxes.delete(key);
    onChange();
  }
}

function box({ message, detail, action, link }, onClose) {
  const made = document.createElement("div");
  made.className = "box";
  made.dataset.tone = "warning";
  made.setAttribute("role", "alert");
  const parts = [message, detail, action].map((part, at) => {
    const line = document.createElement("p");
    line.append(at ? part : Object.assign(document.createElement("strong"), { textContent: part }));
    return line;
  });
  const close = Object.assign(document.createElement("button"), { type: "button", textContent: "Dismiss" });
  close.addEventListener("click", onClose);
  made.append(...parts);
  if (link) {
    const way = { href: location.pathname, target: "_blank", rel: "noopener", className: "action", textContent: link };
    made.append(Object.assign(document.createElement("a"), way), " ");
  }
  made.append(close);
  return made;
}
