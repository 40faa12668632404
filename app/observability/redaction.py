"""Takes secrets and people's data out of a text before it is logged.

This runs in linear time, whatever the text is. Every pattern begins at a literal, or where nothing of its own kind
stands before it. Every pattern takes its run possessively or within bounds, so nothing is read over and over. Groups
are never possessive, because Python before 3.11.5 matched some such groups wrongly. Our own ids, hashes and times are
found first and stay, because their digits could look like a telephone number or a card.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from itertools import accumulate

__all__ = ["MARK", "redact"]

MARK = "[redacted]"
LONGEST_SECRET_CHARS = 2_048

_SECRETS = re.compile(
    r"""
      cwc?_[A-Za-z0-9_-]{16,}+                                     # a stream id: the right to read it and to stop it
    | (?:\b|(?<=_)|(?<=\\[nrt])|(?<=%[0-9A-F][0-9A-F]))(?:
          (?:sk|rk|pk)[-_][A-Za-z0-9_*-]{8,}+                        # OpenAI (which masks with *), Anthropic, Stripe
        | (?:gsk|npm|r8|pplx|xai|nvapi)[-_][A-Za-z0-9_-]{16,}+       # Groq, npm, Replicate, Perplexity, xAI, NVIDIA
        | hf_[A-Za-z0-9]{20,}+                                       # Hugging Face
        | (?:gh[pousr]|github_pat|glpat|xox[a-z])[-_][A-Za-z0-9_-]{10,}+ # GitHub, GitLab, Slack
        | A(?:BIA|CCA|GPA|IDA|IPA|KIA|NPA|NVA|PKA|ROA|SCA|SIA)[A-Z0-9]{12,}+ # AWS: ids of keys, roles, users, ...
        | AIza[A-Za-z0-9_-]{20,}+ | ya29\.[A-Za-z0-9_-]{10,}+       # Google
      )
    | (?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_-]*+){0,4}     # a JWT
    | -----BEGIN[ ](?:[A-Z]{1,20}[ ]){0,3}PRIVATE[ ]KEY(?:[ ]BLOCK)?-----(?s:.*+)
    | ://[^\s/@"']++@                                              # user and password of a URL
    | (?i:
          \bbearer(?:[\s"':=+]|%20){1,8}[A-Za-z0-9._~+/=-]{6,}+
        | \bbasic(?:[\s+]|%20){1,8}(?-i:(?=[a-z]*+[A-Z0-9+/=]))[A-Za-z0-9._~+/=-]{6,}+
        | (?<![a-z])(?:(?:set-)?cookie2?|(?:proxy-)?authorization)
          (?:\\{0,4}+["']?\s{0,8}+(?:[:=]|%3[ad])|["']\s{0,8}+,\s{0,8}+b?["'])[^\r\n]++ # whole, to the end
        | (?:api[-_ ]?key(?:[ ]provided)?|(?:account|subscription)[-_]?key|(?:secret|private)(?:[-_]?access)?[-_]?key
            |(?:client|app)[-_]?secret|(?:access|refresh|(?<![a-z])id|auth|session|security|csrf)[-_]?token
            |idempotency[-_]key|password|passwd|passphrase|passwort|session[-_]?id|phpsessid
            |[?&;](?:sig|key|token|code)|signature(?==)|(?<![a-z])(?:token|secret|pwd)(?==))
          (?:\\{0,4}+["']?\s{0,8}+(?:=>|[:=]|%3[ad])|["']\s{0,8}+,(?=\s{0,8}+b?["']))\s{0,8}+
          (?:[\[(]{1,2}+|[a-z]{1,20}+\()?(?:b(?=["']))?(?:(?:bearer|basic|token)\s{1,8}+)?
          (?:\\{1,4}+"[^"\r\n]*+|"(?:[^"\\\r\n]|\\.)*|'(?:[^'\\\r\n]|\\.)*|[^\s"',;&}]++)
      )
    """,
    re.VERBOSE,
)
# AWS's secret keys have no mark of their own. They are forty characters of base64. (A SHA-1 in hex has forty, too.)
_FORTY = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]++(?![A-Za-z0-9+/])")

_OURS = re.compile(
    r"(?<![0-9A-Za-z])(?:"
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    r"|[0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32}"
    r"|(?:19|20)\d\d-[01]\d-[0-3]\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?)?"
    r")(?![0-9A-Za-z])"
)

_EMAIL = re.compile(
    r"(?<![\w.%+-])[\w.%+-]++(?:['&][\w.%+-]++){0,2}@[\w-]++(?:\.[\w-]++)*"
    r"|(?<![\w.+-])[\w.+-]++(?:%2[Bb][\w.+-]++){0,4}(?:%(?:25){0,3}40|\\u0040|&#64;)[\w-]++(?:\.[\w-]++)*"
)
_IPV4 = re.compile(r"(?<![0-9A-Za-z.])\d{1,3}+(?:\.\d{1,3}+){3}(?!\.?\d)")
_ADDRESS = re.compile(r"(?<![\w:.])[0-9A-Fa-f:][0-9A-Fa-f:.]++(?!\w)")
_IBAN = re.compile(r"(?<![A-Za-z0-9])(?=([A-Za-z]{2}\d{2}(?:[ \u00a0.-]?[A-Za-z0-9]){11,30}))")
_GAP = r"(?:[ \u00a0+_-]|%20)"
_DIGITS = re.compile(rf"(?<!\d)(?<!\d\.)\d(?:{_GAP}?\d){{12,}}")
_PHONE_GAP = r"(?:[ \t\u00a0\u2009\u202f()./\u2010-\u2013-]|%20){0,3}"
_PHONE = re.compile(
    r"(?<![0-9A-Za-z.+])(?:"
    rf"(?:\+|%2[Bb])\d(?:{_PHONE_GAP}\d){{6,14}}(?!\d)"  # international
    rf"|(?:\(?0\d(?:{_PHONE_GAP}\d){{7,13}}"  # with the zero of a long distance call, or two
    r"|(?:1[ .-])?(?:\(\d{3}\)[ ]?|\d{3}[ .-])\d{3}[ .-]\d{4}"  # North American
    r"|\(\d{2,4}\)[ ]?\d{3,5}-\d{2,4}(?:-\d{2})?)(?![\dA-Za-z]|[.,]\d)"  # Brazil, Russia
    r")"
)


def redact(text: str, *, secrets: tuple[str, ...] = (), longest: int = 1_000) -> str:
    """Replace secrets, and people's e-mail addresses, telephone, card and account numbers and IP addresses.

    `secrets` are more texts that may not be seen, whatever they look like. A text over `longest` characters is cut
    after redaction: otherwise the beginning of a secret at the edge would show.
    """
    if len(text) <= 300:
        return _redact_again(text, secrets)[:longest]
    redacted = _redact(text[: longest + max(LONGEST_SECRET_CHARS, *map(len, secrets), 0)], secrets)
    return redacted if len(text) <= longest and len(redacted) <= longest else redacted[:longest] + "…"


def _redact(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, MARK)
    text = _SECRETS.sub(_secret, text)
    parts: list[str] = []
    end = 0
    for ours in _OURS.finditer(text):
        parts += _redact_people(text[end : ours.start()]), ours[0]
        end = ours.end()
    return "".join([*parts, _redact_people(text[end:])])


# Names of events, routes and messages of errors are the same few in line after line.
_redact_again = lru_cache(1024)(_redact)


def _redact_people(text: str) -> str:
    text = _FORTY.sub(_random_forty, text)
    text = _EMAIL.sub(MARK, text)
    text = _IPV4.sub(_address, text)
    text = _ADDRESS.sub(_address, text)
    text = _accounts(text)
    text = _DIGITS.sub(_card, text)
    return _PHONE.sub(MARK, text)


def _secret(match: re.Match[str]) -> str:
    return f"://{MARK}@" if match[0].startswith("://") else MARK


def _random_forty(match: re.Match[str]) -> str:
    text = match[0]
    kinds = (str.isdigit, str.islower, str.isupper)
    return MARK if len(text) == 40 and all(any(map(kind, text)) for kind in kinds) else text


def _address(match: re.Match[str]) -> str:
    """Replace an IP address that is not of this machine itself (127.0.0.1, ::1, 0.0.0.0)."""
    text = match[0]
    if len(text) > 50 or (text.count(":") < 2 and text.count(".") < 3):
        return text
    plain = text.rstrip(".") if text.endswith("::") else text.rstrip(".:")
    host, colon, port = plain.partition(":")
    if colon and "." in host and port.isdigit():  # 10.1.2.3:80
        plain = host
    try:
        address = ipaddress.ip_address(plain)
    except ValueError:
        return text
    return text if address.is_loopback or address.is_unspecified else MARK + text[len(plain) :]


def _accounts(text: str) -> str:
    """Replace IBANs, found by the check digits of ISO 13616. Words beside an IBAN may look like more of its digits."""
    parts: list[str] = []
    done = 0
    for match in _IBAN.finditer(text):
        if match.start() >= done and (length := _iban_length(match[1])):
            parts += text[done : match.start()], MARK
            done = match.start() + length
    return "".join([*parts, text[done:]])


def _iban_length(run: str) -> int:
    """Return the length of the IBAN at a run's beginning: the first part up to a gap or the end that checks. Or 0."""
    head = body = count = 0
    for at, sign in enumerate(run):
        if not sign.isalnum():
            continue
        value = int(sign, 36)
        count += 1
        if count <= 4:  # the country and the check digits count as if they stood at the end
            head = head * (100 if value > 9 else 10) + value
        else:
            body = (body * (100 if value > 9 else 10) + value) % 97
        ends = at + 1 == len(run) or not run[at + 1].isalnum()
        if count >= 15 and ends and (body * 1_000_000 + head) % 97 == 1:
            return at + 1
    return 0


def _card(match: re.Match[str]) -> str:
    """Replace a run of digits that holds a card's number: whole groups of 13 to 19 digits that obey Luhn's rule."""
    groups = re.split(_GAP, match[0])
    digits = [int(digit) for group in groups for digit in group]
    plain_then_doubled = accumulate(
        (_DOUBLED[digit] if at % 2 else digit for at, digit in enumerate(digits)), initial=0
    )
    sums = (
        list(accumulate((_DOUBLED[d] if at % 2 == 0 else d for at, d in enumerate(digits)), initial=0)),
        list(plain_then_doubled),
    )
    bounds = list(accumulate(map(len, groups), initial=0))
    first = 0
    for begin in bounds[:-1]:
        first += 1
        if digits[begin] not in (2, 3, 4, 5, 6):  # payment cards begin with no other digit
            continue
        for end in bounds[first : first + 19]:
            if end - begin > 19:
                break
            total = sums[end % 2][end] - sums[end % 2][begin]
            if end - begin >= 13 and total % 10 == 0:
                return MARK
    return match[0]


_DOUBLED = [sum(divmod(2 * digit, 10)) for digit in range(10)]
