// The states of one answer, and what a connection does to them:
// sending → waiting → streaming ⇄ slow → reconnecting → … → complete | stopped | interrupted | failed.
// Pure: the clock and chance come in as arguments, what is to be done goes out as orders. Must never do it itself.
// And what keeps an exception in the part of the page that threw it (`guarded`).

export const SLOW_MS = 5_000; // without a token, while bytes arrive
export const STALE_MS = 12_000; // bytes older than this are not trusted after a wake-up
export const GIVE_UP_MS = 120_000;
export const STOP_MS = 10_000; // for the server's confirmation of a stop
const STOP_SILENT_MS = 2_000;
const SIGN_IN_MS = 30_000; // between two tries, after the first ones
const LATE_MS = 2_000; // of a heartbeat
const ASLEEP_MS = 90_000; // between two ticks: slower than any throttled timer
const UNSEEN_MS = 1_000; // a page that was opened again says nothing of a loss that is mended by then
const HEARTBEATS = 2.5;
const SILENT_MS = 5_000; // of a return, which is answered at once: the browser may have taken an old, dead connection
const SILENT_TRIES = 6; // as many as a browser keeps; after them the link may be that slow
const BACKOFF_MS = [250, 500, 1_000, 2_000, 4_000, 8_000];
const OVER = new Set(["complete", "stopped", "interrupted", "failed"]);
const AGAIN = new Set([408, 425, 429, 500, 502, 503, 504]);
const GONE = new Set(["stream_unknown", "stream_expired", "cursor_ahead"]);

export const isOver = (answer) => OVER.has(answer.state);

/**
 * Drive one answer record. Every method takes the time in epoch milliseconds and gives a list of orders:
 * "connect" (after `machine.delay` ms), "drop" (the connection), "stop" (ask the server to), "ended".
 * `heartbeat` in seconds holds until `start` tells another.
 */
export function createMachine(answer, { now, random = Math.random, heartbeat = 10 }) {
  let up = false; // a connection is open, or being opened
  let heard = false; // a frame came over it
  let tries = 0;
  let lostAt = answer.streamId ? now : 0;
  let stopAt = 0;
  let askedStopAt = 0;
  let hasReread = false;
  let holes = 0;
  let tickedAt = now;
  let soughtAt = now; // since when a connection is sought without a word about it
  const machine = {
    answer,
    delay: 0,
    byteAt: now, // when the last byte came; set by whoever reads
    begin, connecting, opened, start, token, hole, ping, terminal, refused, lost, signedOut, broken, tick, wake, stop,
    stopAnswered,
  };
  answer.heartbeat ??= heartbeat;
  answer.silentSince = null;
  return machine;

  function begin() {
    up = true;
    machine.delay = 0;
    return ["connect"];
  }

  /** The service has taken the request; from now on there is something to come back to. */
  function opened(streamId, at) {
    machine.byteAt = at;
    if (streamId && streamId !== answer.streamId) {
      answer.streamId = streamId;
      if (answer.sequence) reset();
    }
    return answer.stopping ? askStop(at) : [];
  }

  function start(data, at) {
    answer.model = data.model;
    answer.created = data.created;
    answer.heartbeat = data.heartbeat_seconds;
    return alive(at);
  }

  function ping(at) {
    return alive(at);
  }

  /** The hot path. Gives null for a token that does not follow the last one. */
  function token(data, at) {
    if (data.sequence - data.count !== answer.sequence) return null;
    answer.content += data.content;
    answer.sequence = data.sequence;
    answer.lastTokenAt = at;
    answer.firstAt ??= at;
    if (answer.state !== "streaming" || lostAt || answer.silentSince) {
      alive(at);
      answer.state = "streaming";
    }
    return answer;
  }

  /** A token that does not follow: come back from the last one that does, and not for ever. */
  function hole(at) {
    holes += 1;
    return holes > 3 ? damaged(at) : ["drop", ...again(at, 0)];
  }

  /** The one terminal event. `isSound`: the text has the characters and the hash that it tells. */
  function terminal(event, data, isSound, at) {
    if (!isSound) return damaged(at);
    answer.tokens = data.tokens;
    answer.model = data.model;
    answer.firstTokenMs = data.first_token_ms;
    answer.durationMs = data.duration_ms;
    answer.finishReason = data.finish_reason;
    answer.reason = data.reason ?? null;
    if (event === "done") return end("complete", at);
    if (event === "failed" && answer.stopping && !answer.content) return end("stopped", at);
    if (event === "failed") return end("failed", at, data.error);
    if (data.reason === "client") return end("stopped", at);
    return end("interrupted", at, { code: "ended_by_server", reason: data.reason, retryable: true });
  }

  /** An HTTP status in place of a stream. `error` is the service's body, null when it is somebody else's. */
  function refused(status, error, retryAfterMs, at) {
    if (GONE.has(error?.error_code)) return end("interrupted", at, { code: "answer_gone", cause: error.error_code });
    if (status === 204) return damaged(at); // our cursor is the end's, which we have not seen
    const isMissing = status === 404 && answer.streamId; // of a proxy whose service is not there yet
    if (status < 400 || (error ? error.retryable && AGAIN.has(status) : AGAIN.has(status) || isMissing)) {
      answer.signedOut = false;
      answer.busy = error?.error_code === "overloaded" || status === 429;
      return again(at, retryAfterMs);
    }
    answer.refused = !answer.streamId;
    return end(answer.streamId ? "interrupted" : "failed", at, error ?? { code: "refused" });
  }

  /** The connection failed, or ended without a terminal event. */
  function lost(at) {
    answer.busy = answer.signedOut = false;
    return again(at, 0);
  }

  /** Somebody on the way asks to sign in: that takes a person a while, and the link is not lost. */
  function signedOut(at) {
    answer.busy = false;
    answer.signedOut = true;
    lostAt = at;
    return again(at, tries < BACKOFF_MS.length ? 0 : SIGN_IN_MS);
  }

  /** The page itself failed at this answer: what there is of it is kept. */
  function broken(at) {
    return isOver(answer) ? [] : end("interrupted", at, { code: "page_fault", retryable: true });
  }

  function tick(at) {
    if (isOver(answer)) return [];
    if (lostAt && at - tickedAt > ASLEEP_MS) lostAt = at; // nothing was tried meanwhile
    tickedAt = at;
    if (answer.stopping) {
      if (at - stopAt >= STOP_MS) {
        answer.note = "stop_unconfirmed";
        return end("stopped", at);
      }
      if (answer.streamId && at - askedStopAt >= 2_000) return askStop(at);
    }
    if (lostAt && at - lostAt >= GIVE_UP_MS) return giveUp(at);
    if (up && at - machine.byteAt > patience()) return ["drop", ...lost(at)];
    if (up && lostAt && answer.state !== "reconnecting" && answer.streamId && at - soughtAt > UNSEEN_MS) {
      answer.state = "reconnecting";
    }
    if (answer.state === "streaming" && at - answer.lastTokenAt >= SLOW_MS) answer.state = "slow";
    const isSilent = up && heard && at - machine.byteAt >= 1_000 * answer.heartbeat + LATE_MS;
    answer.silentSince = isSilent ? machine.byteAt : null;
    return [];
  }

  /** How long a connection may be silent, in ms. */
  function patience() {
    const whole = HEARTBEATS * 1_000 * answer.heartbeat;
    const isReturning = !heard && answer.streamId && tries <= SILENT_TRIES;
    return isReturning ? Math.min(whole, SILENT_MS) : whole;
  }

  /** The reader is back, the network is back, or somebody pressed "Try now" (`isForced`). */
  function wake(at, isForced = false) {
    if (isOver(answer)) return [];
    if (up && !isForced && at - machine.byteAt < STALE_MS) return [];
    if (up && isForced && at - machine.byteAt < 1_000) return [];
    const orders = up ? ["drop"] : [];
    if (heard) answer.reconnects += 1;
    heard = false;
    tries = 0;
    lostAt ||= at;
    soughtAt = at;
    return [...orders, ...connect(at, 0)];
  }

  function stop(at) {
    if (isOver(answer) || answer.stopping) return [];
    answer.stopping = true;
    stopAt = at;
    return answer.streamId ? askStop(at) : [];
  }

  /** What was said to the stop: its status, or 0 when nobody could be asked, and the service's error. */
  function stopAnswered(status, at, error = null) {
    if (isOver(answer)) return [];
    if (GONE.has(error?.error_code)) return end("stopped", at);
    if (status !== 200 || (up && at - machine.byteAt < STOP_SILENT_MS)) return [];
    return [...(up ? ["drop"] : []), ...connect(at, 0)];
  }

  function askStop(at) {
    askedStopAt = at;
    return ["stop"];
  }

  function alive(at) {
    heard = true;
    tries = 0;
    lostAt = 0;
    answer.busy = answer.signedOut = false;
    answer.silentSince = answer.retryAt = null;
    if (!answer.sequence) answer.state = "waiting";
    else answer.state = at - answer.lastTokenAt >= SLOW_MS ? "slow" : "streaming";
    return [];
  }

  function again(at, retryAfterMs) {
    if (isOver(answer)) return [];
    if (heard) answer.reconnects += 1;
    heard = false;
    lostAt ||= at;
    answer.silentSince = null;
    answer.state = "reconnecting";
    if (at - lostAt >= GIVE_UP_MS || retryAfterMs > GIVE_UP_MS) return giveUp(at);
    const step = BACKOFF_MS[Math.min(tries, BACKOFF_MS.length - 1)];
    tries += 1;
    return connect(at, Math.max(retryAfterMs, step * (0.7 + 0.6 * random())));
  }

  function connect(at, delay) {
    up = delay === 0;
    machine.delay = delay;
    machine.byteAt = at;
    answer.retryAt = at + delay;
    return ["connect"];
  }

  /** "connect" is being carried out, after its delay. */
  function connecting(at) {
    up = true;
    machine.byteAt = at;
    answer.retryAt = null;
  }

  function giveUp(at) {
    return end("interrupted", at, { code: answer.busy ? "overloaded_long" : "connection_lost", retryable: true });
  }

  /** Text and proof do not agree: read it once more from the beginning, then say so. */
  function damaged(at) {
    if (hasReread) return end("failed", at, { code: "text_damaged", retryable: true });
    hasReread = true;
    reset();
    return ["drop", ...connect(at, 0)];
  }

  function reset() {
    answer.content = "";
    answer.sequence = 0;
    machine.wasReset = true;
  }

  function end(state, at, error = null) {
    answer.state = state;
    answer.error = error;
    answer.endedAt = at;
    answer.stopping = false;
    answer.silentSince = answer.retryAt = null;
    answer.queued = false;
    return ["drop", "ended"];
  }
}

/** An exception of one part of the page stays in it: the same part; what a function of it throws is reported, and that call gives undefined. */
export function guarded(part) {
  for (const [name, call] of Object.entries(part)) {
    if (typeof call !== "function") continue;
    part[name] = (...given) => {
      try {
        return call(...given);
      } catch (error) {
        return void reportError(error);
      }
    };
  }
  return part;
}
