// The server as the page knows it: whether it is there, whether something in front of it wants a sign-in, and the models
// that it offers, with the picker of them. Must never know an address.

import { errorOf, isSignIn } from "./stream.js";
import { isSmallModel } from "./words.js";

const PATIENCE_MS = 5_000;
const SURE_MS = 1_000; // a page that is left hears of its own end as of a loss: what it hears once is not told
const AWAY_MS = 3_000;
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
  let failures = 0;
  let askedAt = -Infinity;
  let turn = 0;
  let timer = 0;
  const self = { look, show, limits: undefined, isAway: false, isSignedOut: false };
  picker.addEventListener("change", keep);
  return self;

  async function look(ms = 0) {
    if (now() - askedAt < ms) return;
    const mine = (turn += 1);
    clearTimeout(timer);
    askedAt = now();
    const counts = await learn().then((isTold) => (isTold ? 0 : -1), ({ name }) => (name === "TimeoutError" ? 2 : 1));
    if (mine !== turn) return;
    failures = counts > 0 ? failures + counts : 0;
    timer = setTimeout(() => isSeen() && look(), failures === 1 ? SURE_MS : counts ? AWAY_MS : THERE_MS);
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
    tell("isSignedOut", isSignIn(response, response.ok ? null : await errorOf(response)));
    if (response.status >= 500) throw new Error("away");
    if (self.isSignedOut || !response.ok) return false;
    const text = await response.text();
    if (text === learned) return true;
    const told = JSON.parse(text);
    picker.replaceChildren(...told.data.map(({ id }) => new Option(id, id)));
    self.limits = told.limits;
    models = told;
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
