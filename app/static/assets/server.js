// The server as the page knows it: whether it is there, whether something in front of it wants a sign-in, and the models
// that it offers, with the picker of them. Must never know an address.

import { errorOf, isSignIn } from "./stream.js";
import { isSmallModel } from "./words.js";

const PATIENCE_MS = 5_000;
const SURE_MS = 1_000; // a page that is left hears of its own end as of a loss: what it hears once is not told
const AWAY_MS = 3_000;
const LONG_AWAY_MS = 10_000; // after as many tries
const MANY = 20;
const THERE_MS = 30_000;
const CHOSEN = "chatwait.model"; // in the storage: what was chosen last

/**
 * `note`: shown beside a model that is only for trying. `isSeen()`: whether anybody looks. `onLearned()`: limits or
 * models are others. `onChange(what)`: "isAway" or "isSignedOut" is another. Gives `look(ms)`: ask, unless that was
 * done in so many ms; `show(conversation)`: its model.
 */
export function createServer({ api, picker, note, storage, isSeen, now, onLearned, onChange }) {
  let models = null;
  let learned = ""; // the server's word of them
  let chosen = null; // in this tab
  let failures = 0; // in a row
  let oddities = 0; // answers in a row that are none of the service's
  let isDue = false; // it would have been asked, but nobody looked
  let askedAt = -Infinity;
  let turn = 0;
  let timer = 0;
  const self = { look, show, limits: undefined, isAway: false, isSignedOut: false };
  picker.addEventListener("change", keep);
  return self;

  async function look(ms = 0) {
    if (!isDue && now() - askedAt < ms) return;
    isDue = false;
    const mine = (turn += 1);
    clearTimeout(timer);
    askedAt = now();
    const counts = await learn().then((isTold) => (isTold ? 0 : -1), ({ name }) => (name === "TimeoutError" ? 2 : 1));
    if (mine !== turn) return;
    failures = counts > 0 ? failures + counts : 0;
    oddities = counts < 0 ? oddities + 1 : 0;
    const odd = Math.min(AWAY_MS * 2 ** oddities, THERE_MS);
    const away = failures > MANY ? LONG_AWAY_MS : AWAY_MS;
    const pause = failures > 1 ? away : failures ? SURE_MS : counts ? odd : THERE_MS;
    timer = setTimeout(() => (isSeen() ? look() : (isDue = true)), pause);
    tell("isAway", failures > 1);
  }

  function tell(what, isNow) {
    if (self[what] === isNow) return;
    self[what] = isNow;
    onChange(what);
  }

  /** Rejected while the server is away; false when it does not tell. */
  async function learn() {
    const response = await api.models(AbortSignal.timeout(PATIENCE_MS));
    const error = response.ok ? null : await errorOf(response);
    tell("isSignedOut", isSignIn(response, error));
    if (response.status >= 500 || (!response.ok && !error && !self.isSignedOut)) throw new Error("not the service");
    if (self.isSignedOut || !response.ok) return false;
    const text = await response.text();
    if (text === learned) return true;
    const told = JSON.parse(text);
    picker.replaceChildren(...told.data.map(({ id }) => new Option(id, id)));
    [self.limits, models] = [told.limits, told];
    learned = text;
    onLearned();
    return true;
  }

  function keep() {
    chosen = picker.value;
    try {
      storage.setItem(CHOSEN, chosen);
    } catch {
      // full, or blocked: it holds while this page is open
    }
  }

  function kept() {
    try {
      return chosen ?? storage.getItem(CHOSEN);
    } catch {
      return null;
    }
  }

  /** A conversation goes on with the model it had, a new one begins with the one that was chosen last. */
  function show(conversation) {
    if (!models) return;
    const wanted = conversation?.messages.findLast(({ sent }) => sent)?.sent.model ?? kept();
    picker.value = models.data.some(({ id }) => id === wanted) ? wanted : models.default;
    note.hidden = !isSmallModel(models.default);
  }
}
