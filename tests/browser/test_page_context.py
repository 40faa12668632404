"""context.js: what is sent with a question, by itself in a real browser."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.modules import Modules

pytestmark = pytest.mark.browser

# [[messages, text, limits, model], ...] -> of each new question: its request, and all it was a moment later
ASK = """
async (load, cases) => {
  const { ask, requestOf } = await load("context");
  return cases.map(([messages, text, limits, model]) => {
    const conversation = { messages };
    let made = 0;
    const id = () => `new${(made += 1)}`;
    const [question, answer] = ask(conversation, text, { id, key: () => "key", model, at: 1, limits });
    conversation.messages.push(question, answer);
    const request = requestOf(conversation, answer);
    const later = [requestOf(JSON.parse(JSON.stringify(conversation)), JSON.parse(JSON.stringify(answer)))];
    Object.assign(answer, { state: "streaming", content: "Part", sequence: 1, streamId: "cw_1" });
    later.push(requestOf(conversation, answer));
    const kept = conversation.messages.filter(({ refused }) => !refused);
    const isAsked = ({ id }) => messages.every(({ asks, refused }) => asks !== id || !refused);
    conversation.messages = kept.filter((one) => isAsked(one) || kept.some(({ asks }) => asks === one.id));
    later.push(requestOf(conversation, answer));
    return { request, later, question, skip: answer.sent.skip };
  });
}
"""
# [messages, id of a question] -> the request of one more answer to it
ASK_AGAIN = """
async (load, [messages, asked]) => {
  const { answerTo, requestOf } = await load("context");
  const question = messages.find(({ id }) => id === asked);
  const made = { id: () => "a9", key: () => "key", model: null, at: 1, limits: null };
  const answer = answerTo({ messages }, question, made);
  messages.push(answer);
  return [requestOf({ messages }, answer), answer];
}
"""


def _question(name: str, content: str = "") -> dict[str, Any]:
    return {"id": name, "role": "user", "content": content or f"Ask {name}", "at": 0}


def _answer(asks: str, content: str | None = None, state: str = "complete", **more: Any) -> dict[str, Any]:
    content = f"Tell {asks}" if content is None else content
    return {"id": f"a-{asks}", "role": "assistant", "content": content, "state": state, "asks": asks} | more


def _pairs(count: int) -> list[dict[str, Any]]:
    return [one for number in range(count) for one in (_question(f"q{number}"), _answer(f"q{number}"))]


def _turns(*contents: str) -> list[dict[str, str]]:
    """Give turns as they are sent, the first one a question."""
    return [{"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(contents)]


def _asked(
    modules: Modules, messages: list[Any], text: str = "Now", limits: Any = None, model: Any = None
) -> dict[str, Any]:
    (asked,) = modules.run(ASK, [[messages, text, limits, model]])
    assert asked["later"] == [asked["request"]] * 3
    return asked


def _context(modules: Modules, messages: list[Any], text: str = "Now", limits: Any = None) -> Any:
    return _asked(modules, messages, text, limits)["request"]["context"]


def test_context_of_a_question_is_the_turns_before_it(modules: Modules) -> None:
    asked = _asked(modules, _pairs(2))
    assert asked["request"] == {"message": "Now", "context": _turns("Ask q0", "Tell q0", "Ask q1", "Tell q1")}
    assert asked["skip"] == 0
    assert asked["question"]["content"] == "Now"
    assert _asked(modules, [], model="m")["request"] == {"message": "Now", "context": [], "model": "m"}


def test_context_holds_partial_answers_and_never_an_error(modules: Modules) -> None:
    error = {"code": "upstream_error", "message": "SECRET", "detail": "SECRET", "action": "SECRET"}
    messages = [
        *[_question("q0"), _answer("q0", "Part 0", "interrupted", error=error)],
        *[_question("q1"), _answer("q1", "Part 1", "stopped")],
        *[_question("q2"), _answer("q2", "", "failed", error=error)],
    ]
    context = _context(modules, messages)
    assert context == _turns("Ask q0", "Part 0", "Ask q1", "Part 1", "Ask q2", "")
    assert "SECRET" not in str(context)


def test_context_given_a_refused_question_sends_it_never(modules: Modules) -> None:
    refused = [_question("q9"), _answer("q9", "", "failed", refused=True)]
    assert _context(modules, [*_pairs(1), *refused]) == _turns("Ask q0", "Tell q0")
    assert _context(modules, refused) == []
    assert _context(modules, [*_pairs(1), *refused, _question("q1"), _answer("q1")]) == _turns(
        "Ask q0", "Tell q0", "Ask q1", "Tell q1"
    )


def test_context_given_a_refused_ask_again_keeps_question_and_old_answer(modules: Modules) -> None:
    again = _answer("q0", "", "failed", refused=True) | {"id": "again"}
    assert _context(modules, [*_pairs(1), again]) == _turns("Ask q0", "Tell q0")


def test_context_given_two_answers_to_a_question_sends_the_last(modules: Modules) -> None:
    again = _answer("q0", "Better") | {"id": "again"}
    assert _context(modules, [*_pairs(1), again]) == _turns("Ask q0", "Better")


def test_context_given_questions_without_answers_puts_empty_ones_between(modules: Modules) -> None:
    messages = [_question("q0"), _question("q1"), _answer("q1"), _question("q2")]
    assert _context(modules, messages) == _turns("Ask q0", "", "Ask q1", "Tell q1", "Ask q2", "")


def test_context_of_a_question_asked_again_ends_before_it(modules: Modules) -> None:
    request, answer = modules.run(ASK_AGAIN, [_pairs(3), "q1"])

    assert request == {"message": "Ask q1", "context": _turns("Ask q0", "Tell q0")}
    assert (answer["asks"], answer["state"], answer["streamId"], answer["sequence"]) == ("q1", "sending", None, 0)


@pytest.mark.parametrize(
    ("limits", "sent"),
    [
        ({"max_context_messages": 6}, 6),
        ({"max_context_messages": 5}, 4),  # the first one that is sent is a question
        ({"max_context_messages": 4}, 4),
        ({"max_context_messages": 1}, 0),
        ({"max_context_messages": 0}, 0),
    ],
)
def test_context_longer_than_the_limit_of_messages_keeps_the_newest(
    modules: Modules, limits: dict[str, int], sent: int
) -> None:
    messages = _pairs(3)
    asked = _asked(modules, messages, limits=limits)

    contents = [one["content"] for one in messages]
    assert asked["request"]["context"] == _turns(*contents[len(contents) - sent :])
    assert asked["skip"] == 6 - sent


@pytest.mark.parametrize("limit", ["max_input_tokens", "max_body_bytes"])
def test_context_larger_than_a_limit_of_size_keeps_the_newest_that_fit(modules: Modules, limit: str) -> None:
    """Let pairs of 2,000 bytes meet room for two of them; the question's own bytes count."""
    messages = [
        one
        for number in range(4)
        for one in (_question(f"q{number}", f"{number}" * 1_000), _answer(f"q{number}", "é" * 500))
    ]
    room = 5_000
    limits = {limit: room // 3 if limit == "max_input_tokens" else room * 10 // 8}
    small, large = _asked(modules, messages, "x", limits), _asked(modules, messages, "x" * 2_500, limits)
    alone = _asked(modules, messages, "x" * 5_000, limits)

    assert [one["content"][0] for one in small["request"]["context"]] == ["2", "é", "3", "é"]
    assert [one["content"][0] for one in large["request"]["context"]] == ["3", "é"]
    assert (small["skip"], large["skip"], alone["skip"]) == (4, 6, 8)
    assert alone["request"]["context"] == []


def test_context_while_the_limits_are_not_known_is_a_hundred_messages(modules: Modules) -> None:
    asked = _asked(modules, _pairs(60))
    assert (len(asked["request"]["context"]), asked["skip"]) == (100, 20)
    assert asked["request"]["context"][0] == {"role": "user", "content": "Ask q10"}


def test_context_tells_the_answer_that_is_on_its_way(modules: Modules) -> None:
    source = """
    async (load, states) => {
      const { activeOf } = await load("context");
      return states.filter((state) => activeOf({ messages: [{ role: "user" }, { role: "assistant", state }] }));
    }
    """
    active = ["sending", "waiting", "streaming", "slow", "reconnecting"]
    assert modules.run(source, [*active, "complete", "stopped", "interrupted", "failed"]) == active
