// What a screen reader says: few, whole sentences, one after the other in two live regions that are empty between them,
// so that equal words are said again. It must never repeat the answer's text, nor talk more than every 10 s, nor say
// how far an answer is while its link is lost.

import { isOver } from "./machine.js";
import { BACK, TRYING, endOf, failureOf, statusOf, wordsOf } from "./words.js";

const SHOWN_MS = 1500; // long enough for every reader to notice
const EMPTY_MS = 100;
const PROGRESS_MS = 10_000;
const MOMENT_MS = 2_000; // a loss, or a return, that is over by then is not worth a word
const LOSSES_MS = 20_000; // between two losses that are told: a link may flap
const STATE = 0.5; // what is said of an answer's link or place waits, and goes when it is no longer so, or not shown

function createRegion(element) {
  let queue = []; // {text, rank, id}
  let showing = false;

  function next() {
    showing = queue.length > 0;
    if (!showing) return;
    // Nobody hears a hidden page, or what is behind a dialog.
    if (document.hidden || document.querySelector("dialog[open]")) return void setTimeout(next, SHOWN_MS / 3);
    element.textContent = queue.shift().text;
    setTimeout(() => {
      element.textContent = "";
      setTimeout(next, EMPTY_MS);
    }, SHOWN_MS);
  }

  /** Whether there was any of this rank or a lower one; `id`: of this answer alone. */
  function forget(rank, id) {
    const { length } = queue;
    queue = queue.filter((one) => one.rank > rank || (id && one.id !== id));
    return queue.length < length;
  }

  return {
    /** rank: 0 is worth nothing once something newer is to be said; all but 2 nothing behind an alert. `id`: of the
     * answer whose end makes it untrue. */
    say(text, rank = 1, id = null) {
      forget(0);
      if (!rank && showing) return;
      queue.push({ text, rank, id });
      if (!showing) next();
    },
    forget,
  };
}

/** polite, alert: the two live regions, empty; now() -> epoch milliseconds. */
export function createAnnouncer({ polite, alert, now = Date.now }) {
  const calm = createRegion(polite);
  const urgent = createRegion(alert);
  const met = new Map(); // id -> what was said of an answer
  let quietUntil = 0;
  let lossesFrom = 0;
  return { meet: of, asked, resumed, look, started, answering, ended, say: (text) => calm.say(text), error };

  function error(text) {
    calm.forget(1);
    urgent.say(text);
  }

  /** Its end is worth a word from now on. */
  function of({ id }) {
    if (!met.has(id)) met.set(id, { link: "", told: "" });
    return met.get(id);
  }

  /** The reader has asked for it, and hears when it has begun. */
  function asked(answer) {
    of(answer).isAsked = true;
  }

  /** The reader has pressed Reconnect. */
  function resumed({ id }) {
    met.set(id, { link: "lost", told: "lost" });
    calm.say(TRYING, 1, id);
  }

  /** At each change of an answer, and each second. elsewhere: the title when its conversation is not shown. Gives
   * whether its progress may be told. */
  function look(answer, elsewhere) {
    const { id, state } = answer;
    if (isOver(answer)) return void (met.has(id) && ended(answer, elsewhere));
    const one = of(answer);
    if (elsewhere !== undefined) {
      if (calm.forget(STATE, id)) Object.assign(one, { link: "", told: "", isQueueTold: false }); // not heard
      return false;
    }
    if (answer.stopping) {
      one.stopTold ??= now() + MOMENT_MS;
      if (now() < one.stopTold) return false;
      one.stopTold = Infinity;
      calm.say(statusOf(answer, now()), STATE, id);
      return false;
    }
    if (answer.queued && !one.isQueueTold) calm.say(statusOf(answer, now()), STATE, id);
    if (!answer.queued && one.isQueueTold) calm.forget(STATE, id);
    one.isQueueTold = answer.queued;
    if (answer.queued || state === "sending") return false;
    const link = answer.signedOut ? "out" : state === "reconnecting" || answer.silentSince ? "lost" : "";
    if (link !== one.link) Object.assign(one, { link, since: now() });
    if (!link && one.isAsked) {
      started(answer);
      one.told = ""; // a loss of the question, on its way
    }
    if (link !== one.told && now() - one.since >= MOMENT_MS && (link !== "lost" || now() >= lossesFrom)) {
      one.told = link;
      if (link) lossesFrom = now() + LOSSES_MS;
      const isNews = !calm.forget(STATE, id) || link === "out";
      if (isNews) calm.say(link ? statusOf(answer, answer.retryAt ?? now()) : BACK, STATE, id);
    }
    return !link && !one.told;
  }

  /** Said once; again after an end. */
  function started(answer) {
    const one = of(answer);
    one.isAsked = false;
    if (one.isStarted) return;
    Object.assign(one, { isStarted: true, end: null });
    quietUntil = now() + PROGRESS_MS;
    calm.say("Your message is sent. The answer is on its way.", 1, answer.id);
  }

  /** count: how many words there are by now. */
  function answering(count) {
    if (now() < quietUntil) return;
    quietUntil = now() + PROGRESS_MS;
    const words = `${count.toLocaleString("en")} ${count === 1 ? "word" : "words"}`;
    calm.say(count ? `Still answering: ${words} so far.` : "Still waiting for the first word.", 0);
  }

  /** answer: its record with a terminal state; said once. */
  function ended(answer, elsewhere) {
    const { state, content } = answer;
    if (of(answer).end === state) return;
    met.set(answer.id, { end: state, link: "", told: "" });
    calm.forget(1, answer.id);
    const failure = failureOf(answer);
    let text = endOf(answer);
    if (failure) text = [failure.happened, failure.safe, failure.todo].filter(Boolean).join(" ");
    else if (state === "stopped") {
      text = statusOf(answer, now());
      if (content) text = text.replace(".", `: ${wordsOf(content)} kept.`);
    }
    if (elsewhere !== undefined) calm.say(`In “${elsewhere || "Untitled"}”: ${text}`, 2);
    else if (failure) error(text);
    else calm.say(text);
  }
}
