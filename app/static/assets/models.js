// The models that the server offers, and the picker of them. Asking for them tells too whether the server is there, and
// whether somebody in front of it wants a sign-in. Must never know an address.

import { errorOf, isSignIn } from "./stream.js";
import { isSmallModel } from "./words.js";

const PATIENCE_MS = 5_000;
const CHOSEN = "chatwait.model"; // in the storage: what was chosen last

/** `note`: shown beside a model that is only for trying. `onLearned()`: others than before; `onSignIn()`: or no more. */
export function createModels({ api, picker, note, storage, onLearned, onSignIn }) {
  let models = null;
  let learned = ""; // the server's word of them
  let chosen = null; // in this tab
  const self = { learn, show, limits: undefined, isSignedOut: false };
  picker.addEventListener("change", keep);
  return self;

  /** Rejected while the server is away; false when it does not tell. */
  async function learn() {
    const response = await api.models(AbortSignal.timeout(PATIENCE_MS));
    const isSignedOut = isSignIn(response, response.ok ? null : await errorOf(response));
    if (isSignedOut !== self.isSignedOut) {
      self.isSignedOut = isSignedOut;
      onSignIn();
    }
    if (isSignedOut) return false;
    if (response.status >= 500) throw new Error("away");
    if (!response.ok) return false;
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
