// The tabs of one browser: who reads which answer (a lock each), how many are read at once (slots), and the channel
// between them. Web Locks where they exist (secure pages), else locks.js. Must never touch page or network.

const SLOTS = 4; // HTTP/1.1 has six connections to a host; a stop and a page load need theirs

/** `locks`: navigator.locks or undefined. `onMessage(message)`: what others say. */
export function createTabs({ locks, random, now, onMessage }) {
  let channel = null;
  const waiting = new Set(); // cancels of those that wait
  const held = new Set(); // releases
  const manager = locks ?? import("./locks.js").then(({ createLocks }) => createLocks({ random, now }));
  manager.catch?.(() => {}); // told to who asks for a lock
  open();
  /**
   * `own` waits for the conversation, `tryOwn` does not: a function that lets it go, or null. `onLost()`: this tab was
   * so slow that another one has it now.
   */
  const own = (id, onLost) => take(`chatwait.answer.${id}`, true, undefined, onLost);
  const tryOwn = (id, onLost) => take(`chatwait.answer.${id}`, false, undefined, onLost);
  return { own, tryOwn, slot, send, open, close };

  function open() {
    if (channel || !globalThis.BroadcastChannel) return;
    channel = new BroadcastChannel("chatwait");
    channel.onmessage = (event) => onMessage(event.data);
  }

  /** Let go of everything, at once: a page that holds a lock is not kept for "back". Who waits gets null. */
  function close() {
    for (const one of [...waiting, ...held]) one(); // each takes itself out of `held`
    waiting.clear();
    channel?.close();
    channel = null;
  }

  /** Tell all other tabs. */
  function send(message) {
    channel?.postMessage(message);
  }

  /**
   * Wait for one of the browser's free connections: a function that gives it back, or null when `signal` aborts.
   * `onWait(place)` when there is none and whenever the place changes: 1 is next. `onLost()`: as of `own`.
   */
  async function slot(onWait, signal, onLost) {
    for (let number = 0; number < SLOTS; number += 1) {
      const release = await take(`chatwait.slot.${number}`, false, undefined, onLost);
      if (release) return release;
    }
    const leave = await queue(onWait, signal);
    const taken = leave && (await anySlot(signal, onLost));
    leave?.();
    return taken;
  }

  /** The next of those who wait has place 1, and each waits for the place before its own. Gives the way out of 1. */
  async function queue(onWait, signal) {
    let place = 0;
    let leave = null;
    while (!leave) leave = await take(`chatwait.place.${(place += 1)}`, false);
    for (; place > 1; place -= 1) {
      onWait(place);
      const next = await take(`chatwait.place.${place - 1}`, true, signal);
      leave();
      if (!next) return null;
      leave = next;
    }
    onWait(1);
    return leave;
  }

  async function anySlot(signal, onLost) {
    if (signal.aborted) return null;
    return new Promise((resolve) => {
      const losers = new AbortController();
      const give = (release) => {
        if (release && losers.signal.aborted) release();
        else if (release || signal.aborted) {
          losers.abort();
          resolve(release);
        }
      };
      signal.addEventListener("abort", () => {
        losers.abort();
        resolve(null);
      });
      for (let number = 0; number < SLOTS; number += 1) {
        take(`chatwait.slot.${number}`, true, losers.signal, onLost).then(give);
      }
    });
  }

  function take(name, isWaiting, signal, onLost) {
    const cancel = new AbortController();
    const stop = () => cancel.abort();
    signal?.addEventListener("abort", stop);
    if (signal?.aborted) stop();
    if (isWaiting) waiting.add(stop);
    const options = isWaiting ? { signal: cancel.signal } : { ifAvailable: true };
    const { promise, resolve } = gate();
    let isTaken = false;
    const hold = (lock) => {
      waiting.delete(stop);
      if (!lock) return resolve(null);
      isTaken = true;
      const kept = gate();
      resolve(keep(kept.resolve));
      return kept.promise;
    };
    Promise.resolve(manager)
      .then((from) => from.request(name, options, hold))
      .catch(() => {
        waiting.delete(stop);
        if (isTaken) onLost?.(); // a hidden tab's timers are slow, and another has it by now
        else resolve(cancel.signal.aborted ? null : keep(() => {})); // blocked or broken: read all the same
      });
    return promise;
  }

  function keep(letGo) {
    const release = () => {
      if (held.delete(release)) letGo();
    };
    held.add(release);
    return release;
  }
}

function gate() {
  let resolve;
  const promise = new Promise((settle) => (resolve = settle));
  return { promise, resolve };
}
