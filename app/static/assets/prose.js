// An answer's text: as Markdown or, once the renderer throws at it, as it came. Must never show another text.

import { createMarkdown } from "./markdown.js";

/** As createMarkdown; `whole()` gives all the text there is to show. */
export function createProse(container, whole) {
  let painter = null;
  const attempt = (name) => (text) => {
    try {
      painter ??= createMarkdown(container);
      painter[name](text);
    } catch (error) {
      reportError(error);
      painter = createPlain(container, whole());
    }
  };
  return { append: attempt("append"), set: attempt("set"), end: attempt("end") };
}

function createPlain(container, text) {
  const line = document.createElement("p");
  line.append(text);
  container.replaceChildren(line);
  return { append: (more) => line.firstChild.appendData(more), end() {} };
}
