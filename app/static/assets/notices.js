// What is wrong with the page's memory, above the messages, until it is mended or put away. Must never delete anything.

/** `onChange`: the room for the messages has changed. */
export function createNotices({ root, onChange }) {
  const away = new Set();
  const boxes = new Map(); // what is shown: one that was made again would be said again
  return { show };

  /** `problems`: of store.problems(), each in three parts. */
  function show(problems) {
    const due = new Map(problems.map((problem) => [`${problem.code} ${problem.id ?? ""}`, problem]));
    for (const gone of away) if (!due.has(gone)) away.delete(gone); // should it come back, it is said again
    for (const key of boxes.keys()) if (!due.has(key)) drop(key);
    for (const [key, problem] of due) {
      if (away.has(key) || boxes.has(key)) continue;
      boxes.set(key, box(problem, () => putAway(key)));
      root.append(boxes.get(key));
      onChange();
    }
  }

  function putAway(key) {
    const { nextElementSibling, previousElementSibling } = boxes.get(key);
    away.add(key);
    drop(key);
    (nextElementSibling ?? previousElementSibling)?.querySelector("button").focus();
  }

  function drop(key) {
    boxes.get(key).remove();
    boxes.delete(key);
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
