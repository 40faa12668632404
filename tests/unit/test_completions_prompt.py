"""Test how many tokens the text of messages has, whose contents are JSON that nobody has read."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from app.dialects.completions import prompt
from app.dialects.completions.prompt import COUNTED_BYTES, PIECE_BYTES
from app.tokens import counting as tokens

MODEL = "gpt-4o-mini"
FRAME = tokens.TOKENS_PER_MESSAGE + 1
WORDS = "The quick brown fox jumps over the lazy dog, and nobody minds. "


def count(*contents: Any, system_prompt: str = "", at_most: int | None = None) -> int:
    raw = [msgspec.Raw(one if isinstance(one, bytes) else json.dumps(one).encode()) for one in contents]
    return prompt.count_prompt(raw, system_prompt, MODEL, at_most=at_most)


def text_tokens(*contents: Any, at_most: int | None = None) -> int:
    return count(*contents, at_most=at_most) - tokens.TOKENS_PER_REPLY - FRAME * len(contents)


def test_texts_are_counted_as_those_of_a_native_request() -> None:
    texts = ["Be brief.", WORDS * 20, "", 'é😀\n"\\']
    messages = [{"content": text} for text in texts]

    native = tokens.count_prompt(messages, MODEL, at_most=10**6)
    assert count(*texts) == native
    assert count(*texts, at_most=10**6) == native
    assert count(*texts[1:], system_prompt=texts[0]) == native


def test_text_is_counted_however_it_is_escaped() -> None:
    text = "é😀 word"

    assert text_tokens(json.dumps(text, ensure_ascii=False).encode()) == tokens.count(text, MODEL)
    assert text_tokens(json.dumps(text).encode()) == tokens.count(text, MODEL)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (None, []),
        ([], []),
        ([{"type": "text", "text": WORDS}], [WORDS]),
        ([{"type": "text", "text": WORDS}, {"type": "text", "text": "a"}], [WORDS, "a"]),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0" * 99}}], []),
        ([{"type": "input_audio", "input_audio": {"data": "UklGR" * 99}}, {"type": "text", "text": "a"}], ["a"]),
        ([{"type": "file", "file": {"file_data": "x" * 99}, "text": "no part of type text"}], []),
        ([{"text": WORDS}], [WORDS]),
        ([{"type": 5, "text": WORDS}], []),
        ([{"type": "x" * 200, "text": WORDS}], []),
        ([{"type": "text"}, {}], []),
        (b'[{"type":"te\\u0078t","text":"a"}]', ["a"]),
        ([{"type": "text", "text": ["a"]}], ['["a"]']),
        (["a", {"type": "text", "text": "b"}], ['["a", {"type": "text", "text": "b"}]']),
        ({"type": "text", "text": "b"}, ['{"type": "text", "text": "b"}']),
        (12, ["12"]),
    ],
)
def test_only_parts_of_type_text_are_counted_and_what_is_unknown_as_it_stands(content: Any, texts: list[str]) -> None:
    assert text_tokens(content) == sum(tokens.count(text, MODEL) for text in texts)
    assert text_tokens(content, at_most=10**6) == text_tokens(content)


@pytest.mark.parametrize("raw", [b'"\\ud83d"', b'"a\\udc00 b"', b'"\\ud83d\\ud83d\\ude00"'])
def test_text_with_half_a_surrogate_pair_is_counted(raw: bytes) -> None:
    assert 1 <= text_tokens(raw) <= 20


@pytest.mark.parametrize("unit", [WORDS, "é", "😀", "\n", '"', "\\", "\u0007", "x", "語 "])
def test_long_text_is_counted_in_pieces_with_few_tokens_more(unit: str) -> None:
    text = unit * (3 * PIECE_BYTES // len(json.dumps(unit)))
    exact = tokens.count(text, MODEL)

    for ascii_only in (True, False):
        raw = json.dumps(text, ensure_ascii=ascii_only).encode()
        assert exact <= text_tokens(raw, at_most=10**6) <= exact + 8


def test_pieces_are_small_and_others_run_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    turns: list[None] = []
    counted = tokens.count
    monkeypatch.setattr(tokens, "count", lambda text, model, **more: (sizes.append(len(text)), counted(text, model))[1])
    monkeypatch.setattr(prompt, "let_others_run", lambda: turns.append(None))

    count(WORDS * 10_000, at_most=10**6)
    assert max(sizes) <= PIECE_BYTES
    assert len(turns) >= len(sizes) - 1
    turns.clear()
    count(*["a"] * 5000)
    assert len(turns) >= 5000 // prompt.MESSAGES_PER_TURN


def test_count_stops_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(tokens, "count", lambda text, model, **more: (counted.append(len(text)), len(text))[1])

    assert count("a" * 100, "b" * 100, "c" * 100, at_most=50) > 50
    assert counted == [100]


def test_long_prompt_without_a_limit_is_estimated_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    text = WORDS * 50
    contents = [text] * 200
    exact = text_tokens(*contents, at_most=10**7)
    counted: list[int] = []
    count_text = tokens.count
    monkeypatch.setattr(tokens, "count", lambda text, model: (counted.append(len(text)), count_text(text, model))[1])

    estimated = text_tokens(*contents)

    assert sum(counted) <= COUNTED_BYTES
    assert abs(estimated - exact) < exact * 0.02
    assert text_tokens(WORDS * 50 * 200) == pytest.approx(exact, rel=0.02)
