// Markdown inside one block, as plain data: text in, nodes out. Pure: it never touches the DOM or the network.
// A node is a string (text) or [tag, attributes, children]. HTML and entities are text. A link is http, https or
// mailto, or it is text. One pass from left to right; every look ahead is bounded, so the work grows with the text.

const SPAN = 1000; // characters from a mark to its end; what stays open longer is text
const LONGEST = 2000; // characters of an address
const DEPTH = 20; // marks open at a time
const MARGIN = 10; // the start of "<https://" may be all there is of it yet
const SCHEMES = ["https://", "http://", "mailto:"];
const NEXT = /[\\`*_~[\]<]|!\[|https?:\/\//gi;
const TARGET = /^\([ \t]*(<[^<>\s]*>|(?:[^\s()\\]|\\\S|\([^\s()]*\))*)(?:[ \t]+(?:"[^"\n]*"|'[^'\n]*'))?[ \t]*\)/;
const TARGET_BEGUN = /^\([ \t]*(\S*)(?:[ \t]+(?:["'][^\n]*)?)?$/;
const ANGLE = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})(>|$)/iy;
const BARE = /https?:\/\/[^\s<>"`*|\\^{}[\]\p{Cc}]{1,2001}/iuy;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}_]/u;

/** The address to put into a link, or null when it is not plainly http, https or mailto. */
export function safeAddress(text) {
  if (!/^(?:https?:\/\/[^/?#]|mailto:[^/?#])/i.test(text) || /[\s\p{Cc}\p{Cf}\p{Cs}\p{DI}]/u.test(text)) return null;
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

const link = (href, children) => [
  "a",
  { rel: "noopener noreferrer nofollow", target: "_blank", ...(href && { href }) },
  children,
];
const unlinked = (nodes) =>
  nodes.flatMap((node) => {
    if (typeof node === "string") return node;
    const [tag, attributes, children] = node;
    return tag === "a" ? unlinked(children) : [[tag, attributes, unlinked(children)]];
  });
const mayBecomeSafe = (text) => SCHEMES.some((scheme) => scheme.startsWith(text.slice(0, scheme.length).toLowerCase()));

const wrap = ({ mark, size, out }) => {
  if (mark === "~") return ["del", null, out];
  if (size === 3) return ["em", null, [["strong", null, out]]];
  return [size === 2 ? "strong" : "em", null, out];
};

// A bare address ends before the punctuation of its sentence and a bracket that was opened before it.
function trimAddress(text) {
  let end = text.length;
  let extra = text.split(")").length - text.split("(").length;
  for (; end > 0; end--) {
    if (text[end - 1] === ")" && extra > 0) extra--;
    else if (!".,:;!?'_~".includes(text[end - 1])) break;
  }
  return text.slice(0, end);
}

/**
 * Parses `text`, of which `before` is the character in front ("" for none). `open`: more may follow; a mark that is not
 * closed yet then counts as closed at the end, so that nothing flickers. The first `fixed` characters cannot change.
 * Gives {nodes, safe, count, lead}: nothing that follows can change what the first `safe` characters made, which is
 * `count` nodes and the first `lead` characters of the text after them.
 */
export function parseInline(text, before, open, fixed) {
  const end = text.length;
  let limit = open ? Math.min(fixed, end - MARGIN) : -1;
  const root = { out: [] };
  const stack = [];
  const searched = [];
  let settled = { safe: 0, count: 0, lead: 0 };
  let pos = 0;

  const put = (node) => {
    const { out } = stack.at(-1) ?? root;
    if (typeof node === "string" && typeof out.at(-1) === "string") out[out.length - 1] += node;
    else if (node !== "") out.push(node);
  };
  const putText = (from, to) => {
    put(text.slice(from, to));
    const firm = Math.min(to, limit);
    if (!stack.length && firm > from) settle(firm, to - firm);
    return to;
  };
  const literal = (index) => {
    const [frame] = stack.splice(index, 1);
    const after = stack.splice(index);
    put(frame.mark === "[" ? frame.sign : frame.mark.repeat(frame.size));
    frame.out.forEach(put);
    stack.push(...after);
  };
  const settle = (safe, back = 0) => {
    if (safe > limit) return;
    const last = root.out.at(-1);
    const cut = typeof last === "string";
    settled = { safe, count: root.out.length - (cut ? 1 : 0), lead: cut ? last.length - back : 0 };
  };
  const expire = (at) => {
    while (stack.length && at - stack[0].pos > SPAN) {
      literal(0);
      if (stack.length) settle(stack[0].pos);
    }
  };
  const findTicks = (size, from) => {
    const ticks = /`+/g;
    ticks.lastIndex = Math.max(from, searched[size] ?? 0);
    for (let match = ticks.exec(text); match && match.index <= from + SPAN; match = ticks.exec(text)) {
      if (match[0].length === size) return match.index;
      searched[size] = ticks.lastIndex;
    }
    searched[size] = Math.max(searched[size] ?? 0, Math.min(end, from + SPAN));
    return -1;
  };
  const code = (inner) => {
    const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim();
    put(["code", { dir: "ltr" }, [padded ? inner.slice(1, -1) : inner]]);
  };

  const readTicks = (at) => {
    const size = runLength(at);
    const from = at + size;
    if (size > 8 || (text[at - 1] ?? before) === "`") return putText(at, from);
    const shut = findTicks(size, from);
    if (shut >= 0) {
      code(text.slice(from, shut));
      return shut + size;
    }
    if (open && end - from <= SPAN + MARGIN) {
      if (from < end) code(text.slice(from));
      return end;
    }
    return putText(at, from);
  };
  const runLength = (at) => {
    let to = at + 1;
    while (text[to] === text[at]) to++;
    return to - at;
  };
  const readMarks = (at) => {
    const mark = text[at];
    const size = runLength(at);
    const left = text[at - 1] ?? before;
    const right = text[at + size] ?? (open ? "a" : "");
    if (size > 3 || left === mark) return putText(at, at + size);
    let canOpen = /\S/.test(right);
    let canClose = /\S/.test(left);
    if (mark === "_") canClose &&= !WORD.test(text[at + size] ?? "");
    if (mark === "_" || size === 1) canOpen &&= !WORD.test(left);
    if (mark === "~") canOpen &&= size === 2;
    let rest = size;
    while (canClose && rest > 0) {
      const index = findMark(mark, rest);
      if (index < 0) break;
      while (stack.length > index + 1) literal(stack.length - 1);
      const frame = stack[index];
      if (frame.size === 3 && rest < 3) {
        frame.out = [wrap({ ...frame, size: rest })];
        frame.size -= rest;
        rest = 0;
      } else {
        rest -= frame.size;
        stack.pop();
        put(wrap(frame));
      }
    }
    if (rest === size && canOpen && stack.length < DEPTH) stack.push({ mark, size, pos: at, out: [] });
    else put(mark.repeat(rest));
    return at + size;
  };
  const findMark = (mark, size) => {
    for (let index = stack.length - 1; index >= 0 && stack[index].mark !== "["; index--) {
      const frame = stack[index];
      if (frame.mark === mark && frame.out.length && (frame.size <= size || frame.size === 3)) return index;
    }
    return -1;
  };
  const readBracket = (at) => {
    const index = stack.findLastIndex((frame) => frame.mark === "[");
    if (index < 0) {
      put("]");
      return at + 1;
    }
    while (stack.length > index + 1) literal(stack.length - 1);
    const { out } = stack[index];
    const rest = text.slice(at + 1, at + 1 + LONGEST);
    const match = TARGET.exec(rest);
    const address = match && match[1].replace(/^<(.*)>$/, "$1").replace(/\\([!-/:-@[-`{-~])/g, "$1");
    const href = match && safeAddress(address);
    const begun = open && !match && at + 1 + rest.length === end && TARGET_BEGUN.exec(rest);
    if (href || (begun && mayBecomeSafe(begun[1]))) {
      stack.pop();
      const label = unlinked(out);
      put(link(href, label.length || !href ? label : [address]));
      return href ? at + 1 + match[0].length : end;
    }
    literal(index);
    put("]");
    return at + 1;
  };
  const readAngle = (at) => {
    ANGLE.lastIndex = at;
    const match = ANGLE.exec(text);
    const href = match?.[2] && safeAddress(match[1]);
    if (!href && !(open && match && !match[2])) {
      put("<");
      return at + 1;
    }
    put(link(href, [match[1]]));
    return at + match[0].length;
  };
  const readBare = (at, scheme) => {
    BARE.lastIndex = at;
    const all = /[a-z0-9]/i.test(text[at - 1] ?? before) ? scheme : (BARE.exec(text)?.[0] ?? scheme);
    const address = trimAddress(all);
    const unsure = open && at + all.length === end;
    if (unsure) limit = Math.min(limit, at);
    const href = !unsure && all.length <= LONGEST && safeAddress(address);
    if (href || (unsure && all !== scheme && all.length <= LONGEST)) {
      put(link(href, [address]));
      return at + address.length;
    }
    put(all);
    return at + all.length;
  };

  while (pos < end) {
    NEXT.lastIndex = pos;
    const match = NEXT.exec(text);
    const at = match ? match.index : end;
    expire(at);
    if (at > pos) putText(pos, at);
    if (!match) break;
    if (!stack.length) settle(at);
    const sign = match[0];
    if (sign === "\\") {
      const next = text[at + 1] ?? "";
      put(next === "\n" || PUNCTUATION.test(next) ? next : sign + next);
      pos = at + 1 + next.length;
    } else if (sign === "`") pos = readTicks(at);
    else if ("*_~".includes(sign)) pos = readMarks(at);
    else if (sign === "]") pos = readBracket(at);
    else if (sign === "<") pos = readAngle(at);
    else if (sign.endsWith("[")) {
      if (stack.length < DEPTH) stack.push({ mark: "[", sign, pos: at, out: [] });
      else put(sign);
      pos = at + sign.length;
    } else pos = readBare(at, sign);
  }
  expire(end - MARGIN);
  while (stack.length) {
    if (!open || stack.at(-1).mark === "[") literal(stack.length - 1);
    else put(wrap(stack.pop()));
  }
  return { nodes: root.out, ...settled };
}
