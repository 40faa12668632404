"""Test the redaction: what it must take out wherever it stands, what it must leave, and that it never takes long."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.observability import redaction
from app.observability.redaction import MARK, redact
from app.platform.utc import utc_now
from app.streams.interface import new_stream_id

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c"

SECRETS = {
    "OpenAI's key": "sk-abcdefghijklmnop",
    "a project's key": "sk-proj-abc_def-0123456789" + "x" * 500,
    "Stripe's key": "rk_live_0123456789abcdef",
    "a bearer token": "Bearer abcdefgh.ijk-lmn_op~q+r/s=",
    "a bearer token, two blanks": "bearer  abcdefghij",
    "a basic credential": "Basic dXNlcjpwYXNzd29yZA==",
    "a JWT": JWT,
    "a JWT without a signature": JWT.rsplit(".", 1)[0] + ".",
    "a stream id": new_stream_id(),
    "AWS's key id": "AKIAIOSFODNN7EXAMPLE",
    "AWS's session key id": "ASIAIOSFODNN7EXAMPLE",
    "AWS's id of a role": "AROAIOSFODNN7EXAMPLE",
    "AWS's secret key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "Google's key": "AIzaSyA-0123456789abcdefghijklmnopqrstu",
    "Google's token": "ya29.a0AfH6SMBx_0123456789",
    "GitHub's token": "ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "Slack's token": "xoxb-123456789012-abcdefghijkl",
    "Hugging Face's token": "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "Azure's account key": "AccountKey=abcdefgh0123456789==",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAKC\n-----END RSA PRIVATE KEY-----",
}
AWS = ["ABIA", "ACCA", "AGPA", "AIDA", "AIPA", "AKIA", "ANPA", "ANVA", "APKA", "AROA", "ASCA", "ASIA"]
"""How the ids of all its kinds begin: of keys, roles, users, groups, policies, certificates, ..."""

VALUES = {  # what may not be seen of it, and the whole
    "a cookie": ("0a1b2c", "Cookie: theme=dark; session=0a1b2c"),
    "a set cookie": ("0a1b2c", "set-cookie: session=0a1b2c; Path=/"),
    "a cookie in a dict": ("0a1b2c", "{'cookie': 'session=0a1b2c'}"),
    "an authorization of any kind": ("0a1b2c", "Authorization: Digest username=x, response=0a1b2c"),
    "a key by name": ("0a1b2c", "api_key=0a1b2c"),
    "a key in JSON": ("0a1b 2c", '{"apiKey": "0a1b 2c"}'),
    "a key in a query": ("0a1b2c", "GET /x?a=1&access_token=0a1b2c&b=2"),
    "a password": ("0a1b2c", "password: 0a1b2c"),
    "a password of a URL": ("0a1b2c", "redis://:0a1b2c@cache:6379/0"),
    "a user and password of a URL": ("0a1b2c", "https://me:0a1b2c@host/path"),
    "an idempotency key": ("0a1b2c", "Idempotency-Key: 0a1b2c"),
    "an environment variable": ("0a1b2c", "AWS_SECRET_ACCESS_KEY=0a1b2c"),
}
SLIPPED = {  # forms in which exceptions, SDKs and header lists write them
    "cw_0123456789abcdefABCDEF": [
        "\\ncw_0123456789abcdefABCDEF",
        "%2Fcw_0123456789abcdefABCDEF",
        "stream_cw_0123456789abcdefABCDEF",
    ],
    "sk-0123456789abcdef": ["\\nsk-0123456789abcdef", "%20sk-0123456789abcdef", "OPENAI_sk-0123456789abcdef"],
    "AROAIOSFODNN7EXAMPLE": [
        "\\nAROAIOSFODNN7EXAMPLE",
        "arn%3Aaws%3Aiam%2FAROAIOSFODNN7EXAMPLE",
        "role_AROAIOSFODNN7EXAMPLE:session",
    ],
    "AIzaSyA-0123456789abcdefghijklmnopqrstu": ["\\nAIzaSyA-0123456789abcdefghijklmnopqrstu"],
    "0a1b2c3d": [
        "'HTTP_IDEMPOTENCY_KEY': '0a1b2c3d'",
        '{\\"api_key\\": \\"0a1b2c3d\\"}',
        '\\"Authorization\\": \\"Token 0a1b2c3d\\"',
        "{b'x-api-key': b'0a1b2c3d'}",
        "[(b'authorization', b'Token 0a1b2c3d')]",
        "Headers([('cookie', 'a=0a1b2c3d')])",
        'api_key="a\\"b-0a1b2c3d"',
        "password=SecretStr('0a1b2c3d')",
        "https://host/x?key=0a1b2c3d",
        "X-Amz-Signature=0a1b2c3d",
        "Subscription-Key: 0a1b2c3d",
        "Incorrect API key provided: 0a1b2c3d",
        "api_key%3D0a1b2c3d",
        "?key=Bearer 0a1b2c3d",
        "Bearer: 0a1b2c3d",
    ],
    "x.example": [
        "jane%40x.example",
        "jane%2540x.example",
        "jane\\u0040x.example",
        "jane&#64;x.example",
        "o'hara@x.example",
    ],
    "203.0.113.9": ["from:203.0.113.9", "addr_203.0.113.9", "203.0.113.9_x", "203.0.113.9:http"],
    "3704": ["AB12 DE89 3704 0044 0532 0130 00", "DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000"],
    "1111": ["4111\u00a01111\u00a01111\u00a01111", "4111+1111+1111+1111", "4111%201111%201111%201111"],
    "4567": [
        "+49\u00a0170\u202f1234567",
        "+49 170 123\u20114567",
        "%2B49 170 1234567",
        "(11) 91234-4567",
        "+48 1234-56-4567",
    ],
}
PEOPLE = {
    "an e-mail address": "jane.doe+news@mail.example.org",
    "an e-mail address, not in ASCII": "jürgen@müller.example",
    "a telephone": "+49 170 1234567",
    "a telephone, in one": "+442071838750",
    "a telephone, American": "(555) 123-4567",
    "a telephone, American, with dots": "555.123.4567",
    "a telephone, with the country": "+1 (555) 123-4567",
    "a telephone, national": "0170/1234567",
    "a telephone, two zeros": "0049 170 1234567",
    "a card": "4111 1111 1111 1111",
    "a card, in one": "5500000000000004",
    "a card, with hyphens": "3782-822463-10005",
    "an IBAN": "DE89 3704 0044 0532 0130 00",
    "an IBAN, in one": "GB82WEST12345698765432",
    "an IBAN, lower case": "nl91abna0417164300",
    "an IP address": "203.0.113.77",
    "an IP address, version 6": "2001:db8:85a3::8a2e:370:7334",
    "an IP address, version 4 in 6": "::ffff:203.0.113.77",
}
AROUND = [
    "{}",
    "before {} after",
    "({})",
    '"{}"',
    "'{}',",
    "a={}",
    "[{}]: x",
    "x\n{}\ny",
    "<{}>",
    "{}.",
    "{}; 12",
    "7, {}",
]


@pytest.mark.parametrize("name", SECRETS | PEOPLE)
@pytest.mark.requirement("core FR-007", "plan design 2")
def test_secrets_and_personal_data_are_taken_out_wherever_they_stand(name: str) -> None:
    secret = (SECRETS | PEOPLE)[name]
    for around in AROUND:
        redacted = redact(around.format(secret))
        assert MARK in redacted, around
        assert secret not in redacted, around
        assert not any(part in redacted for part in secret.replace("\n", " ").split() if len(part) > 6), around


@pytest.mark.parametrize("name", VALUES)
def test_values_that_only_their_name_gives_away_are_taken_out(name: str) -> None:
    secret, text = VALUES[name]

    assert secret not in redact(text)
    assert secret not in redact(f"upstream said {text!r}")


def test_ids_of_all_kinds_of_aws_are_taken_out() -> None:
    seen = [kind for kind in AWS if redact(f"User: arn:aws:sts::role/{kind}IOSFODNN7EXAMPLE:me").count(kind)]

    assert seen == []


@pytest.mark.parametrize("secret", SLIPPED)
def test_forms_that_slipped_once_are_taken_out(secret: str) -> None:
    for text in SLIPPED[secret]:
        assert secret not in redact(text), text
        assert secret not in redact(f"failed: {text}, and then"), text


@pytest.mark.parametrize(
    "text",
    [
        "0.4111111111111111",
        "Basic configuration done",
        "hf_hub_download",
        "cw_short",
        "task-1",
        "a sketch",
        "eyJ",
        "bearer",
        "risk-management-plan",
        "basic auth",
        "0123456789ab",
        "tokens: 17, total_tokens=33",
        "gunicorn 27.0.1",
        "Listening at: http://127.0.0.1:8000 (1234567)",
        "[::1]:8000 and 0.0.0.0",
        "took 1763715600123 ms, 0.123456789012 s, 12:34:56",
        "after 4294967296 bytes; exit code -9",
        "Host is chat.example.org, text/html; charset=utf-8",
        "app.streams::memory",
        "/chat/streaming/{stream_id}",
        "99.9 % of 100.0",
        "1234567890123456789012345678901234567890",
        "2026-11-21",
        "2026-11-21 09:00:00,123",
    ],
)
def test_text_that_only_looks_like_it_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.requirement("core FR-007")
def test_our_own_ids_hashes_and_times_stay() -> None:
    for number in range(500):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        for own in (
            str(uuid.uuid4()),
            digest,
            digest[:40],
            digest[:32],
            utc_now(1e9 + number * 1e6),
            str(number * 997),
        ):
            assert redact(f"of {own}: {own}") == f"of {own}: {own}"
    assert redact("41111111-1111-4111-8111-111111111111") == "41111111-1111-4111-8111-111111111111"


def test_number_is_a_card_only_when_its_check_digit_is_right() -> None:
    cards = [str(number) for number in range(4111111111111100, 4111111111111200)]

    assert sum(redact(card) == MARK for card in cards) == 10
    assert redact("order 12 4111 1111 1111 1111 of 3") == f"order {MARK} of 3"
    assert redact("4111 1111 1111 1112") == "4111 1111 1111 1112"


def test_number_is_an_iban_only_when_its_check_digits_are_right() -> None:
    assert redact("DE89 3704 0044 0532 0130 00 is mine") == f"{MARK} is mine"
    assert redact("DE88370400440532013000") == "DE88370400440532013000"


def test_secret_that_is_given_is_taken_out_whatever_it_looks_like() -> None:
    assert redact("a plain word of the operator's", secrets=("plain word",)) == f"a {MARK} of the operator's"


@pytest.mark.parametrize("name", SECRETS | PEOPLE)
def test_text_is_cut_only_after_it_was_redacted(name: str) -> None:
    secret = (SECRETS | PEOPLE)[name]
    for visible in (1, 10, 19):
        before = "x" * (999 - min(visible, len(secret) - 1)) + " "
        redacted = redact(before + secret + " y" * 5000)
        assert len(redacted) <= 1001, visible
        assert redacted.startswith(before), visible
        assert MARK.startswith(redacted[len(before) :][: len(MARK)].rstrip("…")), visible


# Time

PIECES = [
    "a",
    "@",
    "a@",
    "a.",
    "1",
    "1 ",
    "4 ",
    "4111 ",
    "+1",
    "1.",
    ":",
    "a:",
    "::1",
    "DE12",
    "DE12 ",
    "eyJ.",
    "(0",
    "0 ",
]
PIECES += [
    "eyJaaaaaaaaa.",
    "sk-",
    "bearer ",
    "cookie ",
    "-----BEGIN ",
    "://",
    "(555) ",
    "aB3/",
    "api_key ",
    "token=",
    " ",
    "=",
]
PIECES += ["4f1c2a90-", "0(-", "password'", '"', "\n", "é", "\ud800", "cw_", "2026-11-21", "basic\t", "idempotency-"]


def seconds(text: str, redact: Callable[[str], str] = lambda text: redaction._redact(text, "")) -> float:
    """Tell what the redaction of a text costs this thread."""
    begin = time.thread_time()
    redact(text)
    return time.thread_time() - begin


def holds_once(measured: Callable[[], bool]) -> bool:
    """Tell whether one of three measurements holds, beside whatever else the machine does."""
    return any(measured() for _ in range(3))


@pytest.mark.parametrize("piece", PIECES)
def test_redaction_of_hostile_text_is_linear(piece: str) -> None:
    """FR-007 of an attacker's choice: four times the text may not take sixteen times as long."""
    text = (piece * 40_000)[:40_000]

    quarter = min(seconds(text[:10_000]) for _ in range(3))
    assert holds_once(lambda: seconds(text) < 9 * quarter + 0.002)


def test_redaction_of_a_megabyte_takes_less_than_50_ms() -> None:
    for piece in PIECES:
        text = (piece * 1_000_000)[:1_000_000]
        assert holds_once(lambda text=text: seconds(text, redact) < 0.050), piece
        assert len(redact(text)) <= 1001, piece


@given(st.text(st.characters(), max_size=400), st.sampled_from(sorted(SECRETS)))
def test_redaction_of_any_text_never_fails_and_never_shows_a_secret_set_apart(text: str, name: str) -> None:
    secret = SECRETS[name]

    assert secret not in redact(f"{text} \n {secret} \n {text}")
