// What is there whatever version answers: it stands at a fixed address, and says so when a part of the page is missing,
// as in the middle of a deploy. It loads the page again by itself once for each version, and never twice in a row.
(() => {
  const TRIED = "chatwait.reloads"; // in the tab: {at: epoch ms, pages: [the address of a version's files, …]}
  const AGAIN_MS = 1_000; // an instance that is just being replaced has a moment
  const APART_MS = 60_000;
  const MOST_PAGES = 20;
  let isTold = false;
  addEventListener("error", ({ target }) => isPart(target) && fail(), true);

  /** Pictures may be missing; scripts and styles may not. */
  function isPart(target) {
    const rel = target instanceof HTMLLinkElement && target.relList;
    return target instanceof HTMLScriptElement || (rel && (rel.contains("stylesheet") || rel.contains("modulepreload")));
  }

  function fail() {
    if (isTold) return;
    isTold = true;
    const mayReload = document.readyState !== "complete" && navigator.onLine && note(); // one who uses it is asked
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
    why.append(happened, " A new version is being put in place, or the connection broke. Your conversations are safe.");
    const todo = document.createElement("p");
    todo.textContent = isReloading ? "The page is loaded again." : "Load the page again in a moment.";
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
