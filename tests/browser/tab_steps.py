"""What the tests of several tabs of one browser do alike."""

from __future__ import annotations

import contextlib

from tests.browser.chatpage import ChatPage
from tests.harness.server import ChatWait
from tests.live.steps import log_name


def begin(chat: ChatPage, text: str = "Count.") -> str:
    """Ask, wait until the answer can be come back to, and give the conversation's id."""
    chat.send(text)
    chat.wait_state("waiting", "streaming")
    chat.wait(lambda: conversation_id(chat), 10, "the conversation's id in the address")
    chat.wait(lambda: stream_id(chat), 10, "the stored id of the stream")
    return conversation_id(chat)


def other_tab(chat: ChatPage) -> ChatPage:
    """Open the same conversation in another tab."""
    return chat.tab().open(f"#{conversation_id(chat)}")


def conversation_id(chat: ChatPage) -> str:
    """Tell which conversation is shown; "" for a new one."""
    return str(chat.page.evaluate("location.hash.slice(1)"))


def stream_id(chat: ChatPage) -> str:
    """Tell the id of the stream of the last answer, as it is stored."""
    answers = chat.stored_answers()
    return str(answers[-1].get("streamId") or "") if answers else ""


def attached(service: ChatWait, stream: str) -> int:
    """Count the connections on which a stream has ever been read. `stream`: its id, or its name in the log."""
    return len(service.log_of("reader_attached", stream=_log_name(stream)))


def reading(service: ChatWait, stream: str) -> int:
    """Count the connections on which a stream is read now."""
    return attached(service, stream) - len(service.log_of("reader_left", stream=_log_name(stream)))


def wait_reading(chat: ChatPage, service: ChatWait, stream: str, count: int) -> None:
    """Wait until a stream is read on so many connections: its log tells it a little later than the page shows it."""
    chat.wait(lambda: reading(service, stream) == count, 25, f"{count} connections that read")


def wait_attached(chat: ChatPage, service: ChatWait, stream: str, count: int) -> None:
    """Wait until a stream has been read on so many connections, and never on more."""
    chat.wait(lambda: attached(service, stream) >= count, 25, f"{count} connections")
    assert attached(service, stream) == count


def reading_all(service: ChatWait) -> int:
    """Count the connections on which any stream is read now."""
    return len(service.log_of("reader_attached")) - len(service.log_of("reader_left"))


def _log_name(stream: str) -> str:
    return stream if len(stream) == 12 else log_name(stream)


def hint(chat: ChatPage) -> str:
    """Tell the line below the box."""
    return str(chat.page.locator("#hint").inner_text())


def listed(chat: ChatPage) -> list[str]:
    """List the titles in the list of conversations, newest first."""
    titles: list[str] = chat.page.locator("#list li .title").all_inner_texts()
    return titles


def choose(chat: ChatPage, title: str, what: str) -> None:
    """Choose from the menu of a conversation in the list."""
    chat.page.get_by_role("button", name=f"Options for {title}", exact=True).click()
    chat.page.get_by_role("menuitem", name=what, exact=True).click()


def crash(chat: ChatPage) -> None:
    """End the page's process as the system does when memory is short."""
    chat.expect_fault("^the page crashed$")
    with chat.page.expect_event("crash"), contextlib.suppress(Exception):  # it never loads, and that is told somehow
        chat.page.goto("chrome://crash", timeout=10_000)
