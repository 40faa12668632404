// Keeps the conversations (a key each, an index) and drafts in a localStorage-like `storage`, in memory where that fails.
// What is settled and older moves to the archive, with a stub in its place, so that there is always room.
// Must never touch the DOM or the network, delete anything but by remove(), or write over what it cannot read.

import { PROBLEMS, VERSION, entryOf, isStub, markOf, merge, newId, readConversation, stubOf, updatedOf } from "./records.js";

const CONVERSATION = "chatwait.conversation.";
const DRAFT = "chatwait.draft.";
const INDEX = "chatwait.index";
const REMOVED = "chatwait.removed"; // ids of what a person deleted; another key that is missing was cleared
const MOST_REMOVED = 200;
/** On a conversation: the stored text that it was read from, or written as. JSON leaves it out, `{...}` keeps it. */
const SEEN = Symbol("seen");


const parse = (raw, id) => {
  try {
    return readConversation(JSON.parse(raw), id);
  } catch {
    return { problem: "damaged", title: "" };
  }
};

/**
 * `storage`: localStorage, or null when it is blocked. `archive`: `bring`, `makeRoom` and `remove` of archive.js, or
 * null. `now()`: epoch ms. `random()`: a new URL-safe id. `onChange()`: what is wrong, or in the list, has changed.
 */
export const createStore = ({ storage, archive = null, now = Date.now, random = newId, onChange = () => {} }) => {
  const unsaved = new Map(); // id -> text of conversations that storage did not take
  const drafts = new Map(); // id -> text, likewise
  const stored = new Set(); // ids that were there
  const removed = new Set(); // ids removed here
  const entries = new Map(); // id -> entry, of what was read and has not changed since
  const sound = new Set(); // ids that were read once: from then on the index may speak for them
  const fetched = new Map(); // id -> {mark, text} of the archive
  const lost = new Set(); // ids of stubs for which the archive had no text
  let making = null; // a promise while room is made
  let isTight = false; // it was made, and there was none
  let cleared = 0; // how often what was stored was found gone
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
      failure = /quota/i.test(error.name) ? "storage_full" : "storage_blocked";
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
    } catch {} // no JSON, or of another shape
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
    const { conversation, title, updated, mark, problem = mark && lost.has(id) ? "lost" : undefined } = parse(raw, id);
    if (!problem) sound.add(id);
    const known = { title: title || line?.title || "", updated: updated ?? line?.updated ?? 0 };
    const entry = conversation ? entryOf(conversation) : { id, ...known, active: false, problem };
    stored.add(id);
    entries.set(id, entry);
    return entry;
  };

  /** Parse what is stored: of a stub what was fetched for it, else its `{mark, title, updated}`. */
  const readStored = (raw, id) => {
    const found = parse(raw, id);
    const { mark, text } = fetched.get(id) ?? {};
    if (!found.mark || mark !== found.mark) return found;
    const { conversation } = parse(text, id);
    conversation.title = found.title;
    return { conversation };
  };

  /** `[{id, title, updated, active, problem}]`, newest first; problem: undefined | "damaged" | "newer" | "lost". */
  const list = () => {
    const { lines } = readIndex();
    const all = new Map(storedIds().map((id) => [id, entryFor(id, lines)]));
    for (const id of unsaved.keys()) {
      const conversation = load(id);
      if (conversation) all.set(id, { ...entryOf(conversation), problem: all.get(id)?.problem });
    }
    return [...all.values()].filter(Boolean).sort((a, b) => b.updated - a.updated || (a.id < b.id ? -1 : 1));
  };

  /** The conversation, or null when there is none that can be read, or that is to be fetched first. Never throws. */
  const load = (id) => {
    const raw = read(CONVERSATION + id);
    const held = unsaved.get(id);
    if (raw === null && isRemoved(id)) unsaved.delete(id);
    if (typeof raw !== "string") return unsaved.has(id) ? parse(unsaved.get(id), id).conversation : null;
    stored.add(id);
    const { conversation, problem, title } = readStored(raw, id);
    if (!conversation && !problem) return held ? parse(held, id).conversation : null; // a stub
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
    if (removed.has(id) || (raw === null && isRemoved(id))) {
      unsaved.delete(id);
      entries.delete(id);
      return "removed";
    }
    if (raw === null && wasStored) cleared ||= 1;
    let record = { ...conversation, v: VERSION, updated: updatedOf(conversation) };
    record.created ??= now();
    record.title ??= "";
    let isWhole = true; // what is written is what the caller has
    let isTaken = raw !== undefined;
    if (typeof raw === "string" && raw !== conversation[SEEN]) {
      const { conversation: theirs, mark } = readStored(raw, id);
      const seen = conversation[SEEN];
      const isOurs = mark && seen && !isStub(seen) && (lost.has(id) || markOf(seen) === mark); // as this page knows it
      if (mark && !isOurs && !lost.has(id)) archive?.bring(id).then(again).then(onChange, () => {});
      const base = seen && parse(seen, id).conversation;
      isTaken = Boolean(theirs || isOurs);
      if (theirs) {
        const ours = record;
        record = merge(theirs, ours, base);
        isWhole = record.title === ours.title && JSON.stringify(record.messages) === JSON.stringify(ours.messages);
      }
    }
    const text = JSON.stringify(record);
    if (!isTaken || (text !== raw && !write(key, text))) {
      unsaved.set(id, text);
      if (isTaken && failure === "storage_full") makeRoom();
      return "memory";
    }
    unsaved.delete(id);
    fetched.delete(id);
    stored.add(id);
    sound.add(id);
    if (isWhole && Object.isExtensible(conversation)) conversation[SEEN] = text;
    entries.set(id, entryOf(record));
    return "stored";
  };

  /** Whether a person deleted it, here or in another tab. */
  const isRemoved = (id) => removed.has(id) || removals().includes(id);
  const removals = () => (read(REMOVED) ?? "").split(" ").filter(Boolean);

  /** Give a conversation another title; false when it cannot be read. */
  const rename = (id, title) => {
    const conversation = load(id);
    if (conversation) {
      conversation.title = title;
      return save(conversation) !== "removed";
    }
    const { mark, updated } = parse(read(CONVERSATION + id) ?? null, id);
    if (!mark || !write(CONVERSATION + id, stubOf({ title, updated }, mark))) return false;
    entries.delete(id);
    index([entryFor(id, new Map())]);
    return true;
  };

  /** Delete a conversation and its draft, for ever. What had no room before may have it now. */
  const remove = (id) => {
    removed.add(id);
    for (const known of [unsaved, entries, fetched]) known.delete(id);
    write(CONVERSATION + id, null);
    archive?.remove(id);
    write(REMOVED, [...removals().slice(1 - MOST_REMOVED), id].join(" "));
    saveDraft(id, "");
    const { lines, problem } = readIndex();
    if (!problem && lines.delete(id)) writeIndex([...lines.values()]);
    again();
  };

  /** Write what storage did not take. */
  const again = () => {
    [...unsaved.keys()].map(load).filter(Boolean).forEach(save);
    for (const [id, text] of [...drafts]) saveDraft(id, text);
  };

  /** Whether the text of a conversation is in the archive, and to be fetched. */
  const isAway = (id) => {
    const raw = read(CONVERSATION + id);
    return typeof raw === "string" && isStub(raw) && !lost.has(id) && !load(id);
  };

  /** Take the text that the archive has for a stub; undefined: it has none, and the list says so. */
  const give = (id, text) => {
    const { mark } = parse(read(CONVERSATION + id) ?? null, id);
    if (!mark) return;
    const isWhole = typeof text === "string" && parse(text, id).conversation;
    if (isWhole) fetched.set(id, { mark, text });
    lost[isWhole ? "delete" : "add"](id);
    for (const known of [sound, entries]) known.delete(id);
  };

  /** By what stands in storage, and what it did not take, a version is told. */
  const versionOf = (id) => ({ raw: read(CONVERSATION + id), held: unsaved.get(id) });

  /** Put a stub in the place of a conversation whose `text` is in the archive, if nothing has changed since. */
  const shelve = (id, { raw, held }, text) => {
    if (isRemoved(id) || read(CONVERSATION + id) !== raw || unsaved.get(id) !== held) return;
    const mark = markOf(text);
    const { conversation } = parse(text, id);
    if (!conversation || !write(CONVERSATION + id, stubOf(entryOf(conversation), mark))) return;
    if (held !== undefined) fetched.set(id, { mark, text }); // it goes on, perhaps
    for (const known of [unsaved, entries]) known.delete(id);
    stored.add(id);
  };

  const makeRoom = () => {
    making ??= archive?.makeRoom().finally(() => {
      making = null;
      isTight = isHeld();
      onChange();
    });
  };

  /** What was typed and not sent; `id` "" is the new conversation. */
  const draft = (id) => drafts.get(id) ?? read(DRAFT + id) ?? "";

  const saveDraft = (id, text) => {
    const isKept = write(DRAFT + id, text === "" ? null : text);
    if (isKept || text === "") drafts.delete(id);
    else drafts.set(id, text);
  };

  const isKnown = (id) =>
    isRemoved(id) || stored.has(id) || unsaved.has(id) || typeof read(CONVERSATION + id) === "string";

  /** Whether something is in memory only. */
  const isHeld = () => unsaved.size > 0 || drafts.size > 0;

  /** What is wrong now, in three parts: `[{code, message, detail, action, id?}]`. */
  const problems = () => {
    const found = [];
    const entries = list();
    isTight = isTight && isHeld();
    const isSaid = isUnreadable || (isHeld() && failure && (isTight || !making));
    if (isSaid) found.push(PROBLEMS[isUnreadable ? "storage_blocked" : failure]);
    if (cleared) found.push({ ...PROBLEMS.storage_cleared, id: cleared });
    if (readIndex().problem === "damaged") found.push(PROBLEMS.index_damaged);
    for (const { id, problem } of entries) if (problem) found.push({ ...PROBLEMS[`conversation_${problem}`], id });
    return found;
  };

  /** What a `storage` event's key concerns: a conversation's id, "index", or null. */
  const changed = (key) => {
    if (key === null && entries.size) cleared += 1;
    if (key === null) entries.clear();
    if (key === null || key === INDEX) return "index";
    if (!key.startsWith(CONVERSATION)) return null;
    const id = key.slice(CONVERSATION.length);
    entries.delete(id);
    return id;
  };

  /** Keep conversations as save() does, but the index only once. */
  const saveAll = (conversations) => {
    const kept = conversations.filter((one) => put(one) === "stored");
    if (kept.length) index(kept.map(({ id }) => entries.get(id)));
  };

  return {
    list, load, save, saveAll, rename, remove, isKnown, draft, saveDraft, problems, changed,
    isAway, isRemoved, bring: archive?.bring, give, versionOf, shelve, again, isHeld,
  };
};
