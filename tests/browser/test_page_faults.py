"""The chat page when a part of it throws: the answer goes on as plain text, and nothing else is taken for its end."""

from __future__ import annotations

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.dialogues import ask, exchange, learned, partly
from tests.browser.modules import ASSETS
from tests.browser.page_steps import gated
from tests.harness.script import answer
from tests.harness.upstream import ScriptedUpstream

pytestmark = pytest.mark.browser

TOKENS = ["# One\n\n", "**two** BOOM, ", "_three_\n\n- a\n", "- and `four`."]
TEXT = "".join(TOKENS)
WORDS = ["One ", "two, ", "three ", "and four."]
THROWN = r"^page error: (Uncaught )?(Error: )?A part that throws\."
THROW = 'throw new Error("A part that throws.");'
RENDERED = "[data-answer] :is(h3, strong, em, li, code)"
PARTS = {
    "announcer": ("announce.js", "  function ended(answer, elsewhere) {\n", THROW),
    "store": ("store.js", "  const save = (conversation) => {\n", THROW),
    "view": ("view.js", "  function append(answer, text) {\n", THROW),
    "end": ("view.js", "  function update(answer) {\n", f"if (isOver(answer)) {THROW}"),
    "follow": ("follow.js", "  function settle(", THROW),
    "list": ("list.js", "  function show(entries, currentId) {\n", THROW),
}


def broken(chat: ChatPage, name: str, place: str, fault: str) -> ChatPage:
    """Give the page a module in which `fault` stands after `place`."""
    text = (ASSETS / name).read_text(encoding="utf-8")
    assert text.count(place) == 1
    at = text.index("\n", text.index(place)) + 1
    body = f"{text[:at]}{fault}\n{text[at:]}"
    chat.page.route(f"**/{name}", lambda route: route.fulfill(body=body, content_type="text/javascript"))
    chat.expect_fault(THROWN)
    return chat


def thrown(chat: ChatPage) -> int:
    """Count what was thrown."""
    return sum("A part that throws." in fault for fault in chat.faults)


def assert_plain(chat: ChatPage, text: str) -> None:
    """Check that an answer is shown whole, and as it came."""
    assert chat.text() == text
    assert chat.page.locator(RENDERED).count() == 0
    assert "Connection lost" not in chat.shown()


@pytest.mark.requirement("page FR-002", "page FR-008", "page SC-006")
def test_renderer_that_throws_at_a_piece_leaves_plain_text_to_the_end_and_after_a_reload(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    broken(chat, "markdown.js", "  const append = (text) => {\n", f'if (text.includes("BOOM")) {THROW}')
    record = partly(chat, upstream, TOKENS, 0)
    upstream.open("0")
    chat.page.locator("[data-answer] h3").wait_for()
    for number in range(1, len(TOKENS)):
        upstream.open(str(number))
        chat.wait_text("".join(TOKENS[: number + 1]))
        assert_plain(chat, "".join(TOKENS[: number + 1]))
    assert thrown(chat) == 1
    assert chat.stored_answers()[-1]["reconnects"] == 0

    chat.reload()  # in mid-answer: what is stored is thrown at, and nothing of the start hangs on it
    chat.wait(lambda: chat.text() == TEXT, 10, "the whole text")
    upstream.open(str(len(TOKENS)))
    chat.wait_state("complete")
    assert_plain(chat, TEXT)
    assert record.finished_at is not None
    assert thrown(chat) >= 2
    assert len(learned(chat).page.locator("#list li").all()) == 1
    upstream.always(answer(["# Next"]))
    exchange(chat, upstream, "And then?")
    assert chat.states() == ["complete"] * 2
    assert (chat.text(0), chat.page.locator("[data-answer] h3").count()) == (TEXT, 1)


@pytest.mark.long
@pytest.mark.requirement("page FR-002", "page FR-008")
@pytest.mark.parametrize(
    ("name", "place", "fault"),
    [
        ("markdown.js", "  const commit = (ended) => {\n", f"if (ended) {THROW}"),
        ("inline.js", "export function parseInline(", f'if (text.includes("three")) {THROW}'),
        ("nodes.js", "export function setText(", f'if (node.data.includes("BOOM")) {THROW}'),
    ],
    ids=["at the end", "in a block", "in the DOM"],
)
def test_renderer_that_throws_anywhere_leaves_plain_text(
    chat: ChatPage, upstream: ScriptedUpstream, name: str, place: str, fault: str
) -> None:
    broken(chat, name, place, fault)
    partly(chat, upstream, TOKENS, 0)
    for number in range(len(TOKENS)):
        upstream.open(str(number))
        chat.wait(lambda there=number + 1: chat.sequence() == there, 10, "the token")
    upstream.open(str(len(TOKENS)))
    chat.wait_state("complete")
    assert_plain(chat, TEXT)
    assert thrown(chat)
    assert chat.stored_answers()[-1]["content"] == TEXT


@pytest.mark.requirement("page FR-006", "page FR-004", "page SC-007")
@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=() if part in ("store", "end") else pytest.mark.long) for part in PARTS]
)
def test_part_of_the_page_that_throws_is_no_lost_connection_and_stops_nothing(
    chat: ChatPage, upstream: ScriptedUpstream, part: str
) -> None:
    broken(chat, *PARTS[part])
    upstream.always(gated(WORDS))
    record = ask(learned(chat.open()), upstream, "Count.")
    for number in range(len(WORDS) + 1):
        upstream.open(str(number))
    chat.wait(lambda: record.finished_at, 10, "the end of the model's answer")
    chat.wait(lambda: chat.has_button("Send"), 10, "that the next message can be sent")
    assert thrown(chat)
    assert len(upstream.completions) == 1  # nor was it asked again
    if part != "end":  # which is what shows it
        chat.wait_state("complete")
        assert chat.text() == "".join(WORDS)
        assert "Connection lost" not in chat.shown()
        assert "Reconnects" not in chat.shown()
    upstream.always(answer(["Yes."]))
    chat.send("And now?")
    record = upstream.wait_for_requests(2, timeout=10)[1]
    chat.wait(lambda: record.finished_at and chat.has_button("Send"), 10, "the second answer to end")
    chat.wait(lambda: chat.text() == "Yes.", 10, "the second answer's text")
