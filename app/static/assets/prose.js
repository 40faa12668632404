// An answer's text in the page: as Markdown or, where the renderer throws at it, as it came, and so to its end.
// Must never show another text than the answer's.

import { createMarkdown } from "./markdown.js";

/** As createMarkdown; `whole()` gives all the text there is to show, should it be painted anew. */
export function createProse(container, whole) {
  let painter = null;

  function attempt(change) {
    try {
      painter ??= createMarkdown(container);
      change();
    } catch (error) {
      reportError(error);
      painter = createPlain(container, whole());
    }
  }

  return {
    append: (text) => attempt(() => painter.append(text)),
    set: (text) => attempt(() => painter.set(text)),
    end: () => attempt(() => painter.end()),
  };
}

function createPlain(container, whole) {
  const text = document.createTextNode(whole);
  const line = document.createElement("p");
  line.append(text);
  container.replaceChildren(line);
  return { append: (more) => text.appendData(more), set: (all) => (text.data = all), end() {} };
}
