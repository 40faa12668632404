"""What openai-python makes of chunks and completions, in a process that has all of the SDK.

Reads one JSON line after the other, and answers each with one. The SDK that a worker loads lacks what is asked here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Sdk", "running_sdk"]


class Sdk:
    """The SDK in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def join(self, chunks: list[Any]) -> dict[str, Any]:
        """Return the completion to which the SDK's accumulator joins chunks. Fails where the SDK does."""
        return self._ask({"chunks": chunks})

    def check(self, completion: Any) -> dict[str, Any]:
        """Check a completion strictly against the SDK's model of it, and return what the model makes of it."""
        return self._ask({"completion": completion})

    def _ask(self, question: object) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert "raised" not in answer, answer
        return answer


@contextmanager
def running_sdk() -> Iterator[Sdk]:
    """Run the SDK."""
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Sdk(process)
        assert process.stdin
        process.stdin.close()
        assert process.wait(30) == 0


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    from openai._models import construct_type
    from openai.lib.streaming.chat import ChatCompletionStreamState
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    if "completion" in question:
        return ChatCompletion.model_validate(question["completion"], strict=True).to_dict()
    state: Any = ChatCompletionStreamState()
    for chunk in question["chunks"]:
        list(state.handle_chunk(construct_type(type_=ChatCompletionChunk, value=chunk)))
    joined: dict[str, Any] = state.current_completion_snapshot.to_dict()
    return joined


def _main() -> None:
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            answer = {"raised": repr(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
