"""Every exchange of contracts/examples is what the running service answers today, and none is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import errors
from tests.contract.document import codes_of, elsewhere, operations, reported_in, seen_through, statuses
from tests.contract.golden import CHUNK_STREAM_IDS, EXAMPLES, STREAM_IDS, answer_to, exchange, goldens, replace_ids
from tests.contract.situations import SHARED, World
from tests.harness.valkey import program
from tests.requirements import require_or_skip

GOLDENS = {golden.name: golden for golden in goldens()}
VALKEY = "a Valkey or Redis server (requirements-dev.txt has one for Linux and macOS)"
OTHER_HEADERS = {"content-type", "cache-control", "x-accel-buffering", "vary"}
"""What the contract says in words, and no schema could say better."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("hurried")) as running:
        yield running


@pytest.mark.parametrize("name", GOLDENS)
@pytest.mark.requirement("plan contract")
def test_example_is_what_the_service_answers(world: World, name: str) -> None:
    golden = GOLDENS[name]
    if golden.situation in SHARED:
        require_or_skip(VALKEY, program() is not None)

    assert answer_to(world, golden).answer == golden.answer, "if this is wanted: python -m tests.contract.golden"


# None is missing

Promise = tuple[str, str, str]
"""An operation, a status and an error code, which is empty where nothing failed."""


def promised() -> set[Promise]:
    """List what the contract says that each operation can answer, its `default` left out."""
    found = set()
    for _, _, operation in operations():
        for status, response in operation["responses"].items():
            if status != "default":
                said = seen_through(response)
                codes = codes_of(said) | reported_in(said) if status >= "400" else set()
                found |= {(operation["operationId"], status, code) for code in codes or {""}}
    return found


def code_in(body: str) -> str:
    if not body.startswith(('{"error_code": ', '{"error"')):
        return ""
    content = json.loads(body)
    code: str = content.get("error", content)["error_code"]
    return code


def answered() -> set[Promise]:
    """List what the service has answered to the examples."""
    return {(golden.folder, str(golden.status), code_in(golden.body)) for golden in GOLDENS.values()}


def test_examples_are_there_for_every_operation_status_and_error_code_and_for_nothing_else() -> None:
    ids = {operation["operationId"] for _, _, operation in operations()}
    of_operations = {one for one in answered() if one[0] in ids}
    unexplained = {one for one in of_operations - promised() if one[1:] not in elsewhere()}

    assert promised() - of_operations == set()
    assert unexplained == set()
    assert {one[1:] for one in answered() if one[0] == "any" and one[2]} == elsewhere()
    assert {golden.folder for golden in GOLDENS.values()} == ids | {"any", "streams"}


def test_examples_show_every_error_of_the_code() -> None:
    answers = [
        (status, seen_through(response))
        for _, _, operation in operations()
        for status, response in operation["responses"].items()
    ]
    reported = {(code, int(status)) for status, said in answers for code in reported_in(said)}
    named = {code for _, said in answers for code in codes_of(said)}
    shown = {(code, int(status)) for _, status, code in answered() if code}
    raised = {
        name
        for path in Path(errors.__file__).parent.rglob("*.py")
        for name in re.findall(r"\berrors\.([A-Z]\w+)", path.read_text(encoding="utf-8"))
    }

    assert shown == {(code, status) for code, status in statuses().items() if code in named} | reported
    assert {code for code, _ in shown} == statuses().keys()
    assert {kind.__name__ for kind in errors.walk()} <= raised


def test_examples_are_of_the_address_and_status_that_their_names_say() -> None:
    addresses = {operation["operationId"]: (method, path) for method, path, operation in operations()}
    for golden in GOLDENS.values():
        assert Path(golden.name).name.startswith(str(golden.status)) or golden.folder == "streams"
        assert code_in(golden.body) in golden.name
        if golden.folder in addresses:
            method, path = addresses[golden.folder]
            wanted = re.sub(r"\\\{\w+\\\}", r"[\\w%-]+", re.escape(path))
            assert golden.method == method
            assert re.fullmatch(rf"(/v1)?{wanted}(\?.*)?", golden.path), golden.name


def test_examples_have_the_headers_that_the_contract_lists() -> None:
    responses = {operation["operationId"]: operation["responses"] for _, _, operation in operations()}
    for golden in GOLDENS.values():
        if golden.folder not in responses:
            continue
        of_operation = responses[golden.folder]
        said = seen_through(of_operation.get(str(golden.status), of_operation["default"]))["headers"]
        listed = {name.lower() for name in said}
        required = {name.lower() for name, header in said.items() if seen_through(header).get("required")}
        assert required <= golden.headers.keys(), golden.name
        assert golden.headers.keys() - OTHER_HEADERS <= listed, golden.name


def test_examples_are_explained_and_nothing_else_lies_there() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    streams = {Path(name).name for name in GOLDENS if name.startswith("streams/")}

    assert streams
    assert {path.suffix for path in EXAMPLES.rglob("*") if path.is_file()} == {".http", ".md"}
    table = readme.partition("| stream | what it shows |")[2].partition("## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == streams


# Nothing else is answered, whatever is sent wherever

SLOW = ("the body does not arrive within 30 seconds", "the model falls silent", "the model says nothing")
"""Asked with the same method only."""

NOT_ASKED = ("any", "streams")
NOT_BROUGHT_ABOUT = (
    "a server that is stopped while one waits",
    "a server that is stopped while one waits for a completion",
)


def strangers() -> dict[tuple[str, str], tuple[str, str]]:
    """Map each situation and request, made of an example's and of another address, to its operation and first line."""
    found = {}
    for golden in GOLDENS.values():
        for method, path, operation in operations():
            slow = golden.situation in SLOW and method != golden.method
            if slow or golden.folder in (*NOT_ASKED, operation["operationId"]) or golden.situation in NOT_BROUGHT_ABOUT:
                continue
            if golden.situation in SHARED and program() is None:
                continue
            if golden.status >= 400 and ("/chat/completions" in golden.path) != ("/chat/completions" in path):
                continue
            first = f"{method} {with_ids(path, golden.request)} HTTP/1.1"
            request = f"{first}\n{golden.request.partition(chr(10))[2]}"
            if "\nPrefer:" not in request:  # who waits for a model that says nothing waits for long
                request = request.replace("\nHost:", "\nPrefer: wait=0\nHost:", 1)
            found[golden.situation, request] = operation["operationId"], first
    return found


def with_ids(path: str, request: str) -> str:
    """Name in a path the stream that the example is about."""
    stream_id = CHUNK_STREAM_IDS[0] if "cwc_" in request else STREAM_IDS[0]
    if path.startswith("/models/"):
        return path.replace("{id}", "gpt-4o-mini")
    return path.replace("{stream_id}", stream_id).replace("{id}", f"chatcmpl-{stream_id}")


@pytest.mark.long
@pytest.mark.timeout(900)  # some two thousand requests
def test_requests_of_one_address_sent_to_another_get_an_answer_that_the_contract_lists(world: World) -> None:
    unlisted = []
    for (situation, request), (operation, first) in strangers().items():
        with world.scene(situation) as scene:
            status, _, body = exchange(scene, replace_ids(request, scene), whole=False)
        answer = (operation, str(status), code_in(body.decode()))
        if answer not in promised() and answer[1:] not in elsewhere():
            unlisted.append((answer, first, situation))
    assert unlisted == []
