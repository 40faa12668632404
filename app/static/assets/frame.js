// What stands around the conversation: the drawer, the dialog with the keys, and the focus, which must never fall to
// nothing: when what has it vanishes, and nobody else gives it away, it goes `home`.

const WRITING = "input, textarea, select, [role=menu]";

const isThere = (one) =>
  one.isConnected && !one.disabled && one.checkVisibility?.({ visibilityProperty: true }) !== false;

/** element(id); home() puts the focus there. */
export function createFrame({ element, home }) {
  const [nav, main, drawer, shade, keys] = ["list", "main", "drawer", "shade", "keys"].map(element);
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
    else home();
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
