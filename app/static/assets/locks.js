// Web Locks for a page that has none (plain HTTP on a LAN), as rows in IndexedDB: the database numbers them as they come,
// and of those that live the least has the lock. No transaction waits for its page, which may be slow: all are of one
// step. Who does not renew its row loses what it has to the next one. Must never touch page or network.

const NAME = "chatwait.locks";
const ROWS = "rows";
const LEASE_MS = 6_000; // so long a row lives when its tab says nothing: it has crashed, or the machine is busy
const RENEW_MS = 1_000;
const LOOK_MS = 500; // between two looks of who waits, should nobody ring
const FORGET_MS = 60_000; // rows of the dead
const PATIENCE_MS = 10_000; // a browser may never answer
const MOST_FAILURES = 4; // looks in one row

/**
 * navigator.locks, its request() alone. The promise rejects when the lock is lost, as after `steal`, and where there is no
 * such memory.
 */
export function createLocks({ random, now }) {
  const asked = new Set(); // of those that wait, and of those that have
  let opening = null;
  let opened = null;
  let isSilent = false; // it did not answer, and is not waited for again unless it does
  let failures = 0;
  let timer = null;
  let bell = null; // rung when a lock is free; a page that has one open is not kept for "back"
  return { request };

  async function request(name, { ifAvailable, signal }, work) {
    const one = { name, by: random(), number: 0, isHeld: false, renewedAt: 0, turn: gate(), lost: gate() };
    const abort = () => one.turn.reject(signal.reason);
    signal?.addEventListener("abort", abort);
    if (signal?.aborted) abort();
    try {
      if (ifAvailable && living(await read(), name).length) return await work(null);
      asked.add(one);
      await enter(one);
      await look([one]);
      if (ifAvailable && !one.isHeld) return await work(null);
      timer ??= setTimeout(tick, LOOK_MS);
      listen();
      await one.turn.promise;
      return await Promise.race([work({ name }), one.lost.promise]);
    } finally {
      signal?.removeEventListener("abort", abort);
      asked.delete(one);
      if (one.number) drop(one);
      if (!asked.size) bell = bell?.close();
    }
  }

  async function tick() {
    const due = [...asked].filter((one) => !one.isHeld || isOld(one));
    try {
      if (due.length) await look(due);
      failures = 0;
    } catch (error) {
      failures += 1;
      if (isSilent || failures >= MOST_FAILURES) for (const one of due) if (!one.isHeld) one.turn.reject(error);
    }
    timer = asked.size ? setTimeout(tick, LOOK_MS) : null;
  }

  /** See whose turn it is, and write what is due. */
  async function look(ones) {
    const rows = await read();
    const at = now();
    // The page may have slept since they were chosen: what it holds is judged with them, and so is what waits for it.
    ones = [...new Set([...ones, ...[...asked].filter((one) => one.isHeld && isOld(one))])];
    const isDead = ({ until }) => Math.abs(until - at) > FORGET_MS;
    for (const one of ones.filter((one) => isOutside(living(rows, one.name), one))) await enter(one);
    const due = ones.filter((one) => asked.has(one) && one.number && isOld(one));
    const dead = rows.filter((row) => isDead(row) && !ones.some((one) => one.number === row.number));
    if (!due.length && !dead.length) return;
    await step("readwrite", (store) => {
      for (const one of due) store.put(rowOf(one));
      for (const { number } of dead) store.delete(number);
    });
  }

  /** Judge it by the living rows of its name. Gives whether it has to enter anew, as the last one. */
  function isOutside(rows, one) {
    if (!one.number || !asked.has(one)) return false; // it is being written, or has left
    const isThere = rows.some((row) => row.by === one.by);
    const isFirst = rows.every((row) => row.number >= one.number);
    if (isFirst && (isThere || (one.isHeld && rows.length === 0))) {
      one.isHeld = true; // all may have slept: who had it has it still, unless another comes first
      one.turn.resolve();
    } else if (one.isHeld) one.lost.reject(new Error("too slow"));
    return !isThere && !one.isHeld; // others may have what it waited for
  }

  async function enter(one) {
    one.number = 0;
    const { number, ...row } = rowOf(one);
    one.number = await step("readwrite", (store) => store.add(row));
    if (!asked.has(one)) drop(one);
  }

  /** At once: the page may be about to go. */
  function drop({ number }) {
    step("readwrite", (store) => store.delete(number)).then(ring, () => {}); // else it runs out
  }

  function rowOf(one) {
    one.renewedAt = now();
    return { name: one.name, by: one.by, number: one.number, until: one.renewedAt + LEASE_MS };
  }

  function living(rows, name) {
    const at = now();
    const isAlive = ({ until }) => at < until && until <= at + 2 * LEASE_MS; // else the clock was set back
    return rows.filter((row) => row.name === name && isAlive(row));
  }

  function isOld({ renewedAt }) {
    return Math.abs(now() - renewedAt) >= RENEW_MS;
  }

  function listen() {
    if (bell || !globalThis.BroadcastChannel) return;
    bell = new BroadcastChannel(NAME);
    bell.onmessage = () => look([...asked].filter((one) => !one.isHeld)).catch(() => {}); // the next tick tells
  }

  function ring() {
    if (!globalThis.BroadcastChannel) return;
    const mine = new BroadcastChannel(NAME);
    mine.postMessage("free");
    mine.close();
  }

  function read() {
    return step("readonly", (store) => store.getAll());
  }

  /** One transaction, handed over whole. Gives what the request that `ask` gives has as its result. */
  async function step(mode, ask) {
    if (isSilent) throw new Error("no answer");
    if (!opened) opened = await (opening ??= open());
    return within((done, failed) => {
      const transaction = begun(mode);
      const request = ask(transaction.objectStore(ROWS));
      transaction.oncomplete = () => done(request?.result);
      transaction.onabort = () => failed(transaction.error);
      transaction.commit();
    });
  }

  function begun(mode) {
    try {
      return opened.transaction(ROWS, mode);
    } catch (error) {
      forget(); // the connection died, and nobody said so
      throw error;
    }
  }

  function forget() {
    opening = opened = null;
  }

  function open() {
    const asking = within((done, failed) => {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(ROWS, { keyPath: "number", autoIncrement: true });
      request.onerror = request.onblocked = () => failed(request.error);
      request.onsuccess = () => {
        const database = request.result;
        database.onclose = forget; // its user cleared it
        database.onversionchange = () => {
          database.close();
          forget();
        };
        done(database);
      };
    });
    asking.catch(() => setTimeout(forget, PATIENCE_MS)); // then it may be tried again
    return asking;
  }

  async function within(work) {
    let silence;
    try {
      return await new Promise((done, failed) => {
        silence = setTimeout(() => {
          isSilent = true;
          failed(new Error("no answer"));
        }, PATIENCE_MS);
        work((value) => {
          isSilent = false;
          done(value);
        }, failed);
      });
    } finally {
      clearTimeout(silence);
    }
  }
}

function gate() {
  let settle;
  const promise = new Promise((resolve, reject) => (settle = { resolve, reject }));
  promise.catch(() => {}); // nobody may be waiting for it any more
  return { promise, ...settle };
}
