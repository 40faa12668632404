// The DOM of markdown.js: blocks' elements, and text nodes that grow. Never HTML from the text, never a request.

import { parseInline } from "./inline.js";

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const name in attributes) made.setAttribute(name, attributes[name]);
  made.append(...children);
  return made;
}

/** Makes the text node hold its first `lead` characters and `data`. */
export function setText(node, lead, data) {
  const now = node.data.slice(lead);
  if (data === now) return;
  if (data.startsWith(now)) node.appendData(data.slice(now.length));
  else node.replaceData(lead, now.length, data);
}

/**
 * Makes what follows `last` (null: all) inside `parent` equal to inline.js's `nodes`, with as few changes as a growing
 * text needs. `lead` > 0: `last` is a text of which that much stands; a first text continues it. Gives the DOM nodes.
 */
export function patch(parent, last, lead, nodes) {
  const list = [];
  if (lead) {
    const more = typeof nodes[0] === "string";
    setText(last, lead, more ? nodes[0] : "");
    if (more) list.push(last);
  }
  let next = last ? last.nextSibling : parent.firstChild;
  for (const node of nodes.slice(list.length)) {
    let there = next;
    if (typeof node === "string") {
      if (there?.nodeType === 3) setText(there, 0, node);
      else there = parent.insertBefore(document.createTextNode(node), next);
    } else {
      const [tag, attributes, children] = node;
      if (there?.localName !== tag) there = parent.insertBefore(element(tag), next);
      for (const { name } of [...there.attributes]) if (!(name in (attributes ?? {}))) there.removeAttribute(name);
      for (const name in attributes) {
        if (there.getAttribute(name) !== attributes[name]) there.setAttribute(name, attributes[name]);
      }
      patch(there, null, 0, children);
    }
    list.push(there);
    next = there.nextSibling;
  }
  clear(next);
  return list;
}

/** Takes away `from` and what follows it. */
export function clear(from) {
  while (from) {
    const gone = from;
    from = from.nextSibling;
    gone.remove();
  }
}

function codeBlock(language) {
  const host = element("code");
  const copy = element("button", { type: "button", class: "copy-code", "aria-label": "Copy code" });
  copy.addEventListener("click", () => {
    copy.dispatchEvent(new CustomEvent("copytext", { bubbles: true, detail: host.textContent }));
  });
  const head = element("div", { class: "code-head", ...(language && { "data-language": language }) }, copy);
  return { el: element("div", { class: "code", dir: "ltr" }, head, element("pre", { tabindex: "0" }, host)), host };
}

function tableBlock({ head, sides }) {
  const host = element("tbody");
  const top = element("tr");
  patch(top, null, 0, cells(head, head, sides, "th", false));
  const table = element("table", {}, element("thead", {}, top), host);
  return { el: element("div", { class: "table", tabindex: "0" }, table), host };
}

// A row's cells, with a tab between them. What a row has too much stays in its last cell.
function cells(row, head, sides, tag, open) {
  return head.flatMap((_, index) => {
    const lastOne = index === head.length - 1;
    const text = lastOne ? row.slice(index).join(" | ") : (row[index] ?? "");
    const attributes = { ...(tag === "th" && { scope: "col" }), ...(sides[index] && { class: sides[index] }) };
    const cell = [tag, attributes, parseInline(text, "", open && index >= row.length - 1, 0).nodes];
    return index ? ["\t", cell] : [cell];
  });
}

const build = {
  para: () => ({ el: element("p") }),
  heading: ({ level }) => ({ el: element(`h${level}`) }),
  quote: () => ({ el: element("blockquote") }),
  list: ({ start }) => ({ el: start === null ? element("ul") : element("ol", start === 1 ? {} : { start }) }),
  item: () => ({ el: element("li") }),
  rule: () => ({ el: element("hr") }),
  row: () => ({ el: element("tr") }),
  code: ({ language }) => codeBlock(language),
  table: tableBlock,
};

const LETTER = /[\p{Lu}\p{Ll}\p{Lt}\p{Lo}\u061c\u200e\u200f]/u; // or a mark that turns like one
const LEFTWARDS = /[\u0590-\u08ff\u200f\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;
const NEAR = 200; // characters and elements

/** A block has the direction of its first letter; what is first in an item or a quote makes theirs. */
const isDirected = (type, parent, next) =>
  /para|head|quote|list|table/.test(type) &&
  (!/^li|quote/.test(parent.localName) || Boolean(next ? next.previousElementSibling : parent.lastElementChild));

// As `dir=auto`, whose search the browser begins anew with each change, through all of a text that has no letter.
function directionOf(el) {
  const walker = document.createTreeWalker(el, 5, ({ dir }) => (dir ? 2 : 1)); // elements and texts, but those with their own
  for (let near = NEAR; near > 0 && walker.nextNode(); ) {
    const { data = "" } = walker.currentNode;
    const letter = LETTER.exec(data.slice(0, near));
    if (letter) return LEFTWARDS.test(letter) ? "rtl" : "ltr";
    near -= 1 + data.length;
  }
  return "";
}

/** Turns a block as its text begins; after each change of it. */
export function direct({ dom: { el, directed } }) {
  const direction = directed ? directionOf(el) : el.dir;
  if (el.dir === direction) return;
  if (direction) el.dir = direction;
  else el.removeAttribute("dir");
}

const made = new WeakMap(); // element -> {kind, host}: what it was made for, so that it can be used again

/**
 * Puts the element of a block of markdown.js in front of `next` inside `parent`: its own, or `next` itself when that
 * was made for such a block, or a new one. Tells the block its `dom.el` and `dom.host` (where its text goes).
 */
export function place(block, parent, next) {
  const { type, level, start, language, head, sides, dom } = block;
  if (!dom.el) {
    const directed = isDirected(type, parent, next);
    const kind = JSON.stringify([type, level, start, language, head, sides, directed]);
    if (next && made.get(next)?.kind === kind) dom.el = next;
    else {
      const { el, host = el } = build[type](block);
      dom.el = el;
      made.set(el, { kind, host });
    }
    dom.host = made.get(dom.el).host;
    dom.directed = directed;
  }
  if (dom.el !== next) parent.insertBefore(dom.el, next);
  if (type === "list") widen(block);
  return dom.el;
}

/** Makes room for the digits of a list's last number, which would be cut; two have it. */
function widen({ start, count, dom }) {
  const digits = start === null ? 0 : String(start + count - 1).length;
  if (dom.digits === digits) return;
  dom.digits = digits;
  if (digits > 2) dom.el.style.setProperty("--digits", digits);
  else dom.el.removeAttribute("style");
}

/** Shows a row of a table; `open`: there may be more of it. */
export function drawRow({ row, head, sides, dom }, open) {
  patch(dom.host, null, 0, cells(row, head, sides, "td", open));
}
