"""A conversation as a new user has it after `make run`: the page, and the model inside the server."""

from __future__ import annotations

from typing import Any

import pytest

from app.embedded_model import model
from tests.browser.chatpage import ChatPage
from tests.live.embedded import PATIENCE_SECONDS, embedded_service

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]


@pytest.mark.requirement("page US1 test", "page FR-010", "page FR-008", "page FR-011")
def test_new_user_has_a_conversation_of_three_turns_with_the_embedded_model(chromium: Any) -> None:
    with embedded_service() as service:
        context = chromium.new_context()
        chat = ChatPage(context.new_page(), service.base_url).open()
        chat.wait(lambda: model.MODEL_ID in chat.page.inner_text("#model"), 20, "the model's name")
        chat.page.locator("#embedded").filter(has_text="small").wait_for()

        expected = ("Paris", "Rome", "Madrid")
        questions = ("What is the capital of France?", "And of Italy?", "And of Spain?")
        for turn, (question, word) in enumerate(zip(questions, expected, strict=True)):
            chat.send(question)
            chat.wait(lambda turn=turn: len(chat.states()) == turn + 1, 20, "the question is sent")
            assert chat.wait_state("complete", "failed", "interrupted", seconds=PATIENCE_SECONDS) == "complete"
            assert word in chat.text()

        kept = chat.conversation()["messages"]
        assert [message["role"] for message in kept] == ["user", "assistant"] * 3
        assert [message["model"] for message in kept[1::2]] == [model.MODEL_ID] * 3
        chat.reload()
        assert chat.states() == ["complete"] * 3
        assert "Paris" in chat.text(0)
        assert chat.close() == []
        context.close()
