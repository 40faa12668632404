"""Routes, error codes and statuses: what the contract says is what the application has."""

from __future__ import annotations

import re

import pytest
from flask import Flask

from tests.contract.document import CONTRACT, elsewhere, operations, reported_in, routes, seen_through, statuses

pytestmark = pytest.mark.usefixtures("no_network")

ASSETS = ("/assets/<tree>/<name>", "/assets/boot.js", "/sw.js")
"""What a page is made of, and no part of the contract."""

# `id` is a name of Python's own, so the views call it `name`.


@pytest.mark.requirement("plan contract")
def test_routes_are_those_of_the_application(app: Flask) -> None:
    served = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule).replace("{name}", "{id}"))
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS") and rule.rule not in ASSETS
    }

    assert served == routes()


def test_error_codes_are_those_of_the_code() -> None:
    code = CONTRACT["components"]["schemas"]["ErrorCode"]

    assert sorted(code["enum"]) == sorted(statuses())
    assert code["x-status"] == statuses()


@pytest.mark.requirement("core FR-010")
def test_error_statuses_have_a_response_that_names_their_codes() -> None:
    said: dict[str, int] = {}
    for _, _, operation in operations():
        for status, response in operation["responses"].items():
            codes = re.findall(r"`([a-z_]+)`", seen_through(response)["description"])  # a word that is no code too
            said |= {code: int(status) for code in codes if status >= "400" and status != "default"}
            # A refusal of the model's server has that server's status, which is not the code's own.
            said |= {code: statuses()[code] for code in reported_in(seen_through(response)) - said.keys()}

    assert said | {code: int(status) for status, code in elsewhere()} == statuses()
