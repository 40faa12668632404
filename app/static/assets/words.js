// Every sentence of the page: what a state, a failure, a notice is called. Short, and blaming nobody.
// Pure. Must never touch the DOM or the network, and never puts a word into an answer's text.

import { isOver } from "./machine.js";

const SECOND = 1_000;
const SHORTEN = "Shorten the message, or send it in parts.";
const NUMBER = new Intl.NumberFormat("en");

/** `tone`: of the box. `retry`: what goes first. Page's own codes; the service tells its own in three parts. */
const OWN = {
  connection_lost: {
    happened: "The connection was lost and did not come back within two minutes.",
    why: "The server may still be writing the answer.",
    todo: "Reconnect to go on where the answer stopped.",
  },
  overloaded_long: {
    happened: "The server has been busy for two minutes.",
    todo: "Reconnect in a while, or ask again later.",
  },
  imported: {
    happened: "This answer was not complete when it was exported.",
    todo: "Reconnect to go on where the answer stopped.",
  },
  answer_gone: {
    happened: "The server no longer has this answer.",
    todo: "Ask again for a new one.",
    todoKept: "Continue from here, or ask again for a new one.",
  },
  ended_by_server: {
    happened: "The server ended this answer before it was complete.",
    todo: "Ask again for a new one.",
    todoKept: "Continue from here, or ask again for a new one.",
  },
  too_long_alone: {
    happened: "The message is too long.",
    why: "Even without earlier messages, this message is more than the model can read.",
    todo: SHORTEN,
  },
  page_fault: {
    happened: "Something went wrong in this page.",
    todo: "Reconnect to go on where the answer stopped.",
  },
  text_damaged: {
    happened: "The text of this answer arrived damaged.",
    why: "The page loaded the text twice.",
    todo: "Reconnect to load it once more, or ask again for a new answer.",
  },
  refused: {
    happened: "The message was not accepted.",
    why: "Something other than ChatWait replied, perhaps a proxy.",
  },
  unread: {
    happened: "The rest of the answer could not be loaded.",
    why: "Something other than ChatWait replied, perhaps a proxy.",
    todo: "Reconnect in a while, or ask again for a new answer.",
  },
};
const REASONS = {
  shutdown: "The server was stopped or restarted during this answer.",
  abandoned: "The server ended this answer because no page was reading it.",
};
/** What to do after the service's errors, whose `action` speaks to programs. It names the buttons beside it, or none. */
const RELOAD = "Reload the page, then send the message again.";
const RESEND = {
  context_too_long: "Shorten the message, or start a new conversation.",
  body_too_large: "Shorten the message, or start a new conversation.",
  message_too_long: SHORTEN,
  too_long_alone: SHORTEN,
  model_not_allowed: "Choose another model next to the message, then send it again.",
  invalid_request: RELOAD,
  invalid_json: RELOAD,
  not_found: RELOAD,
  idempotency_key_reused: "Send it again.",
};
const LATER = { upstream_rate_limited: "in a moment", upstream_unavailable: "in a minute" };
const INSTEAD = {
  upstream_auth_failed: "Ask the operator to correct the server's key, its base URL or the model.",
  content_filtered: "Ask in other words.",
  context_too_long: RESEND.context_too_long,
};
/** Ends that the model's server gives as such, by their finish_reason. */
const CUT_SHORT = new Map([
  ["length", {
    status: (answer) => `Stopped at the length limit${hasText(answer) ? "" : " before the first word"}.`,
    said: (answer, words) => `The answer stopped at the length limit: ${words} so far. ${furtherOf(answer)}`,
  }],
  ["content_filter", {
    status: () => "Ended by the provider's content filter. For more, ask in other words.",
    said: (_, words) => `The provider's content filter ended the answer: ${words} so far.`,
  }],
]);
const EMPTY_ANSWER = { status: () => "The answer is empty.", said: () => "The answer is empty. Ask again for a new one." };
const hasText = ({ content }) => /\S/.test(content);
const furtherOf = (answer) => (hasText(answer) ? "Choose Continue to go on from here." : "Ask again, or ask for less.");
const RECONNECTING = new Set(["connection_lost", "imported", "overloaded_long", "page_fault", "text_damaged", "unread"]);

export const COPIED = "Copied.";
export const NOT_COPIED = "This browser does not let the page copy. Select the text and copy it by hand.";
export const BUSY = "An answer is on its way. Your text stays here. Send it when the answer is complete.";
export const CONTINUE = "Continue exactly where you stopped.";
export const LOST = "This conversation is not in this browser. Here is a new one.";
export const NOT_LOADED = "This part of the page could not be loaded. Try again when the server can be reached.";
export const OPENING = "The conversation is opening. Your text stays here. Send it in a moment.";
export const NOT_OPENED = "The conversation cannot be opened right now, but it is safe. Open it again in a moment, or reload the page.";
export const GIVEN_BACK = "The message was not sent. It is back in the box.";
export const TOO_LONG = "The message is too long. It is back in the box. Shorten it there.";
/** As of store.problems(), with a way to the page. */
export const SIGNED_OUT = {
  code: "signed_out",
  message: "Sign in again.",
  detail: "The server asks for a sign-in. Your conversations in this browser are safe.",
  action: "Use a new tab to sign in, then come back. This page goes on by itself.",
  link: "Sign in",
};
export const TRYING = "Trying to reconnect.";
export const BACK = "Connected again. The answer goes on.";
export const DELETED = "The conversation is deleted.";
export const AWAY = {
  code: "server_away",
  message: "The server cannot be reached.",
  detail: "You can read, copy and export the conversations in this browser.",
  action: "The page goes on by itself as soon as the server is back.",
};
export const RETURNED = "The server is back.";
export const EMPTY = {
  title: "What would you like to ask?",
  text: "Answers appear while they are written. If the connection breaks, they go on where they stopped.",
};

/** Words of a text, counted as people do. */
export function countWords(text) {
  const trimmed = text.trim();
  return trimmed ? trimmed.split(/\s+/).length : 0;
}

/** "1 word", "1,214 words". */
export function wordsOf(text) {
  return many(countWords(text), "word");
}

/** A time span in ms as people say it: "0.4 s", "12 s", "2 min 5 s". */
export function spanOf(ms) {
  const seconds = Math.max(0, ms) / SECOND;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  return whole % 60 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${whole / 60} min`;
}

/** The line below an answer; `now` in epoch ms. */
export function statusOf(answer, now) {
  if (answer.stopping && !isOver(answer)) return "Stopping…";
  if (answer.silentSince && !isOver(answer)) return `No sign from the server for${since(answer.silentSince, now)}`;
  if (answer.queued) return `Waiting: this browser already receives four answers. ${placeOf(answer)}`;
  switch (answer.state) {
    case "sending":
      return `Sending…${since(answer.sentAt, now)}`;
    case "waiting":
      return `Thinking…${since(answer.sentAt, now)}`;
    case "streaming":
      return "Answering…";
    case "slow":
      return `Still answering; last words${since(answer.lastTokenAt, now)} ago`;
    case "reconnecting":
      return reconnecting(answer, now);
    case "complete":
      return cutOff(answer) ? cutOff(answer).status(answer) : "Complete.";
    case "stopped":
      return answer.note === "stop_unconfirmed" ? "Stopped by you. The server did not confirm the stop." : "Stopped by you.";
    case "interrupted":
      return "Interrupted.";
    default:
      if (answer.error?.code === "too_long_alone") return "Not answered.";
      return answer.refused ? "Not sent." : "Failed.";
  }
}

function placeOf({ place }) {
  if (!place) return "This one starts when its turn comes.";
  return place === 1 ? "This one is next." : `${many(place - 1, "other")} ${place === 2 ? "is" : "are"} ahead of this one.`;
}

function reconnecting(answer, now) {
  if (answer.signedOut) {
    const next = answer.streamId ? "The answer then goes on" : "Your message is kept, and is then sent";
    return `Sign in again. ${kept(answer, "")}${next} by itself.`;
  }
  const happened = answer.busy ? "The server is busy." : "Connection lost.";
  const wait = Math.round(((answer.retryAt ?? 0) - now) / SECOND);
  const next = wait > 1 ? ` Next try in ${wait} s.` : "";
  return `${happened} ${kept(answer, "")}Reconnecting…${next}`;
}

/** How a model ended an answer before it had said all, or anything; else falsy. */
function cutOff(answer) {
  if (answer.state !== "complete") return null;
  return CUT_SHORT.get(answer.finishReason) ?? (!hasText(answer) && EMPTY_ANSWER);
}

/** Whether that is so: the answer came whole, and is no failure, but not complete. */
export const isCutShort = (answer) => Boolean(cutOff(answer));

/** What is said of an answer that came to its end. */
export function endOf(answer) {
  const words = wordsOf(answer.content);
  return cutOff(answer) ? cutOff(answer).said(answer, words) : `The answer is complete: ${words}.`;
}

/** The box of an answer without an end: what happened (and why), what is safe, what to do, the id to tell; else null. */
export function failureOf(answer) {
  if (answer.state !== "interrupted" && answer.state !== "failed") return null;
  const error = answer.error ?? {};
  const code = codeOf(answer);
  const own = OWN[code] ?? (error.message ? null : OWN.ended_by_server);
  const happened = own ? (REASONS[error.reason] ?? own.happened) : error.message;
  const why = own ? own.why : error.detail;
  return {
    tone: answer.state === "interrupted" ? "warning" : "danger",
    happened,
    why: why && why !== happened ? why : "",
    safe: safeOf(answer),
    todo: todoOf(answer, code, own),
    id: error.correlation_id ?? "",
    actions: actionsOf(answer),
  };
}

function codeOf({ error, refused }) {
  const code = error?.code ?? error?.error_code;
  return code === "refused" && !refused ? "unread" : code;
}

function todoOf(answer, code, own) {
  const { action = "again" } = answer.error ?? {};
  if (answer.refused) return RESEND[code] ?? (/again/i.test(action) ? "Send it again in a while." : action);
  if (own) return (hasText(answer) && own.todoKept) || own.todo;
  const goOn = hasText(answer) ? "Continue from here, or ask" : "Ask";
  return INSTEAD[code] ?? `${goOn} again ${LATER[code] ?? "for a new one"}.`;
}

function safeOf(answer) {
  if (answer.refused) return "Your message is back in the box below.";
  return answer.content ? kept(answer, " here").trim() : "Your message is kept.";
}

/** Names of `onAction` that make sense now, the most useful first. */
export function actionsOf(answer) {
  const copy = hasText(answer) ? ["copy"] : [];
  const goOn = hasText(answer) ? ["continue"] : [];
  switch (answer.state) {
    case "reconnecting":
      if (answer.queued || answer.stopping) return copy;
      return [...(answer.signedOut ? ["signin"] : []), "try", ...copy];
    case "complete":
      if (!isCutShort(answer)) return copy;
      return hasText(answer) ? [...(answer.finishReason === "length" ? goOn : []), ...copy] : ["again"];
    case "stopped":
      return [...goOn, "again", ...copy];
    case "interrupted":
    case "failed":
      if (answer.refused) return copy;
      if (RECONNECTING.has(codeOf(answer))) return ["reconnect", "again", ...copy];
      return [...goOn, "again", ...copy];
    default:
      return copy;
  }
}

/** `[[name, value], …]` of an answer that is over. Times are of one clock: the server's where it told, else ours. */
export function detailsOf(answer) {
  if (!isOver(answer)) return [];
  const { sentAt, firstAt, endedAt, durationMs } = answer;
  const isServers = durationMs != null;
  const after = (at) => (at && sentAt ? at - sentAt : null);
  const [first, whole] = isServers ? [answer.firstTokenMs, durationMs] : [after(firstAt), after(endedAt)];
  const writing = isServers && first != null ? whole - first : 0;
  const speed = answer.tokens > 1 && writing > 0 ? (answer.tokens - 1) / (writing / SECOND) : 0;
  const rows = [
    ["First word after", first == null ? "" : spanOf(first)],
    ["Duration", whole == null ? "" : spanOf(whole)],
    ["Length", answer.content ? wordsOf(answer.content) : ""],
    ["Tokens", answer.tokens == null ? "" : number(answer.tokens)],
    ["Speed", speed ? `${speed < 10 ? speed.toFixed(1) : number(Math.round(speed))} tokens/s` : ""],
    ["Times", whole == null ? "" : isServers ? "by the server's clock" : "by this browser's clock"],
    ["Model", answer.model ?? ""],
    ["Reconnects", answer.reconnects ? number(answer.reconnects) : ""],
    ["Note", answer.note && answer.note !== "stop_unconfirmed" ? answer.note : ""],
    ["Error", answer.error?.error_code ?? answer.error?.code ?? ""],
  ];
  return rows.filter(([, value]) => value !== "");
}

/** The mark above the question at which the request began; `skip` in messages. */
export function cutOf(skip) {
  return skip === 1 ? "1 older message was not sent" : `${number(skip)} older messages were not sent`;
}

const MARKS = { streaming: "… ", done: "✓ ", error: "! " };

const TURNS = /[\u202a-\u202e\u2066-\u2069]/g; // the direction of what follows

/** The window's title. `mark`: "streaming" | "done" | "error" | undefined */
export function titleOf(title, mark) {
  return `${MARKS[mark] ?? ""}${title ? `${title.replace(TURNS, "")} · ChatWait` : "ChatWait"}`;
}

const BUTTONS = {
  reconnect: "Reconnect",
  again: "Ask again",
  continue: "Continue",
  copy: "Copy",
  try: "Try now",
  signin: "Sign in",
};

/** The name of an action's button. */
export function buttonOf(action) {
  return BUTTONS[action];
}

function kept(answer, where) {
  const count = countWords(answer.content);
  return count ? `${many(count, "word")} ${count === 1 ? "is" : "are"} safe${where}. ` : "";
}

function since(at, now) {
  const seconds = Math.floor((now - (at ?? now)) / SECOND);
  return seconds > 0 ? ` ${seconds < 60 ? `${seconds} s` : spanOf(seconds * SECOND)}` : "";
}

function many(count, name) {
  return `${number(count)} ${name}${count === 1 ? "" : "s"}`;
}

function number(value) {
  return NUMBER.format(value);
}

/** Whether this is the model inside the server, which is small. */
export const isSmallModel = (name) => name.startsWith("smollm2-135m");

/** What an import did: of transfer.js. */
export const importedOf = ({ added, skipped }) =>
  `${many(added, "conversation")} added.${skipped ? ` ${number(skipped)} could not be read.` : ""}`;

/** What an export left out: conversations whose text could not be had. */
export const missingOf = (count) =>
  `${many(count, "conversation")} could not be opened and ${count === 1 ? "is" : "are"} not in this file. Export again later.`;
