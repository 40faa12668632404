"""How many tokens a generation used, as the provider tells, or else as an estimate."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

from app.tokens.counting import count

__all__ = ["Usage", "estimated_usage", "provider_usage"]

LARGEST_COUNT = 1_000_000_000


class Usage(NamedTuple):
    """What a generation used. Units: tokens. `source` is "provider" or "estimated"."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    source: str


def provider_usage(reported: Any) -> Usage | None:
    """Read a provider's usage. None when the usage is partial, negative or absurd, or has no numbers."""
    if not isinstance(reported, dict):
        return None
    prompt, completion = reported.get("prompt_tokens"), reported.get("completion_tokens")
    if not _is_count(prompt) or not _is_count(completion):
        return None
    total = reported.get("total_tokens")
    if not _is_count(total) or total < prompt + completion:
        total = prompt + completion
    return Usage(prompt, completion, total, "provider")


def estimated_usage(prompt_tokens: int, text: str, model: str) -> Usage:
    """Estimate a usage that the provider did not tell, from the prompt's tokens and the delivered text."""
    completion = count(text, model)
    return Usage(prompt_tokens, completion, prompt_tokens + completion, "estimated")


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= LARGEST_COUNT
