"""How errors are written on a path: in ChatWait's own dialect, or in OpenAI's shape where OpenAI's clients ask."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app import errors
from app.dialects.completions import errors as completions
from app.dialects.native.answer import error_body
from app.errors import Failure

__all__ = ["COMPLETIONS", "NATIVE", "SERVED", "Manner", "is_openai", "manner_of"]

_OPENAI = re.compile(
    r"(?:/v1)?/(?:chat/completions|completions|embeddings|responses|models/.|moderations|images|audio|files|uploads|"
    r"batches|fine_tuning|assistants|threads|vector_stores|conversations|containers|evals|videos|realtime|organization)"
    r"(?:/|$|(?<=models/.))"
)

SERVED = (
    "Of OpenAI's interface this server has POST /v1/chat/completions, GET and DELETE /v1/chat/completions/{id}, "
    "GET /v1/models and GET /v1/models/{id}."
)


@dataclass(frozen=True, slots=True)
class Manner:
    """Writes a failure and the request's correlation id as a body, and tells its status and headers."""

    body: Callable[[Failure, str], dict[str, Any]]
    status: Callable[[Failure], int]
    headers: Callable[[Failure], dict[str, str]]


def _retries(failure: Failure) -> dict[str, str]:
    """SDKs ask again after some statuses, unless they are told not to."""
    return {} if completions.should_retry(failure) else {"x-should-retry": "false"}


NATIVE = Manner(error_body, lambda failure: errors.status_of(failure.error_code), lambda failure: {})
COMPLETIONS = Manner(completions.error_body, completions.status_of, _retries)


def is_openai(path: str) -> bool:
    """Tell whether a path is one of OpenAI's interface, served or not. /models is the same in both dialects."""
    return _OPENAI.match(path) is not None


def manner_of(path: str) -> Manner:
    return COMPLETIONS if is_openai(path) else NATIVE
