// An answer's Markdown as DOM nodes, while it grows. The nodes depend on the text alone, never on how it was cut.
// Whole lines are final; a line that may still become something else is shown, then read again. Closed blocks are
// never touched again. Never HTML from the text, never a request.
//
// Differs from GFM where chats do: no indented code, no underlined headings, rows of a table start with "|",
// two columns make a nested list, and a fence inside a list may end without its indentation.

import { parseInline } from "./inline.js";
import { clear, direct, drawRow, patch, place, setText } from "./nodes.js";

const DEPTH = 24; // nested lists count twice, quotes once
const SHORT = 200; // characters of a rule, or of the line that opens a fence
const LONG = 4000; // characters of a heading, of a table's row, or of blank lines in one text node
const COLUMNS = 50;
const ITEM = /^([ \t]*)([-+*]|(\d{1,9})[.)])([ \t]+|$)/;
const RULE = /^[ \t]*(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const FENCE = /^([ \t]*)(`{3,}|~{3,})(?=([^`]*)$)[ \t]*([\w+#.-]{0,30})/;
const HEADING = /^[ \t]*(#{1,6})(?:[ \t]+|$)/;
const DIVIDER = /^[ \t]*\|[-:| \t]*$/;
const UNSURE = /^[ \t]*(?:#{1,6}|[-+*_ \t]{0,201}|\d{1,9}[.)]?|``?|~~?)$/;

const columnsOf = (text) => /^[ \t]*/.exec(text)[0].replaceAll("\t", "    ").length;
const cellsOf = (text) => {
  const cells = text.trim().slice(1).split(/(?<!\\)\|/);
  if (cells.length > 1 && !cells.at(-1).trim()) cells.pop();
  return cells.map((cell) => cell.trim().replaceAll("\\|", "|"));
};
const isRow = (text) => text.length <= LONG && text.trimStart()[0] === "|";

function strip(text, columns) {
  let at = 0;
  for (; columns > 0 && (text[at] === " " || text[at] === "\t"); at++) columns -= text[at] === " " ? 1 : 4;
  return text.slice(at);
}

/** Shows Markdown in `container`: append(text) adds, set(text) replaces, end() settles what was left open. */
export function createMarkdown(container) {
  let root, stack, gap, partial, flow, outline;

  const block = (type, more) => ({ type, children: [], text: "", fixed: 0, before: "", row: null, begun: false,
    dom: { el: null, host: null, last: null, lead: 0, nodes: [], cut: null }, ...more });

  // Ends all that is open from `depth` on and puts `child` there; the newlines since the last text go in front of it.
  const open = (depth, child) => {
    stack.length = depth;
    const { children } = stack[depth - 1];
    if (gap) children.push(gap);
    gap = "";
    children.push(child);
    if (child.type !== "row") stack.push(child);
  };

  // Reads one line (`whole`: there will be no more of it). True: its structure is settled whatever follows.
  const line = (raw, whole) => {
    const fenced = stack.at(-1).type === "code";
    let rest = raw;
    let depth = 1;
    for (; depth < stack.length; depth++) {
      const { type, needs, width } = stack[depth];
      if (type === "quote") {
        const match = /^[ \t]*> ?/.exec(rest);
        if (!match) break;
        rest = rest.slice(match[0].length);
      } else if (type === "item") {
        if (!fenced && rest.trim() && columnsOf(rest) < needs) break;
        rest = strip(rest, width);
      } else if (type !== "list") break;
    }
    const inCode = fenced && depth === stack.length - 1;
    if (inCode) return codeLine(stack.at(-1), rest, whole);
    if (!rest.trim()) {
      stack.length = depth;
      gap += rest;
      if (gap.length > LONG) {
        stack.at(-1).children.push(gap);
        gap = "";
      }
      return false;
    }
    if (stack[depth - 1].type === "list") depth--;
    const para = stack.at(-1).type === "para" ? stack.at(-1) : null;
    let fresh = true;
    for (; depth < DEPTH; fresh = false) {
      const quote = /^[ \t]*> ?/.exec(rest);
      const item = !quote && !(rest.length <= SHORT && RULE.test(rest)) && ITEM.exec(rest);
      if (quote) {
        open(depth++, block("quote"));
        rest = rest.slice(quote[0].length);
      } else if (item) {
        const start = item[3] === undefined ? null : Number(item[3]);
        const list = stack[depth];
        const sibling = list?.type === "list" && (list.start === null) === (start === null);
        const interrupts = para && fresh && !sibling;
        if (item[4] === "" && whole && interrupts) break;
        if (interrupts && start !== null && start !== 1) break;
        if (!sibling) open(depth, block("list", { start, count: 0 }));
        const column = columnsOf(item[1]);
        rest = rest.slice(item[0].length);
        const space = rest && item[4].length < 5 ? item[4].length : 1;
        stack[depth].count += 1;
        open(depth + 1, block("item", { needs: column + 2, width: column + item[2].length + space }));
        depth += 2;
      } else break;
    }
    if (!rest.trim()) return false;
    return leafLine(depth, rest, whole, fresh && para);
  };

  // h3 to h6 below the page's own, none of them left out, whatever number of signs an answer begins with.
  const levelOf = (signs, whole) => {
    const above = outline.filter((one) => one < signs);
    if (whole) outline = [...above, signs];
    return Math.min(above.length + 3, 6);
  };

  const codeLine = (leaf, rest, whole) => {
    const mark = leaf.fence[0];
    const tight = rest.trim();
    const closing = columnsOf(rest) < 4 && tight === mark.repeat(tight.length);
    if (closing && tight.length >= leaf.fence.length) {
      stack.pop();
      return false;
    }
    leaf.text += (leaf.begun ? gap : "") + strip(rest, leaf.width);
    leaf.begun = true;
    gap = "";
    if (whole || !closing) leaf.fixed = leaf.text.length;
    return !closing;
  };

  const leafLine = (depth, rest, whole, para) => {
    const table = stack.at(-1).type === "table" && depth === stack.length - 1 && stack.at(-1);
    if (isRow(rest)) {
      if (table) {
        open(depth + 1, block("row", { row: cellsOf(rest), head: table.head, sides: table.sides, partial: !whole }));
        return false;
      }
      const head = para && depth === stack.length - 1 && para.row && DIVIDER.test(rest) ? cellsOf(para.row) : [];
      const marks = cellsOf(rest);
      const sure = whole ? marks.every((mark) => /^:?-+:?$/.test(mark)) : marks.length <= head.length;
      if (head.length && head.length <= COLUMNS && sure && (!whole || marks.length === head.length)) {
        const sides = marks.map((mark) => (/-:$/.test(mark) ? (mark[0] === ":" ? "center" : "right") : ""));
        stack.pop();
        stack[depth - 1].children.pop();
        gap = "";
        open(depth, block("table", { head, sides }));
        return false;
      }
      open(depth, block("para", { text: rest, row: rest, fixed: whole ? rest.length : 0 }));
      return false;
    }
    const fence = rest.length <= SHORT && FENCE.exec(rest);
    if (fence) {
      open(depth, block("code", { fence: fence[2], language: fence[4], width: columnsOf(fence[1]) }));
      return false;
    }
    const heading = rest.length <= LONG && HEADING.exec(rest);
    if (heading) {
      let text = rest.slice(heading[0].length).trimEnd();
      let to = text.length;
      while (whole && text[to - 1] === "#") to--;
      if (!to || " \t".includes(text[to - 1])) text = text.slice(0, to).trimEnd();
      open(depth, block("heading", { level: levelOf(heading[1].length, whole), text, fixed: whole ? text.length : 0 }));
      return false;
    }
    if (rest.length <= SHORT && RULE.test(rest)) {
      open(depth, block("rule"));
      return false;
    }
    const sure = whole || !UNSURE.test(rest);
    const leaf = para || block("para");
    if (para) leaf.text += gap + (depth < stack.length - 1 ? rest.trimStart() : rest);
    else {
      open(depth, leaf);
      leaf.text = rest;
    }
    gap = "";
    leaf.row = null;
    if (sure) leaf.fixed = leaf.text.length;
    return sure;
  };

  const draw = (one, top) => {
    const { dom } = one;
    if (one.type === "row") drawRow(one, one.partial && top);
    else if (one.type === "code") {
      const safe = one === top ? one.fixed : 0;
      dom.cut = { safe, count: 0, lead: safe };
      dom.nodes = patch(dom.host, dom.last, dom.lead, one.text ? [one.text] : []);
    } else if (one.type === "para" || one.type === "heading") {
      const { nodes, ...cut } = parseInline(one.text, one.before, one === top, one.fixed);
      dom.cut = cut;
      dom.nodes = patch(dom.host, dom.last, dom.lead, nodes);
    } else if (one.type !== "rule") drawChildren(one, top);
  };

  const drawChildren = (parent, top) => {
    const { host, last } = parent.dom;
    let next = last ? last.nextSibling : host.firstChild;
    parent.dom.nodes = parent.children.map((child) => {
      let there = next;
      if (typeof child === "string") {
        if (there?.nodeType === 3) setText(there, 0, child);
        else there = host.insertBefore(document.createTextNode(child), next);
      } else {
        there = place(child, host, next);
        draw(child, top);
        direct(child);
      }
      next = there.nextSibling;
      return there;
    });
    clear(next);
  };

  const settle = () => {
    stack.forEach(({ children, dom }, index) => {
      const done = children.length - (index + 1 < stack.length ? 1 : 0);
      if (done > 0) dom.last = dom.nodes[done - 1];
      children.splice(0, done);
    });
    const leaf = stack.at(-1);
    const { dom } = leaf;
    const { safe, count, lead } = dom.cut ?? {};
    dom.cut = null;
    if (!safe) return;
    const same = lead && !count && dom.nodes[0] === dom.last;
    dom.last = dom.nodes[lead ? count : count - 1];
    dom.lead = same ? dom.lead + lead : lead;
    leaf.before = leaf.text[safe - 1];
    leaf.text = leaf.text.slice(safe);
    leaf.fixed -= safe;
  };

  const commit = (ended) => {
    const saved = stack.map((one) => ({ ...one, children: one.children.slice() }));
    const before = { stack: stack.slice(), gap, outline };
    if (!partial.trim()) gap += partial;
    else flow = line(partial, ended) && !ended;
    if (gap) root.children.push(gap);
    drawChildren(root, ended ? null : stack.at(-1));
    if (gap) root.children.pop();
    if (flow && partial) partial = "";
    else {
      before.stack.forEach((one, index) => Object.assign(one, saved[index]));
      ({ stack, gap, outline } = before);
    }
    settle();
  };

  const append = (text) => {
    for (let at = 0; at < text.length; ) {
      const to = text.indexOf("\n", at);
      const piece = text.slice(at, to < 0 ? text.length : to);
      if (flow) {
        const leaf = stack.at(-1);
        leaf.text += piece;
        leaf.fixed = leaf.text.length;
      } else partial += piece;
      if (to < 0) break;
      if (!flow) line(partial, true);
      flow = false;
      partial = "";
      gap += "\n";
      at = to + 1;
    }
    commit(false);
  };

  const set = (text) => {
    root = block("root");
    root.dom.host = container;
    stack = [root];
    [gap, partial, flow, outline] = ["", "", false, []];
    container.replaceChildren();
    append(text);
  };

  set("");
  return { append, set, end: () => commit(true) };
}

/** As createMarkdown; `whole()` gives all the text there is to show. */
export function createProse(container, whole) {
  let painter = null;
  const attempt = (name) => (text) => {
    try {
      painter ??= createMarkdown(container);
      painter[name](text);
    } catch (error) {
      reportError(error);
      painter = createPlain(container, whole());
    }
  };
  return { append: attempt("append"), set: attempt("set"), end: attempt("end") };
}

function createPlain(container, text) {
  const line = document.createElement("p");
  line.append(text);
  container.replaceChildren(line);
  return { append: (more) => line.firstChild.appendData(more), end() {} };
}
