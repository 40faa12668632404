// Whether the server is there: asks now and then, and tells when it went away and when it is back.
// Must never touch the page, or know an address.

const SURE_MS = 1_000; // a page that is left hears of its own end as of a loss: what it hears once is not told
const AWAY_MS = 3_000;
const THERE_MS = 30_000;

/**
 * `ask()`: a promise, rejected when the server does not answer; gives false when it answers, but not what was asked.
 * `isSeen()`: whether anybody looks. `onChange(isAway)`. Gives `look(ms)`: ask, unless that was done in so many ms.
 */
export function createPresence({ ask, isSeen, now, onChange }) {
  let isAway = false;
  let failures = 0;
  let askedAt = -Infinity;
  let turn = 0;
  let timer = 0;
  look();
  return { look };

  async function look(ms = 0) {
    if (now() - askedAt < ms) return;
    const mine = (turn += 1);
    clearTimeout(timer);
    askedAt = now();
    const counts = await ask().then((isTold) => (isTold ? 0 : -1), ({ name }) => (name === "TimeoutError" ? 2 : 1));
    if (mine !== turn) return;
    failures = counts > 0 ? failures + counts : 0;
    timer = setTimeout(() => isSeen() && look(), failures === 1 ? SURE_MS : counts ? AWAY_MS : THERE_MS);
    if (isAway === failures > 1) return;
    isAway = !isAway;
    onChange(isAway);
  }
}
