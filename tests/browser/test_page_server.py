"""server.js: when the page asks whether its server is there, and what it makes of the answers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.modules import Modules

pytestmark = pytest.mark.browser

MODELS = {"data": [{"id": "small"}], "default": "small", "limits": {"max_message_chars": 10}}
ASKS = """
async (load, [answers, steps]) => {
  const { createServer } = await load("server");
  const real = setTimeout;
  let at = 0;
  let due = null; // the one timer
  globalThis.setTimeout = (call, ms) => { due = { call, at: at + ms }; return 1; };
  const told = [];
  let isSeen = true;
  const api = { async models() {
    const answer = answers.length > 1 ? answers.shift() : answers[0];
    told.push(`asked ${at}`);
    if (!answer) throw new TypeError("away");
    const [status, body, type] = answer;
    return new Response(JSON.stringify(body), { status, headers: { "Content-Type": type ?? "application/json" } });
  } };
  const server = createServer({
    api, picker: document.createElement("select"), note: {}, storage: localStorage, isSeen: () => isSeen,
    now: () => at, onLearned: () => told.push("learned"), onChange: (what) => told.push(`${what} ${server[what]}`),
  });
  const settled = () => new Promise((resolve) => real(resolve, 5));
  const until = async (end) => {
    while (due && due.at <= end) {
      const { call } = due;
      at = due.at;
      due = null;
      call();
      await settled();
    }
    at = end;
  };
  try {
    server.look();
    await settled();
    for (const [what, value] of steps) {
      if (what === "seen") isSeen = value;
      else if (what === "look") { server.look(value); await settled(); }
      else await until(value);
    }
  } finally {
    globalThis.setTimeout = real;
  }
  return told;
}
"""
OK = [200, MODELS]
TAKEN = [404, {"other": 1}]
BUSY = [429, {"error_code": "overloaded"}]
OUT = [401, {}, "text/html"]


def asks(modules: Modules, answers: list[Any], *steps: list[Any]) -> list[str]:
    """Give what was asked (when, in ms) and told, while time goes on to each step's end."""
    told: list[str] = modules.run(ASKS, [answers, steps])
    return told


def test_server_that_went_away_while_nobody_looked_is_asked_when_somebody_does(modules: Modules) -> None:
    away = ["asked 0", "asked 1000", "isAway true"]
    hidden = (["until", 1_500], ["seen", False], ["until", 5_500], ["seen", True])
    assert asks(modules, [None, None, OK], *hidden, ["look", 5_000], ["until", 6_000]) == [
        *away,
        "asked 5500",  # though it was asked less than 5 s ago
        "learned",
        "isAway false",
    ]
    assert asks(modules, [None, None, OK], ["until", 1_500], ["look", 5_000]) == away


def test_server_is_asked_calmly_when_it_is_there_and_ever_more_calmly_when_others_answer(modules: Modules) -> None:
    assert asks(modules, [OK], ["until", 61_000]) == ["asked 0", "learned", "asked 30000", "asked 60000"]
    calm = [f"asked {at}" for at in (0, 6_000, 18_000, 42_000, 72_000)]
    assert asks(modules, [BUSY], ["until", 73_000]) == calm
    assert asks(modules, [OUT], ["until", 73_000]) == ["asked 0", "isSignedOut true", *calm[1:]]


def test_another_programs_answer_is_none_of_the_servers(modules: Modules) -> None:
    for answer in (TAKEN, [200, {}], [503, {"error_code": "overloaded"}]):
        told = asks(modules, [answer], ["until", 120_000])
        assert told[:3] == ["asked 0", "asked 1000", "isAway true"]
        assert 20 < len(told) < 35  # every 3 s for a minute, then every 10 s


def test_answer_that_comes_when_it_was_asked_again_does_not_count(modules: Modules) -> None:
    """Two looks: the first one fails after the second one has been answered."""
    told = modules.run(
        """async (load, models) => {
          const { createServer } = await load("server");
          const asked = [];
          const told = [];
          const api = { models: () => new Promise((resolve, reject) => asked.push({ resolve, reject })) };
          const server = createServer({
            api, picker: document.createElement("select"), note: {}, storage: localStorage, isSeen: () => false,
            now: () => 0, onLearned: () => told.push("learned"), onChange: (what) => told.push(what, server[what]),
          });
          const settled = () => new Promise((resolve) => setTimeout(resolve, 20));
          server.look();
          server.look();
          asked[1].resolve(new Response(JSON.stringify(models)));
          await settled();
          asked[0].reject(new DOMException("late", "TimeoutError"));
          await settled();
          return told;
        }""",
        MODELS,
    )
    assert told == ["learned"]
