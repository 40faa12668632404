// What a screen reader says: few, whole sentences, one after the other in two live regions that are empty between them,
// so that equal words are said again. It must never repeat the answer's text, nor talk more than every 10 s.

import { endOf, failureOf, wordsOf } from "./words.js";

const SHOWN_MS = 1500; // long enough for every reader to notice
const EMPTY_MS = 100;
const PROGRESS_MS = 10_000;

function createRegion(element) {
  const queue = []; // {text, progress}
  let showing = false;

  function next() {
    const item = queue.shift();
    showing = Boolean(item);
    if (!item) return;
    element.textContent = item.text;
    setTimeout(() => {
      element.textContent = "";
      setTimeout(next, EMPTY_MS);
    }, SHOWN_MS);
  }

  return {
    /** progress: worth nothing once something newer is to be said. */
    say(text, progress = false) {
      for (let at = queue.length - 1; at >= 0; at--) if (queue[at].progress) queue.splice(at, 1);
      if (progress && showing) return;
      queue.push({ text, progress });
      if (!showing) next();
    },
    forget: () => queue.splice(0),
  };
}

/** polite, alert: the two live regions, empty; now() -> epoch milliseconds. */
export function createAnnouncer({ polite, alert, now = Date.now }) {
  const calm = createRegion(polite);
  const urgent = createRegion(alert);
  const under = new Set(); // ids of the answers that were said to have started
  const over = new Map(); // id -> the end that was said
  let quietUntil = 0;

  function error(text) {
    calm.forget();
    urgent.say(text);
  }

  return {
    /** An answer is asked for. answer: its record, so that each is said once; again after an end (Reconnect). */
    started({ id }) {
      if (under.has(id)) return;
      under.add(id);
      over.delete(id);
      quietUntil = now() + PROGRESS_MS;
      calm.say("Your message is sent. The answer is on its way.");
    },
    /** count: how many words there are by now. */
    answering(count) {
      if (now() < quietUntil) return;
      quietUntil = now() + PROGRESS_MS;
      const words = `${count.toLocaleString("en")} ${count === 1 ? "word" : "words"}`;
      calm.say(count ? `Still answering: ${words} so far.` : "Still waiting for the first word.", true);
    },
    /** answer: its record with a terminal state; said once. */
    ended(answer) {
      const { id, state, content } = answer;
      if (over.get(id) === state) return;
      over.set(id, state);
      under.delete(id);
      const failure = failureOf(answer);
      if (failure) error([failure.happened, failure.safe, failure.todo].filter(Boolean).join(" "));
      else if (state === "stopped") calm.say(content ? `Stopped by you: ${wordsOf(content)} kept.` : "Stopped by you.");
      else calm.say(endOf(answer));
    },
    say: (text) => calm.say(text),
    error,
  };
}
