"""The page for people shows what the contract says."""

from __future__ import annotations

import html
import json
import re
import shlex
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from app import errors
from app.settings import Settings, plain
from load.events import EventParser
from tests.contract.document import CONTRACT, PAGE, operations, statuses
from tests.contract.documents import golden
from tests.contract.golden import Golden, goldens


class Cells(HTMLParser):
    """Collect the rows of every table's body, and what the page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.loads: set[str] = set()
        self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads |= {str(value) for name, value in attrs if name == "src" or (tag == "link" and name == "href")}
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs)
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page() -> Cells:
    cells = Cells()
    cells.feed(PAGE)
    cells.close()
    return cells


def test_page_needs_nothing_but_the_style(page: Cells) -> None:
    assert page.loads == {"{{assets}}/docs.css", "data:,"}  # no icon: a browser would ask for /favicon.ico
    assert not page.tags & {"script", "style", "iframe", "img"}


def test_page_shows_every_error_with_its_status_meaning_and_action(page: Cells) -> None:
    rows = [tuple(row) for row in page.rows if len(row) == 4]
    kinds = {kind.error_code: kind for kind in reversed(errors.walk())}  # of two with one code, the first
    expected = [
        (code, str(kind.status), f"{kind.message} {kind.why}", kind.action.replace("`", ""))
        for code, kind in kinds.items()
    ]

    assert sorted(rows) == sorted(expected)


def test_page_shows_the_default_limits(page: Cells) -> None:
    rows = {row[0]: row[1] for row in page.rows if len(row) == 3 and row[1].isdecimal()}

    assert rows == {name: str(plain(value)) for name, value in Settings().limits.items()}


def test_page_shows_every_route(page: Cells) -> None:
    shown = re.findall(r"<code>(GET|POST|DELETE) (/[^<\s]*)</code>", PAGE)

    assert set(shown) == {(method, path) for method, path, _ in operations()} | {("GET", "/models")}


def test_page_shows_every_event_with_its_keys_and_every_header(page: Cells) -> None:
    rows = {row[0]: row for row in page.rows if row}
    stream = CONTRACT["components"]["examples"]["EventStream"]["value"]
    for event in EventParser().feed(stream.encode()):
        assert all(re.search(rf"\b{key}\b", rows[event.event][2]) for key in event.json), event.event
    assert CONTRACT["components"]["schemas"]["EventStream"]["x-event-data"].keys() <= rows.keys()

    parameters = CONTRACT["components"]["parameters"].values()
    headers = {name for response in CONTRACT["components"]["responses"].values() for name in response["headers"]}
    headers = {re.sub("^x-ratelimit-.*", "x-ratelimit-*", name) for name in headers}
    assert {parameter["name"] for parameter in parameters if parameter["in"] == "header"} | headers <= rows.keys()


def test_page_shows_every_stream_every_error_and_every_success_of_the_examples() -> None:
    shown = {golden(name) for name in re.findall(r'data-example="([^"#]+)"', PAGE)}
    codes = {code["error_code"] for one in shown if (code := json_of(one).get("error", json_of(one))).get("error_code")}
    streams = {one.name for one in goldens() if one.folder == "streams"}

    assert codes == statuses().keys()
    assert streams <= {one.name for one in shown}
    assert {200, 202, 204, 503} <= {one.status for one in shown}


def json_of(exchange: Golden) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(exchange.body) if exchange.body.startswith("{") else {}
    return content


def test_page_shows_commands_that_send_the_requests_of_the_examples() -> None:
    commands = re.findall(r'data-example="([^"]+)#curl"><code>(.*?)</code>', PAGE, re.DOTALL)
    assert len(commands) == 5
    for name, command in commands:
        words = shlex.split(html.unescape(command))
        options = list(pairwise(words))
        body = next((value for flag, value in options if flag == "-d"), "")
        method = next((value for flag, value in options if flag == "-X"), "POST" if body else "GET")
        headers = {value for flag, value in options if flag == "-H"}
        (url,) = [word for word in words if word.startswith("localhost:8000/")]
        exchange = golden(name)
        sent = exchange.request.partition("\n\n")[0].split("\n")

        assert f"{method} {url.removeprefix('localhost:8000')} HTTP/1.1" == sent[0]
        assert headers | {"Host: localhost:8000"} == set(sent[1:])
        assert body == exchange.body_sent


def test_page_shows_json_as_the_examples_have_it() -> None:
    blocks = re.findall(r'data-example="([^"]+)#(sent|body)"><code>(\{.*?\})</code>', PAGE, re.DOTALL)
    assert {part for _, part, _ in blocks} == {"sent", "body"}
    for name, part, text in blocks:
        exchange = golden(name)
        whole = exchange.body_sent if part == "sent" else exchange.body
        assert list(json.loads(html.unescape(text)).items()) == list(json.loads(whole).items())
