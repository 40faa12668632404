// The shape of a conversation: reads today's and older formats, merges two versions of one, describes it for the list.
// Pure. Must never let a foreign value reach the page unchecked, nor throw but to refuse a file in three parts.

export const VERSION = 2;
const STUB = 3; // a version of which older pages say that a newer page has the conversation
const OPEN = new Set(["sending", "waiting", "streaming", "slow", "reconnecting"]);
const SETTLED = new Set(["complete", "stopped", "failed"]); // an interrupted answer may yet go on
const ROLES = new Set(["user", "assistant", "system"]);
const LONGEST_FILE = 32 * 1024 * 1024; // characters
const MOST_CONVERSATIONS = 5_000; // of a file
const TITLE_CHARACTERS = 60; // of a question
const LONGEST_TITLE = 200; // of any other, as in the field for it
const LATEST_MS = 8.64e15;
const SAFE_ID = /^[\w-]{1,128}$/;
const KEY = /^[!-~]{16,255}$/;
const FEWEST_SIGNS = 4; // different ones in a key: the service takes no other

export const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const wellFormed = (text) => text.toWellFormed?.() ?? text; // the service takes no half of a surrogate pair
const cut = (text, most) => text.slice(0, most).replace(/[\ud800-\udbff]$/, ""); // nor is one made

// Each takes any value and gives a good one, or undefined. null is good everywhere: "not known yet".
const text = (value) => (typeof value === "string" ? wellFormed(value) : undefined);
const flag = (value) => (typeof value === "boolean" ? value : undefined);
const matching = (pattern) => (value) => (typeof value === "string" && pattern.test(value) ? value : undefined);
const key = (value) => (matching(KEY)(value) && new Set(value).size >= FEWEST_SIGNS ? value : undefined);
const count = (value) => (Number.isSafeInteger(value) && value >= 0 ? value : undefined);
const time = (value) => {
  const at = typeof value === "string" ? Date.parse(value) : value;
  return typeof at === "number" && at >= 0 && at <= LATEST_MS ? at : undefined;
};
const fields = (table) => (value, isForeign) =>
  isObject(value) ? pick(value, table, isForeign) : undefined;

/** Take the fields of `table` whose values are good; the unknown ones too, unless `value` is foreign. */
const pick = (value, table, isForeign) => {
  const into = isForeign ? {} : { ...value };
  for (const [name, check] of Object.entries(table)) {
    if (!Object.hasOwn(value, name)) continue;
    const good = value[name] === null ? null : check(value[name], isForeign);
    if (good === undefined) delete into[name];
    else into[name] = good;
  }
  return into;
};

const ANSWER = {
  asks: text, key, streamId: matching(SAFE_ID), sequence: count, model: text, created: text,
  sent: fields({ model: text, skip: count, isCut: flag }),
  sentAt: time, firstAt: time, lastTokenAt: time, endedAt: time, retryAt: time,
  tokens: count, firstTokenMs: time, durationMs: time, reconnects: count, finishReason: text, reason: text, note: text,
  error: fields({
    code: text, error_code: text, message: text, detail: text, action: text, reason: text, cause: text,
    correlation_id: text, origin: text, status: count, retryable: flag, retry_after_seconds: time,
  }),
  queued: flag, stopping: flag, refused: flag, signedOut: flag, silentSince: time,
};

/**
 * Read what JSON.parse gave: `{conversation}`, `{problem: "damaged" | "newer", title}`, or of a stub `{mark, …}`.
 * Takes `{v: 2, …}`, the same without `v`, and an array of `{role, content}`. Ids that are missing are made from the
 * places, so that every tab makes the same. `isForeign` (an imported file): unknown fields go, ids must be plain, and
 * an answer that was on its way is interrupted: loading a file must never ask the service for anything.
 */
export const readConversation = (value, id, isForeign = false) => {
  const from = Array.isArray(value) ? { messages: value } : value;
  if (!isObject(from)) return { problem: "damaged", title: "" };
  const title = typeof from.title === "string" ? wellFormed(cut(from.title, LONGEST_TITLE)) : "";
  const { v, mark } = from;
  if (v === STUB && typeof mark === "string") return { mark, title, updated: time(from.updated) ?? 0 };
  if (typeof v === "number" && v > VERSION) return { problem: "newer", title };
  const isKnown = v === undefined || typeof v === "number";
  if (!isKnown || !Array.isArray(from.messages) || !from.messages.every(isMessage)) {
    return { problem: "damaged", title };
  }
  const updated = time(from.updated) ?? time(from.created) ?? 0;
  const messages = readMessages(from.messages, updated, isForeign);
  return {
    conversation: {
      ...(isForeign ? {} : from),
      v: VERSION,
      id,
      title: title || titleFrom(messages),
      created: time(from.created) ?? updated,
      updated,
      messages,
    },
  };
};

/** What stands for a conversation whose text is in the archive; `mark`: of that text. */
export const stubOf = ({ title, updated }, mark) =>
  JSON.stringify({ v: STUB, mark, title: cut(title, LONGEST_TITLE), updated });

/** A mark that tells a text from every other one, by chance of 1 in 2^53 (cyrb53's mixing). */
export const markOf = (text) => {
  let [high, low] = [0xdeadbeef, 0x41c6ce57];
  for (let at = 0; at < text.length; at += 1) {
    const unit = text.charCodeAt(at);
    high = Math.imul(high ^ unit, 2_654_435_761);
    low = Math.imul(low ^ unit, 1_597_334_677);
  }
  high = Math.imul(high ^ (high >>> 16), 2_246_822_507) ^ Math.imul(low ^ (low >>> 13), 3_266_489_909);
  low = Math.imul(low ^ (low >>> 16), 2_246_822_507) ^ Math.imul(high ^ (high >>> 13), 3_266_489_909);
  return `${text.length}-${(low >>> 0).toString(16)}${(high >>> 0).toString(16)}`;
};

/** Whether a stored text is a stub, told without reading it whole. */
export const isStub = (raw) => raw.startsWith(`{"v":${STUB},"mark":`);

const isMessage = (value) => isObject(value) && ROLES.has(value.role) && typeof value.content === "string";

const readMessages = (values, updated, isForeign) => {
  const ids = new Set();
  let question = null;
  return values.map((value, index) => {
    const { role } = value;
    const isUsable = isForeign ? SAFE_ID.test(value.id) : value.id !== "";
    const isGood = typeof value.id === "string" && isUsable && !ids.has(value.id);
    const id = isGood ? value.id : `old-${index}`;
    const message = role === "assistant" ? pick(value, ANSWER, isForeign) : isForeign ? {} : { ...value };
    Object.assign(message, { id, role, content: wellFormed(value.content) });
    message.at = time(value.at) ?? time(value.timestamp) ?? updated;
    if (role === "assistant") readAnswer(message, value.state ?? "complete", ids, question);
    if (role === "assistant" && isForeign) settle(message);
    if (role === "user") question = id;
    ids.add(id);
    return message;
  });
};

const readAnswer = (message, state, ids, question) => {
  message.state = OPEN.has(state) || SETTLED.has(state) ? state : "interrupted";
  if (!ids.has(message.asks)) message.asks = question;
  message.sequence ??= 0;
  message.streamId ??= null;
  message.reconnects ??= 0;
  message.error ??= null;
  message.sent = { model: null, skip: 0, ...message.sent };
  message.sent.skip ??= 0;
};

/** Nothing of a file is on its way; an answer that can be come back to says so, another that it is gone. */
const settle = (message) => {
  Object.assign(message, { queued: false, stopping: false, retryAt: null });
  if (OPEN.has(message.state)) {
    message.state = "interrupted";
    message.error = { code: "imported", retryable: true };
  }
  if (message.state === "interrupted" && !message.streamId && !message.key) {
    message.error = { code: "answer_gone", retryable: false };
  }
};

const titleFrom = (messages) => {
  const first = messages.find(({ role, content }) => role === "user" && content.trim());
  const words = first ? first.content.slice(0, 1_000).trim().split(/\s+/).join(" ") : "Conversation";
  return wellFormed(cut(words, TITLE_CHARACTERS));
};

export const isActive = ({ messages }) => messages.some(({ role, state }) => role === "assistant" && OPEN.has(state));

/** When something was last said in a conversation. */
export const updatedOf = ({ updated, messages }) => {
  const { at, endedAt } = messages.at(-1) ?? {};
  return Math.max(updated || 0, at || 0, endedAt || 0);
};

/** A line of the list, without a problem. */
export const entryOf = (conversation) => ({
  id: conversation.id,
  title: conversation.title,
  updated: updatedOf(conversation),
  active: isActive(conversation),
});

/** The same without what only this browser can use: the ways back to answers that have ended. */
export const portable = (conversation) => ({
  ...conversation,
  messages: conversation.messages.map((message) => {
    if (message.state !== "complete" && message.state !== "stopped") return message;
    const { key, streamId, ...rest } = message;
    return rest;
  }),
});

/**
 * Unite two versions of one conversation; `base` is the last one that both sides had, or undefined.
 * Messages by id, in both orders. Of two versions of an answer the settled one wins, then the longer one (an
 * interrupted answer may go on elsewhere), then the one that has ended, then ours. Our title counts when we changed it.
 */
export const merge = (theirs, ours, base) => ({
  ...theirs,
  ...ours,
  title: base && ours.title !== base.title ? ours.title : theirs.title,
  created: Math.min(theirs.created, ours.created ?? theirs.created),
  updated: Math.max(theirs.updated, ours.updated ?? 0),
  messages: withoutRefused(union(theirs.messages, ours.messages), theirs.messages, ours.messages),
});

const union = (theirs, ours) => {
  const their = new Map(theirs.map((message) => [message.id, message]));
  const our = new Map(ours.map((message) => [message.id, message]));
  const merged = new Map();
  let i = 0;
  let j = 0;
  const put = ({ id }) => {
    if (!their.has(id) || !our.has(id)) merged.set(id, their.get(id) ?? our.get(id));
    else if (!merged.has(id)) merged.set(id, better(their.get(id), our.get(id)));
  };
  /** A question of one side only, with what follows it. */
  const putTurn = (list, at, other) => {
    let next = at;
    do put(list[next++]);
    while (next < list.length && !other.has(list[next].id) && list[next].role !== "user");
    return next;
  };
  while (i < theirs.length || j < ours.length) {
    const a = theirs[i];
    const b = ours[j];
    const isTheirsOnly = a && !our.has(a.id);
    const isOursOnly = b && !their.has(b.id);
    if (isTheirsOnly && !(isOursOnly && b.at < a.at)) i = putTurn(theirs, i, our);
    else if (isOursOnly) j = putTurn(ours, j, their);
    else if (a) {
      put(a);
      i += 1;
      if (b && merged.has(b.id)) j += 1;
    } else {
      put(b);
      j += 1;
    }
  }
  return [...merged.values()];
};

const better = (theirs, ours) => {
  const settled = SETTLED.has(ours.state) - SETTLED.has(theirs.state);
  const longer = (ours.sequence ?? 0) - (theirs.sequence ?? 0);
  const ended = OPEN.has(theirs.state) - OPEN.has(ours.state);
  return (settled || longer || ended) < 0 ? theirs : ours;
};

/** A pair that was refused leaves when the next question is sent; a stale copy must not bring it back. */
const withoutRefused = (messages, theirs, ours) => {
  const their = new Set(theirs.map(({ id }) => id));
  const isShared = new Set(ours.map(({ id }) => id).filter((id) => their.has(id)));
  const last = messages.findLastIndex(({ role }) => role === "user");
  const left = new Set();
  for (const { id, refused, asks } of messages.slice(0, Math.max(0, last))) {
    if (!refused || isShared.has(id)) continue;
    left.add(id);
    if (!messages.some((one) => one.asks === asks && !one.refused)) left.add(asks);
  }
  return left.size ? messages.filter(({ id }) => !left.has(id)) : messages;
};

const REFUSALS = {
  unreadable: [
    "The page found no conversations in this file.",
    "Nothing was added or changed.",
    "Choose a .json file that was exported here, or a list of messages with role and content.",
  ],
  large: [
    "This file is too large.",
    "Nothing was added. The file holds far more than a browser can store.",
    "Choose a file of at most 32 million characters and 5,000 conversations.",
  ],
  newer: [
    "A newer version of this page made this file.",
    "Nothing was added or changed.",
    "Reload the page to get the newer version, then import the file again.",
  ],
};

export const refusal = (why) => {
  const [message, detail, action] = REFUSALS[why];
  return Object.assign(new Error(message), { detail, action });
};

/** What an export, one old conversation, or a list of messages holds, for readConversation. Throws a refusal. */
export const readFile = (raw) => {
  if (raw.length > LONGEST_FILE) throw refusal("large");
  let value;
  try {
    value = JSON.parse(raw.replace(/^\ufeff/, ""));
  } catch {
    throw refusal("unreadable");
  }
  if (typeof value?.v === "number" && value.v > VERSION) throw refusal("newer");
  const { format, conversations, messages } = value ?? {};
  const isExport = format === "chatwait" && Array.isArray(conversations);
  if (!isExport && !Array.isArray(value) && !Array.isArray(messages)) throw refusal("unreadable");
  const values = isExport ? conversations : [value];
  if (values.length > MOST_CONVERSATIONS) throw refusal("large");
  return values;
};

const trouble = (code, message, detail, action) => [code, { code, message, detail, action }];

/** What can be wrong with the page's memory, in three parts, by its code. */
export const PROBLEMS = Object.fromEntries([
  trouble(
    "storage_full",
    "This browser's storage for the page is full.",
    "New messages are kept only while this page is open. Everything stored before is safe.",
    "Export your conversations, then delete some of them to make room.",
  ),
  trouble(
    "storage_blocked",
    "This browser does not let the page store anything.",
    "Your conversations are kept only while this page is open.",
    "Allow this site to store data, or export your conversations before you close the page.",
  ),
  trouble(
    "storage_cleared",
    "This browser or another tab cleared the stored conversations.",
    "Conversations that are open in this page are kept. Others may be gone.",
    "Export what you want to keep, or delete it from the list.",
  ),
  trouble(
    "conversation_damaged",
    "A stored conversation cannot be read.",
    "It is unchanged, and all others are safe.",
    "Export to keep a copy of its text, then delete it from the list.",
  ),
  trouble(
    "conversation_newer",
    "A newer version of this page stored one of the conversations.",
    "It is unchanged, and all others are safe.",
    "Reload the page to get the newer version.",
  ),
  trouble(
    "conversation_lost",
    "A stored conversation cannot be opened.",
    "This browser cannot read its text. All others are safe.",
    "Reload the page. If that does not help, delete it from the list.",
  ),
  trouble(
    "index_damaged",
    "The stored list of conversations cannot be read.",
    "The conversations are safe. The page makes a new list from them.",
    "Go on as before. The next message stores the list again.",
  ),
]);
