// The page without its server: it shows the page that it keeps when the server cannot be reached, and that page's files.
// The server puts the files' addresses in, so each version has a worker of its own. It keeps the version before it too,
// whose pages may be open and load more. It must never answer for anything else, and never keeps a word of a conversation.

const ASSETS = "{{assets}}";
const FILES = "{{files}}".split(" ").map((name) => `${ASSETS}/${name}`);
const BOOT = "/assets/boot.js";
const OURS = "chatwait"; // other programs keep things at this address too
const CACHE = OURS + ASSETS;
const TREE = /^(\/assets\/[0-9a-f]+)\/[^/]+$/; // of any version
const SIGN_IN = "/?sign-in"; // the network's own answer: a browser asks for a password only there
const WAIT_MS = 3_000;
let isAway = false; // the last page was the kept one

addEventListener("install", (event) => event.waitUntil(install()));
addEventListener("fetch", (event) => {
  const { method, mode, url } = event.request;
  const { origin, pathname, search } = new URL(url);
  if (method !== "GET" || origin !== location.origin || search) return;
  if (mode === "navigate") {
    if (pathname === "/") event.respondWith(page(event));
    return;
  }
  const tree = TREE.exec(pathname)?.[1];
  if (pathname === BOOT) event.respondWith(boot(event.request));
  else if (tree) event.respondWith(file(event.request, pathname, OURS + tree));
});

async function install() {
  await forget(1);
  await keep();
  await skipWaiting();
}

async function page(event) {
  const network = fetch(event.request);
  const judged = network.then((response) => judge(event, response)).catch(() => null);
  event.waitUntil(judged); // one that is late is judged too
  const found = await Promise.race([judged, new Promise((resolve) => setTimeout(resolve, WAIT_MS))]);
  isAway = !found;
  return found ?? (await kept("/")) ?? network;
}

/** Give what the network answered, or null when that only says that the server is away. */
async function judge(event, response) {
  const { ok, status, headers } = response;
  if (ok) event.waitUntil(isPage(response) ? keep() : leave()); // the browser may have thrown it away; or a stranger's
  if (status === 401 && headers.has("WWW-Authenticate")) return Response.redirect(SIGN_IN);
  return status < 500 ? response : null;
}

async function file(request, path, cacheName) {
  return (await kept(path, cacheName)) ?? fetch(request);
}

/** The network's own, so that each version's is the newest; else the kept one, which can say that parts are missing. */
async function boot(request) {
  const found = isAway ? null : await fetch(request).catch(() => null);
  return found?.ok ? found : ((await kept(BOOT)) ?? fetch(request));
}

const isPage = ({ headers }) => headers.get("X-ChatWait") === "page";
const kept = (path, cacheName = CACHE) => caches.match(path, { cacheName }).catch(() => undefined);

/** Keep the page last: when it is there, its files are. */
async function keep() {
  if (await kept("/")) return;
  const found = await fetch("/", { cache: "no-store", redirect: "error" });
  const isOurs = isPage(found) && (await found.clone().text()).includes(ASSETS);
  if (!isOurs) throw new Error("not this version's page");
  const cache = await caches.open(CACHE);
  await cache.addAll([BOOT, ...FILES]);
  await cache.put("/", found);
}

/** Of what is ours and whole, only the newest `most` stay. */
async function forget(most) {
  let left = most;
  for (const name of (await caches.keys()).reverse()) {
    if (!name.startsWith(OURS)) continue;
    if (left && (await kept("/", name))) left -= 1;
    else await caches.delete(name);
  }
}

function leave() {
  return Promise.all([registration.unregister(), forget(0)]);
}
