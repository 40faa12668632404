// The life of every answer in this tab: whose turn it is to read it (tabs), reading it (stream), keeping it (store),
// and telling the page (`on`) and the other tabs. Must never touch the page or know an address.

import { activeOf, requestOf, shorten, withoutRefused } from "./context.js";
import { guarded, isOver } from "./machine.js";
import { openStream } from "./stream.js";
import { createTabs } from "./tabs.js";

const SAVE_MS = 1_000;
const YIELD_MS = 1_500; // tabs that waited for the last answer see that there is nothing to read, and let go

/**
 * `on`: text(conversation, answer, text), change(conversation, answer), show(conversation, isNew) when its messages are
 * others than before (isNew: the last was asked in another tab just now), refused(conversation, answer), removed(id).
 */
export function createAnswers({ api, locks, now, random, limits, ...parts }) {
  const [store, on] = [guarded({ ...parts.store }), guarded(parts.on)];
  const known = new Map(); // conversations of this tab by id
  const runs = new Map(); // by conversation: what is read here, or waited for
  const tabs = createTabs({ locks, random, now, onMessage: hear });
  return { conversation, begin, again, stop, wake, watch, keep, save, remove, suspend, resume, isBusy };

  /** The conversation of this id, from memory or from the store; null when there is none. */
  function conversation(id) {
    if (known.has(id)) return known.get(id);
    const found = store.load(id);
    if (!found) return null;
    known.set(id, found);
    if (activeOf(found)) tabs.send({ kind: "ask", id }); // the tab that reads it knows more than what is stored
    return found;
  }

  function isBusy(id) {
    return Boolean(known.get(id) && activeOf(known.get(id)));
  }

  /** Add messages, the last of them an answer to be fetched. Gives false when another tab is at it. */
  async function begin(conversation, messages) {
    known.set(conversation.id, conversation);
    const answer = messages.at(-1);
    if (!(await own(conversation, answer))) return false;
    conversation.messages = withoutRefused(conversation.messages);
    conversation.messages.push(...messages);
    on.show(conversation);
    if (save(conversation) === "removed") return false;
    tabs.send({ kind: "messages", id: conversation.id });
    read(conversation, answer);
    return true;
  }

  /** Come back to an interrupted answer. */
  async function again(conversation, answer) {
    if (!(await own(conversation, answer))) return false;
    Object.assign(answer, { state: "reconnecting", error: null, endedAt: null });
    changed(conversation, answer);
    if (save(conversation) === "removed") return false;
    tabs.send({ kind: "messages", id: conversation.id });
    read(conversation, answer);
    return true;
  }

  async function own(conversation, answer) {
    const { id } = conversation;
    const until = now() + YIELD_MS;
    for (;;) {
      if (!runs.has(id)) {
        const run = { answer };
        runs.set(id, run);
        const release = await tabs.tryOwn(id, () => lost(id, run));
        if (release && runs.get(id) === run && !activeOf(conversation)) {
          run.release = release;
          return true;
        }
        release?.();
        if (runs.get(id) === run) runs.delete(id);
      }
      if (activeOf(conversation) || now() >= until) break;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    watch(id); // what another tab began meanwhile
    return false;
  }

  /** Read an answer that is on its way as soon as no other tab does. */
  async function watch(id) {
    if (runs.has(id)) return;
    const run = {};
    runs.set(id, run);
    const release = await tabs.own(id, () => lost(id, run));
    if (runs.get(id) !== run || !release) {
      release?.();
      if (runs.get(id) === run) runs.delete(id);
      return;
    }
    run.release = release;
    const found = refresh(id, true);
    const answer = found && activeOf(found);
    if (!answer) {
      finish(id);
      return;
    }
    run.answer = answer;
    // Whether the connection is lost is not known yet; a page that is left hears of its own end as of a loss.
    if (answer.state === "reconnecting") Object.assign(answer, { state: answer.sequence ? "streaming" : "waiting" });
    read(found, answer);
  }

  /** Another tab reads now, because this one was too slow: follow it. */
  function lost(id, run) {
    if (runs.get(id) !== run) return;
    finish(id);
    watch(id);
  }

  async function read(conversation, answer) {
    const { id } = conversation;
    const run = runs.get(id);
    if (!run) return;
    run.cancel = new AbortController();
    const waits = (place) => {
      Object.assign(answer, { queued: true, place });
      changed(conversation, answer);
    };
    const slot = await tabs.slot(waits, run.cancel.signal, () => lost(id, run));
    if (runs.get(id) !== run) return slot?.();
    answer.queued = false;
    run.slot = slot;
    if (isOver(answer)) return changed(conversation, answer); // a tab that had lost its turn read it to its end all the same
    if (!slot || run.cancel.signal.aborted) {
      if (answer.streamId) {
        const { ok } = await api.stop(answer.streamId, AbortSignal.timeout(5_000)).catch(() => ({}));
        if (!ok) answer.note = "stop_unconfirmed";
      }
      answer.state = "stopped"; // before its turn came
      answer.endedAt = now();
      changed(conversation, answer);
      return;
    }
    run.stream = openStream({
      api,
      answer,
      now,
      heartbeat: limits()?.heartbeat_seconds,
      request: () => requestOf(conversation, answer),
      onText: (_, text) => took(conversation, answer, text),
      onChange: () => changed(conversation, answer),
      onReset: () => {
        on.show(conversation);
        tabs.send({ kind: "messages", id });
      },
    });
    if (run.isStopWanted || answer.stopping) {
      answer.stopping = false;
      run.stream.stop();
    }
  }

  /** The way of a token: to the page, to the other tabs, and once a second to the store. */
  function took(conversation, answer, text) {
    on.text(conversation, answer, text);
    const { id } = conversation;
    tabs.send({ kind: "text", id, answer: answer.id, text, end: answer.content.length, sequence: answer.sequence });
    const run = runs.get(id);
    if (now() - (run.savedAt ?? 0) >= SAVE_MS) save(conversation);
    else run.timer ??= setTimeout(save, SAVE_MS, conversation);
  }

  function changed(conversation, answer) {
    const { id } = conversation;
    if (isOver(answer)) {
      if (isTooLong(conversation, answer)) return;
      save(conversation);
      finish(id);
    } else if (answer.streamId && !runs.get(id)?.isIdKept) {
      const run = runs.get(id);
      if (run) run.isIdKept = true;
      save(conversation); // from here on there is something to come back to
    }
    const { content, ...rest } = answer;
    tabs.send({ kind: "state", id, answer: rest, length: content.length });
    on.change(conversation, answer);
    if (answer.refused) on.refused(conversation, answer);
  }

  /** Too long for the service or the model: ask again with less of the context, while there is any. */
  function isTooLong(conversation, answer) {
    if (answer.error?.error_code !== "context_too_long" || answer.content) return false;
    if (!shorten(conversation, answer, random())) {
      Object.assign(answer, { refused: true, error: { ...answer.error, code: "too_long_alone" } });
      return false;
    }
    const run = runs.get(conversation.id);
    run.slot?.();
    run.isIdKept = false;
    on.show(conversation); // the mark of what is left out
    if (save(conversation) !== "removed") read(conversation, answer);
    tabs.send({ kind: "messages", id: conversation.id });
    return true;
  }

  function finish(id) {
    const run = runs.get(id);
    runs.delete(id);
    clearTimeout(run?.timer);
    run?.cancel?.abort(); // it may wait for its turn
    run?.stream?.close();
    run?.slot?.();
    run?.release?.();
  }

  /** Stop the answer that is on its way, whoever reads it. */
  function stop(id) {
    const run = runs.get(id);
    if (run?.stream) run.stream.stop();
    else if (run?.cancel) run.cancel.abort();
    else {
      if (run) run.isStopWanted = true; // should the tab that reads it be gone
      tabs.send({ kind: "stop", id });
    }
  }

  /** The reader or the network is back. */
  function wake(isForced) {
    for (const [id, run] of runs) {
      if (run.stream) run.stream.wake(isForced);
      else tabs.send({ kind: "wake", id, isForced });
    }
  }

  /** Write a conversation now. */
  function save(conversation) {
    const run = runs.get(conversation.id);
    if (run) {
      clearTimeout(run.timer);
      run.timer = undefined;
      run.savedAt = now();
    }
    const kept = store.save(conversation);
    if (kept === "removed") {
      forget(conversation.id);
      on.removed(conversation.id);
    }
    return kept;
  }

  /** Write what is being read now: the page may not come back. Or all that is known: the storage was cleared. */
  function keep(isAll = false) {
    for (const [id, one] of known) if (isAll || runs.get(id)?.stream) save(one);
  }

  function remove(id) {
    forget(id);
    store.remove(id);
    tabs.send({ kind: "removed", id });
  }

  /** The conversation is deleted, here or in another tab: nobody will read its answer. */
  function forget(id) {
    const { stream, answer } = runs.get(id) ?? {};
    if (stream && answer.streamId && !isOver(answer)) api.stop(answer.streamId).catch(() => {});
    finish(id);
    known.delete(id);
  }

  /** The page goes away, perhaps for ever: keep all, hold nothing. */
  function suspend() {
    keep();
    for (const run of runs.values()) {
      clearTimeout(run.timer);
      run.cancel?.abort();
      run.stream?.close();
    }
    runs.clear();
    tabs.close();
  }

  function resume() {
    tabs.open();
    for (const id of known.keys()) refresh(id);
    for (const { id, active } of store.list() ?? []) if (active) watch(id);
  }

  /** Take over what the store knows better, and tell the page. `isNews`: what this tab did not know is of just now. */
  function refresh(id, isNews = false) {
    const mine = known.get(id);
    const stored = store.load(id);
    if (!mine || !stored) return mine ?? conversation(id);
    const ours = new Map(mine.messages.map((message) => [message.id, message]));
    mine.messages = stored.messages.map((message) => {
      const our = ours.get(message.id);
      const isRead = our && runs.get(id)?.answer === our; // its stream writes to this very record
      return isRead || (our?.sequence > message.sequence && !isOver(message)) ? our : message;
    });
    mine.title = stored.title;
    on.show(mine, isNews && !ours.has(mine.messages.at(-1)?.id));
    return mine;
  }

  /** What another tab says. */
  function hear(message) {
    const { kind, id } = message;
    const mine = known.get(id);
    if (kind === "removed") {
      forget(id);
      on.removed(id);
    } else if (kind === "stop") {
      if (runs.get(id)?.stream || runs.get(id)?.cancel) stop(id);
    } else if (kind === "wake") {
      runs.get(id)?.stream?.wake(message.isForced);
    } else if (kind === "messages") {
      if (mine) refresh(id, true);
      watch(id);
    } else if (kind === "ask") {
      const { answer, cancel } = runs.get(id) ?? {};
      if (cancel) tabs.send({ kind: "whole", id, answer }); // it reads, or waits for its turn to
    } else if (mine) hearOf(mine, message);
  }

  function hearOf(mine, { kind, id, answer: told, text, end, sequence, length }) {
    const answer = mine.messages.find((one) => one.id === (told.id ?? told));
    if (!answer || isOver(answer)) {
      if (!answer || kind === "state") refresh(id, !answer);
      return;
    }
    if (kind === "text") {
      const had = answer.content.length;
      if (end <= had) return;
      if (end - text.length !== had) return void tabs.send({ kind: "ask", id });
      answer.content += text;
      Object.assign(answer, { sequence, lastTokenAt: now(), state: "streaming" });
      on.text(mine, answer, text);
    } else if (kind === "whole") {
      const had = answer.content;
      Object.assign(answer, told);
      if (!answer.content.startsWith(had)) return on.show(mine);
      if (answer.content !== had) on.text(mine, answer, answer.content.slice(had.length));
      on.change(mine, answer);
    } else {
      const { sequence: _, ...rest } = told;
      if (length !== answer.content.length) {
        if (isOver(told)) return void refresh(id);
        tabs.send({ kind: "ask", id });
      }
      Object.assign(answer, rest);
      on.change(mine, answer);
      if (isOver(answer) && !runs.get(id)?.stream) runs.get(id)?.cancel?.abort(); // its turn is not waited for
    }
  }
}
