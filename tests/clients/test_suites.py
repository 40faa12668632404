"""Public suites for services with OpenAI's interface, unmodified, against the running service."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.model import MODEL, obey
from tests.clients.programs import environment, node
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream
from tests.live.steps import settings

KEY = "sk-client-0123456789abcdefghijklmnop"


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedUpstream]:
    """A model's server with everything that the suites look for."""
    with ScriptedUpstream() as upstream:
        upstream.models = [MODEL]
        yield upstream.by(obey)


@pytest.fixture(scope="module")
def service(model: ScriptedUpstream) -> Iterator[ChatWait]:
    with ChatWait(**settings(model, ALLOWED_MODELS=MODEL)) as chatwait:
        yield chatwait


def run(command: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    """Run a suite to its end."""
    return subprocess.run(
        command,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_llm_comply_finds_nothing_wrong_with_the_chat_completions(service: ChatWait, tmp_path: Path) -> None:
    """All of its tests for the chat completions pass; none is left out."""
    program = str(environment("llm-comply") / "bin/llm-comply")
    options = ["--format", "openai-chat", "--json", "--api-key", KEY, "--model", MODEL]
    done = run([program, "--base-url", f"{service.base_url}/v1", *options], tmp_path)

    found = json.loads(done.stdout)
    wrong = [result for result in found["results"] if result["status"] != "passed" or result.get("warnings")]
    assert not wrong, json.dumps(wrong, indent=2)
    assert found["summary"]["passed"] >= 9


def probed(base_url: str, home: Path) -> dict[str, Any]:
    """Run all of llmprobe but its benchmark, and return its report."""
    program = str(environment("node") / "node_modules/llmprobe/bin/dist/llmprobe.mjs")
    options = ["--full", "--no-bench", "--no-save", "--json", "--api-key", KEY, "--model", MODEL]
    done = run([node(), program, f"{base_url}/v1", *options], home)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def seen(report: dict[str, Any]) -> dict[str, Any]:
    """Return what llmprobe found, without times."""
    conformance = report["conformance"]
    results = [{name: one[name] for name in one if name != "durationMs"} for one in conformance["results"]]
    return {
        "results": {one["id"]: one for one in results},
        "notes": [conformance[name] for name in ("inconclusive", "warnings", "nits")],
        "surfaces": {one["id"]: one["supported"] for one in report["coverage"]["entries"]},
        "credits": report["coverage"]["credits"],
        "evals": {one["id"]: one["passed"] for one in report["capability"]["evals"]},
        "tasks": {one["id"]: (one["passed"], one["steps"]) for one in report["agentic"]["tasks"]},
    }


def test_llmprobe_finds_the_same_through_the_service_as_at_the_model(
    model: ScriptedUpstream, service: ChatWait, tmp_path: Path
) -> None:
    """Requests and answers pass unchanged: what the model's server can do it can do behind the service."""
    direct, through = (probed(base_url, tmp_path) for base_url in (model.origin, service.base_url))

    assert seen(through) == seen(direct)
    (chat,) = [one for one in direct["conformance"]["bySurface"] if one["surface"] == "chat"]
    assert chat["passed"] == chat["total"] >= 90, direct["conformance"]
