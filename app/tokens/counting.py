"""Count tokens offline with a real tokenizer.

Counts are exact for models whose vocabulary is known, which are OpenAI's. For other models they are estimates with the
newest vocabulary. Anybody may send a megabyte. So a long text is counted in slices, other threads run in between, and a
count may stop early.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol, cast

from app.platform.memory import release_pages

__all__ = ["count", "count_prompt", "is_exact", "warm"]

LONGEST_TOKEN_BYTES = 128
SLICE_CHARS = 16_384
TOKENS_PER_MESSAGE = 3  # Source: OpenAI's cookbook, "How to count tokens with tiktoken"
TOKENS_PER_REPLY = 3

_VOCABULARIES = (
    (re.compile(r"(ft:)?(gpt-4o|gpt-4\.[15]|gpt-5|gpt-oss|chatgpt-4o|o[1345])([-.:]|$)"), "o200k_base"),
    (re.compile(r"(ft:)?(gpt-4|gpt-3\.5|gpt-35)([-.:]|$)"), "cl100k_base"),
)

_WORD_END = re.compile(r"\S(?= )")


class _Tokenizer(Protocol):
    def count(self, text: str) -> int: ...


@lru_cache(maxsize=2)
def _tokenizer(vocabulary: str) -> _Tokenizer:
    # The extension is loaded without its package. The package would build Python tables of both vocabularies, which
    # nothing here needs and which cost 70 MB and 0.6 s (DESIGN.md, 9).
    name = "bpe_openai._bindings"
    package = importlib.util.find_spec("bpe_openai")
    assert package is not None and package.submodule_search_locations
    (path,) = Path(package.submodule_search_locations[0]).glob("_bindings*.so")
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    bindings = importlib.util.module_from_spec(spec)
    loader.exec_module(bindings)
    tokenizer = cast(_Tokenizer, bindings.tokenizer_for_encoding(vocabulary))
    release_pages(path)  # 34 MB of vocabularies, which were read once to build the tables
    return tokenizer


def is_exact(model: str) -> bool:
    """Tell whether counts for this model are exact. For other models they are estimates."""
    return any(pattern.match(model) for pattern, _ in _VOCABULARIES)


def _for_model(model: str) -> _Tokenizer:
    for pattern, vocabulary in _VOCABULARIES:
        if pattern.match(model):
            return _tokenizer(vocabulary)
    return _tokenizer("o200k_base")


def warm(model: str) -> None:
    """Load the vocabulary of a model now, so that the first request does not wait for it."""
    _for_model(model)


def count(text: str, model: str, *, at_most: int | None = None) -> int:
    """Count the tokens of a text. A count beyond `at_most` is not exact: some larger number is returned."""
    tokenizer = _for_model(model)
    if len(text) <= SLICE_CHARS:
        return tokenizer.count(text)
    total = 0
    for piece in _slices(text):
        total += tokenizer.count(piece)
        if at_most is not None and total > at_most:
            break
        time.sleep(0)  # a megabyte takes some 20 ms, in which other streams go on
    return total


def _slices(text: str) -> Iterable[str]:
    """Cut a text where the tokenizers cut too: before a space that follows another character.

    A slice without such a place among its last characters is cut elsewhere, and may then count one token more.
    """
    start = 0
    while start < len(text):
        end = start + SLICE_CHARS
        if end < len(text):
            places = [match.end() for match in _WORD_END.finditer(text, max(start, end - 512), end)]
            if places:
                end = places[-1]
        yield text[start:end]
        start = end


def count_prompt(messages: Iterable[Mapping[str, str]], model: str, *, at_most: int) -> int:
    """Count the tokens of a prompt as OpenAI's chat models see it: content, role and frame of each message.

    A count beyond `at_most` is not exact: some larger number is returned. A prompt whose characters alone are too many
    is not counted.
    """
    messages = list(messages)
    if sum(len(message["content"]) for message in messages) > at_most * LONGEST_TOKEN_BYTES:
        return at_most + 1
    total = TOKENS_PER_REPLY
    unyielding = 0
    for message in messages:
        total += TOKENS_PER_MESSAGE + 1 + count(message["content"], model, at_most=at_most - total)
        if total > at_most:
            break
        unyielding += len(message["content"])
        if unyielding > SLICE_CHARS:  # many messages take as long as one long message
            unyielding = 0
            time.sleep(0)
    return total
