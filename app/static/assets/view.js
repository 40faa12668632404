// The messages of the shown conversation: their text as it comes, their states, actions and details.
// Must never ask the network, never write a word of its own into [data-answer], never hold a token back.

import { guarded, isOver } from "./machine.js";
import { createProse } from "./markdown.js";
import { EMPTY, actionsOf, buttonOf, cutOf, detailsOf, failureOf, isCutShort, statusOf, titleOf } from "./words.js";

const COPIED_MS = 2_000;

/**
 * `log`: the element with role=log. `onAction(name, answerId)`: reconnect again continue try.
 * Copy (of an answer, of a code block) is done here; `onCopy(isDone)` tells it, for the announcer.
 * `onCommit(answerId, sequence)` after text has reached the page.
 */
export function createView({ log, now = Date.now, onAction, onCopy = () => {}, onCommit = () => {} }) {
  const answers = new Map(); // id -> what is shown of it
  const still = new Map(); // what never changes by itself, questions and marks: key -> {article, text}
  let shownId; // the conversation's
  const waiting = new Set(); // with text for the next frame
  const each = guarded({ articleOf, update }); // one that cannot be shown hides no other, nor its own text
  let frame = 0;
  log.addEventListener("copytext", (event) => copy(event.detail, event.target));
  document.addEventListener("visibilitychange", () => document.hidden && flush());
  return { show, update, append, tick, flush };

  /**
   * Show a whole conversation `{id, messages}`; null or one without messages: the empty page. What is shown of it
   * already stays as it is, with its focus, selection and open details: a send costs as much as its two messages.
   */
  function show(conversation) {
    const messages = conversation?.messages ?? [];
    if (conversation?.id !== shownId) forget();
    shownId = conversation?.id;
    log.classList.toggle("empty", messages.length === 0);
    const skips = new Map(); // by question: how many messages before it were left out of its first request
    for (const { asks, sent } of messages) if (sent?.skip && !skips.has(asks)) skips.set(asks, sent.skip);
    const wanted = messages.flatMap((message) => {
      const skip = skips.get(message.id);
      const article = each.articleOf(message);
      return skip ? [stillOf(cutMark, cutOf(skip), message.id), article] : [article];
    });
    place(messages.length || conversation?.isComing ? wanted.filter(Boolean) : [greeting()]);
  }

  /** State, status line, actions, failure and details; the text only comes by `append` and `show`. */
  function update(answer) {
    const shown = answers.get(answer.id);
    if (!shown) return;
    shown.answer = answer;
    const isLive = !isOver(answer);
    if (!isLive) settle(shown);
    else if (shown.isSettled) renew(shown);
    const { article } = shown;
    shown.looks = looksOf(answer);
    if (article.dataset.state !== answer.state) {
      article.dataset.state = answer.state;
      article.setAttribute("aria-busy", String(isLive));
    }
    article.dataset.sequence = shown.sequence;
    setText(shown.status, statusOf(answer, now()));
    if (isCutShort(answer)) shown.status.dataset.tone = "warning";
    else delete shown.status.dataset.tone;
    fillBox(shown);
    fillActions(shown);
    fillDetails(shown);
  }

  /** The way of a token. `answer.content` already ends with `text`. */
  function append(answer, text) {
    const shown = answers.get(answer.id);
    if (!shown) return;
    shown.answer = answer;
    shown.buffer += text;
    if (document.hidden) return commit(shown);
    waiting.add(shown);
    frame ||= requestAnimationFrame(flush);
  }

  /** Commit everything that was appended, now. */
  function flush() {
    if (frame) cancelAnimationFrame(frame);
    frame = 0;
    for (const shown of waiting) commit(shown);
  }

  function commit(shown) {
    waiting.delete(shown);
    const { answer, buffer } = shown;
    shown.buffer = "";
    shown.length += buffer.length;
    if (shown.isSettled || shown.length !== answer.content.length) renew(shown);
    else shown.markdown.append(buffer);
    tellSequence(shown);
    onCommit(answer.id, shown.sequence);
  }

  /** Let the seconds of the status lines go on; `at` in epoch ms. */
  function tick(at = now()) {
    for (const shown of answers.values()) {
      if (!isOver(shown.answer)) setText(shown.status, statusOf(shown.answer, at));
    }
  }

  // Below: one answer

  /** What is shown of a message, brought up to date or made anew. */
  function articleOf(message) {
    const { id, role, content } = message;
    if (role === "user") return stillOf(question, content, id);
    return answers.has(id) ? bring(answers.get(id), message) : answerOf(message);
  }

  function stillOf(make, text, id) {
    const key = `${make.name} ${id}`;
    if (still.get(key)?.text !== text) still.set(key, { article: make(text, id), text });
    return still.get(key).article;
  }

  function bring(shown, answer) {
    shown.answer = answer;
    if (answer.content !== shown.content) renew(shown);
    if (!isOver(answer) || looksOf(answer) !== shown.looks) update(answer);
    return shown.article;
  }

  function answerOf(answer) {
    const text = element("div", { className: "prose" });
    text.dataset.answer = "";
    const status = element("p", { className: "status" });
    const actions = element("div", { className: "actions" });
    const foot = element("div", { className: "foot" }, status, actions);
    const article = element("article", { className: "answer" }, heading("Answer"), text, foot);
    article.dataset.id = answer.id;
    const shown = { answer, article, text, status, actions, foot, box: null, details: null, buffer: "", isOpen: false };
    answers.set(answer.id, shown);
    renew(shown);
    each.update(answer);
    actions.addEventListener("click", (event) => press(shown, event.target.closest("button")));
    return article;
  }

  /** Paint the text of the record anew. */
  function renew(shown) {
    const { text, answer } = shown;
    waiting.delete(shown);
    text.replaceChildren();
    shown.markdown = createProse(text, () => shown.answer.content);
    if (answer.content) shown.markdown.set(answer.content);
    shown.buffer = "";
    shown.length = answer.content.length;
    shown.isSettled = false;
    tellSequence(shown);
  }

  function settle(shown) {
    if (waiting.has(shown)) commit(shown);
    if (shown.length !== shown.answer.content.length) renew(shown);
    if (!shown.isSettled) shown.markdown.end();
    shown.isSettled = true;
    tellSequence(shown);
  }

  function tellSequence(shown) {
    shown.content = shown.answer.content;
    shown.sequence = shown.answer.sequence ?? 0;
    shown.article.dataset.sequence = shown.sequence;
  }

  function fillBox(shown) {
    const failure = failureOf(shown.answer);
    const key = JSON.stringify(failure);
    if (shown.boxKey === key) return; // what has the focus in it keeps it
    shown.boxKey = key;
    shown.box?.remove();
    shown.box = failure && box(failure, copy);
    if (shown.box) shown.foot.before(shown.box);
  }

  function fillActions(shown) {
    const names = actionsOf(shown.answer);
    const hasDetails = detailsOf(shown.answer).length > 0;
    const key = `${names} ${hasDetails}`;
    if (shown.actionKey === key) return;
    shown.actionKey = key;
    const focused = shown.actions.contains(document.activeElement) ? document.activeElement.dataset.action : null;
    shown.actions.replaceChildren(...names.map((name) => button(name, buttonOf(name))));
    if (hasDetails) shown.actions.append(button("details", "Details"));
    if (focused) shown.actions.querySelector(`[data-action="${focused}"]`)?.focus({ preventScroll: true });
  }

  function fillDetails(shown) {
    const rows = shown.isOpen ? detailsOf(shown.answer) : [];
    shown.details?.remove();
    shown.details = rows.length ? element("dl", { className: "details" }) : null;
    for (const [name, value] of rows) {
      shown.details.append(element("div", {}, element("dt", {}, name), element("dd", {}, value)));
    }
    if (shown.details) shown.foot.after(shown.details);
    shown.actions.querySelector('[data-action="details"]')?.setAttribute("aria-expanded", String(rows.length > 0));
  }

  function press(shown, pressed) {
    const name = pressed?.dataset.action;
    if (!name) return;
    if (name === "copy") return copy(shown.answer.content, pressed);
    if (name !== "details") return onAction(name, shown.answer.id);
    shown.isOpen = !shown.isOpen;
    fillDetails(shown);
  }

  async function copy(text, pressed) {
    const isDone = await copyText(text);
    if (isDone) {
      pressed.classList.add("copied");
      setTimeout(() => pressed.classList.remove("copied"), COPIED_MS);
    }
    onCopy(isDone);
  }

  /** Make the log hold these elements in this order; what stands right is not touched. */
  function place(wanted) {
    const kept = new Set(wanted);
    for (const child of [...log.children]) if (!kept.has(child)) child.remove();
    for (const all of [answers, still]) {
      for (const [key, { article }] of all) if (!kept.has(article)) all.delete(key);
    }
    let at = log.firstElementChild;
    for (const one of wanted) {
      if (one === at) at = at.nextElementSibling;
      else log.insertBefore(one, at);
    }
  }

  function forget() {
    if (frame) cancelAnimationFrame(frame);
    frame = 0;
    answers.clear();
    still.clear();
    waiting.clear();
  }
}

/** All that is told of an answer but its text. */
const looksOf = ({ content, ...rest }) => JSON.stringify(rest);

/** Copy by the clipboard, or where there is none (plain HTTP) by a hidden text box. Gives whether it was done. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const focused = document.activeElement;
    const field = element("textarea", { className: "quiet", value: text, readOnly: true });
    field.setAttribute("aria-hidden", "true");
    (focused?.closest("dialog") ?? document.body).append(field);
    field.select();
    const isDone = document.execCommand("copy");
    field.remove();
    focused?.focus?.({ preventScroll: true });
    return isDone;
  }
}

/** Title and icon of the window. `mark`: "streaming" | "done" | "error" | undefined */
export function showMark(title, mark) {
  const text = titleOf(title, mark);
  if (document.title !== text) document.title = text;
  const link = document.querySelector('link[rel="icon"]');
  const url = new URL(mark ? `icon-${mark}.svg` : "icon.svg", import.meta.url).href;
  if (link && link.href !== url) link.href = url;
}

function question(content, id) {
  const bubble = element("div", { className: "bubble", dir: "auto" }, content);
  const article = element("article", { className: "question" }, heading("Question"), bubble);
  article.dataset.id = id;
  return article;
}

function cutMark(text) {
  return element("p", { className: "cut" }, text);
}

function greeting() {
  const title = element("h2", {}, EMPTY.title);
  return element("div", { className: "greeting" }, title, element("p", {}, EMPTY.text));
}

function box({ tone, happened, why, safe, todo, id }, copy) {
  const first = element("p", {}, element("strong", {}, happened), why ? " " : "", element("bdi", {}, why));
  const next = element("p", { className: "todo" }, todo);
  const made = element("div", { className: "box" }, first, element("p", {}, safe), next);
  made.dataset.tone = tone;
  if (id) {
    const pressed = button("copy", "Copy id");
    pressed.addEventListener("click", () => copy(id, pressed));
    made.append(element("div", { className: "id" }, "Correlation id: ", element("code", {}, id), pressed));
  }
  return made;
}

function button(action, name) {
  const made = element("button", { type: "button", className: "action" }, name);
  made.dataset.action = action;
  return made;
}

function heading(text) {
  return element("h2", { className: "quiet" }, text);
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
