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
  let number = 0;
  const random = () => `id${(number += 1)}`;
  globalThis.clock = { ahead: 0 }; // of the first tab
  globalThis.locks = createLocks({ random, now: () => Date.now() + clock.ahead });
  globalThis.twin = () => createLocks({ random, now: () => Date.now() + clock.ahead });
  globalThis.make = (ahead = 0) => createLocks({ random, now: () => Date.now() + ahead });
  globalThis.written = async (count) => {
    const open = indexedDB.open("chatwait.locks");
    await new Promise((done) => (open.onsuccess = done));
    for (let turns = 0; turns < 400; turns += 1) {
      const asked = open.result.transaction("rows").objectStore("rows").count();
      await new Promise((done) => (asked.onsuccess = done));
      if (asked.result === count) return open.result.close();
      await pause(20);
    }
    throw new Error("not written");
  };
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
        await written(4);
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
        await written(1); // nobody leaves anything behind
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
        await written(2);
        ask("c", "x");
        await written(3);
        b.cancel();
        await written(2);
        a.letGo();
        await until(4);
        await ask("d", "y", { signal: AbortSignal.abort(new Error("never wanted")) }).ended;
        return said;
        """,
    ) == ["a has", "b failed: given up", "a ended", "c has", "d failed: never wanted"]


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
          await written(2);
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


def test_who_waits_in_the_tab_that_slept_gets_nothing_by_it(locks: Modules) -> None:
    assert run(
        locks,
        """
        ask("a", "x");
        await until(1);
        ask("b", "x");
        await written(2);
        clock.ahead = 7_000;
        await pause(2_500); // some looks have been
        return said;
        """,
    ) == ["a has"]


def test_who_waits_in_a_tab_that_sleeps_while_it_looks_gets_nothing_by_it_either(locks: Modules) -> None:
    assert run(
        locks,
        """
        ask("a", "x");
        await until(1);
        ask("b", "x");
        await written(2);
        const all = IDBObjectStore.prototype.getAll;
        IDBObjectStore.prototype.getAll = function () {
          clock.ahead = 7_000; // after it was chosen who looks, and before they are judged
          return all.call(this);
        };
        await pause(2_500); // some looks have been
        IDBObjectStore.prototype.getAll = all;
        return said;
        """,
    ) == ["a has"]


def test_of_all_tabs_that_slept_one_has_the_lock_soon_after(locks: Modules) -> None:
    """The one that had it, or the first to wake, of which the other one hears."""
    said = run(
        locks,
        """
        ask("a", "x");
        await until(1);
        for (const who of ["b", "c", "d"]) ask(who, "x", {}, twin());
        await written(4);
        clock.ahead = 7_000;
        await pause(3_000);
        return said;
        """,
    )
    assert len([one for one in said if one.endswith(" has")]) - len([one for one in said if "too slow" in one]) == 1


def test_clocks_of_two_tabs_that_differ_by_milliseconds_take_nothing_from_anybody(locks: Modules) -> None:
    assert run(
        locks, 'ask("a", "x"); await until(1); ask("b", "x", { ifAvailable: true }, make(-50)); return until(3);'
    ) == [
        *("a has", "b has not", "b ended"),
    ]


@pytest.mark.parametrize("seconds", [1, 5])
def test_memory_that_fails_for_a_moment_lets_nobody_in_and_one_that_stays_so_lets_all(
    locks: Modules, seconds: int
) -> None:
    said = run(
        locks,
        """
        const a = ask("a", "x");
        await until(1);
        ask("b", "x");
        await written(2);
        const transaction = IDBDatabase.prototype.transaction;
        IDBDatabase.prototype.transaction = () => { throw new Error("lost"); };
        await pause(1_000 * arg);
        IDBDatabase.prototype.transaction = transaction;
        await pause(1_500);
        a.letGo();
        return until(3);
        """,
        seconds,
    )
    assert said == (["a has", "a ended", "b has"] if seconds == 1 else ["a has", "b failed: lost", "a ended"])


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


def test_memory_that_falls_silent_is_waited_for_once_and_asked_again_when_it_answers(locks: Modules) -> None:
    told = run(
        locks,
        """
        await ask("a", "x", { ifAvailable: true }).letGo();
        await until(2);
        const transaction = IDBDatabase.prototype.transaction;
        const late = [];
        const rows = { getAll: () => ({ result: [] }), add: () => ({ result: 1 }) };
        IDBDatabase.prototype.transaction = () => {
          late.push({ objectStore: () => rows, commit() {} });
          return late.at(-1);
        };
        try {
          await ask("b", "x").ended;
          const since = performance.now();
          await ask("c", "x").ended;
          const isQuick = performance.now() - since < 2_000;
          IDBDatabase.prototype.transaction = transaction;
          late[0].oncomplete();
          await ask("d", "x", { ifAvailable: true }).letGo();
          return { said: (await until(6)).slice(2), isQuick };
        } finally {
          IDBDatabase.prototype.transaction = transaction;
        }
        """,
    )
    assert told == {"said": ["b failed: no answer", "c failed: no answer", "d has", "d ended"], "isQuick": True}


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
