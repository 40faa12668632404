"""Settings: one table of name, type, default, range and help. One function reads the environment.

Standard library only: gunicorn.conf.py imports this before gevent has patched anything.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from app import setting_values as parse
from app.embedded_model.model import LOCAL_LIMITS, MODEL_ID
from app.setting_values import is_this_machine

__all__ = ["BadSettings", "Settings", "needs_local_model", "plain", "read_settings", "table"]

OPENAI_URL = "https://api.openai.com/v1"

ANY_MODEL = "*"
"""The value of ALLOWED_MODELS that lets a request name any model."""

OTHER_CONNECTIONS = 200
"""How many connections a worker has room for beside those of readers and generations."""


class BadSettings(ValueError):
    """A setting cannot be used. The text names the variable, the value and what is allowed."""


def _setting(
    default: Any,
    read: Callable[[str], Any],
    text: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    shown: bool = True,
) -> Any:
    """Describe one setting. `read` turns its text into a value. A setting that is not `shown` may hold secrets."""
    return field(default=default, repr=shown, metadata={"read": read, "help": text, "min": at_least, "max": at_most})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one process. Every field but `named` is the environment variable of its name in upper case."""

    openai_api_key: str = _setting(
        "",
        parse.key,
        "The API key for the model's server. If this and OPENAI_BASE_URL are empty, the embedded model answers.",
        shown=False,
    )
    openai_base_url: str = _setting(
        "", parse.url, "The address of an OpenAI-compatible server, such as http://localhost:11434/v1."
    )
    openai_model: str = _setting("gpt-4o-mini", parse.text, "The model for requests that name none.")
    allowed_models: tuple[str, ...] = _setting(
        (),
        parse.names,
        "The models that a request may name, separated by commas. * allows any model. When empty, only OPENAI_MODEL.",
    )
    system_prompt: str = _setting(
        "", parse.text, "The system message that begins every conversation. When empty, there is none."
    )
    max_tokens: int = _setting(
        16384, parse.whole, "The largest max_tokens that a request may ask for.", at_least=1, at_most=1_000_000
    )
    default_max_tokens: int = _setting(
        4096,
        parse.whole,
        "The max_tokens of a request that gives none. MAX_TOKENS limits this value too.",
        at_least=1,
        at_most=1_000_000,
    )
    max_message_chars: int = _setting(
        8000, parse.whole, "The longest message, in characters.", at_least=1, at_most=10_000_000
    )
    max_context_messages: int = _setting(
        100, parse.whole, "The most messages in a context.", at_least=0, at_most=10_000
    )
    max_input_tokens: int = _setting(
        32000,
        parse.whole,
        "The most tokens in system prompt, context and message together.",
        at_least=1,
        at_most=10_000_000,
    )
    max_answer_chars: int = _setting(
        1_000_000, parse.whole, "The longest answer, in characters.", at_least=1, at_most=100_000_000
    )
    max_body_bytes: int = _setting(
        1_048_576, parse.whole, "The largest request body, in bytes.", at_least=1024, at_most=104_857_600
    )
    openai_max_messages: int = _setting(
        10_000, parse.whole, "The most messages in a request to OpenAI's routes.", at_least=1, at_most=1_000_000
    )
    openai_max_body_bytes: int = _setting(
        33_554_432,
        parse.whole,
        "The largest request body on OpenAI's routes, in bytes.",
        at_least=1024,
        at_most=1_073_741_824,
    )
    timeout_seconds: float = _setting(
        30.0,
        parse.seconds,
        "How long the model's server may send nothing, before and during its answer.",
        at_least=1,
        at_most=3600,
    )
    max_generation_seconds: float = _setting(
        600.0, parse.seconds, "The longest time that one answer may take.", at_least=1, at_most=86_400
    )
    max_active_streams: int = _setting(
        1000, parse.whole, "The most answers that one worker generates at the same time.", at_least=1, at_most=20_000
    )
    max_readers: int = _setting(
        2000,
        parse.whole,
        "The most connections that read or wait at the same time in one worker.",
        at_least=1,
        at_most=40_000,
    )
    stream_memory_mb: int = _setting(
        256,
        parse.whole,
        "The memory of one worker for answers and for waiting questions, in MiB. When this memory is full, "
        "the finished answers that were unused for longest are dropped.",
        at_least=1,
        at_most=1_048_576,
    )
    retention_seconds: float = _setting(
        3600.0,
        parse.seconds,
        "How long a finished answer stays readable after its end and after its last reader has left.",
        at_least=1,
        at_most=2_592_000,
    )
    abandoned_seconds: float = _setting(
        300.0,
        parse.seconds,
        "How long an answer may run without any reader before the server cancels it.",
        at_least=1,
        at_most=86_400,
    )
    heartbeat_seconds: float = _setting(
        10.0,
        parse.seconds,
        "How long a stream may be silent before the server sends a ping.",
        at_least=1,
        at_most=300,
    )
    drain_seconds: float = _setting(
        25.0, parse.seconds, "How long running answers may go on after a stop begins.", at_least=1, at_most=3600
    )
    cors_origins: tuple[str, ...] = _setting(
        (),
        parse.origins,
        "The origins of other web pages that may use this server, separated by commas. * is not allowed.",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        parse.hosts,
        "The host names that requests may use, separated by commas. Required when HOST is 0.0.0.0 or ::. "
        "Otherwise, when empty: localhost, 127.0.0.1, [::1] and HOST.",
    )
    host: str = _setting("127.0.0.1", parse.host, "The address to listen on.")
    port: int = _setting(8000, parse.whole, "The port to listen on.", at_least=1, at_most=65_535)
    workers: int = _setting(
        1, parse.whole, "The number of worker processes. More than one needs REDIS_URL.", at_least=1, at_most=64
    )
    redis_url: str = _setting(
        "",
        parse.valkey_url,
        "The URL of the Valkey server (or Redis 6.2 or later) that several workers and machines share. When empty, "
        "streams are kept in memory.",
        shown=False,
    )
    log_level: str = _setting(
        "INFO", parse.level, "DEBUG, INFO, WARNING, ERROR or CRITICAL. DEBUG also logs a line for every chunk."
    )
    named: frozenset[str] = frozenset()
    """The fields whose values the operator chose, and those that the embedded model limits. A limit that nobody chose
    does not bind the routes of OpenAI's interface, whose clients know their model's limits."""

    @property
    def local_model(self) -> bool:
        """The embedded model answers: there is neither a key nor a base URL."""
        return not self.openai_api_key and not self.openai_base_url

    @property
    def asks_openai(self) -> bool:
        """OpenAI itself answers, and not another server that speaks its protocol."""
        return not self.local_model and self.openai_base_url in ("", OPENAI_URL)

    def allows(self, model: str) -> bool:
        """Tell whether a request may name this model."""
        return model in self.allowed_models or self.allows_any

    @property
    def allows_any(self) -> bool:
        return ANY_MODEL in self.allowed_models

    @property
    def listed_models(self) -> tuple[str, ...]:
        """The allowed models that have a name."""
        return tuple(model for model in self.allowed_models if model != ANY_MODEL)

    @property
    def sends_key_unencrypted(self) -> bool:
        """The key goes to another machine over plain HTTP."""
        parts = urlsplit(self.openai_base_url)
        return bool(self.openai_api_key) and parts.scheme == "http" and not is_this_machine(parts.hostname or "")

    @property
    def listens_publicly(self) -> bool:
        return self.host not in ("127.0.0.1", "localhost", "::1", "[::1]") and not self.host.startswith("127.")

    @property
    def most_attached(self) -> int:
        """How many readers one worker may have in all. A tenth is for those that attach by an idempotency key."""
        return self.max_readers + math.ceil(self.max_readers / 10)

    @property
    def connections(self) -> int:
        """How many clients' connections one worker may need: one for each reader and each generation, and
        OTHER_CONNECTIONS for other requests and idle connections."""
        return self.most_attached + self.max_active_streams + OTHER_CONNECTIONS

    @property
    def upload_bytes(self) -> int:
        """How many bytes of request bodies one worker may hold: a quarter of its memory for logs, and at least one
        body."""
        return max(self.stream_memory_mb * 1_048_576 // 4, self.max_body_bytes, self.openai_max_body_bytes)

    @property
    def limits(self) -> dict[str, int | float]:
        """The limits that a client should know before it sends. GET /models shows them."""
        names = (
            "max_message_chars",
            "max_context_messages",
            "max_input_tokens",
            "max_tokens",
            "default_max_tokens",
            "max_answer_chars",
            "max_body_bytes",
            "openai_max_messages",
            "openai_max_body_bytes",
            "timeout_seconds",
            "max_generation_seconds",
            "retention_seconds",
            "abandoned_seconds",
            "heartbeat_seconds",
        )
        return {name: plain(getattr(self, name)) for name in names}


def plain(number: float) -> int | float:
    """Write whole numbers without a fraction: 30, not 30.0."""
    return int(number) if number == int(number) else number


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the environment. `.env`, or the file that ENV_FILE names, gives what the environment leaves out.

    Raises: BadSettings, which names every variable that cannot be used, its value and what is allowed.
    """
    environ = os.environ if environ is None else environ
    known = {**_read_env_file(environ), **environ}
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for setting in _variables():
        variable = setting.name.upper()
        raw = known.get(variable, "")
        if not raw.strip():
            continue
        try:
            value = setting.metadata["read"](raw)
            values[setting.name] = parse.in_range(value, setting.metadata["min"], setting.metadata["max"])
        except ValueError as error:
            # A value that may hold a secret is not repeated: the text goes to terminals and logs.
            shown = "the value" if variable in _MAY_HOLD_SECRETS else repr(raw)
            wrong.append(f"{variable}: {shown} is not valid. The value must be {error}.")
    settings = Settings(**values)
    wrong += _contradictions(settings)
    if wrong:
        raise BadSettings("\n".join(wrong))
    return _completed(replace(settings, named=frozenset(values)))


def _variables() -> list[Field[Any]]:
    """List the fields that are environment variables."""
    return [setting for setting in fields(Settings) if "read" in setting.metadata]


_MAY_HOLD_SECRETS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "REDIS_URL")


def _contradictions(settings: Settings) -> list[str]:
    """List what cannot be used because of another setting."""
    wrong = []
    if settings.workers > 1 and not settings.redis_url:
        wrong.append(
            f"WORKERS: {settings.workers} workers need REDIS_URL. Without it each worker keeps streams in its own "
            "memory, and a client that comes back may reach another worker. Set REDIS_URL, or use WORKERS=1."
        )
    if settings.host in ("0.0.0.0", "::", "[::]") and not settings.allowed_hosts:
        wrong.append(
            f"ALLOWED_HOSTS: must be set when HOST is {settings.host}. List the host names that clients use, "
            "such as chat.example.org,localhost."
        )
    return wrong


def _completed(settings: Settings) -> Settings:
    """Fill in the defaults that depend on other settings."""
    changes: dict[str, Any] = {}
    listed = settings.listed_models
    if settings.local_model:
        changes["openai_model"] = MODEL_ID
        changes["allowed_models"] = (MODEL_ID,)
        changes["named"] = settings.named | LOCAL_LIMITS.keys()
        for name, limit in LOCAL_LIMITS.items():
            changes[name] = min(getattr(settings, name), limit)
    elif listed and "openai_model" not in settings.named:
        changes["openai_model"] = listed[0]
    elif settings.openai_model not in listed:
        changes["allowed_models"] = (settings.openai_model, *settings.allowed_models)
    if not settings.allowed_hosts:
        host = settings.host.lower()
        own = f"[{host}]" if ":" in host and not host.startswith("[") else host
        changes["allowed_hosts"] = tuple(dict.fromkeys(("localhost", "127.0.0.1", "[::1]", own)))
    settings = replace(settings, **changes)
    return replace(settings, default_max_tokens=min(settings.default_max_tokens, settings.max_tokens))


def _read_env_file(environ: Mapping[str, str]) -> dict[str, str]:
    """Read NAME=value lines, without the quotes around values. A missing `.env` counts as empty.

    Raises: BadSettings, also when the file that ENV_FILE names is missing.
    """
    named = environ.get("ENV_FILE", "")
    path = Path(named or ".env")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if not named and isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            return {}
        whose = "ENV_FILE: " if named else ""
        raise BadSettings(
            f"{whose}{path}: the file cannot be read ({type(error).__name__}). The file must contain NAME=value lines."
        ) from error
    try:
        return parse.env_lines(text)
    except ValueError as error:
        raise BadSettings(f"{path}, {error}") from None


def needs_local_model(environ: Mapping[str, str] | None = None) -> bool:
    """Tell whether the embedded model would answer. The Makefile asks before it installs the model."""
    environ = os.environ if environ is None else environ
    known = {**_read_env_file(environ), **environ}
    return not known.get("OPENAI_API_KEY", "").strip() and not known.get("OPENAI_BASE_URL", "").strip()


def table() -> list[tuple[str, str, str, str]]:
    """List the settings for docs/settings.md and `.env.example`. Shape: (variable, default, range, help)."""
    rows = []
    for setting in _variables():
        low, high = setting.metadata["min"], setting.metadata["max"]
        default: Any = setting.default
        shown = ",".join(default) if isinstance(default, tuple) else str(default if low is None else plain(default))
        span = "" if low is None else f"{low} to {high}"
        rows.append((setting.name.upper(), shown, span, setting.metadata["help"]))
    return rows


def main(arguments: list[str]) -> int:
    """Answer the Makefile (`needs-local-model`) or print the table of settings (`table`)."""
    if arguments == ["needs-local-model"]:
        try:
            return 0 if needs_local_model() else 1
        except BadSettings:
            return 1  # the service says at its start what is wrong
    if arguments == ["table"]:
        for row in table():
            print("| `{}` | {} | {} | {} |".format(*(cell.replace("|", "\\|") for cell in row)))
        return 0
    print("usage: python -m app.settings needs-local-model | table", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
