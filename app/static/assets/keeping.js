// What the page keeps, and where: moves what is old to the archive, writes and reads files of conversations, and asks
// before what is in memory only is left. The archive and the files are loaded when the page is idle, or when they are
// wanted. Must never touch the page.

import { createStore } from "./store.js";
import { NOT_LOADED, importedOf } from "./words.js";

const TIDY_MS = 3_000; // after the last answer: nobody waits for it

/** `onChange()`: what is wrong, or in the list, has changed. Gives the store, and what is done with all of it. */
export function createKeeping({ storage, now, random, onChange }) {
  let loading = null; // a promise of the archive
  let isAsked = false; // the browser, to keep all
  const store = createStore({
    storage, now, random, onChange,
    archive: {
      bring: (id) => archive().then((one) => one.bring(id)),
      makeRoom: () => archive().then((one) => one.makeRoom(), () => {}),
      remove: (id) => archive().then((one) => one.remove(id), () => {}),
    },
  });
  (globalThis.requestIdleCallback ?? setTimeout)(load);
  setTimeout(settle, TIDY_MS);
  return { store, settle, tidyLater: () => setTimeout(tidy, TIDY_MS), askIfHeld, exportAll, importAll, persist };

  function archive() {
    loading ??= import("./archive.js").then(({ createArchive }) => createArchive({ store }));
    loading.catch(() => (loading = null));
    return loading;
  }

  /** The rest of the page, while the server is there. */
  function load() {
    archive().catch(() => {});
    import("./transfer.js").catch(() => {});
  }

  async function tidy() {
    await archive().then((one) => one.tidy(), () => {}); // where it cannot be loaded, all stays where it is
    onChange();
  }

  /** What only the archive has comes back, and what is old goes there. */
  async function settle() {
    await archive().then((one) => one.regain()).catch(() => {});
    await tidy();
  }

  /** Have the browser ask before the page is left while something is in its memory only. */
  function askIfHeld() {
    (store.isHeld() ? addEventListener : removeEventListener)("beforeunload", askFirst);
  }

  function askFirst(event) {
    event.preventDefault();
  }

  /** `{text, missing}`: a file, and of how many conversations the text cannot be had now. Rejects: not loaded. */
  async function exportAll() {
    const { exportAll: write } = await import("./transfer.js");
    let missing = 0;
    const text = await write({ store, archive: await archive(), now, onMissing: () => (missing += 1) });
    return { text, missing };
  }

  /** There is something to keep now: ask the browser, once, not to throw it away by itself. */
  function persist() {
    if (!isAsked) navigator.storage?.persist?.().catch(() => {});
    isAsked = true;
  }

  /** Add what a file holds. Gives a sentence: what was done, or why nothing was. */
  async function importAll(text) {
    try {
      const { importAll: read } = await import("./transfer.js").catch(() => Promise.reject(new Error(NOT_LOADED)));
      const told = importedOf(read(text, { store, now, random }));
      tidy();
      return told;
    } catch ({ message, detail, action }) {
      return [message, detail, action].filter(Boolean).join(" ");
    }
  }
}
