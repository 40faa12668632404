// Web Locks for a page that has none (plain HTTP on a LAN), as rows in IndexedDB: the database numbers them as they come,
// and of those that live the least has the lock. No transaction waits for its page, which may be slow: all are of one
// step. Who does not renew its row loses what it has. Must never touch page or network.

const NAME = "chatwait.locks";
const ROWS = "rows";
const LEASE_MS = 6_000; // so long a row lives when its tab says nothing: it has crashed, or the machine is busy
const RENEW_MS = 1_000;
const LOOK_MS = 500; // between two looks of who waits, should nobody ring
const FORGET_MS = 60_000; // rows of the dead
const PATIENCE_MS = 10_000; // a browser may never answer

/**
 * navigator.locks, its request() alone. The promise rejects when the lock is lost, as after `steal`, and where there is no
 * such memory.
 */
export function createLocks({ now }) {
  const asked = new Set(); // of those that wait, and of those that have
  let opening = null;
  let opened = null;
  let isSilent = false; // it did not answer once, and is not waited for again
  let timer = null;
  let bell = null; // rung when a lock is free; a page that has one open is not kept for "back"
  return { request };

  async function request(name, { ifAvailable, signal }, work) {
    const one = { name, number: 0, isHeld: false, renewedAt: 0, turn: gate(), lost: gate() };
    const abort = () => one.turn.reject(signal.reason);
    signal?.addEventListener("abort", abort);
    if (signal?.aborted) abort();
    try {
      if (ifAvailable && living(await read(), name).length) return await work(null);
      await enter(one);
      await look([one]);
      if (ifAvailable && !one.isHeld) return await work(null);
      asked.add(one);
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
    } catch (error) {
      for (const one of due) if (!one.isHeld) one.turn.reject(error);
    }
    timer = asked.size ? setTimeout(tick, LOOK_MS) : null;
  }

  /** See whose turn it is, and write what is due. */
  async function look(ones) {
    const rows = await read();
    const at = now();
    const isDead = ({ until }) => Math.abs(until - at) > FORGET_MS;
    for (const one of ones) await judge(living(rows, one.name), one);
    const due = ones.filter((one) => asked.has(one) && isOld(one));
    const dead = rows.filter((row) => isDead(row) && !ones.some((one) => one.number === row.number));
    if (!due.length && !dead.length) return;
    await step("readwrite", (store) => {
      for (const one of due) store.put(rowOf(one));
      for (const { number } of dead) store.delete(number);
    });
  }

  async function judge(rows, one) {
    if (!one.number) return; // it is being written
    const isThere = rows.some((row) => row.number === one.number);
    const isFirst = rows.every((row) => row.number >= one.number);
    if (isFirst && (isThere || rows.length === 0)) {
      one.isHeld = true; // nobody else is there, should its own row be dead or gone
      one.turn.resolve();
    } else if (one.isHeld) one.lost.reject(new Error("too slow"));
    else if (!isThere) await enter(one); // as the last one: others may have what it waited for
  }

  async function enter(one) {
    const left = one.number;
    one.number = 0;
    const { number, ...row } = rowOf(one);
    one.number = await step("readwrite", (store) => {
      if (left) store.delete(left);
      return store.add(row);
    });
  }

  /** At once: the page may be about to go. */
  function drop({ number }) {
    step("readwrite", (store) => store.delete(number)).then(ring, () => {}); // else it runs out
  }

  function rowOf(one) {
    one.renewedAt = now();
    return { name: one.name, number: one.number, until: one.renewedAt + LEASE_MS };
  }

  function living(rows, name) {
    const at = now();
    return rows.filter((row) => row.name === name && at < row.until && row.until <= at + LEASE_MS); // else it was set back
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
      const transaction = opened.transaction(ROWS, mode);
      const request = ask(transaction.objectStore(ROWS));
      transaction.oncomplete = () => done(request?.result);
      transaction.onabort = () => failed(transaction.error);
      transaction.commit();
    });
  }

  function open() {
    return within((done, failed) => {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(ROWS, { keyPath: "number", autoIncrement: true });
      request.onerror = request.onblocked = () => failed(request.error);
      request.onsuccess = () => {
        const database = request.result;
        const forget = () => (opening = opened = null);
        database.onclose = forget; // its user cleared it
        database.onversionchange = () => {
          database.close();
          forget();
        };
        done(database);
      };
    });
  }

  async function within(work) {
    let silence;
    try {
      return await new Promise((done, failed) => {
        silence = setTimeout(() => {
          isSilent = true;
          failed(new Error("no answer"));
        }, PATIENCE_MS);
        work(done, failed);
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
