// What is wrong with the page's memory, above the messages, until it is mended or put away. Must never delete anything.

/** `onChange`: the room for the messages has changed. */
export function createNotices({ root, onChange }) {
  const away = new Set();
  let now = "";
  return { show };

  /** `problems`: of store.problems(), each in three parts. */
  function show(problems) {
    const keyOf = ({ code, id = "" }) => `${code} ${id}`;
    const due = problems.filter((problem) => !away.has(keyOf(problem)));
    const key = due.map(keyOf).join("|");
    if (key === now) return;
    now = key;
    root.replaceChildren(...due.map((problem) => box(problem, () => {
      away.add(keyOf(problem));
      show(problems);
    })));
    onChange();
  }
}

function box({ message, detail, action, link }, onClose) {
  const made = document.createElement("div");
  made.className = "box";
  made.dataset.tone = "warning";
  made.setAttribute("role", "alert");
  const parts = [message, detail, action].map((part, at) => {
    const line = document.createElement("p");
    line.append(at ? part : Object.assign(document.createElement("strong"), { textContent: part }));
    return line;
  });
  const close = Object.assign(document.createElement("button"), { type: "button", textContent: "Dismiss" });
  close.addEventListener("click", onClose);
  made.append(...parts);
  if (link) {
    const way = { href: location.pathname, target: "_blank", rel: "noopener", className: "action", textContent: link };
    made.append(Object.assign(document.createElement("a"), way), " ");
  }
  made.append(close);
  return made;
}
