// The tabs of one browser: who reads which answer (a lock each), how many are read at once (slots), and the channel
// between them. Web Locks where they exist (secure pages), else leases in localStorage. Must never touch page or network.

const SLOTS = 4; // HTTP/1.1 has six connections to a host; a stop and a page load need theirs
const LEASE_MS = 1_500; // of an answer: soon read by another tab when its own has crashed
const SLOT_LEASE_MS = 6_000; // a tab that is only slow keeps its place
const RENEW_MS = 500;
const SETTLE_MS = 40; // after this the other tabs' writes are seen
const SLOT_SETTLE_MS = 400; // also on a busy machine; who waits for a place does not notice it

/** `locks`: navigator.locks or undefined. `storage`: localStorage or null. `onMessage(message)`: what others say. */
export function createTabs({ locks, storage, random, now, onMessage }) {
  let channel = null;
  const waiting = new Set(); // cancels of those that wait
  const held = new Set(); // releases
  const leased = new Set(); // names of leases that this tab has, or is about to
  const take = locks ? takeLock : storage ? takeLease : takeNothing;
  const me = random();
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
   * `onWait(place)` when there is none and whenever the place changes: 1 is next, 0 is not known (leases have no order).
   */
  async function slot(onWait, signal) {
    for (let number = 0; number < SLOTS; number += 1) {
      const release = await take(`chatwait.slot.${number}`, false);
      if (release) return release;
    }
    if (!locks) {
      onWait(0);
      return anySlot(signal);
    }
    const leave = await queue(onWait, signal);
    const taken = leave && (await anySlot(signal));
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

  function anySlot(signal) {
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
        take(`chatwait.slot.${number}`, true, losers.signal).then(give);
      }
    });
  }

  function takeLock(name, isWaiting, signal) {
    const { promise, resolve } = gate();
    const cancel = new AbortController();
    const stop = () => cancel.abort();
    signal?.addEventListener("abort", stop);
    if (signal?.aborted) stop();
    if (isWaiting) waiting.add(stop);
    const options = isWaiting ? { signal: cancel.signal } : { ifAvailable: true };
    locks
      .request(name, options, (lock) => {
        waiting.delete(stop);
        if (!lock) return resolve(null);
        const kept = gate();
        resolve(keep(kept.resolve));
        return kept.promise;
      })
      .catch(() => resolve(cancel.signal.aborted ? null : keep(() => {}))); // else blocked or broken: read all the same
    return promise;
  }

  async function takeLease(name, isWaiting, signal, onLost) {
    let isCancelled = false;
    const stop = () => (isCancelled = true);
    signal?.addEventListener("abort", stop);
    if (isWaiting) waiting.add(stop);
    for (;;) {
      if (isCancelled || signal?.aborted) return null;
      if (await tryLease(name, isWaiting && isSlot(name) ? SLOT_SETTLE_MS : SETTLE_MS)) break;
      if (!isWaiting) return null;
      await after(RENEW_MS / 2);
    }
    waiting.delete(stop);
    const renewing = setInterval(() => {
      if ((holder(name) ?? me) === me) return write(name);
      release(); // a hidden tab's timers are slow, and another has it by now
      onLost?.();
    }, RENEW_MS);
    const release = keep(() => {
      clearInterval(renewing);
      leased.delete(name);
      if (holder(name) === me) storage.removeItem(name);
    });
    if (isCancelled || signal?.aborted) {
      release();
      return null;
    }
    return release;
  }

  /** Two tabs may write at once; the one whose name is there a moment later has it. */
  async function tryLease(name, settleMs) {
    if (leased.has(name) || holder(name) !== null) return false;
    leased.add(name);
    if (!write(name)) return true;
    await after(settleMs);
    if (holder(name) === me) return true;
    leased.delete(name);
    return false;
  }

  function holder(name) {
    const [who, until] = (storage.getItem(name) ?? "").split(" ");
    return who && now() < Number(until) && Number(until) <= now() + 2 * SLOT_LEASE_MS ? who : null;
  }

  /** false when the storage is full: another tab may read too, which harms nobody. */
  function write(name) {
    try {
      const length = isSlot(name) ? SLOT_LEASE_MS : LEASE_MS;
      storage.setItem(name, `${me} ${now() + length}`);
      return true;
    } catch {
      return false;
    }
  }

  /** No way to know of others: read what is asked. */
  async function takeNothing() {
    return keep(() => {});
  }

  function keep(letGo) {
    const release = () => {
      if (held.delete(release)) letGo();
    };
    held.add(release);
    return release;
  }
}

const isSlot = (name) => name.startsWith("chatwait.slot.");
const after = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function gate() {
  let resolve;
  const promise = new Promise((settle) => (resolve = settle));
  return { promise, resolve };
}
