"""The openai SDK, loaded without its models of requests and answers: nothing in this program reads them.

The models are more than half of what `import openai` loads. Without them a start takes 70 % of the work, and a worker
takes 11 MB less (DESIGN.md, 59). A later import of a model works, but the SDK's own helpers that parse answers do not
see that model. Import names of the SDK from here and nowhere else: the first import decides what is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "BadRequestError",
    "ContentFilterFinishReasonError",
    "OpenAI",
    "OpenAIError",
    "UnprocessableEntityError",
]

_MODELS = "openai.types"


class _Unread(ModuleType):
    """A module that has every name, and an empty class behind each."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if _is_of_the_models(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Unread(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing."""


def _is_of_the_models(name: str) -> bool:
    return name == _MODELS or name.startswith(f"{_MODELS}.")


def _load() -> None:
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        import openai
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if _is_of_the_models(name)]:
            del sys.modules[name]
    del openai.types


if "openai" not in sys.modules:
    _load()

from openai import (  # noqa: E402 - after `_load`
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    BadRequestError,
    ContentFilterFinishReasonError,
    OpenAI,
    OpenAIError,
    UnprocessableEntityError,
)
