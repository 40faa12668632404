// The list of conversations: open, rename in place, delete (asks), export, import. Titles are text, never HTML. It must
// never take the focus or what is being typed away when the list is shown again, and knows nothing of the storage.

const MARKS = {
  streaming: "an answer is on its way",
  done: "a new answer is complete",
  cut: "a new answer ended early",
  error: "the answer failed",
  damaged: "cannot be read",
  newer: "made by a newer version of this page",
  lost: "cannot be opened",
};

function make(tag, properties = {}, ...children) {
  const { role, label, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  if (tag === "button") element.type = "button";
  if (role) element.setAttribute("role", role);
  if (label) element.setAttribute("aria-label", label);
  element.append(...children);
  return element;
}

/**
 * nav: the element to fill. onOpen(id); onNew(); onRename(id, title); onDelete(id); onExport() -> JSON text;
 * onImport(text), whose outcome the caller tells.
 */
export function createList({ nav, onOpen, onNew, onRename, onDelete, onExport, onImport }) {
  const rows = new Map(); // id -> {item, link, title, mark, more, entry}
  const list = make("ul", { className: "conversations", role: "list", label: "Conversations" });
  const none = make("p", { className: "none", textContent: "No conversations yet." });
  const fresh = make("button", { className: "new", textContent: "New conversation" });
  const save = make("button", { className: "export", textContent: "Export" });
  const fetchIn = make("button", { className: "import", textContent: "Import" });
  const file = make("input", { type: "file", accept: ".json,application/json", hidden: true, tabIndex: -1 });
  const rename = make("button", { role: "menuitem", tabIndex: -1, textContent: "Rename" });
  const remove = make("button", { role: "menuitem", tabIndex: -1, textContent: "Delete" });
  const menu = make("div", { className: "menu", role: "menu" }, rename, remove);
  const question = make("h2", { id: "delete-question" });
  const keep = make("button", { textContent: "Cancel" });
  const sure = make("button", { className: "danger", textContent: "Delete" });
  const dialog = make(
    "dialog",
    { className: "ask" },
    question,
    make("p", { textContent: "This deletes it from this browser for good. Export it first to keep a copy." }),
    make("div", { className: "actions" }, keep, sure),
  );
  let open = null; // the row whose menu is open
  let editing = null; // {row, input}

  function createRow(entry) {
    const title = make("span", { className: "title", dir: "auto" });
    const mark = make("span", { className: "mark" });
    const link = make("a", { className: "open" }, title, mark);
    const more = make("button", { className: "more" });
    more.setAttribute("aria-haspopup", "menu");
    more.setAttribute("aria-expanded", "false");
    const row = { item: make("li", {}, link, more), link, title, mark, more, entry: {} };
    row.item.dataset.id = entry.id;
    link.href = `#${encodeURIComponent(entry.id)}`;
    return row;
  }

  function paint(row, entry, current) {
    row.entry = entry;
    const name = entry.title || "Untitled";
    if (row.title.textContent !== name) {
      row.title.textContent = row.title.title = name;
      row.more.setAttribute("aria-label", `Options for ${name}`);
    }
    const mark = entry.problem ?? entry.mark ?? (entry.active ? "streaming" : "");
    if ((row.mark.dataset.mark ?? "") !== mark) {
      row.mark.dataset.mark = mark;
      row.mark.textContent = "";
      if (mark) row.mark.append(make("span", { className: "quiet", textContent: ` (${MARKS[mark]})` }));
    }
    if (current) row.link.setAttribute("aria-current", "page");
    else row.link.removeAttribute("aria-current");
  }

  /** entries: of store.list(), with marks, in their order; currentId: the shown one, or "" for a new conversation. */
  function show(entries, currentId) {
    const ids = new Set(entries.map((entry) => entry.id));
    for (const [id, row] of rows) {
      if (ids.has(id)) continue;
      const focused = row.item.contains(document.activeElement);
      if (open === row) close(false);
      if (editing?.row === row) editing = null;
      const next = row.item.nextElementSibling ?? row.item.previousElementSibling;
      row.item.remove();
      rows.delete(id);
      if (focused) (next ? rowOf(next).link : fresh).focus();
    }
    const busy = document.activeElement?.closest?.("li"); // moving it would take its focus
    let at = list.firstElementChild;
    for (const entry of entries) {
      const row = rows.get(entry.id) ?? createRow(entry);
      rows.set(entry.id, row);
      paint(row, entry, entry.id === currentId);
      while (at && at !== row.item && row.item === busy) {
        const next = at.nextElementSibling;
        list.append(at);
        at = next;
      }
      if (at === row.item) at = at.nextElementSibling;
      else list.insertBefore(row.item, at);
    }
    none.hidden = entries.length > 0;
    save.disabled = entries.length === 0;
  }

  const rowOf = (element) => rows.get(element.closest("li")?.dataset.id);

  function toggle(row, last = false) {
    if (open === row) return close(true);
    if (open) close(false);
    open = row;
    row.more.setAttribute("aria-expanded", "true");
    row.item.append(menu);
    menu.setAttribute("aria-label", row.more.getAttribute("aria-label"));
    (last ? remove : rename).focus();
  }

  function close(back) {
    if (!open) return;
    const { more } = open;
    open = null;
    more.setAttribute("aria-expanded", "false");
    if (back) more.focus();
    menu.remove();
  }

  function edit(row) {
    close(false);
    const input = make("input", { className: "rename", dir: "auto", value: row.entry.title, maxLength: 200, label: "Title" });
    input.autocomplete = "off";
    editing = { row, input };
    row.link.hidden = true;
    row.item.prepend(input);
    input.focus();
    input.select();
    input.addEventListener("blur", () => finish(true, false));
    input.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229 || (event.key !== "Enter" && event.key !== "Escape")) return;
      event.preventDefault();
      finish(event.key === "Enter", true);
    });
  }

  function finish(keepIt, back) {
    if (!editing) return;
    const { row, input } = editing;
    editing = null;
    const title = input.value.trim();
    row.link.hidden = false;
    if (back) row.link.focus();
    input.remove();
    if (keepIt && title && title !== row.entry.title) onRename(row.entry.id, title);
  }

  function ask(row) {
    close(true); // the dialog gives the focus back to what had it
    dialog.dataset.id = row.entry.id;
    question.replaceChildren("Delete “", make("bdi", { textContent: row.entry.title || "Untitled" }), "”?");
    dialog.showModal();
    keep.focus();
  }

  async function download() {
    const text = await onExport();
    if (text === undefined) return;
    const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    const link = make("a", { href: url, download: `chatwait-${new Date().toISOString().slice(0, 10)}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  list.addEventListener("click", (event) => {
    const row = rowOf(event.target);
    if (!row) return;
    if (event.target.closest(".more")) toggle(row);
    else if (event.target.closest(".open") && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      onOpen(row.entry.id);
    }
  });
  list.addEventListener("keydown", (event) => {
    const row = rowOf(event.target);
    const down = event.key === "ArrowDown";
    if (!row || event.altKey || event.ctrlKey || event.metaKey || menu.contains(event.target)) return;
    if (event.target === row.more && (down || event.key === "ArrowUp")) toggle(row, !down);
    else if (event.target !== row.link) return;
    else if (event.key === "F2") edit(row);
    else if (down || event.key === "ArrowUp") {
      const next = down ? row.item.nextElementSibling : row.item.previousElementSibling;
      if (next) rowOf(next).link.focus();
    } else return;
    event.preventDefault();
  });
  menu.addEventListener("keydown", (event) => {
    const items = [...menu.children];
    const at = items.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (to !== undefined) items.at(to % items.length).focus();
    else if (event.key === "Escape") close(true);
    else if (event.key === "Tab") return close(true); // and on from there
    else return;
    event.preventDefault();
  });
  menu.addEventListener("focusout", (event) => {
    if (open && !menu.contains(event.relatedTarget) && event.relatedTarget !== open.more) close(false);
  });
  rename.addEventListener("click", () => edit(open));
  remove.addEventListener("click", () => ask(open));
  keep.addEventListener("click", () => dialog.close());
  sure.addEventListener("click", () => {
    dialog.close();
    onDelete(dialog.dataset.id);
  });
  fresh.addEventListener("click", () => onNew());
  save.addEventListener("click", download);
  fetchIn.addEventListener("click", () => file.click());
  file.addEventListener("change", async () => {
    const [chosen] = file.files;
    if (!chosen) return;
    const text = await chosen.text().catch(() => ""); // what cannot be read is refused like what is not JSON
    file.value = "";
    onImport(text);
  });

  dialog.setAttribute("aria-labelledby", question.id);
  nav.append(fresh, list, none, make("div", { className: "transfer" }, save, fetchIn, file));
  document.body.append(dialog);
  return { show };
}
