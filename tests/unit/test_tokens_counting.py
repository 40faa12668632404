"""Test counting against known figures and against the tokenizer unsliced."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.tokens import counting as tokens
from app.tokens.counting import SLICE_CHARS, count, count_prompt, is_exact
from tests.requirements import require_or_skip

O200K = "gpt-4o-mini"
CL100K = "gpt-4"


@pytest.mark.parametrize(
    ("text", "o200k", "cl100k"),
    [
        ("", 0, 0),
        ("hello world", 2, 2),
        ("tiktoken is great!", 6, 6),  # Source: OpenAI's cookbook
        ("antidisestablishmentarianism", 6, 6),
        ("2 + 2 = 4", 7, 7),
        ("お誕生日おめでとう", 8, 9),
        ("a", 1, 1),
        (" ", 1, 1),
    ],
)
def test_count_of_a_known_text_is_the_known_number(text: str, o200k: int, cl100k: int) -> None:
    assert (count(text, O200K), count(text, CL100K)) == (o200k, cl100k)


def test_count_for_a_model_that_is_not_known_is_made_with_the_newest_vocabulary() -> None:
    text = "お誕生日おめでとう"
    assert count(text, CL100K) != count(text, O200K), "premise"
    assert count(text, "llama-3.3-70b") == count(text, O200K)


@pytest.mark.parametrize(
    ("model", "exact"),
    [
        ("gpt-4o-mini", True),
        ("gpt-4o", True),
        ("gpt-4.1-nano", True),
        ("gpt-5-mini", True),
        ("o3-mini", True),
        ("ft:gpt-4o-mini:acme::x", True),
        ("gpt-4", True),
        ("gpt-4-turbo", True),
        ("gpt-3.5-turbo", True),
        ("gpt-4onion", False),
        ("llama3.2", False),
        ("smollm2-135m-instruct", False),
        ("", False),
    ],
)
def test_counts_are_exact_for_models_whose_vocabulary_is_known(model: str, exact: bool) -> None:
    assert is_exact(model) is exact
    assert count("hello world", model) == 2


ENGLISH = "The quick brown fox jumps over the lazy dog, and then it's off: didn't you see? "
CODE = 'def f(x):\n    if x  >  1:\n        return {"a": [x, 2.5]}  # why\n\n\n\tpass\r\n'
MIXED = "Grüße 😀 из Москвы, 東京より。  Ünïcödé \u2028 \t x\n \n 12345 6789 \n"


@pytest.mark.parametrize("model", [O200K, CL100K])
@pytest.mark.parametrize(
    "text", [ENGLISH, CODE, MIXED, ENGLISH + CODE + MIXED], ids=["english", "code", "mixed", "all"]
)
def test_count_of_a_long_text_in_slices_is_the_count_of_the_whole(text: str, model: str) -> None:
    for extra in range(3):
        long = "x" * extra + text * (5 * SLICE_CHARS // len(text))
        assert len(list(tokens._slices(long))) >= 5, "the premise: it is sliced"

        assert count(long, model) == tokens._for_model(model).count(long)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from(["a ", "  b", "\n ", " \n\n", "c", "1 2", "é ", "😀 ", "\t", ". ", "'s "]), max_size=60)
)
def test_count_in_slices_of_any_words_is_the_count_of_the_whole(words: list[str]) -> None:
    text = "".join(words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "SLICE_CHARS", 20)
        sliced = count(text, O200K)
        places = [len(piece) for piece in tokens._slices(text)]
    cut_elsewhere = 0
    end = 0
    for size in places[:-1]:
        end += size
        cut_elsewhere += not (text[end] == " " and not text[end - 1].isspace())

    whole = tokens._for_model(O200K).count(text)
    assert abs(sliced - whole) <= cut_elsewhere


@given(st.text(max_size=100), st.integers(1, 30))
def test_slices_add_up_to_the_text_and_are_bounded(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "SLICE_CHARS", size)
        pieces = list(tokens._slices(text))

    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces)


class CountingTokenizer:
    def __init__(self) -> None:
        self.sizes: list[int] = []

    def count(self, text: str) -> int:
        self.sizes.append(len(text))
        return len(text)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> CountingTokenizer:
    tokenizer = CountingTokenizer()
    monkeypatch.setattr(tokens, "_for_model", lambda model: tokenizer)
    return tokenizer


def test_count_of_a_megabyte_works_in_bounded_slices_and_yields_between_them(
    counted: CountingTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    yields: list[float] = []
    monkeypatch.setattr(tokens.time, "sleep", yields.append)
    for text in ("x" * 1_000_000, "a b" * 300_000, "\n" * 1_000_000):
        counted.sizes.clear()
        yields.clear()
        assert count(text, O200K) == len(text)

        assert max(counted.sizes) <= SLICE_CHARS
        assert len(yields) >= len(counted.sizes) - 1


def test_count_stops_soon_beyond_its_bound(counted: CountingTokenizer) -> None:
    assert count("x" * 1_000_000, O200K, at_most=100) > 100
    assert len(counted.sizes) == 1


def message(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def test_count_of_a_prompt_adds_the_frame_of_each_message_and_of_the_reply() -> None:
    assert count_prompt([message("hello world")], O200K, at_most=1000) == 3 + (3 + 1 + 2)
    assert count_prompt([message("hello world")] * 2, O200K, at_most=1000) == 3 + 2 * (3 + 1 + 2)
    assert count_prompt([], O200K, at_most=1000) == 3


def test_count_of_a_prompt_too_long_by_its_size_alone_counts_nothing(counted: CountingTokenizer) -> None:
    assert count_prompt([message("x" * 12_801)], O200K, at_most=100) > 100
    assert counted.sizes == []


def test_count_of_a_prompt_stops_at_the_message_that_exceeds(counted: CountingTokenizer) -> None:
    assert count_prompt([message("x" * 60)] * 100, O200K, at_most=100) > 100
    assert len(counted.sizes) == 2


def test_count_of_a_prompt_just_within_its_bound_is_exact() -> None:
    messages = [message("hello world " * 10)] * 3
    exact = count_prompt(messages, O200K, at_most=10_000)

    assert count_prompt(messages, O200K, at_most=exact) == exact
    assert count_prompt(messages, O200K, at_most=exact - 1) > exact - 1


@pytest.fixture
def linux() -> None:
    require_or_skip("Linux, whose kernel tells what is in memory", sys.platform == "linux")


def resident_kib(path: Path) -> int:
    """Add up what is in memory of a library's constants."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counts = line.endswith(str(path)) and " r--p " in line
        elif counts and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.mark.usefixtures("linux")
@pytest.mark.parametrize("model", [O200K, CL100K])
def test_vocabulary_loaded_leaves_its_constants_out_of_memory_and_counts_as_before(model: str) -> None:
    tokens._tokenizer.cache_clear()
    package = importlib.util.find_spec("bpe_openai")
    assert package is not None
    assert package.submodule_search_locations
    (library,) = Path(package.submodule_search_locations[0]).glob("_bindings*.so")

    assert count("antidisestablishmentarianism 漢字 🙂🙂 tokens", model) > 8

    assert resident_kib(library) < 8_000
    assert count("hello world", model) == 2
