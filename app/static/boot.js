// What is there whatever version answers: it stands at a fixed address, and says so when a part of the page is missing,
// as in the middle of a deploy. It loads the page again by itself once for each version, and never twice in a row. It also
// brings in the worker that shows the page without the server (sw.js), and puts out one that stands in the way.
(() => {
  const TRIED = "chatwait.reloads"; // in the tab: {at: epoch ms, pages: [the address of a version's files, …]}
  const AGAIN_MS = 1_000; // an instance that is just being replaced has a moment
  const APART_MS = 60_000;
  const MOST_PAGES = 20;
  let isTold = false;
  let worker = "/sw.js";
  try {
    const policy = trustedTypes.createPolicy("chatwait-worker", { createScriptURL: () => "/sw.js" });
    worker = policy.createScriptURL("");
  } catch {
    // unknown to this browser, or not allowed by the page of an older version
  }
  if (location.search) history.replaceState(null, "", location.pathname + location.hash); // sw.js leads there and back
  addEventListener("error", ({ target }) => isPart(target) && fail(target), true);
  addEventListener("load", () => isTold || (globalThis.requestIdleCallback ?? setTimeout)(keepWorker));

  async function keepWorker() {
    try {
      await navigator.serviceWorker?.register(worker, { updateViaCache: "none" });
    } catch {
      // not allowed here, or not to be had now: the page works without it
    }
  }

  /** A part that the worker has is missing through it. Whatever it was, it is not the worker after this. */
  async function dropWorker(path, isLast) {
    try {
      if (!isLast && !(await caches.match(path))) return;
      await (await navigator.serviceWorker.getRegistration())?.unregister();
      for (const name of await caches.keys()) if (name.startsWith("chatwait")) await caches.delete(name);
    } catch {
      // there is none
    }
  }

  /** Pictures may be missing; scripts and styles may not. */
  function isPart(target) {
    const rel = target instanceof HTMLLinkElement && target.relList;
    return target instanceof HTMLScriptElement || (rel && (rel.contains("stylesheet") || rel.contains("modulepreload")));
  }

  function fail({ src, href }) {
    if (isTold) return;
    isTold = true;
    const mayReload = document.readyState !== "complete" && navigator.onLine && note(); // one who uses it is asked
    dropWorker(src ?? href, !mayReload && navigator.onLine);
    if (document.readyState === "loading") addEventListener("DOMContentLoaded", () => tell(mayReload));
    else tell(mayReload);
    if (mayReload) setTimeout(() => location.reload(), AGAIN_MS);
  }

  /** Remember that this version is loaded again. Gives false when it was before, or another one a moment ago. */
  function note() {
    const version = document.querySelector('script[type="module"]')?.getAttribute("src") ?? "";
    try {
      const { at = 0, pages = [] } = JSON.parse(sessionStorage.getItem(TRIED)) ?? {};
      if (pages.includes(version) || Math.abs(Date.now() - at) < APART_MS) return false;
      const tried = JSON.stringify({ at: Date.now(), pages: [...pages.slice(-MOST_PAGES), version] });
      sessionStorage.setItem(TRIED, tried);
      return sessionStorage.getItem(TRIED) === tried;
    } catch {
      return false; // blocked: nothing would end a row of reloads
    }
  }

  function tell(isReloading) {
    const happened = document.createElement("strong");
    happened.textContent = "A part of this page could not be loaded.";
    const why = document.createElement("p");
    why.append(happened, " The server is being updated, or the connection broke. Your conversations are safe.");
    const todo = document.createElement("p");
    todo.textContent = isReloading ? "The page reloads now." : "Reload the page in a moment.";
    const box = document.createElement("div");
    box.id = "broken";
    box.className = "box";
    box.dataset.tone = "warning";
    box.setAttribute("role", "alert");
    box.append(why, todo);
    if (!isReloading) {
      const again = document.createElement("button");
      again.type = "button";
      again.className = "action";
      again.textContent = "Load again";
      again.addEventListener("click", () => location.reload());
      box.append(again);
    }
    document.getElementById("notices")?.before(box);
  }
})();
