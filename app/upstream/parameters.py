"""Which parameters of a request a model's server understands, learned from what the server refuses."""

from __future__ import annotations

from typing import Any

from app.upstream.interface import Question

__all__ = ["Parameters"]


_OTHER = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


class Parameters:
    """The parameters of a request to one model."""

    __slots__ = ("_left_out", "_limit")

    def __init__(self, limit: str) -> None:
        """`limit` is the name under which `max_tokens` is sent at first."""
        self._limit = limit
        self._left_out: set[str] = set()

    def copy(self) -> Parameters:
        """Return parameters that learn by themselves."""
        copied = Parameters(self._limit)
        copied._left_out |= self._left_out
        return copied

    def body(self, question: Question) -> dict[str, Any]:
        """Write the request's body."""
        body: dict[str, Any] = {
            "model": question.model,
            "messages": question.messages,
            "stream": True,
            self._limit: question.max_tokens,
            "stream_options": {"include_usage": True},
        }
        if question.temperature is not None:
            body["temperature"] = question.temperature
        return {name: value for name, value in body.items() if name not in self._left_out}

    @property
    def left_out(self) -> frozenset[str]:
        """What is not added to a forwarded request. The limit is sent under one name alone."""
        return frozenset(self._left_out | {_OTHER[self._limit]})

    def learn(self, refused: str) -> None:
        """Stop sending a refused parameter.

        The limit has two names. When one is refused, the other one is sent, unless it was refused too.
        """
        if refused == self._limit:
            other = _OTHER[refused]
            if other not in self._left_out:
                self._left_out.add(refused)
                self._limit = other
        elif refused == "stream_options":
            self._left_out.add(refused)
