"""Test the search for leaks: everything that no log may hold is found in one, and nothing else."""

from __future__ import annotations

import json
from itertools import product

import pytest

from tests.harness import leaks
from tests.harness.contract_check import Run
from tests.harness.leaks import CANARIES
from tests.harness.tap import Tap

LINE = json.dumps({"timestamp": "2026-11-21T09:00:00.000Z", "event": "x", "text": "%s"})


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "_heard", {})


@pytest.mark.parametrize("name", CANARIES)
def test_canary_is_found_in_any_line(name: str) -> None:
    assert leaks.leaks([LINE % "nothing", LINE % CANARIES[name]])
    assert leaks.leaks([LINE % "nothing"]) == []


def test_stream_id_is_found_though_nobody_told_of_it() -> None:
    assert leaks.leaks([LINE % "cw_0123456789abcdefABCDEF"])


@pytest.mark.parametrize("name", ["Idempotency-Key", "Proxy-Idempotency-Key", "Authorization", "Cookie"])
def test_secret_of_a_header_is_found(name: str) -> None:
    leaks.hear({name.lower(): "a-secret-of-16-or-more"})

    assert leaks.leaks([LINE % "before a-secret-of-16-or-more"])


def test_what_was_said_by_either_side_is_found() -> None:
    context = [{"role": "user", "content": "What did I say before this?"}]
    leaks.hear({}, json.dumps({"message": "What is the capital of France?", "context": context}).encode())
    leaks.overhear(["The capital of France is Paris.", 'It is "Zürich",\nand not Bern.'])

    for said in (
        "What is the capital of France?",
        "What did I say before this?",
        "The capital of France is Paris.",
        'It is "Zürich",\nand not Bern.',
    ):
        assert len(leaks.leaks([json.dumps({"event": "x", "text": f"before {said}"})])) == 1, said
        assert len(leaks.leaks([f"not JSON: {said}"])) == 1, said


def test_what_is_short_or_no_request_is_not_looked_for() -> None:
    leaks.hear({"authorization": "short"}, b'{"message": "Hello"}')
    leaks.hear({}, b'{"message": ')
    leaks.hear({}, b'{"message": 5, "context": [1, {"content": 2}]}')

    assert leaks.leaks([LINE % "Hello short"]) == []


def test_request_that_any_client_sends_to_a_service_is_heard() -> None:
    """The tap hears it, whoever sends it."""
    tap = Tap(Run())
    body = b'{"message": "What is the capital of France?"}'
    head = f"POST /chat HTTP/1.1\r\nIdempotency-Key: {'k' * 20}\r\nContent-Length: {len(body)}\r\n\r\n"
    for byte in head.encode() + body:
        tap.sent(bytes([byte]))

    assert len(leaks.leaks([LINE % "What is the capital of France?", LINE % ("k" * 20)])) == 2


def test_request_without_a_body_is_heard() -> None:
    Tap(Run()).sent(f"GET /chat HTTP/1.1\r\nCookie: {'k' * 20}\r\n\r\n".encode())

    assert leaks.leaks([LINE % ("k" * 20)])


def test_secret_is_found_wherever_it_lies_and_not_without_its_last_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    for size, letter in product((14, 15, 16, 23, 31), "k€"):
        secret = letter + "".join(map(chr, range(ord("A"), ord("A") + size - 2))) + letter
        monkeypatch.setattr(leaks, "_heard", {secret: "it"})
        for before, after in product(range(8), (0, 8)):
            assert len(leaks.leaks([f"{'a' * before}{secret}{'z' * after}"])) == 1, (secret, before, after)
            assert leaks.leaks([f"{'a' * before}{secret[:-1]}{'z' * after}"]) == [], (secret, before, after)
