"""The example for browsers of docs/api.md, pasted where it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream, answer

pytestmark = pytest.mark.browser

API = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_readme_browser_example_works_in_the_console_of_the_start_page(chromium: Any) -> None:
    (example,) = re.findall(r"^```js\n(.*?)^```$", API, re.MULTILINE | re.DOTALL)
    with (
        ScriptedUpstream() as upstream,
        ChatWait(OPENAI_BASE_URL=upstream.base_url, OPENAI_API_KEY="sk-harness-0123456789") as chatwait,
    ):
        upstream.always(answer(["The capital ", "of France ", "is Paris."], gap=0.1))
        page = chromium.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"http://localhost:{chatwait.port}/")
        with page.expect_console_message(lambda message: message.text.startswith("done"), timeout=20_000):
            page.evaluate(f"async () => {{ {example} }}")

        assert page.inner_text("body").endswith("The capital of France is Paris.")
        assert len(upstream.completions) == 1
        assert [text.split()[0] for text in said] == ["done"]
        page.close()
