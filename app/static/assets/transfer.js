// Conversations as a file: all of them out, and those of a file in. Must never change one that is there.

import { VERSION, portable, readConversation, readFile, refusal } from "./records.js";

const SAFE_ID = /^[\w-]{1,64}$/;

/** `borrow(id)`: a promise of a conversation, wherever it is. The rest is the store's. */
export function createTransfer({ list, borrow, saveAll, textOf, isKnown, now, random }) {
  return { exportAll, importAll };

  /** Everything as JSON text; conversations that cannot be read go with it as they are, in `unreadable`. */
  async function exportAll() {
    const conversations = [];
    const unreadable = [];
    for (const { id, problem } of list()) {
      const conversation = await borrow(id);
      if (conversation) conversations.push(portable(conversation));
      if (problem || !conversation) unreadable.push({ id, text: textOf(id) });
    }
    const whole = { format: "chatwait", v: VERSION, exported: now(), conversations };
    return JSON.stringify(unreadable.length ? { ...whole, unreadable } : whole, null, 1);
  }

  /** Add the conversations of a file: `{added, skipped}`. Throws an Error with `{message, detail, action}`. */
  function importAll(text) {
    const values = readFile(text);
    const fresh = new Map();
    for (const value of values) {
      const id = value?.id;
      const isFree = typeof id === "string" && SAFE_ID.test(id) && !isKnown(id) && !fresh.has(id);
      const { conversation } = readConversation(value, isFree ? id : random(), true);
      if (!conversation?.messages.length) continue;
      conversation.updated ||= now();
      conversation.created ||= conversation.updated;
      fresh.set(conversation.id, conversation);
    }
    if (values.length && !fresh.size) throw refusal("unreadable");
    saveAll([...fresh.values()]);
    return { added: fresh.size, skipped: values.length - fresh.size };
  }
}
