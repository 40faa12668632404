"""What the tests of refresh, stop, conversation and storage do alike in the chat page."""

from __future__ import annotations

from typing import Any

from tests.browser.chatpage import ChatPage
from tests.browser.page_steps import gated
from tests.harness.upstream import RequestRecord, ScriptedUpstream

FLOWING = ("streaming", "slow")  # without a new token one becomes the other after 5 s


def learned(chat: ChatPage) -> ChatPage:
    """Wait until the page knows models and limits, so that the next request is the one a test causes."""
    chat.page.locator("#model option").first.wait_for(state="attached")
    return chat


def ask(chat: ChatPage, upstream: ScriptedUpstream, text: str = "Count.") -> RequestRecord:
    """Send a message in the page, wait until the model is asked, and give that request."""
    count, answers = len(upstream.completions), len(chat.states())
    chat.send(text)
    chat.wait(lambda: len(chat.states()) > answers, 10, f"an answer to {text!r}")
    return upstream.wait_for_requests(count + 1, timeout=10)[count]


def partly(chat: ChatPage, upstream: ScriptedUpstream, texts: list[str], there: int, text: str = "Count.") -> Any:
    """Open the page, ask, and wait until so many tokens of a gated answer are in it; give the model's request."""
    upstream.always(gated(texts))
    for number in range(there):
        upstream.open(str(number))
    record = ask(learned(chat.open()), upstream, text)
    chat.wait_text("".join(texts[:there]))
    chat.wait_state(*(FLOWING if there else ["waiting"]))
    upstream.wait_reached(str(there))
    return record


def exchange(chat: ChatPage, upstream: ScriptedUpstream, text: str) -> RequestRecord:
    """Ask, wait for the whole answer, and give the model's request."""
    record = ask(chat, upstream, text)
    chat.wait_state("complete")
    return record


def turns(record: RequestRecord) -> list[tuple[str, str]]:
    """List what the model was given: roles and contents."""
    return [(message["role"], message["content"]) for message in record.json["messages"]]


def fragment(chat: ChatPage) -> str:
    """Give the fragment of the conversation that is shown."""
    mark = chat.page.url.partition("#")
    assert mark[2]
    return f"#{mark[2]}"


def titles(chat: ChatPage) -> list[str]:
    """List the titles of the conversations, as they stand in the list."""
    found: list[str] = chat.page.locator("#list .title").all_inner_texts()
    return found


def pick(chat: ChatPage, title: str) -> None:
    """Open a conversation from the list."""
    chat.page.locator("#list a.open").filter(has_text=title).click()
    chat.page.locator("#title").get_by_text(title, exact=True).wait_for()
