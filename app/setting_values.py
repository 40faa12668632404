"""How the text of a setting becomes its value. Standard library only.

Each function takes the text of a variable. Raises: ValueError, which says what is allowed: "a whole number".
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

__all__ = [
    "env_lines",
    "host",
    "hosts",
    "in_range",
    "is_this_machine",
    "key",
    "level",
    "names",
    "origins",
    "seconds",
    "text",
    "url",
    "valkey_url",
    "whole",
]

_VALKEY_OPTIONS = {"db": "[0-9]{1,5}", "username": ".+", "password": ".+"}
_TLS_OPTIONS = {
    "ssl_ca_certs": ".+",
    "ssl_certfile": ".+",
    "ssl_keyfile": ".+",
    "ssl_cert_reqs": "required|optional|none",
    "ssl_check_hostname": "(?i:true|false)",
}


def text(raw: str) -> str:
    """Take any text."""
    return raw.strip()


def names(raw: str) -> tuple[str, ...]:
    """Take a list, separated by commas."""
    return tuple(part.strip() for part in raw.split(",") if part.strip())


def whole(raw: str) -> int:
    """Take a whole number."""
    if not re.fullmatch(r"[0-9]{1,12}", raw.strip()):
        raise ValueError("a whole number")
    return int(raw)


def seconds(raw: str) -> float:
    """Take a number of seconds, with a fraction or without."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", raw.strip()):
        raise ValueError("a number of seconds")
    return float(raw)


def level(raw: str) -> str:
    """Take a level of the log."""
    value = raw.strip().upper()
    if value not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        raise ValueError("one of DEBUG, INFO, WARNING, ERROR, CRITICAL")
    return value


def url(raw: str) -> str:
    """Take the upstream's base URL."""
    value = raw.strip()
    allowed = "an http:// or https:// URL such as https://api.openai.com/v1"
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
        _ = parts.port
    except ValueError:  # its text repeats what is in the place of the port
        raise ValueError(allowed) from None
    if not usable:
        raise ValueError(allowed)
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL without a user name or password. Put the key into OPENAI_API_KEY")
    return value.rstrip("/")


def host(raw: str) -> str:
    """Take the address to listen on."""
    value = raw.strip()
    if not re.fullmatch(r"[A-Za-z0-9.:_\-\[\]]+", value):
        raise ValueError("a host name or address such as 127.0.0.1")
    return value


def hosts(raw: str) -> tuple[str, ...]:
    """Take the host names of Host headers."""
    values = names(raw.lower())
    if any(not re.fullmatch(r"[a-z0-9._\-]+(:[0-9]{1,5})?|\[[0-9a-f:]+\](:[0-9]{1,5})?", one) for one in values):
        raise ValueError("host names separated by commas, such as chat.example.org,localhost")
    return values


def origins(raw: str) -> tuple[str, ...]:
    """Take the origins of web pages."""
    values = names(raw.lower())
    if any(not re.fullmatch(r"https?://(\[[0-9a-f:]+\]|[a-z0-9._\-]+)(:[0-9]{1,5})?", origin) for origin in values):
        raise ValueError("origins separated by commas, such as https://chat.example.org, and never *")
    return values


def valkey_url(raw: str) -> str:
    """Take the URL of Valkey."""
    value = raw.strip()
    allowed = "a URL such as redis://localhost:6379/0, rediss://user:password@host:6380/0 or unix:///run/valkey.sock"
    try:
        parts = urlsplit(value)
        usable = (parts.scheme in ("redis", "rediss") and parts.hostname) or (parts.scheme == "unix" and parts.path)
        _ = parts.port
    except ValueError:  # its text repeats what is in the place of the port
        raise ValueError(allowed) from None
    if not usable or (parts.scheme != "unix" and not re.fullmatch(r"(/[0-9]{0,5})?", parts.path)):
        raise ValueError(allowed)
    # The library repeats the whole URL when it does not know an option, and an option that it knows might replace ours.
    options = _VALKEY_OPTIONS | (_TLS_OPTIONS if parts.scheme == "rediss" else {})
    for name, given in parse_qsl(parts.query, keep_blank_values=True):
        if name not in options or not re.fullmatch(options[name], given):
            raise ValueError(f"{allowed}. After ? only these options are allowed: {', '.join(options)}")
    return value


def key(raw: str) -> str:
    """Take a secret."""
    value = raw.strip()
    if not re.fullmatch(r"[\x21-\x7e]*", value):
        raise ValueError("visible ASCII characters")
    return value


def in_range(value: Any, low: float | None, high: float | None) -> Any:
    """Take a value from `low` to `high`, or any value where there is no range."""
    if low is not None and high is not None and not low <= value <= high:
        raise ValueError(f"from {low} to {high}")
    return value


def env_lines(content: str) -> dict[str, str]:
    """Take NAME=value lines, without the quotes around values. The error names the line and not its text."""
    values = {}
    for number, line in enumerate(content.split("\n"), 1):  # `splitlines` would split at U+2028 and its like too
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.removeprefix("export ").partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name.strip()):
            raise ValueError(f"line {number}: the line is not NAME=value.")
        value = value.strip()
        quoted = re.fullmatch(r"""(['"])(.*?)\1\s*(#.*)?""", value)
        values[name.strip()] = quoted[2] if quoted else re.sub(r"(^|\s)#.*$", "", value).strip()
    return values


def is_this_machine(host: str) -> bool:
    """Tell whether a host name or address means this machine, without a look-up."""
    name = host.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
