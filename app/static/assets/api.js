// The addresses of the service: the only module that knows them, and the only one that asks.
// Must never read a stream or decide what an answer means.

const STREAMS = "/v1/chat/streaming";

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
