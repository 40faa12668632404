"""Test what passes for a provider's usage, and what is estimated without one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.tokens.usage import Usage, estimated_usage, provider_usage


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"prompt_tokens": 31, "completion_tokens": 2, "total_tokens": 33}, (31, 2, 33)),
        ({"prompt_tokens": 31, "completion_tokens": 2}, (31, 2, 33)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (0, 0, 0)),
        # reasoning tokens of some providers stand in the total alone
        ({"prompt_tokens": 31, "completion_tokens": 2, "total_tokens": 50}, (31, 2, 50)),
        ({"prompt_tokens": 31, "completion_tokens": 2, "total_tokens": 5}, (31, 2, 33)),
        ({"prompt_tokens": 31, "completion_tokens": 2, "total_tokens": "33"}, (31, 2, 33)),
        ({"prompt_tokens": 31, "completion_tokens": 2, "total_tokens": True}, (31, 2, 33)),
        ({"prompt_tokens": 31, "completion_tokens": 2, "total_tokens": None, "cost": "x"}, (31, 2, 33)),
        (None, None),
        ({}, None),
        ([], None),
        ("33", None),
        (33, None),
        (True, None),
        ({"prompt_tokens": 31}, None),
        ({"completion_tokens": 2, "total_tokens": 33}, None),
        ({"prompt_tokens": None, "completion_tokens": 2}, None),
        ({"prompt_tokens": -1, "completion_tokens": 2}, None),
        ({"prompt_tokens": 31, "completion_tokens": -2}, None),
        ({"prompt_tokens": "31", "completion_tokens": 2}, None),
        ({"prompt_tokens": 31.0, "completion_tokens": 2}, None),
        ({"prompt_tokens": True, "completion_tokens": 2}, None),
        ({"prompt_tokens": [31], "completion_tokens": 2}, None),
    ],
)
def test_usage_of_a_provider_is_taken_or_refused(reported: Any, usage: tuple[int, int, int] | None) -> None:
    expected = usage and Usage(*usage, "provider")

    assert provider_usage(reported) == expected


@pytest.mark.parametrize("digits", [17, 4300])
def test_usage_of_absurd_size_can_be_written_and_read_as_json(digits: int) -> None:
    absurd = int("9" * digits) if digits < 4000 else 10**digits - 1

    usage = provider_usage({"prompt_tokens": absurd, "completion_tokens": absurd})

    # Beyond 2**53 a browser reads another number; beyond 4300 digits the terminal event cannot be written at all.
    assert usage is None or isinstance(usage, Usage)
    shown = json.dumps(usage and usage._asdict())
    assert json.loads(shown, parse_int=float) == json.loads(shown)


def test_usage_that_is_estimated_adds_up() -> None:
    assert estimated_usage(31, "hello world", "gpt-4o-mini") == Usage(31, 2, 33, "estimated")
