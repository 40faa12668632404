"""The commands of docs/api.md, and the README's question and client, as pasted: only the port differs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.embedded_model.model import MODEL_ID
from tests.contract.situations import IN_ONE_PIECE
from tests.harness.chaos import ChaosProxy, CleanCloseAfter, CutAfter
from tests.harness.reader import get
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream, answer
from tests.requirements import require_or_skip

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPENAI_CLIENT, CLIENT = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
(QUESTION,) = re.findall(r"^```sh\n(curl .*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(script: str, chatwait: ChatWait, *, flags: str = "-euo pipefail") -> str:
    require_or_skip("curl (apt-get install curl)", shutil.which("curl") is not None)
    ours = script.replace("localhost:8000", f"localhost:{chatwait.port}")
    done = subprocess.run(["bash", *flags.split(), "-c", ours], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def block(*words: str) -> str:
    (found,) = [text for text in BLOCKS if all(word in text for word in words)]
    return found


def test_readme_has_the_examples_that_are_tried_here() -> None:
    assert len(BLOCKS) == 7


def test_readme_question_of_the_start_is_answered(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    upstream.always(answer(["A ", "mineral."]))
    model = get(f"{chatwait.base_url}/v1/models").json["data"][0]["id"]
    printed = run(QUESTION.replace(MODEL_ID, model), chatwait)

    assert printed.startswith(": keepalive\ndata: {")
    assert '"content":"mineral."' in printed
    assert re.search(r"^data: \[DONE\]\nid: cwc_\S+\.5\n: records=4 sha256=[0-9a-f]{64}$", printed, re.MULTILINE)
    assert '"event": "worker_started"' in README
    chatwait.wait_for_log("worker_started")


@pytest.mark.requirement("plan quickstart", "tasks T030", "tasks checklist 11")
def test_readme_wait_example_answers(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    upstream.always(answer(["Par", "is."]))

    answered = json.loads(run(block("/chat/wait", '-d \'{"message": "What is the capital of France?"}\''), chatwait))
    assert answered["content"] == "Paris."


@pytest.mark.requirement("plan quickstart", "tasks T030", "tasks checklist 11")
def test_readme_streaming_example_streams(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    upstream.always(answer(["Par", "is."], gap=0.05))
    printed = run(block("curl -sN http://localhost:8000/chat/streaming"), chatwait)

    assert printed.startswith("retry: 1000\nevent: start\n")
    assert '"content":"Par' in printed
    assert "event: done" in printed


@pytest.mark.requirement("tasks T030", "tasks checklist 11")
def test_readme_resume_and_stop_examples_work(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    upstream.always(answer(["1 ", "2 ", "3 ", "4 ", "5 ", "6 "], gap=0.4))
    cut_within_a_second = block("last=$(curl")
    printed = run(cut_within_a_second + block("-X DELETE", "$stream"), chatwait, flags="-eu")  # that curl is to fail

    assert '"content":"1 ' not in printed
    assert '6 "' in printed
    assert '"status": "complete"' in printed


def test_readme_example_of_openais_sdk_prints_the_answer(
    chatwait: ChatWait, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.always(answer(["A ", "mineral."]))
    ours = OPENAI_CLIENT.replace("localhost:8000", f"localhost:{chatwait.port}")
    (tmp_path / "ask.py").write_text(ours, encoding="utf-8")
    done = subprocess.run([sys.executable, "ask.py"], cwd=tmp_path, capture_output=True, timeout=60, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"A mineral.", b"")
    assert len(upstream.completions) == 1


def test_api_examples_of_openais_clients_work(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    upstream.by(lambda asked: None if asked.json.get("stream") else IN_ONE_PIECE["answers in one piece"])
    upstream.always(answer(["Sa", "lt"]))
    first = block("model=$(curl")
    streamed = run(first, chatwait)
    printed = run(first + block("completion=$(curl"), chatwait).removeprefix(streamed)
    whole, _, rest = printed.partition("}: keepalive\n")

    assert '"content":"Sa"' in streamed
    assert '"content":"Rome."' in whole
    assert rest.startswith("data: [DONE]\nid: cwc_")
    assert rest.rstrip().endswith('"object": "chat.completion.deleted", "deleted": true}')


@pytest.mark.requirement("chatwait FR-011", "tasks checklist 11")
def test_readme_context_example_answers(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    upstream.always(answer(["Rome."]))
    answered = json.loads(run(block("And of Italy"), chatwait))

    assert answered["content"] == "Rome."
    assert [turn["role"] for turn in upstream.requests[0].json["messages"]] == ["user", "assistant", "user"]


@pytest.mark.requirement("tasks T030", "tasks checklist 11")
def test_readme_client_whose_connection_is_cut_again_and_again_prints_the_whole_answer(
    chatwait: ChatWait, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    words = [f"wave {number} 🌊 " for number in range(80)]
    upstream.always(answer(words, gap=0.04))  # what came while it was away is one frame; then cuts fall between frames
    with ChaosProxy("127.0.0.1", chatwait.port) as proxy:
        proxy.plan(CutAfter(0), CleanCloseAfter(1500), CutAfter(1333))
        ours = CLIENT.replace('"localhost", 8000', f'"127.0.0.1", {proxy.port}')
        assert ours != CLIENT
        (tmp_path / "client.py").write_text(ours, encoding="utf-8")
        done = subprocess.run([sys.executable, "client.py"], cwd=tmp_path, capture_output=True, timeout=60, check=False)

        assert (done.returncode, done.stderr) == (0, b"")
        text, _, last = done.stdout.decode().rpartition("\n")[0].rpartition("\n")
        assert text == "".join(words)
        assert last == f"complete: {len(text)} characters, SHA-256 checked"
        assert proxy.connections == 4
    assert len(upstream.completions) == 1
