// Turns the bytes of an event stream, cut anywhere, into events, as the WHATWG says
// (https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation).
// Pure: it must never touch the network, the DOM or the text of an event.

const MAX_CHARACTERS = 16 * 1024 * 1024; // of one line, and of one event's data

/**
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
