"""Turn the grammar in contracts/events.md into a regular expression, so that streams can be held to it."""

from __future__ import annotations

import re

CORE = {"ALPHA": "[A-Za-z]", "DIGIT": "[0-9]", "json": r"\{[\x20-\x7f]*\}"}
"""RFC 5234's own, and what the page describes in words: one JSON object, on one line in ASCII."""

_RULE = re.compile(r"^([a-zA-Z-]+) +=(.*(?:\n +.*)*)", re.MULTILINE)
_TOKEN = re.compile(
    r'\s*(?:%s)?(?:"(?P<text>[^"]*)"|%x(?P<low>[0-9A-F]+)(?:-(?P<high>[0-9A-F]+))?'
    r"|(?P<least>\d*)\*|(?P<mark>[()/])|(?P<name>[A-Za-z][A-Za-z-]*))"
)


def rules(page: str) -> dict[str, str]:
    """List the rules of the page by name, without their comments."""
    blocks = re.findall(r"^```abnf\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    uncommented = re.sub(r"(?<=\s);.*$", "", "\n".join(blocks), flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in _RULE.findall(uncommented)}


def pattern(page: str, rule: str) -> str:
    """Write a rule as a regular expression. Raises: ValueError (no ABNF, or recursive), KeyError."""
    return _pattern(rules(page), rule, ())


def _pattern(all_rules: dict[str, str], rule: str, above: tuple[str, ...]) -> str:
    if rule in above:
        raise ValueError(f"{rule} contains itself")
    if rule in CORE:
        return CORE[rule]
    text, at, written, repeat = all_rules[rule], 0, "", ""
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise ValueError(f"not ABNF: {text[at:]!r}")
        at = token.end()
        if token["least"] is not None:
            repeat = {"": "*", "1": "+"}[token["least"]]
            written += "(?:"
            continue
        if token["mark"] == "/":
            written += "|"
            continue
        if token["mark"] == "(":
            end = _closing(text, at)
            group = f"{rule}, from {at}"
            written += f"(?:{_pattern({**all_rules, group: text[at:end]}, group, (*above, rule))})"
            at = end + 1
        elif token["text"] is not None:
            written += f"(?:{re.escape(token['text'])})"
        elif token["low"]:
            high = token["high"] or token["low"]
            written += f"[\\x{int(token['low'], 16):02x}-\\x{int(high, 16):02x}]"
        else:
            written += f"(?:{_pattern(all_rules, token['name'], (*above, rule))})"
        if repeat:
            written, repeat = f"{written}){repeat}", ""
    return written


def _closing(text: str, at: int) -> int:
    depth = 1
    while depth:
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        at += 1
    return at - 1
