"""locks.js, which stands in for Web Locks: one tab at a time, in the order of asking, also when the memory fails."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.modules import Modules

pytestmark = pytest.mark.browser

BEGIN = """
async (load) => {
  await new Promise((done) => (indexedDB.deleteDatabase("chatwait.locks").onsuccess = done));
  const { createLocks } = await load("locks");
  globalThis.said = [];
  globalThis.clock = { ahead: 0 }; // of the first tab
  globalThis.locks = createLocks({ now: () => Date.now() + clock.ahead });
  globalThis.make = (ahead = 0) => createLocks({ now: () => Date.now() + ahead });
  globalThis.pause = (ms) => new Promise((go) => setTimeout(go, ms));
  // Ask for a lock, say what comes of it, and give the way to let it go, or to give it up while it waits.
  globalThis.ask = (who, name, options = {}, from = locks) => {
    const cancel = new AbortController();
    let letGo;
    const kept = new Promise((resolve) => (letGo = resolve));
    const given = { signal: options.ifAvailable ? undefined : cancel.signal, ...options };
    const end = from.request(name, given, (lock) => {
      said.push(`${who} ${lock ? "has" : "has not"}`);
      return lock ? kept : undefined;
    });
    const ended = end.then(() => said.push(`${who} ended`), (error) => said.push(`${who} failed: ${error.message}`));
    return { letGo, cancel: () => cancel.abort(new Error("given up")), ended };
  };
  globalThis.until = async (count) => {
    for (let turns = 0; said.length < count && turns < 400; turns += 1) await pause(20);
    return said;
  };
}
"""


@pytest.fixture
def locks(modules: Modules) -> Modules:
    """Give a page with `locks` and, beside it, `make()`, `ask()`, `until()` and what was `said`."""
    modules.run(BEGIN)
    return modules


def run(page: Modules, body: str, arg: Any = None) -> Any:
    return page.run(f"async (load, arg) => {{ {body} }}", arg)


def test_lock_goes_round_in_the_order_of_asking_and_who_does_not_wait_is_told_so(locks: Modules) -> None:
    assert run(
        locks,
        """
        const a = ask("a", "x");
        await until(1);
        const others = ["b", "c", "d"].map((who) => ask(who, "x", {}, make())); // as tabs: each has its own
        await pause(200); // they are written down
        ask("e", "x", { ifAvailable: true });
        await until(2);
        ask("f", "y", { ifAvailable: true }).letGo();
        await until(4);
        a.letGo();
        for (const [at, one] of others.entries()) {
          await until(6 + 2 * at);
          one.letGo();
        }
        await until(12);
        ask("g", "x", { ifAvailable: true });
        return until(13);
        """,
    ) == [
        *("a has", "e has not", "e ended", "f has", "f ended", "a ended"),
        *("b has", "b ended", "c has", "c ended", "d has", "d ended", "g has"),
    ]


def test_who_gives_up_while_it_waits_holds_up_nobody(locks: Modules) -> None:
    assert run(
        locks,
        """
        const a = ask("a", "x");
        await until(1);
        const b = ask("b", "x");
        await pause(200);
        ask("c", "x");
        await pause(200);
        b.cancel();
        await until(2);
        a.letGo();
        await until(4);
        await ask("d", "y", { signal: AbortSignal.abort(new Error("never wanted")) }).ended;
        return said;
        """,
    ) in (
        ["a has", "b failed: given up", "a ended", "c has", "d failed: never wanted"],
        ["a has", "b failed: given up", "c has", "a ended", "d failed: never wanted"],
    )


def test_lock_that_is_free_is_told_to_who_waits(locks: Modules) -> None:
    """Here nobody looks by himself."""
    assert run(
        locks,
        """
        const later = setTimeout;
        globalThis.setTimeout = (call, ms) => (ms === 500 ? 0 : later(call, ms));
        try {
          const a = ask("a", "x");
          await until(1);
          ask("b", "x", {}, make());
          await pause(200);
          a.letGo();
          return (await until(3)).sort();
        } finally {
          globalThis.setTimeout = later;
        }
        """,
    ) == ["a ended", "a has", "b has"]


@pytest.mark.parametrize("ahead", [7_000, -60_000])
def test_who_was_silent_for_longer_than_its_lease_has_lost_its_lock_and_hears_of_it(locks: Modules, ahead: int) -> None:
    """The other tab sees the new time first. A clock that was set back keeps nobody waiting either."""
    assert run(
        locks,
        """
        ask("a", "x");
        await until(1);
        ask("b", "x", { ifAvailable: true }, make(arg));
        await until(2);
        clock.ahead = arg;
        return until(3);
        """,
        ahead,
    ) == ["a has", "b has", "a failed: too slow"]


@pytest.mark.parametrize("ahead", [7_000, -60_000])
def test_who_was_silent_while_nobody_asked_has_its_lock_still(locks: Modules, ahead: int) -> None:
    assert run(
        locks,
        """
        ask("a", "x");
        await until(1);
        clock.ahead = arg;
        await pause(1_500); // its next look has been
        ask("b", "x", { ifAvailable: true }, make(arg));
        return until(3);
        """,
        ahead,
    ) == ["a has", "b has not", "b ended"]


@pytest.mark.parametrize("fault", ["missing", "blocked", "silent"])
def test_without_such_a_memory_a_lock_is_refused_and_the_second_time_at_once(locks: Modules, fault: str) -> None:
    told = run(
        locks,
        """
        const faults = {
          missing: () => { throw new ReferenceError("indexedDB is not defined"); },
          blocked: () => {
            const request = { error: new Error("blocked") };
            setTimeout(() => request.onerror());
            return request;
          },
          silent: () => ({}),
        };
        const open = IDBFactory.prototype.open;
        IDBFactory.prototype.open = faults[arg];
        try {
          const times = [];
          for (const who of ["a", "b"]) {
            const since = performance.now();
            await ask(who, "x").ended;
            times.push(performance.now() - since);
          }
          return { said, isQuick: times[1] < 2_000 };
        } finally {
          IDBFactory.prototype.open = open;
        }
        """,
        fault,
    )
    why = {"missing": "indexedDB is not defined", "blocked": "blocked", "silent": "no answer"}[fault]
    assert told == {"said": [f"a failed: {why}", f"b failed: {why}"], "isQuick": True}


def test_memory_that_falls_silent_is_waited_for_once(locks: Modules) -> None:
    told = run(
        locks,
        """
        await ask("a", "x", { ifAvailable: true }).letGo();
        await until(2);
        const transaction = IDBDatabase.prototype.transaction;
        const rows = { getAll: () => ({}), add: () => ({}) };
        IDBDatabase.prototype.transaction = () => ({ objectStore: () => rows, commit() {} });
        try {
          await ask("b", "x").ended;
          const since = performance.now();
          await ask("c", "x").ended;
          return { said: said.slice(2), isQuick: performance.now() - since < 2_000 };
        } finally {
          IDBDatabase.prototype.transaction = transaction;
        }
        """,
    )
    assert told == {"said": ["b failed: no answer", "c failed: no answer"], "isQuick": True}


@pytest.mark.parametrize("how", ["deleted", "cleared"])
def test_memory_that_its_user_takes_away_is_made_anew(locks: Modules, how: str) -> None:
    """A lock that somebody has is written down again, and nobody else gets it."""
    run(locks, 'ask("a", "x"); await until(1);')
    if how == "cleared":
        session = locks.context.new_cdp_session(locks.page)
        session.send("Storage.clearDataForOrigin", {"origin": locks.base_url, "storageTypes": "indexeddb"})
    else:
        run(locks, 'await new Promise((done) => (indexedDB.deleteDatabase("chatwait.locks").onsuccess = done));')
    assert run(
        locks,
        """
        await pause(2_500); // its next look has been
        ask("b", "x", { ifAvailable: true }, make());
        return until(3);
        """,
    ) == ["a has", "b has not", "b ended"]
