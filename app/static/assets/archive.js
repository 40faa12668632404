// The browser's second memory, IndexedDB, and what moves there: it has room for what localStorage has not, but answers
// later. Loaded when the page is idle, or when it is wanted. Must never have a text nowhere.

import { isActive, isStub, readConversation } from "./records.js";

const NAME = "chatwait";
const TEXTS = "conversations";
const PATIENCE_MS = 10_000; // a browser may never answer
const MOST_FAILURES = 3; // in one row of moves
const ROOM = 1_000_000; // characters of the newest conversations, which stay; browsers give 2.5 to 5 million to a site

/** `store`: of store.js. Where the browser has no such memory, or blocks it, all stays as it is. */
export function createArchive({ store, texts = createTexts() }) {
  let moving = Promise.resolve(); // one after the other
  return {
    /** Afterwards a conversation that is away can be loaded, or is listed with the problem "lost". Rejects: not now. */
    bring: async (id) => store.give(id, await texts.get(id)),
    /** The conversation of a line of the list, wherever it is; null when nothing can be read. Rejects: not now. */
    async borrow({ id, title }) {
      if (!store.isAway(id)) return store.load(id);
      const text = await texts.get(id);
      try {
        return { ...readConversation(JSON.parse(text), id).conversation, title };
      } catch {
        return null;
      }
    },
    remove: (id) => texts.remove(id).catch(() => {}), // none: nothing is there
    /** Storage is full: move until all that waits in memory has its place. */
    makeRoom: () => tidy(0),
    tidy,
    regain,
  };

  /**
   * Move conversations in which nothing is on its way, oldest first, until the others have at most `room` characters.
   * A page that has one of them open goes on with it: the stub gives way to what it writes.
   */
  function tidy(room = ROOM) {
    moving = moving.then(() => move(room)).catch(() => {});
    return moving;
  }

  async function move(room) {
    let left = room;
    let failures = 0;
    const due = [];
    for (const { id, active, problem } of store.list()) {
      const { raw, held = raw ?? "" } = store.versionOf(id);
      left -= held.length;
      if (left < 0 && !isStub(held) && !active && !problem) due.push(id);
    }
    for (const id of due.reverse()) {
      if (!room && !store.isHeld()) return; // there is enough
      const [version, whole] = [store.versionOf(id), store.load(id)];
      if (!whole || isActive(whole)) continue;
      const text = version.held === undefined ? version.raw : JSON.stringify(whole); // as the tabs that have it know it
      try {
        await texts.put(id, text);
      } catch {
        if ((failures += 1) > MOST_FAILURES) return;
        continue;
      }
      store.shelve(id, version, text);
      if (store.isRemoved(id)) await texts.remove(id);
      store.again();
    }
  }

  /** What only the archive has comes back to the list (storage was cleared, but for it), or goes (it was deleted). */
  async function regain() {
    for (const id of await texts.ids()) {
      const version = store.versionOf(id);
      if (store.isRemoved(id)) await texts.remove(id);
      else if (version.raw === null) store.shelve(id, version, await texts.get(id));
    }
  }
}

/** Texts by key. Each call gives a promise; it rejects where there is no such memory, or it is blocked, or silent. */
export function createTexts(patience = PATIENCE_MS) {
  let opening = null;
  return {
    /** Resolved once the text is written for good. */
    put: (id, text) => run("readwrite", (texts) => texts.put(text, id)),
    /** The text, or undefined. */
    get: (id) => run("readonly", (texts) => texts.get(id)),
    remove: (id) => run("readwrite", (texts) => texts.delete(id)),
    ids: () => run("readonly", (texts) => texts.getAllKeys()),
  };

  async function run(mode, ask) {
    opening ??= open();
    let database;
    try {
      database = await opening;
    } catch (error) {
      opening = null; // the next call tries again
      throw error;
    }
    return within((done, failed) => {
      const transaction = database.transaction(TEXTS, mode, { durability: "strict" });
      const asked = ask(transaction.objectStore(TEXTS));
      transaction.oncomplete = () => done(asked.result);
      transaction.onabort = transaction.onerror = () => failed(transaction.error);
    });
  }

  function open() {
    return within((done, failed) => {
      const asked = indexedDB.open(NAME, 1);
      asked.onupgradeneeded = () => asked.result.createObjectStore(TEXTS);
      asked.onerror = asked.onblocked = () => failed(asked.error);
      asked.onsuccess = () => {
        const database = asked.result;
        database.onclose = () => (opening = null); // its user cleared it
        database.onversionchange = () => {
          database.close();
          opening = null;
        };
        done(database);
      };
    });
  }

  function within(work) {
    return new Promise((done, failed) => {
      setTimeout(failed, patience, new Error("no answer"));
      work(done, failed);
    });
  }
}
