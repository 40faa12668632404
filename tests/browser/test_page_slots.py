"""tabs.js without Web Locks: how many answers a browser reads at a time, and in which order."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.browser.modules import Modules
from tests.live.steps import poll

pytestmark = pytest.mark.browser

MOST = 4

JOIN = """
async (load) => {
  const { createTabs } = await load("tabs");
  const random = () => crypto.randomUUID();
  const tabs = createTabs({ locks: undefined, random, now: Date.now, onMessage() {} });
  globalThis.one = { tabs, places: [], cancel: new AbortController() };
  const release = await tabs.tryOwn("anything"); // its database is open
  release?.();
  addEventListener("pagehide", () => tabs.close());
}
"""
ASK = """
(load, at) => void setTimeout(async () => {
  one.release = await one.tabs.slot((place) => one.places.push(place), one.cancel.signal);
}, at - Date.now())
"""
FORGET = "() => new Promise((done) => (indexedDB.deleteDatabase('chatwait.locks').onsuccess = done)).then(() => {})"
DEAD = """
async () => {
  const open = indexedDB.open("chatwait.locks");
  await new Promise((done) => (open.onsuccess = done));
  const asked = open.result.transaction("rows").objectStore("rows").getAll();
  await new Promise((done) => (asked.onsuccess = done));
  open.result.close();
  return asked.result.filter(({ until }) => until < Date.now()).length;
}
"""
READS = "() => Boolean(globalThis.one.release)"
PLACE = "() => one.places.at(-1)"


@pytest.fixture
def tabs(modules: Modules) -> list[Modules]:
    """Give eight tabs that are about to read."""
    modules.run(FORGET)
    tabs = [modules, *(modules.tab() for _ in range(2 * MOST - 1))]
    for tab in tabs:
        tab.run(JOIN)
    return tabs


def ask_at_once(tabs: list[Modules]) -> None:
    """Have all of them ask for a place at the same moment."""
    at = time.time() * 1000 + 500
    for tab in tabs:
        tab.run(ASK, at)


def reading(tabs: list[Modules]) -> list[Modules]:
    return [tab for tab in tabs if tab.run(READS)]


def settled(tabs: list[Modules], most: int = MOST) -> list[Modules]:
    """Wait until so many read and all others have a place of their own; list those that wait, the next one first."""

    def places() -> list[int]:
        return sorted(tab.run(PLACE) or 0 for tab in tabs if not tab.run(READS))

    waiting = list(range(1, len(tabs) - most + 1))
    poll(lambda: len(reading(tabs)) == most and places() == waiting, seconds=20, what=lambda: str(places()))
    return sorted((tab for tab in tabs if not tab.run(READS)), key=lambda tab: tab.run(PLACE))


def test_tabs_that_ask_in_one_moment_take_four_places_and_each_that_waits_knows_its_own(tabs: list[Modules]) -> None:
    ask_at_once(tabs)
    row = settled(tabs)
    while row:
        reading(tabs)[0].run("() => { one.release(); one.release = null; one.places = [-1]; }")
        tabs = [tab for tab in tabs if tab.run("() => one.places.at(-1) !== -1")]
        expected, row = row[1:], settled(tabs)
        assert row == expected, "each goes one place forward, and nobody overtakes"


def test_tab_that_leaves_the_row_is_followed_by_the_next_one(tabs: list[Modules]) -> None:
    ask_at_once(tabs)
    row = settled(tabs)
    row[1].run("() => one.cancel.abort()")
    tabs.remove(row[1])
    assert settled(tabs) == [row[0], *row[2:]]


@pytest.mark.parametrize("leave", ["closes", "crashes"])
def test_place_of_a_tab_that_is_gone_is_taken(tabs: list[Modules], leave: str) -> None:
    ask_at_once(tabs)
    row = settled(tabs)
    gone = reading(tabs[1:])[0]  # the first page is all tests'
    tabs.remove(gone)
    if leave == "crashes":
        with contextlib.suppress(Exception):  # it never loads, and that is told somehow
            gone.page.goto("chrome://crash", timeout=10_000)
    else:
        gone.page.close(run_before_unload=True)
    assert settled(tabs) == row[1:]
    assert tabs[0].run(DEAD) == (1 if leave == "crashes" else 0), "who closes takes its row along"


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
  const tabs = createTabs({ locks, random: () => "me", now: Date.now, onMessage() {} });
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


GIVEN_UP = """
async (load) => {
  const { createTabs } = await load("tabs");
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const locks = {
    request: async (name, { ifAvailable }, hold) => {
      await pause(20);
      if (!name.startsWith("chatwait.slot.")) return hold({});
      return ifAvailable ? hold(null) : new Promise(() => {});
    },
  };
  const tabs = createTabs({ locks, random: () => "me", now: Date.now, onMessage() {} });
  const cancel = new AbortController();
  const slot = tabs.slot(() => {}, cancel.signal);
  cancel.abort(); // it still looks for a free one
  return Promise.race([slot, pause(2_000).then(() => "waits for ever")]);
}
"""


def test_wait_that_is_given_up_before_it_has_begun_is_none(modules: Modules) -> None:
    assert modules.run(GIVEN_UP) is None


TAKEN_AWAY = """
async (load) => {
  const { createTabs } = await load("tabs");
  let takeAway;
  const locks = {
    request: (name, options, hold) => {
      hold({});
      return new Promise((_, reject) => (takeAway = reject));
    },
  };
  const tabs = createTabs({ locks, random: () => "me", now: Date.now, onMessage() {} });
  const told = new Promise((resolve) => tabs.slot(() => {}, new AbortController().signal, () => resolve("told")));
  await new Promise((resolve) => setTimeout(resolve, 50));
  takeAway(new Error("too slow"));
  return Promise.race([told, new Promise((resolve) => setTimeout(resolve, 2_000, "not told"))]);
}
"""


def test_reader_whose_place_was_taken_away_hears_of_it(modules: Modules) -> None:
    assert modules.run(TAKEN_AWAY) == "told"
