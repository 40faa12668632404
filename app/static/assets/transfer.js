// Conversations as a file: all of them out, and those of a file in. Loaded when the page is idle, or when it is wanted.
// Must never change a conversation that is there.

import { VERSION, portable, readConversation, readFile, refusal } from "./records.js";

const SAFE_ID = /^[\w-]{1,64}$/;

/**
 * Everything as JSON text; conversations that cannot be read go with it as they are, in `unreadable`. `onMissing()`: of
 * each whose text cannot be had now.
 */
export async function exportAll({ store, archive, now, onMissing = () => {} }) {
  const conversations = [];
  const unreadable = [];
  for (const entry of store.list()) {
    const { id, problem } = entry;
    const conversation = await archive.borrow(entry).catch(onMissing);
    if (conversation?.messages) conversations.push(portable(conversation));
    if (problem || !conversation?.messages) unreadable.push({ id, text: store.versionOf(id).raw });
  }
  const whole = { format: "chatwait", v: VERSION, exported: now(), conversations };
  return JSON.stringify(unreadable.length ? { ...whole, unreadable } : whole, null, 1);
}

/** Add the conversations of a file: `{added, skipped}`. Throws an Error with `{message, detail, action}`. */
export function importAll(text, { store, now, random }) {
  const values = readFile(text);
  const fresh = new Map();
  for (const value of values) {
    const id = value?.id;
    const isFree = typeof id === "string" && SAFE_ID.test(id) && !store.isKnown(id) && !fresh.has(id);
    const { conversation } = readConversation(value, isFree ? id : random(), true);
    if (!conversation?.messages.length) continue;
    conversation.updated ||= now();
    conversation.created ||= conversation.updated;
    fresh.set(conversation.id, conversation);
  }
  if (values.length && !fresh.size) throw refusal("unreadable");
  store.saveAll([...fresh.values()]);
  return { added: fresh.size, skipped: values.length - fresh.size };
}
