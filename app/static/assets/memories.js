// The two memories of a browser as they are, texts by key: localStorage, which answers at once and has little room, and
// IndexedDB, which has much. Must never know what is in a text, nor decide what goes where (store.js does).

const NAME = "chatwait";
const TEXTS = "conversations";
const PATIENCE_MS = 10_000; // a browser may never answer
const isFull = ({ name }) => name === "QuotaExceededError" || name === "NS_ERROR_DOM_QUOTA_REACHED";

/** `storage`: localStorage, or null when it is blocked. Nothing here throws. */
export function createCells(storage) {
  const cells = {
    isBlocked: false, // the last access to read threw
    failure: null, // why the last call failed: "storage_full" | "storage_blocked"
    read,
    write,
    keys,
  };
  return cells;

  /** null when there is none, undefined when storage cannot be asked. */
  function read(key) {
    try {
      const raw = storage.getItem(key); // null throws as well: blocked
      cells.isBlocked = false;
      return raw;
    } catch {
      cells.isBlocked = true;
      cells.failure = "storage_blocked";
      return undefined;
    }
  }

  /** null removes. Gives whether it was done. */
  function write(key, text) {
    try {
      if (text === null) storage.removeItem(key);
      else storage.setItem(key, text);
      return true;
    } catch (error) {
      cells.failure = isFull(error) ? "storage_full" : "storage_blocked";
      return false;
    }
  }

  /** The keys that begin so, without their beginning. */
  function keys(beginning) {
    const found = [];
    try {
      for (let place = 0; place < storage.length; place += 1) {
        const key = storage.key(place);
        if (key?.startsWith(beginning)) found.push(key.slice(beginning.length));
      }
    } catch {
      cells.isBlocked = true;
      cells.failure = "storage_blocked";
    }
    return found;
  }
}

/** Every call gives a promise; it rejects where the browser has no such memory, blocks it, or does not answer. */
export function createArchive(patience = PATIENCE_MS) {
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
