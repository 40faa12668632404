"""tabs.js without Web Locks: how many answers a browser reads at a time, where its tabs hear late of each other."""

from __future__ import annotations

import pytest

from tests.browser.modules import Modules

pytestmark = pytest.mark.browser

MOST = 4

RACE = """
async (load, { tabs, late }) => {
  const { createTabs } = await load("tabs");
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  // A browser's storage: each tab sees its own writes at once and those of others `late`, in one order for all; until
  // its own write has been put into that order, it does not see an older one in its place.
  const views = [];
  const told = (sender, key, value) => setTimeout(() => {
    for (const view of views) {
      if (view === sender) view.pending.set(key, view.pending.get(key) - 1);
      if (view === sender || !view.pending.get(key)) value === null ? view.seen.delete(key) : view.seen.set(key, value);
    }
  }, late);
  const storage = () => {
    const view = { seen: new Map(views[0]?.seen), pending: new Map() };
    const write = (key, value) => {
      value === null ? view.seen.delete(key) : view.seen.set(key, value);
      view.pending.set(key, (view.pending.get(key) ?? 0) + 1);
      told(view, key, value);
    };
    views.push(view);
    return {
      getItem: (key) => view.seen.get(key) ?? null,
      setItem: (key, value) => write(key, value),
      removeItem: (key) => write(key, null),
    };
  };
  let number = 0;
  const random = () => `tab${number++}`;
  const make = () => createTabs({ locks: undefined, storage: storage(), random, now: Date.now, onMessage() {} });
  const all = Array.from({ length: tabs }, make);
  const read = [];
  let reading = 0, most = 0, waited = 0;
  const signal = new AbortController().signal;
  const take = async (one) => {
    const release = await one.slot(() => (waited += 1), signal);
    most = Math.max(most, ++reading);
    read.push(release);
  };
  for (const one of all.slice(0, 4)) {
    await take(one);
    await pause(2 * late);
  }
  const rest = all.slice(4).map(take); // they look at the same moments
  await pause(300);
  const before = [reading, waited];
  for (let left = 0; left < tabs - 4; left += 1) {
    reading -= 1;
    read.shift()();
    for (let turns = 0; turns < 100 && read.length < 4; turns += 1) await pause(50);
    await pause(500); // were there another one, it would have shown itself
  }
  await Promise.all(rest);
  for (const one of all) one.close();
  return { before, most, read: read.length };
}
"""


@pytest.mark.parametrize("late", [0, 150])
def test_tabs_that_wait_take_no_more_places_than_there_are_however_late_they_hear_of_each_other(
    modules: Modules, late: int
) -> None:
    """One place after the other becomes free; a busy machine tells a tab late what another one wrote."""
    told = modules.run(RACE, {"tabs": 2 * MOST, "late": late})

    assert told["before"] == [MOST, MOST], "four read, and four wait"
    assert told["most"] == MOST
    assert told["read"] == MOST


BROKEN = """
async (load) => {
  const { createTabs } = await load("tabs");
  let asked = 0;
  const locks = {
    request: async () => {
      if ((asked += 1) > 1_000) await new Promise(() => {}); // or nothing would ever end
      throw new DOMException("", "InvalidStateError");
    },
  };
  const tabs = createTabs({ locks, storage: null, random: () => "me", now: Date.now, onMessage() {} });
  const never = new Promise((resolve) => setTimeout(resolve, 2_000));
  const signal = new AbortController().signal;
  const given = [];
  for (const taken of [tabs.slot(() => {}, signal), tabs.own("a"), tabs.tryOwn("a")]) {
    given.push(typeof (await Promise.race([taken, never])));
  }
  return { given, isBounded: asked < 10 };
}
"""


def test_locks_that_fail_keep_nobody_from_reading(modules: Modules) -> None:
    assert modules.run(BROKEN) == {"given": ["function"] * 3, "isBounded": True}
