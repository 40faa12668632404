"""What the specification of the core API asks for and no other test shows: time, order, traces, costs, no memory."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.harness.reader import Answer, delete, get, open_stream, post, read_answer
from tests.harness.server import ChatWait
from tests.harness.upstream import (
    Close,
    Done,
    Finish,
    Gate,
    Pause,
    Script,
    ScriptedUpstream,
    Stall,
    Token,
    Usage,
    answer,
    error,
)
from tests.live.pace import percentile
from tests.live.steps import (
    KEY,
    about,
    asked,
    begin,
    copy_of_service,
    log_name,
    read_on,
    settings,
    wait_asked,
)

TRIES = 3  # a busy machine may be late now and then, not each time
MODEL_SECONDS = 0.2
"""How long the scripted model thinks before its first token."""

USAGE = {"prompt_tokens": 31, "completion_tokens": 2, "total_tokens": 33}


def first_token_seconds(chatwait: ChatWait) -> float:
    """Tell how long a client waits for the first token, from before it connects."""
    begun = time.monotonic()
    with open_stream(f"{chatwait.base_url}/chat/streaming", json={"message": "What is 2+2?"}) as connection:
        got = Answer()
        got.begin_connection(connection.headers)
        first = 0.0
        for event in connection.events():
            got.add(event)
            if event.event == "token" and not first:
                first = event.received_at - begun
        assert got.verify().text == "It is 4."
    assert first >= MODEL_SECONDS  # premise: the model took its time
    return first


def whole_answer_seconds(chatwait: ChatWait) -> float:
    begun = time.monotonic()
    reply = post(f"{chatwait.base_url}/chat/wait", {"message": "What is 2+2?"})
    assert (reply.status, reply.json["content"]) == (200, "It is 4.")
    return time.monotonic() - begun


@pytest.mark.requirement("core SC-001", "core UX-003", "plan goal 1", "plan constraint 2", "page US1.1", "page SC-001")
def test_first_token_comes_within_a_second_for_95_of_100_one_after_another(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """SC-001 allows 2 s, and the page's own SC-001 1 s where the network is good."""
    upstream.always(Script(steps=[Pause(MODEL_SECONDS), Token("It is "), Token("4."), Finish(), Done()]))
    for _ in range(TRIES):
        slowest = percentile([first_token_seconds(chatwait) for _ in range(20)], 95)
        if slowest < 1.0:
            break
    assert slowest < 1.0


@pytest.mark.requirement("core SC-001", "core UX-003", "core edge 4", "chatwait edge 4", "chatwait FR-007")
@pytest.mark.parametrize("measure", [first_token_seconds, whole_answer_seconds])
def test_first_token_comes_within_two_seconds_for_95_of_100_of_fifty_at_once(
    chatwait: ChatWait, upstream: ScriptedUpstream, measure: Any
) -> None:
    """SC-001 under load; in wait mode an answer that short is there as soon."""
    upstream.always(Script(steps=[Pause(MODEL_SECONDS), Token("It is "), Token("4."), Finish(), Done()]))
    with ThreadPoolExecutor(50) as pool:
        for _ in range(TRIES):
            slowest = percentile(list(pool.map(measure, [chatwait] * 50)), 95)
            if slowest < 2.0:
                break
    assert slowest < 2.0


@pytest.mark.requirement(
    "core US1.2", "core US1.3", "core FR-004", "core SC-002", "core UX-001", "core entity StreamChunk", "tasks T017"
)
@pytest.mark.requirement("chatwait scenario 2", "page US1.2", "page FR-001", "page FR-003", "page FR-005")
def test_each_token_is_with_its_reader_before_the_next_one_is_made(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """The model goes on only when the token before has arrived: whatever holds back one token holds for ever."""
    words = ["Paris", " is", " the", " capital", " of", " France."]
    gated = [step for at, word in enumerate(words) for step in (Token(word), Gate(f"arrived {at}"))]
    body = about(upstream, Script(steps=[*gated, Finish(), Done()]))
    got = Answer()
    with open_stream(f"{chatwait.base_url}/chat/streaming", json=body) as connection:
        got.begin_connection(connection.headers)
        for event in connection.events():
            got.add(event)
            if event.event == "token":
                shown = event.json
                assert (shown["sequence"], shown["content"]) == (got.tokens, words[got.tokens - 1])
                assert shown["is_final"] is False
                upstream.open(f"arrived {got.tokens - 1}")
    assert got.verify().text == "Paris is the capital of France."
    assert got.terminal is not None
    assert (got.terminal.json["is_final"], got.terminal.json["sequence"]) == (True, 7)


# Nothing is kept


def texts_sent(upstream: ScriptedUpstream, body: dict[str, Any]) -> list[str]:
    """List the texts that reached the model with this message."""
    return [turn["content"] for turn in asked(upstream, body)[-1].json["messages"]]


@pytest.mark.requirement("core assumption 5", "core scope 1", "core scope 5", "plan constraint 3", "plan principle IV")
@pytest.mark.requirement("chatwait FR-009", "chatwait constraint 2", "tasks avoid 4")
def test_next_request_carries_nothing_of_the_one_before(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    first, second = about(upstream, answer(["My name is Ada."])), about(upstream, answer(["I do not know."]))
    context = [{"role": "user", "content": "I am Ada."}, {"role": "assistant", "content": "Hello Ada."}]
    with ThreadPoolExecutor(1) as pool:  # one client, one connection after another, in each mode
        url = f"{chatwait.base_url}/chat"
        assert pool.submit(post, f"{url}/wait", {**first, "context": context}).result().status == 200
        assert texts_sent(upstream, first) == ["I am Ada.", "Hello Ada.", first["message"]]
        for ask in (lambda: post(f"{url}/wait", second), lambda: read_answer(f"{url}/streaming", second)):
            pool.submit(ask).result()
            assert texts_sent(upstream, second) == [second["message"]]


@pytest.mark.requirement("core scope 8")
def test_same_question_twice_is_asked_of_the_model_twice(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """No caching: an answer is given again only to who names its stream or its key."""
    body = about(upstream, answer(["Paris."]))
    ids = {post(f"{chatwait.base_url}/chat/wait", body).json["stream_id"] for _ in range(2)}
    assert (len(ids), len(asked(upstream, body))) == (2, 2)


def files_changed_since(start: float, root: str | Path, *, depth: int = 99) -> Iterator[Path]:
    top = len(Path(root).parts)
    for directory, below, names in os.walk(root):
        if len(Path(directory).parts) - top >= depth:
            below.clear()
        for name in names:
            path = Path(directory, name)
            try:
                if path.is_file() and not path.is_symlink() and path.stat().st_mtime >= start:
                    yield path
            except OSError:
                continue  # another's, or gone meanwhile


def holds(path: Path, words: bytes) -> bool:
    """Look through a file piece by piece; what others run beside may have written much."""
    try:
        with path.open("rb") as file:
            tail = b""
            while piece := file.read(1 << 20):
                if words in tail + piece:
                    return True
                tail = piece[-len(words) :]
    except OSError:
        pass
    return False


@pytest.mark.requirement("core assumption 5", "core scope 1", "core constitution IV", "plan storage", "chatwait FR-009")
def test_nothing_of_a_conversation_is_on_disk_after_the_run(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Neither where it runs, nor at home, nor among temporary files."""
    start = time.time() - 1
    words = [f"canary-{secrets.token_hex(12)}".encode() for _ in range(3)]
    question, said, before = (word.decode() for word in words)
    service = copy_of_service(tmp_path, "")
    places = {name: tmp_path / name.lower() for name in ("HOME", "TMPDIR")}
    for place in places.values():
        place.mkdir()

    def found(root: str | Path, depth: int = 99) -> list[str]:
        changed = list(files_changed_since(start, root, depth=depth))
        return [f"{path}: {word!r}" for path in changed for word in words if holds(path, word)]

    body = about(upstream, answer([said, " and more"]), question) | {"context": [{"role": "user", "content": before}]}
    with ChatWait(root=service, **settings(upstream, **places)) as chatwait:
        assert read_answer(f"{chatwait.base_url}/chat/streaming", body).text == f"{said} and more"
        assert post(f"{chatwait.base_url}/chat/wait", body).json["content"] == f"{said} and more"
        assert found(tmp_path) == []
        assert chatwait.stop() == 0
    assert found(tmp_path) == []
    for shared in ("/tmp", "/var/tmp", "/dev/shm"):  # where the service's own settings would not lead it
        assert found(shared, depth=2) == []
    (tmp_path / "kept").write_bytes(b"x" * (1 << 20) + words[0])
    assert len(found(tmp_path)) == 1  # premise: it would have been found


# Every request leaves its trace


@pytest.mark.requirement("core SC-004", "core US3.1", "core entity RequestLog", "core constitution VII", "tasks T024")
@pytest.mark.requirement("plan principle VII", "plan design 3", "tasks US3 test")
def test_lines_of_one_correlation_id_tell_the_whole_request(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """One that needed two calls and then broke off, and one that was refused: each from its id alone."""
    upstream.then(error(503, headers={"retry-after": "1"}), Script(steps=[Token("Par"), Token("is"), Close()]))
    broken = read_answer(f"{chatwait.base_url}/chat/streaming", {"message": "Hi"})
    chatwait.wait_for_log("reader_left", stream=log_name(broken.stream_id or ""))
    identifier = broken.headers["x-correlation-id"]
    lines = [line for line in chatwait.log if line["correlation_id"] == identifier]
    assert list(dict.fromkeys(line["event"] for line in lines if not line["event"].startswith("reader_"))) == [
        "request_received",
        "stream_started",
        "upstream_retry",
        "chunks_sent",
        "error_occurred",
        "response_complete",
    ]
    assert {"reader_attached", "reader_left"} <= {line["event"] for line in lines}
    assert {line["stream"] for line in lines if "stream" in line} == {log_name(broken.stream_id or "")}
    end = next(line for line in lines if line["event"] == "response_complete")
    assert (end["status"], end["tokens"]) == ("failed", 2)
    assert end["duration_ms"] >= end["first_token_ms"] >= 1000
    assert broken.terminal is not None
    assert broken.terminal.json["error"]["correlation_id"] == identifier

    refused = post(f"{chatwait.base_url}/chat/wait", {"message": " "})
    chatwait.wait_for_log("error_occurred", correlation_id=refused.json["correlation_id"])
    lines = [line for line in chatwait.log if line["correlation_id"] == refused.headers["x-correlation-id"]]
    assert [line["event"] for line in lines] == ["request_received", "error_occurred"]


OUTCOMES = {
    "complete": (answer(["Par", "is"], usage=USAGE), "complete", "provider"),
    "complete, not counted by the provider": (answer(["Par", "is"]), "complete", "estimated"),
    "cut at its length": (answer(["Par", "is"], finish="length", usage=USAGE), "complete", "provider"),
    "empty": (answer([]), "complete", "estimated"),
    "failed after tokens": (Script(steps=[Token("Par"), Token("is"), Close()]), "failed", "estimated"),
    "failed before any": (error(401), "failed", "estimated"),
    "stopped": (Script(steps=[Token("Par"), Token("is"), Stall()]), "cancelled", "estimated"),
    "stopped before any": (Script(steps=[Stall()]), "cancelled", "estimated"),
    "stopped after a count": (Script(steps=[Token("Par"), Usage(USAGE), Stall()]), "cancelled", "estimated"),
}


@pytest.mark.requirement("core SC-006", "core FR-011", "core US3.3", "core risk 5", "core constitution VI")
@pytest.mark.requirement("plan principle VI", "core entity ChatResponse")
@pytest.mark.parametrize("name", OUTCOMES)
def test_token_usage_is_logged_once_whatever_the_outcome(
    chatwait: ChatWait, upstream: ScriptedUpstream, name: str
) -> None:
    script, status, source = OUTCOMES[name]
    tokens = sum(isinstance(step, Token) for step in script.steps)
    body = about(upstream, script)
    stream_id = begin(chatwait.base_url, body)
    wait_asked(upstream, body).wait_tokens(tokens)
    if status == "cancelled":
        if tokens:  # those that were sent must have been delivered
            with open_stream(f"{chatwait.base_url}/chat/streaming/{stream_id}") as connection:
                got = Answer(stream_id=stream_id)
                for event in connection.events():
                    got.add(event)
                    if got.tokens == tokens:
                        break
        delete(f"{chatwait.base_url}/chat/streaming/{stream_id}")
    whole = read_on(Answer(stream_id=stream_id), chatwait.base_url).verify()
    line = chatwait.wait_for_log("response_complete", stream=log_name(stream_id))
    assert (line["status"], line["tokens"], line["usage"]["source"]) == (status, tokens, source)
    usage = {figure: line["usage"][figure] for figure in USAGE}
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    assert usage["prompt_tokens"] > 0
    assert (usage["completion_tokens"] > 0) == (tokens > 0)
    if source == "provider":
        assert usage == USAGE
    assert whole.terminal is not None
    assert whole.terminal.json["usage"] == line["usage"]
    assert line["duration_ms"] >= 0
    assert len(chatwait.log_of("response_complete", stream=log_name(stream_id))) == 1


@pytest.mark.requirement("core SC-006")
def test_refused_request_costs_nothing_and_books_nothing(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    booked = len(chatwait.log_of("response_complete"))
    for mode in ("wait", "streaming"):
        reply = post(f"{chatwait.base_url}/chat/{mode}", {"message": "Hi", "model": "none"})
        assert reply.status == 400
        chatwait.wait_for_log("error_occurred", correlation_id=reply.json["correlation_id"])
    get(f"{chatwait.base_url}/health")
    assert (upstream.completions, len(chatwait.log_of("response_complete"))) == ([], booked)


# The key and the tools


@pytest.mark.requirement("core risk 4", "core dependency 2", "core constitution IV")
def test_key_is_rotated_by_a_start_with_another_one(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """A key is kept nowhere but in the environment of the process, and never logged."""
    body, another = about(upstream, answer(["yes"])), f"sk-{secrets.token_hex(16)}"
    assert post(f"{chatwait.base_url}/chat/wait", body).status == 200
    with ChatWait(**settings(upstream) | {"OPENAI_API_KEY": another}) as rotated:
        assert post(f"{rotated.base_url}/chat/wait", body).status == 200
    keys = [record.headers["authorization"] for record in asked(upstream, body)]
    assert keys == [f"Bearer {KEY}", f"Bearer {another}"]
    assert KEY not in chatwait.output
    assert another not in rotated.output


@pytest.mark.requirement("core scope 2", "core scope 9", "core constitution III", "plan principle III")
@pytest.mark.requirement("core FR-003", "core dependency 1", "tasks T013", "page assumption 1")
def test_model_is_asked_for_a_stream_and_offered_no_tools(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    body = about(upstream, answer(["yes"]))
    assert post(f"{chatwait.base_url}/chat/wait", body).status == 200
    question = asked(upstream, body)[0].json
    assert set(question) <= {"model", "messages", "stream", "stream_options", "max_tokens", "temperature"}
    assert (question["model"], question["stream"]) == ("gpt-4o-mini", True)
    for name in ("tools", "tool_choice", "functions", "function_call"):
        refused = post(f"{chatwait.base_url}/chat/wait", {**body, name: []})
        assert (refused.status, list(refused.json["fields"])) == (400, [name])
