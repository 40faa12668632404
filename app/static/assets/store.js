// Keeps the conversations (a key each, an index) and drafts in a localStorage-like `storage`, in memory where that fails.
// Must never touch the DOM or the network, delete anything but by remove(), or write over what it cannot read.

import { VERSION, entryOf, merge, portable, readConversation, readFile, refusal, updatedOf } from "./records.js";

const CONVERSATION = "chatwait.conversation.";
const DRAFT = "chatwait.draft.";
const INDEX = "chatwait.index";
const SAFE_ID = /^[\w-]{1,64}$/;
/** On a conversation: the stored text that it was read from, or written as. JSON leaves it out, `{...}` keeps it. */
const SEEN = Symbol("seen");

const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
const isFull = ({ name }) => name === "QuotaExceededError" || name === "NS_ERROR_DOM_QUOTA_REACHED";

const parse = (raw, id) => {
  try {
    return readConversation(JSON.parse(raw), id);
  } catch {
    return { problem: "damaged", title: "" };
  }
};

/** `storage`: localStorage, or null when it is blocked. `now()`: epoch ms. `random()`: a new URL-safe id. */
export const createStore = ({ storage, now = Date.now, random = newId }) => {
  const unsaved = new Map(); // id -> text of conversations that storage did not take
  const drafts = new Map(); // id -> text, likewise
  const stored = new Set(); // ids that were there: a key that is missing now was removed by another tab
  const removed = new Set(); // ids removed here
  const entries = new Map(); // id -> entry, of what was read and has not changed since
  const sound = new Set(); // ids that were read once: from then on the index may speak for them
  let isUnreadable = false; // the last access to read threw
  let failure = null; // why the last write failed: "storage_full" | "storage_blocked"

  /** undefined when storage cannot be asked. */
  const read = (key) => {
    try {
      const raw = storage.getItem(key); // null throws as well: blocked
      isUnreadable = false;
      return raw;
    } catch {
      isUnreadable = true;
      failure = "storage_blocked";
      return undefined;
    }
  };

  const write = (key, text) => {
    try {
      if (text === null) storage.removeItem(key);
      else storage.setItem(key, text);
      return true;
    } catch (error) {
      failure = isFull(error) ? "storage_full" : "storage_blocked";
      return false;
    }
  };

  const storedIds = () => {
    const ids = [];
    try {
      for (let place = 0; place < storage.length; place += 1) {
        const key = storage.key(place);
        if (key?.startsWith(CONVERSATION)) ids.push(key.slice(CONVERSATION.length));
      }
    } catch {
      isUnreadable = true;
    }
    return ids;
  };

  /** `{lines: Map(id -> line), problem}`; problem: undefined | "missing" | "damaged" | "newer". */
  const readIndex = () => {
    const raw = read(INDEX);
    if (raw === null || raw === undefined) return { lines: new Map(), problem: "missing" };
    try {
      const { v, conversations } = JSON.parse(raw);
      if (typeof v === "number" && v > VERSION) return { lines: new Map(), problem: "newer" };
      const isLine = ({ id, title, updated }) =>
        typeof id === "string" && typeof title === "string" && Number.isFinite(updated);
      if (v === VERSION && conversations.every(isLine)) {
        const line = ({ id, title, updated, active }) => ({ id, title, updated, active: active === true });
        return { lines: new Map(conversations.map((one) => [one.id, line(one)])) };
      }
    } catch {
      // no JSON, or of another shape
    }
    return { lines: new Map(), problem: "damaged" };
  };

  const writeIndex = (conversations) => write(INDEX, JSON.stringify({ v: VERSION, conversations }));

  /** Bring the index's lines of stored conversations up to date, if they are not. */
  const index = (fresh) => {
    const { lines, problem } = readIndex();
    if (problem === "newer") return;
    const isSame = (entry) => {
      const line = lines.get(entry.id);
      const isKept = line && line.title === entry.title && line.active === entry.active;
      return isKept && (entry.active || line.updated === entry.updated);
    };
    if (!problem && fresh.every(isSame)) return;
    for (const id of storedIds()) if (!lines.has(id)) lines.set(id, entryFor(id, lines)); // two tabs wrote at once
    for (const entry of fresh) lines.set(entry.id, entry);
    writeIndex([...lines.values()].filter((entry) => entry && !entry.problem));
  };

  /** The list's line of a stored conversation: as known, from the index, or from the conversation itself. */
  const entryFor = (id, lines) => {
    const line = lines.get(id);
    if (entries.has(id)) return entries.get(id);
    if (sound.has(id) && line) return line;
    const raw = read(CONVERSATION + id);
    if (typeof raw !== "string") return undefined;
    const { conversation, problem, title } = parse(raw, id);
    if (conversation) sound.add(id);
    const told = { id, title: title || line?.title || "", updated: line?.updated ?? 0, active: false, problem };
    const entry = conversation ? entryOf(conversation) : told;
    stored.add(id);
    entries.set(id, entry);
    return entry;
  };

  /** `[{id, title, updated, active, problem}]`, newest first; problem: undefined | "damaged" | "newer". */
  const list = () => {
    const { lines } = readIndex();
    const all = new Map(storedIds().map((id) => [id, entryFor(id, lines)]));
    for (const id of unsaved.keys()) {
      const conversation = load(id);
      if (conversation) all.set(id, { ...entryOf(conversation), problem: all.get(id)?.problem });
    }
    return [...all.values()].filter(Boolean).sort((a, b) => b.updated - a.updated || (a.id < b.id ? -1 : 1));
  };

  /** The conversation, or null when there is none that can be read. Never throws. */
  const load = (id) => {
    const raw = read(CONVERSATION + id);
    const held = unsaved.get(id);
    if (raw === null && stored.has(id)) unsaved.delete(id);
    if (typeof raw !== "string") return unsaved.has(id) ? parse(unsaved.get(id), id).conversation : null;
    stored.add(id);
    const { conversation, problem, title } = parse(raw, id);
    if (problem) {
      entries.set(id, { id, title, updated: 0, active: false, problem });
      return held ? parse(held, id).conversation : null;
    }
    sound.add(id);
    const whole = held ? merge(conversation, parse(held, id).conversation) : conversation;
    entries.set(id, entryOf(whole));
    whole[SEEN] = raw;
    return whole;
  };

  /**
   * Keep a conversation: "stored", "memory" (storage is full, blocked, or holds what cannot be read), or "removed"
   * (by another tab; nothing is written). What another tab has written since is united with it, in storage only.
   */
  const save = (conversation) => {
    const kept = put(conversation);
    if (kept === "stored") index([entries.get(conversation.id)]);
    return kept;
  };

  /** save(), but for the index. */
  const put = (conversation) => {
    const { id } = conversation;
    const key = CONVERSATION + id;
    const raw = read(key);
    const wasStored = stored.has(id) || conversation[SEEN] !== undefined;
    if (removed.has(id) || (raw === null && wasStored)) {
      unsaved.delete(id);
      entries.delete(id);
      return "removed";
    }
    let record = { ...conversation, v: VERSION, updated: updatedOf(conversation) };
    record.created ??= now();
    record.title ??= "";
    let isWhole = true; // what is written is what the caller has
    let isTaken = raw !== undefined;
    if (typeof raw === "string" && raw !== conversation[SEEN]) {
      const { conversation: theirs } = parse(raw, id);
      const base = conversation[SEEN] && parse(conversation[SEEN], id).conversation;
      isTaken = Boolean(theirs);
      if (theirs) {
        const ours = record;
        record = merge(theirs, ours, base);
        isWhole = record.title === ours.title && JSON.stringify(record.messages) === JSON.stringify(ours.messages);
      }
    }
    const text = JSON.stringify(record);
    if (!isTaken || (text !== raw && !write(key, text))) {
      unsaved.set(id, text);
      return "memory";
    }
    unsaved.delete(id);
    stored.add(id);
    sound.add(id);
    if (isWhole && Object.isExtensible(conversation)) conversation[SEEN] = text;
    entries.set(id, entryOf(record));
    return "stored";
  };

  /** Give a conversation another title; false when it cannot be read. */
  const rename = (id, title) => {
    const conversation = load(id);
    if (!conversation) return false;
    conversation.title = title;
    return save(conversation) !== "removed";
  };

  /** Delete a conversation and its draft, for ever. What had no room before may have it now. */
  const remove = (id) => {
    removed.add(id);
    unsaved.delete(id);
    entries.delete(id);
    write(CONVERSATION + id, null);
    saveDraft(id, "");
    const { lines, problem } = readIndex();
    if (!problem && lines.delete(id)) writeIndex([...lines.values()]);
    for (const other of [...unsaved.keys()]) {
      const conversation = load(other);
      if (conversation) save(conversation);
    }
    for (const [other, text] of [...drafts]) saveDraft(other, text);
  };

  /** What was typed and not sent; `id` "" is the new conversation. */
  const draft = (id) => drafts.get(id) ?? read(DRAFT + id) ?? "";

  const saveDraft = (id, text) => {
    const isKept = write(DRAFT + id, text === "" ? null : text);
    if (isKept || text === "") drafts.delete(id);
    else drafts.set(id, text);
  };

  /** Everything as JSON text; conversations that cannot be read go with it as they are, in `unreadable`. */
  const exportAll = () => {
    const conversations = [];
    const unreadable = [];
    for (const { id, problem } of list()) {
      const conversation = load(id);
      if (conversation) conversations.push(portable(conversation));
      if (problem) unreadable.push({ id, text: read(CONVERSATION + id) });
    }
    const whole = { format: "chatwait", v: VERSION, exported: now(), conversations };
    return JSON.stringify(unreadable.length ? { ...whole, unreadable } : whole, null, 1);
  };

  /** Add the conversations of a file: `{added, skipped}`. Throws an Error with `{message, detail, action}`. */
  const importAll = (text) => {
    const values = readFile(text);
    const fresh = [];
    let added = 0;
    for (const value of values) {
      const id = value?.id;
      const isFree = typeof id === "string" && SAFE_ID.test(id) && !isKnown(id);
      const { conversation } = readConversation(value, isFree ? id : random(), true);
      if (!conversation?.messages.length) continue;
      conversation.updated ||= now();
      conversation.created ||= conversation.updated;
      if (put(conversation) === "stored") fresh.push(entries.get(conversation.id));
      added += 1;
    }
    if (values.length && !added) throw refusal("unreadable");
    if (fresh.length) index(fresh);
    return { added, skipped: values.length - added };
  };

  const isKnown = (id) =>
    [removed, stored, unsaved].some((known) => known.has(id)) || typeof read(CONVERSATION + id) === "string";

  /** What is wrong now, in three parts: `[{code, message, detail, action, id?}]`. */
  const problems = () => {
    const found = [];
    const entries = list();
    const isHeld = unsaved.size > 0 || drafts.size > 0;
    if (isUnreadable || (isHeld && failure)) found.push(PROBLEMS[isUnreadable ? "storage_blocked" : failure]);
    if (readIndex().problem === "damaged") found.push(PROBLEMS.index_damaged);
    for (const { id, problem } of entries) if (problem) found.push({ ...PROBLEMS[`conversation_${problem}`], id });
    return found;
  };

  /** What a `storage` event's key concerns: a conversation's id, "index", or null. */
  const changed = (key) => {
    if (key === null) entries.clear(); // everything was cleared
    if (key === null || key === INDEX) return "index";
    if (!key.startsWith(CONVERSATION)) return null;
    const id = key.slice(CONVERSATION.length);
    entries.delete(id);
    return id;
  };

  return { list, load, save, rename, remove, draft, saveDraft, exportAll, importAll, problems, changed };
};

const trouble = (code, message, detail, action) => [code, { code, message, detail, action }];

const PROBLEMS = Object.fromEntries([
  trouble(
    "storage_full",
    "This browser's storage for the page is full.",
    "What is new is kept while this page stays open; everything that was stored before is safe.",
    "Export your conversations, then delete some of them to make room.",
  ),
  trouble(
    "storage_blocked",
    "This browser does not let the page store anything.",
    "Your conversations are kept while this page stays open.",
    "Allow this site to store data, or export your conversations before you close the page.",
  ),
  trouble(
    "conversation_damaged",
    "A stored conversation cannot be read.",
    "It was left as it is, and all others are safe.",
    "Export to keep a copy of its text, then delete it from the list.",
  ),
  trouble(
    "conversation_newer",
    "A conversation was stored by a newer version of this page.",
    "It was left as it is, and all others are safe.",
    "Reload the page to get the newer version.",
  ),
  trouble(
    "index_damaged",
    "The stored list of conversations cannot be read.",
    "The conversations are safe: the list is made from them.",
    "Go on as before; the next message stores the list anew.",
  ),
]);
