// The one module that asks the network: the service's addresses (`createApi`), one stream's client, which opens the
// connection, reads its events (`createParser`), and comes back after every loss. The way of a token: read → parser →
// machine → `onText` (answers.js hands it to the page). Must never touch the page.

import { createMachine, guarded, isOver } from "./machine.js";

const STREAMS = "/v1/chat/streaming";
const MAX_CHARACTERS = 16 * 1024 * 1024; // of one line of a stream, and of one event's data
const TICK_MS = 500;
const TERMINALS = new Set(["done", "cancelled", "failed"]);
const SIGN_IN = new Set([401, 403, 511]);
const LONGEST_ERROR = 65_536;
const LOST = Symbol("lost"); // in place of what fetch or a reader threw; what else is thrown is the page's own

/**
 * Read one answer to its end. `request()` is asked when a POST is due.
 * `onText(answer, text)` for every new piece, `onChange(answer, before)` when its state has changed, and
 * `onReset(answer)` when its text begins anew. Gives `{stop, wake, close}`; after `close` nothing is called any more.
 */
export function openStream({ api, answer, request, now, heartbeat, ...told }) {
  const { onText, onChange, onReset } = guarded(told);
  const machine = createMachine(answer, { now: now(), heartbeat });
  let turn = 0; // of the connection that counts; what an older one still says is not heard
  let abort = null;
  let timer = 0;
  let shown = "";
  const ticking = setInterval(() => carryOut(machine.tick(now())), TICK_MS);
  carryOut(machine.begin());
  return {
    stop: () => carryOut(machine.stop(now())),
    wake: (isForced) => carryOut(machine.wake(now(), isForced)),
    close,
  };

  function close() {
    turn = -1;
    clearInterval(ticking);
    clearTimeout(timer);
    abort?.abort();
  }

  function carryOut(orders) {
    if (turn < 0) return;
    for (const order of orders) {
      if (order === "drop") drop();
      else if (order === "stop") askStop();
      else if (order === "ended") close();
      else {
        clearTimeout(timer);
        timer = setTimeout(connect, machine.delay);
      }
    }
    if (machine.wasReset) {
      machine.wasReset = false;
      onReset(answer);
    }
    const { state, stopping, retryAt, busy, signedOut, silentSince, model } = answer;
    const looks = `${state} ${stopping} ${retryAt} ${busy} ${signedOut} ${silentSince} ${model}`;
    if (looks !== shown) {
      shown = looks;
      onChange(answer);
    }
  }

  function drop() {
    turn += 1;
    abort?.abort();
    abort = null;
  }

  async function connect() {
    drop();
    const mine = turn;
    abort = new AbortController();
    machine.connecting(now());
    carryOut([]);
    try {
      const { signal } = abort;
      const asked = answer.streamId
        ? api.attach(answer.streamId, answer.sequence, signal)
        : api.start(request(), answer.key, signal);
      const response = await reached(asked);
      if (mine === turn) await take(response, mine);
    } catch (error) {
      if (error !== LOST) reportError(error);
      if (mine === turn) carryOut(error === LOST ? machine.lost(now()) : machine.broken(now()));
    }
  }

  async function take(response, mine) {
    const isStream = (response.headers.get("Content-Type") ?? "").startsWith("text/event-stream");
    if (response.status !== 200 || !isStream) {
      const error = await errorOf(response);
      const isOut = isSignIn(response, error) && (response.status !== 403 || (await isBarred()));
      if (mine !== turn) return;
      carryOut(isOut ? machine.signedOut(now()) : machine.refused(response.status, error, retryAfter(response), now()));
      return;
    }
    carryOut(machine.opened(response.headers.get("X-Stream-Id"), now()));
    await read(response.body.getReader(), mine);
  }

  /** A 403 may be about the message's words: a firewall's. */
  async function isBarred() {
    return Boolean(answer.streamId) || isSignIn(await reached(api.models(abort?.signal)), null);
  }

  async function read(reader, mine) {
    let end = null;
    const parser = createParser(({ event, data }) => {
      if (mine !== turn || end) return;
      if (event === "token") takeToken(JSON.parse(data));
      else if (event === "ping") carryOut(machine.ping(now()));
      else if (event === "start") carryOut(machine.start(JSON.parse(data), now()));
      else if (TERMINALS.has(event)) end = { event, data: JSON.parse(data) };
    });
    for (;;) {
      const { value, done } = await reached(reader.read());
      if (mine !== turn) return;
      if (done) break;
      machine.byteAt = now();
      try {
        parser.feed(value);
      } catch (error) {
        reportError(error); // what came is no event stream as it should be
        if (mine === turn) carryOut(machine.hole(now()));
      }
      if (mine !== turn) return;
      if (end) {
        const isSound = await isWhole(answer.content, end.data);
        if (mine === turn) carryOut(machine.terminal(end.event, end.data, isSound, now()));
        return;
      }
    }
    carryOut(machine.lost(now()));
  }

  function takeToken(data) {
    const before = answer.state;
    if (!machine.token(data, now())) {
      if (data.sequence > answer.sequence) carryOut(machine.hole(now())); // else it is here already
      return;
    }
    onText(answer, data.content);
    if (before !== answer.state) carryOut([]);
  }

  async function askStop() {
    let status = 0;
    let error = null;
    try {
      const response = await api.stop(answer.streamId, AbortSignal.timeout(5_000));
      error = await errorOf(response);
      if (!isSignIn(response, error)) status = response.status;
    } catch {
      // not reached; the next tick asks again
    }
    if (turn >= 0 && !isOver(answer)) carryOut(machine.stopAnswered(status, now(), error));
  }
}

const reached = (asked) =>
  asked.catch(() => {
    throw LOST;
  });

/** Compare the text with what the terminal event tells of it; the hash only where the browser has one. */
export async function isWhole(text, { characters, sha256 }) {
  let count = text.length;
  for (let at = 0; at < text.length; at += 1) {
    const unit = text.charCodeAt(at);
    if (unit >= 0xdc00 && unit <= 0xdfff) count -= 1; // the second half of a pair
  }
  if (count !== characters) return false;
  if (!globalThis.crypto?.subtle) return true; // a page over plain HTTP
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("") === sha256;
}

/** Whether somebody on the way asks to sign in. `error`: the service's, which never does. */
export function isSignIn({ type, status, headers }, error) {
  const isPage = status === 200 && headers.get("Content-Type")?.startsWith("text/html");
  return type === "opaqueredirect" || isPage || (!error && SIGN_IN.has(status));
}

/** The service's error body, or null: what a proxy says is not for people. */
export async function errorOf(response) {
  try {
    const text = await response.text();
    const body = text.length <= LONGEST_ERROR ? JSON.parse(text) : null;
    return typeof body?.error_code === "string" ? body : null;
  } catch {
    return null;
  }
}

function retryAfter(response) {
  const value = response.headers.get("Retry-After");
  if (!value) return 0;
  const ms = /^\d+$/.test(value) ? Number(value) * 1_000 : Date.parse(value) - Date.now();
  return ms > 0 ? ms : 0;
}

/** Every call gives the promise of a Response, also of a redirect's; it rejects without a connection, or at `signal`. */
export function createApi(fetch = globalThis.fetch.bind(globalThis)) {
  const ask = (path, options) => fetch(path, { cache: "no-store", redirect: "manual", ...options });
  return {
    /** `{data: [{id}], default, limits}` */
    models: (signal) => ask("/v1/models", { signal }),
    /** Start a generation and read it; the same key attaches to the one that an earlier, lost call has started. */
    start: (request, key, signal) =>
      ask(STREAMS, {
        method: "POST",
        headers: { "Content-Type": "application/json", "Idempotency-Key": key },
        body: JSON.stringify(request),
        signal,
      }),
    /** Read on after `sequence`; 0 is the beginning. */
    attach: (streamId, sequence, signal) =>
      ask(`${STREAMS}/${encodeURIComponent(streamId)}`, {
        headers: sequence ? { "Last-Event-ID": `${streamId}.${sequence}` } : {},
        signal,
      }),
    /** Stop a generation: `{stream_id, status, tokens}` */
    stop: (streamId, signal) => ask(`${STREAMS}/${encodeURIComponent(streamId)}`, { method: "DELETE", signal }),
  };
}

/**
 * Turns the bytes of an event stream, cut anywhere, into events, as the WHATWG says
 * (https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation).
 * createParser(onEvent) -> {feed(Uint8Array), end()}
 * onEvent({event, data, id}) is called inside feed() for each event: `id` is the last event id of this connection.
 * feed() throws RangeError at a line, or data, of more than 16 Mi characters; such a parser takes nothing any more.
 * end() drops what no blank line has ended. `retry`, comments and unknown fields are ignored.
 */
export const createParser = (onEvent) => {
  const decoder = new TextDecoder(); // drops one BOM, and holds back half a character until its rest comes
  let rest = ""; // of a line whose end has not come
  let afterCR = false; // a LF that comes next belongs to the CR before it
  let closed = false;
  let type = "";
  let data = null;
  let idBuffer = "";

  const dispatch = () => {
    const event = data === null ? null : { event: type || "message", data, id: idBuffer };
    type = "";
    data = null;
    if (event) onEvent(event);
  };

  const bounded = (length) => {
    if (length <= MAX_CHARACTERS) return;
    closed = true;
    rest = "";
    data = null;
    throw new RangeError("A line of the event stream is too long.");
  };

  const take = (line) => {
    if (line === "") {
      dispatch();
      return;
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = "";
    if (colon >= 0) value = line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") {
      data = data === null ? value : `${data}\n${value}`;
      bounded(data.length);
    } else if (name === "event") {
      type = value;
    } else if (name === "id" && !value.includes("\0")) {
      idBuffer = value;
    }
  };

  const feed = (bytes) => {
    if (closed) return;
    const text = decoder.decode(bytes, { stream: true });
    if (text === "") return;
    let from = afterCR && text[0] === "\n" ? 1 : 0;
    afterCR = false;
    let lf = text.indexOf("\n", from);
    let cr = text.indexOf("\r", from);
    while (lf >= 0 || cr >= 0) {
      const isCR = cr >= 0 && (lf < 0 || cr < lf);
      const end = isCR ? cr : lf;
      bounded(rest.length + end - from);
      const line = rest + text.slice(from, end);
      rest = "";
      from = end + 1;
      if (isCR) {
        // The line is complete at once: who waits for a possible LF is one event late.
        if (lf === from) from += 1;
        else if (from === text.length) afterCR = true;
        cr = text.indexOf("\r", from);
      }
      if (lf >= 0 && lf < from) lf = text.indexOf("\n", from);
      take(line);
      if (closed) return; // by onEvent
    }
    rest += text.slice(from);
    bounded(rest.length);
  };

  const end = () => {
    closed = true;
    rest = "";
    data = null;
  };

  return { feed, end };
};
