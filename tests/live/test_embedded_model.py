"""The embedded model, for real: what a new user has after `make run`, with neither key nor base URL."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest

from app.embedded_model import model
from tests.harness.chaos import ChaosProxy, CutAfter
from tests.harness.http1 import Reply, get, post, request
from tests.harness.reader import read_answer, read_resuming
from tests.harness.server import ChatWait
from tests.live.embedded import PATIENCE_SECONDS, embedded_service

pytestmark = pytest.mark.timeout(300)

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def embedded() -> Iterator[ChatWait]:
    with embedded_service() as chatwait:
        yield chatwait


@pytest.mark.requirement("chatwait story", "chatwait scenario 1", "chatwait scenario 5", "chatwait FR-005")
def test_wait_mode_answers_a_dialogue_of_two_turns(embedded: ChatWait) -> None:
    first = post(f"{embedded.base_url}/chat/wait", json={"message": QUESTION}, timeout=PATIENCE_SECONDS).json
    assert "Paris" in first["content"]
    assert first["model"] == model.MODEL_ID
    assert first["usage"]["source"] == "provider"

    context = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": first["content"]}]
    second = post(
        f"{embedded.base_url}/chat/wait",
        json={"message": "And of Italy?", "context": context},
        timeout=PATIENCE_SECONDS,
    ).json
    assert second["status"] == "complete"
    assert "Rome" in second["content"]
    assert second["sha256"] == hashlib.sha256(second["content"].encode()).hexdigest()


OPENAI_CLIENT = """
import json, sys
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="any")
(model,) = client.models.list().data
asked = {"model": model.id, "messages": [{"role": "user", "content": sys.argv[2]}], "temperature": 0, "max_tokens": 30}
chunks = list(client.chat.completions.create(stream=True, **asked))
stored = client.chat.completions.retrieve(chunks[0].id)
whole = client.chat.completions.create(**asked)
format = {"type": "json_schema", "json_schema": {"name": "city", "schema": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}}}
shaped = client.chat.completions.create(response_format=format, **asked)
client.chat.completions.delete(chunks[0].id)
texts = ["".join(chunk.choices[0].delta.content or "" for chunk in chunks)]
texts += [answer.choices[0].message.content for answer in (stored, whole)]
print(json.dumps({"model": model.id, "texts": texts, "shaped": json.loads(shaped.choices[0].message.content)}))
"""


def test_openais_sdk_asks_it_as_it_stands(embedded: ChatWait) -> None:
    """Streamed, stored, whole, and in a JSON schema: what README promises after `make run`."""
    done = subprocess.run(
        [sys.executable, "-c", OPENAI_CLIENT, embedded.base_url, QUESTION],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["model"] == model.MODEL_ID
    streamed, stored, whole = told["texts"]
    assert "Paris" in streamed
    assert streamed == stored == whole
    assert list(told["shaped"]) == ["city"]


@pytest.mark.requirement("core US1.2", "chatwait scenario 2", "chatwait scenario 5")
def test_streaming_answers_a_dialogue_of_two_turns_with_the_same_text(embedded: ChatWait) -> None:
    first = read_answer(f"{embedded.base_url}/chat/streaming", json={"message": QUESTION}, timeout=PATIENCE_SECONDS)
    assert "Paris" in first.text
    assert (
        first.text
        == post(f"{embedded.base_url}/chat/wait", json={"message": QUESTION}, timeout=PATIENCE_SECONDS).json["content"]
    )

    context = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": first.text}]
    second = read_answer(
        f"{embedded.base_url}/chat/streaming",
        json={"message": "And of Italy?", "context": context},
        timeout=PATIENCE_SECONDS,
    )
    assert "Rome" in second.text


@pytest.mark.parametrize(
    ("question", "words"),
    [("Hello", ["Hello", "Hi"]), ("What is 2+2?", ["4", "four"]), (QUESTION, ["Paris"])],
)
@pytest.mark.requirement("core US1.1", "core US1 test", "tasks US1 test")
def test_question_of_the_specifications_is_answered_in_sense(
    embedded: ChatWait, question: str, words: list[str]
) -> None:
    """What the specifications ask as their first example; each token numbered, the last frame final."""
    got = read_answer(f"{embedded.base_url}/chat/streaming", json={"message": question}, timeout=PATIENCE_SECONDS)
    assert any(word in got.text for word in words), got.text
    assert got.tokens >= 2
    final = [event.json["is_final"] for event in got.events if event.event in ("token", "done")]
    assert final == [False] * (len(final) - 1) + [True]


@pytest.mark.requirement("chatwait edge 1")
def test_streaming_survives_cuts_of_a_real_answer(embedded: ChatWait) -> None:
    request = {"message": "Write three sentences about the sea.", "max_tokens": 60}
    with ChaosProxy("127.0.0.1", embedded.port) as proxy:
        proxy.plan(CutAfter(900), CutAfter(1400), CutAfter(700))
        answer = read_resuming(proxy.base_url, json=request, timeout=PATIENCE_SECONDS)
        assert proxy.connections >= 4

    assert answer.text == post(f"{embedded.base_url}/chat/wait", json=request, timeout=PATIENCE_SECONDS).json["content"]


def test_models_names_the_embedded_model_and_limits_that_fit_it(embedded: ChatWait) -> None:
    models = get(f"{embedded.base_url}/models").json

    assert models["default"] == model.MODEL_ID
    limits = models["limits"]
    assert limits["max_tokens"] + limits["max_input_tokens"] < model.CONTEXT_TOKENS_PER_SLOT


@pytest.mark.requirement("core edge 2")
def test_conversation_too_long_for_the_model_is_refused_in_words(embedded: ChatWait) -> None:
    reply = post(f"{embedded.base_url}/chat/wait", json={"message": "word " * 1590 + "\u4e2d" * 40})
    assert reply.status == 400
    assert reply.json["error_code"] in ("message_too_long", "context_too_long")


# Its port, which web pages reach too

PAGE = {"Origin": "null", "Content-Type": "text/plain", "Sec-Fetch-Site": "cross-site", "Host": "rebound.example"}
ASKING = {"messages": [{"role": "user", "content": QUESTION}], "prompt": QUESTION, "content": QUESTION, "max_tokens": 5}
WORKING = [
    *("/v1/chat/completions", "/chat/completions", "/v1/completions", "/completion", "/infill", "/tokenize"),
    *("/detokenize", "/apply-template", "/v1/embeddings", "/embedding", "/v1/messages", "/v1/responses", "/rerank"),
]
TELLING = ["/props", "/slots", "/metrics", "/lora-adapters", "/tools", "/docs", "/openapi.json"]


def server_of(chatwait: ChatWait) -> psutil.Process:
    """Find the process that has the model."""
    (worker, *_) = chatwait.worker_pids()
    family = psutil.Process(worker).parent().children(recursive=True)
    (server,) = [process for process in family if "serve" in process.cmdline()]
    return server


def ask_model(server: psutil.Process, method: str, path: str, headers: dict[str, str]) -> Reply:
    command = server.cmdline()
    url = f"http://127.0.0.1:{command[command.index('--port') + 1]}{path}"
    return request(method, url, json=ASKING if method == "POST" else None, headers=headers, timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("key", [None, "", "none", "x" * 43])
def test_page_of_whatever_origin_has_no_work_done_by_the_models_port(embedded: ChatWait, key: str | None) -> None:
    server = server_of(embedded)
    headers = PAGE if key is None else {**PAGE, "Authorization": f"Bearer {key}", "X-Api-Key": key}

    for method, path in [*(("POST", path) for path in WORKING), *(("GET", path) for path in TELLING)]:
        reply = ask_model(server, method, path, headers)
        assert reply.status == 401, f"{method} {path}: {reply.status}"
        assert b"Paris" not in reply.body
        assert model.MODEL_ID.encode() not in reply.body


def test_models_port_tells_without_its_key_nothing_that_the_service_does_not(embedded: ChatWait) -> None:
    reply = ask_model(server_of(embedded), "GET", "/v1/models", PAGE)

    for secret in ("gguf", "/home", "/root", "site-packages", ".venv"):
        assert secret.encode() not in reply.body


def test_key_of_the_models_port_opens_it_and_is_seen_nowhere(embedded: ChatWait) -> None:
    server = server_of(embedded)
    key = server.environ()[model.KEY]
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    assert ask_model(server, "POST", "/v1/chat/completions", headers).status == 200
    family = [server, *server.parents()]
    assert not [process for process in family if key in " ".join(process.cmdline())]
    assert stat.S_IMODE(os.stat(f"/proc/{server.pid}/environ").st_mode) == 0o400
    assert key not in embedded.output
