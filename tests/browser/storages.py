"""What the tests of store.js share: storages that count, fill up or refuse, and conversations to put into them."""

from __future__ import annotations

from typing import Any

from tests.browser.modules import Modules

PRELUDE = """
const { createStore } = await load("store");
const { exportAll, importAll } = await load("transfer");

/** A localStorage-like: counts what is done to it, throws as browsers do over `limit` bytes, or when `isBlocked`. */
const fake = (values = {}) => {
  const kept = new Map(Object.entries(values));
  const guard = () => {
    if (storage.isBlocked) throw new DOMException("denied", "SecurityError");
  };
  const size = (key, value) => 2 * (key.length + value.length);
  const storage = {
    writes: [],
    limit: Infinity,
    isBlocked: false,
    get length() {
      guard();
      return kept.size;
    },
    key(place) {
      guard();
      return [...kept.keys()][place] ?? null;
    },
    getItem(key) {
      guard();
      return kept.get(key) ?? null;
    },
    setItem(key, value) {
      guard();
      let used = size(key, value);
      for (const [other, text] of kept) if (other !== key) used += size(other, text);
      if (used > storage.limit) throw new DOMException("full", "QuotaExceededError");
      storage.writes.push(key);
      kept.set(key, value);
    },
    removeItem(key) {
      guard();
      storage.writes.push(`-${key}`);
      kept.delete(key);
    },
    all: () => Object.fromEntries(kept),
    put: (key, value) => kept.set(key, value),
    done() {
      const writes = storage.writes;
      storage.writes = [];
      return writes;
    },
  };
  return storage;
};

let made = 0;
const now = () => 1_700_000_000_000;
const random = () => `new-${(made += 1)}`;
const withFiles = (store, archive = { borrow: async ({ id }) => store.load(id) }) => ({
  ...store,
  exportAll: () => exportAll({ store, archive, now }),
  importAll: (text) => importAll(text, { store, now, random }),
});
const open = (storage) => withFiles(createStore({ storage, now, random }));
const question = (id, more) => ({ id, role: "user", content: `Question ${id}?`, at: 1000, ...more });
const answer = (id, more) => ({
  id, role: "assistant", content: "One two", at: 1000, state: "streaming", asks: "q1", key: "k0-Z".repeat(6),
  sent: { model: "small", skip: 0 }, streamId: "cw_1", sequence: 2, sentAt: 1000, reconnects: 0, error: null, ...more,
});
const talk = (id, messages, more) => (
  { v: 2, id, title: `About ${id}`, created: 1000, updated: 1000, messages, ...more }
);
const ids = (conversation) => conversation.messages.map((message) => message.id).join(" ");
const stored = (storage, id) => JSON.parse(storage.getItem(`chatwait.conversation.${id}`));
"""


def in_page(modules: Modules, body: str, arg: Any = None) -> Any:
    """Run JavaScript statements with what PRELUDE defines and `arg`, and give what they return."""
    return modules.run("async (load, arg) => {" + PRELUDE + body + "}", arg)
