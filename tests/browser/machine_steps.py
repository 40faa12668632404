"""The steps of tests of machine.js: what happens to one answer, and what the machine gives for it.

Must never hold a rule of the machine: the tests tell what is expected.
"""

from __future__ import annotations

from typing import Any

from tests.browser.modules import Modules

# [[fields of the answer, options, [[method, ...arguments], ...]], ...] -> what each step gave, and the answer at last
PLAY = """
async (load, cases) => {
  const { createMachine } = await load("machine");
  return cases.map(([fields, { chance, ...options }, steps]) => {
    const answer = { state: "sending", content: "", sequence: 0, streamId: null, reconnects: 0, ...fields };
    const machine = createMachine(answer, { now: 0, random: () => chance, ...options });
    const seen = steps.map(([method, ...args]) => {
      if (method === "byte") {
        machine.byteAt = args[0];
        return [[], answer.state, machine.delay];
      }
      const gave = machine[method](...args);
      return [gave === answer ? ["text"] : gave ?? null, answer.state, machine.delay];
    });
    return { seen, answer, wasReset: machine.wasReset ?? false };
  });
}
"""
BEGUN: list[list[Any]] = [["begin"], ["opened", "cw_1", 0]]
END = {"tokens": 1, "model": "m", "first_token_ms": 1, "duration_ms": 2, "finish_reason": "stop"}
AGAIN = ["drop", "connect"]
OVER = ["drop", "ended"]


def start(at: int, heartbeat: float = 10) -> list[Any]:
    """Give the step of the event `start`."""
    return ["start", {"model": "m", "created": 1, "heartbeat_seconds": heartbeat}, at]


def token(sequence: int, at: int, count: int = 1) -> list[Any]:
    """Give the step of a token whose text is its number."""
    return ["token", {"sequence": sequence, "count": count, "content": f"<{sequence}>"}, at]


def end(event: str, at: int, is_sound: bool = True, **data: Any) -> list[Any]:
    """Give the step of a terminal event."""
    return ["terminal", event, END | data, is_sound, at]


STREAMING = [*BEGUN, start(0), token(1, 0)]


def case(*steps: list[Any], fields: dict[str, Any] | None = None, **options: Any) -> list[Any]:
    """Give a case: the machine of a new answer and the steps that it takes."""
    return [fields or {}, {"chance": 0.5} | options, steps]


def play(modules: Modules, *cases: list[Any]) -> list[dict[str, Any]]:
    """Play each case by itself; of each step: its orders, the answer's state, the delay of a connect."""
    played: list[dict[str, Any]] = modules.run(PLAY, cases)
    return played


def last(modules: Modules, *cases: list[Any]) -> list[Any]:
    """Give the orders and the state of each case's last step."""
    return [one["seen"][-1][:2] for one in play(modules, *cases)]


def delays(seen: list[Any]) -> list[int]:
    """Give the delay of each connect that was ordered."""
    return [round(delay) for orders, _, delay in seen if orders and "connect" in orders]
