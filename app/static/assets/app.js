// The page: joins its parts, and says which conversation is shown. The way of a token through it:
// stream.js → answers.js → `on.text` here → view.js. Must never ask the network itself.

import { createAnnouncer } from "./announce.js";
import { createAnswers } from "./answers.js";
import { createComposer } from "./composer.js";
import { activeOf, answerTo, ask } from "./context.js";
import { createFollow } from "./follow.js";
import { createFrame, createNotices } from "./frame.js";
import { createKeeping } from "./keeping.js";
import { createList } from "./list.js";
import { guarded, isOver } from "./machine.js";
import { createServer } from "./server.js";
import { createApi } from "./stream.js";
import { createView, showMark } from "./view.js";
import {
  AWAY, BUSY, CONTINUE, COPIED, DELETED, GIVEN_BACK, LOST, NOT_COPIED, NOT_LOADED, NOT_OPENED, OPENING, RETURNED,
  SIGNED_OUT, TOO_LONG, TRYING, countWords, isCutShort, missingOf,
} from "./words.js";

const SEEN_MS = 5_000; // who comes back to the page, or writes in it, hears soon that the server is away
const TYPED_MS = 10_000;
const FRESH_MS = 3_600_000; // the server forgets answers too
const TITLE_LENGTH = 60;
const element = (id) => document.getElementById(id);
const now = () => Date.now();

/** 144 random bits: for ids and for keys that nobody may guess. */
function random() {
  const bytes = crypto.getRandomValues(new Uint8Array(18));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_");
}

const storage = reachableStorage();
const keeping = createKeeping({ storage, now, random, onChange: refreshFrame });
const { store } = keeping;
const api = createApi();
const marks = new Map(); // what happened to conversations that are not looked at: "done" | "error"
let shown = null; // the conversation

const server = createServer({
  api, storage, now, picker: element("model"), note: element("embedded"), isSeen: () => !document.hidden,
  onLearned() {
    composer.limit(server.limits.max_message_chars);
    server.show(shown);
  },
  onChange: serverChanged,
});
const answers = createAnswers({
  api, store, now, random, locks: navigator.locks, limits: () => server.limits,
  on: { text, change, show, refused, removed },
});
const announcer = guarded(createAnnouncer({ polite: element("polite"), alert: element("alert"), now }));
const follow = guarded(createFollow({ scroller: element("scroller"), jump: element("jump") }));
const notices = guarded(createNotices({ root: element("notices"), onChange: follow.changed }));
const view = guarded(createView({
  log: element("log"),
  now,
  onAction: act,
  onCopy: (isDone) => announcer.say(isDone ? COPIED : NOT_COPIED),
  onCommit: follow.changed,
}));
const composer = createComposer({
  form: element("composer"),
  now,
  onSend: send,
  onStop: () => answers.stop(shown.id),
  onDraft(draft) {
    store.saveDraft(shown?.id ?? "", draft);
    keeping.askIfHeld();
    server.look(TYPED_MS);
  },
  onSay: announcer.say,
});
const list = guarded(createList({
  nav: element("list"),
  onOpen: (id) => (location.hash = id),
  onNew: () => (location.hash = ""),
  onRename(id, title) {
    store.rename(id, title);
    refreshFrame();
  },
  onDelete(id) {
    answers.remove(id);
    removed(id, true);
    announcer.say(DELETED);
  },
  async onExport() {
    const { text, missing } = await keeping.exportAll().catch(() => ({}));
    if (missing || !text) composer.say(text ? missingOf(missing) : NOT_LOADED);
    return text;
  },
  async onImport(file) {
    composer.say(await keeping.importAll(file));
    refreshFrame();
  },
}));
const { showList } = createFrame({ element, home: composer.focus });

answers.resume();
server.look();
addEventListener("hashchange", () => open(location.hash.slice(1)));
addEventListener("storage", ({ key }) => {
  if (store.changed(key) === null) return;
  if (key === null) {
    answers.keep(true); // cleared, and not by this page: what is open in it is kept
    keeping.settle();
  }
  refreshFrame();
});
addEventListener("online", () => {
  answers.wake();
  server.look();
});
addEventListener("offline", () => server.look());
addEventListener("pagehide", () => answers.suspend());
addEventListener("pageshow", ({ persisted }) => persisted && answers.resume());
document.addEventListener("visibilitychange", () => (document.hidden ? answers.keep() : seen()));
setInterval(tick, 1_000);
open(location.hash.slice(1)); // what is kept is painted before anything is answered; nothing else hangs on it

/** `moves`: the focus goes to where one writes. */
function open(id, moves = true) {
  if (id && id === shown?.id && !shown.isComing) return;
  const found = id ? (answers.conversation(id) ?? comingOf(id)) : null;
  composer.flush(); // the last moment's draft is the other conversation's
  if (id && !found) history.replaceState(null, "", location.pathname);
  const left = shown;
  shown = found;
  for (const one of [left, shown]) if (one && activeOf(one)) hearOf(one, activeOf(one)); // what goes, and what comes
  marks.delete(id);
  composer.setDraft(store.draft(shown?.id ?? ""));
  composer.say(id && !found ? LOST : found?.isComing ? OPENING : "");
  view.show(shown);
  follow.pin();
  showList(false);
  server.show(shown);
  refreshFrame();
  if (moves) composer.focus();
}

/** What is shown of a conversation until the archive gives its text; null when it is not there. */
function comingOf(id) {
  if (!store.isAway(id)) return null;
  const isShown = () => shown?.isComing && shown.id === id;
  store.bring(id).then(
    () => isShown() && open(id, false),
    () => isShown() && composer.say(NOT_OPENED),
  );
  return { id, title: store.list().find((entry) => entry.id === id).title, messages: [], isComing: true };
}

// What the reader does

function send(message) {
  if (shown?.isComing) {
    composer.say(OPENING);
    return false;
  }
  if (shown && answers.isBusy(shown.id)) {
    composer.say(BUSY);
    return false;
  }
  const at = now();
  shown ??= { v: 2, id: random(), title: titleFrom(message), created: at, updated: at, messages: [] };
  start(ask(shown, message, how(at)), message);
  return true;
}

function act(name, answerId) {
  const answer = shown.messages.find(({ id }) => id === answerId);
  if (name === "try") {
    announcer.say(TRYING);
    answers.wake(true);
  } else if (name === "signin") globalThis.open(location.pathname, "_blank", "noopener");
  else if (name === "reconnect") {
    answers.again(shown, answer).then((isOurs) => (isOurs ? announcer.resumed(answer) : composer.say(BUSY)));
  } else if (name === "continue") send(CONTINUE);
  else {
    const question = shown.messages.find(({ id }) => id === answer.asks);
    if (!question) return;
    if (answer === shown.messages.at(-1)) start([answerTo(shown, question, how(now()))]);
    else send(question.content);
  }
}

/** `message` is given back when another tab is faster. */
async function start(messages, message) {
  const conversation = shown;
  const isOurs = await answers.begin(conversation, messages);
  if (isOurs) {
    if (conversation.messages.length === messages.length) store.saveDraft("", ""); // it was a new one
    if (shown !== conversation) return refreshFrame();
    if (location.hash.slice(1) !== conversation.id) history.replaceState(null, "", `#${conversation.id}`);
    follow.pin();
    announcer.asked(messages.at(-1));
    refreshFrame();
    keeping.persist();
    return;
  }
  if (message) giveBack(conversation, message);
  composer.say(shown === conversation ? BUSY : GIVEN_BACK);
}

function how(at) {
  return { id: random, key: random, model: element("model").value || null, at, limits: server.limits };
}

// What answers.js tells

function text(conversation, answer, piece) {
  if (conversation === shown) view.append(answer, piece);
}

function change(conversation, answer) {
  if (conversation === shown) {
    view.update(answer);
    follow.changed();
  }
  if (isOver(answer)) keeping.tidyLater();
  hearOf(conversation, answer);
  if (isOver(answer) && (conversation !== shown || document.hidden)) {
    const isGood = answer.state === "complete" || answer.state === "stopped";
    marks.set(conversation.id, isCutShort(answer) ? "cut" : isGood ? "done" : "error");
  }
  refreshFrame();
}

/** What a screen reader says of an answer. Gives whether it may be told how far it is. */
function hearOf(conversation, answer) {
  return announcer.look(answer, conversation === shown ? undefined : conversation.title);
}

function show(conversation, isNew) {
  const last = conversation.messages.at(-1);
  if (isNew && last) announcer.meet(last); // it may be over already
  if (last?.asks) hearOf(conversation, last);
  if (conversation !== shown) return;
  view.show(conversation);
  follow.changed();
  refreshFrame();
}

function refused(conversation, answer) {
  const question = conversation.messages.find(({ id }) => id === answer.asks);
  giveBack(conversation, question.content);
  const said = answer.error?.code === "too_long_alone" ? TOO_LONG : GIVEN_BACK;
  if (conversation === shown) composer.say(said, false); // the failure says it
}

function giveBack({ id }, message) {
  if (shown?.id === id || !answers.conversation(id)) composer.giveBack(message); // or it was deleted
  else store.saveDraft(id, [message, store.draft(id)].filter(Boolean).join("\n\n"));
}

function removed(id, isOurs = false) {
  marks.delete(id);
  if (id === shown?.id) {
    history.replaceState(null, "", location.pathname);
    composer.setDraft("");
    shown = null;
    open("", isOurs || !element("list").contains(document.activeElement));
  } else refreshFrame();
}

// What is around the messages

function refreshFrame() {
  const active = shown && activeOf(shown);
  composer.busy(active ? (active.stopping ? "stopping" : active.state) : null);
  const mark = ({ id, active: isActive }) => marks.get(id) ?? (isActive ? "streaming" : undefined);
  const entries = store.list();
  const entry = entries.find(({ id }) => id === shown?.id);
  if (entry && !entry.problem) shown.title = entry.title; // another tab may have renamed it
  list.show(entries.map((entry) => ({ ...entry, mark: mark(entry) })), shown?.id);
  keeping.askIfHeld();
  const said = server.isSignedOut ? [SIGNED_OUT] : server.isAway && !active ? [AWAY] : []; // an answer says it itself
  notices.show([...said, ...store.problems()]);
  element("title").textContent = shown?.title ?? "ChatWait";
  const all = new Set(marks.values());
  showMark(shown?.title, active ? "streaming" : all.has("error") ? "error" : all.size ? "done" : undefined);
}

function seen() {
  if (shown) marks.delete(shown.id);
  answers.wake();
  server.look(SEEN_MS);
  refreshFrame();
}

function serverChanged(what) {
  if (what === "isAway" && !server.isAway) {
    answers.wake();
    if (!shown || !activeOf(shown)) announcer.say(RETURNED);
    const last = shown?.messages.at(-1);
    // It was away for longer than an answer waits; one of long ago, or of a file, is its reader's to come back to.
    const isFresh = last?.error?.code === "connection_lost" && last.streamId && now() - last.endedAt < FRESH_MS;
    if (isFresh) answers.again(shown, last);
  }
  refreshFrame();
}

function tick() {
  view.tick(now());
  const active = shown && activeOf(shown);
  if (active && hearOf(shown, active)) announcer.answering(countWords(active.content));
}

function titleFrom(message) {
  const line = message.trim().split("\n", 1)[0];
  const points = [...line.slice(0, 4 * TITLE_LENGTH)];
  return points.length > TITLE_LENGTH ? `${points.slice(0, TITLE_LENGTH - 1).join("")}…` : line;
}

function reachableStorage() {
  try {
    localStorage.getItem("chatwait.index");
    return localStorage;
  } catch {
    return null; // blocked by the browser's settings
  }
}
