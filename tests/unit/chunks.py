"""Chunks of every kind for tests of logs that have them, as strategies and as samples."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from app.streams.chunk import Chunk, Envelope

__all__ = ["CHUNKS", "CONTENT", "REASONING", "SAMPLES", "enveloped", "raw"]

CONTENT = Envelope('{"id":"c","choices":[{"index":0,"delta":{"content":"', '"},"finish_reason":null}]}', True)
REASONING = Envelope('{"id":"c","choices":[{"index":0,"delta":{"reasoning":"', '"},"finish_reason":null}]}', False)
_SECOND = Envelope('{"id":"c","choices":[{"index":1,"delta":{"content":"', '"},"finish_reason":null}]}', False)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def enveloped(envelope: Envelope, value: str) -> Chunk:
    return Chunk(value if envelope.is_text else "", value, envelope)


def raw(text: str = "", **members: object) -> Chunk:
    return Chunk(text, json.dumps({"id": "c", **members}))


CHUNKS = st.lists(
    st.one_of(
        st.builds(enveloped, st.sampled_from([CONTENT, REASONING, _SECOND]), TEXT),
        st.builds(lambda text, value: raw(text, value=value), TEXT, TEXT),
    ),
    max_size=12,
)

SAMPLES = [
    raw(role="assistant"),
    raw("é", content="é"),
    enveloped(CONTENT, "a"),
    enveloped(REASONING, "why é \U0001f600"),
    enveloped(CONTENT, '"\\\n\u2028'),
    enveloped(REASONING, ""),
    Chunk("\x7f", '{"id": "c", "content": "\x7f"}'),
    raw(finish="stop"),
]
"""One record of every kind."""
