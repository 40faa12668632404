"""The SDK as a worker loads it: without its models, which are all there for whoever wants one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.harness.server import ROOT

COUNT = """
import json, sys
{first}
import openai
print(json.dumps([name for name in sys.modules if name.startswith("openai.types")]))
"""
# The whole SDK, in the process of a worker: an answer and an error, parsed.
USE = """
import app.upstream.sdk
import httpx2, openai, openai.types

def answer(request):
    if b"fail" in request.content:
        return httpx2.Response(429, json={"error": {"message": "Slowly.", "code": "rate_limit_exceeded"}})
    message = {"role": "assistant", "content": "Hello."}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    return httpx2.Response(200, json={"id": "1", "object": "chat.completion", "created": 1, "model": "m",
                                      "choices": choices})

client = openai.OpenAI(api_key="k", max_retries=0,
                       http_client=httpx2.Client(transport=httpx2.MockTransport(answer)))
ask = lambda text: client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
told = ask("Hi")
assert type(told) is openai.types.chat.ChatCompletion, type(told)
assert told.choices[0].message.content == "Hello."
try:
    ask("fail")
except openai.RateLimitError as error:
    assert error.code == "rate_limit_exceeded"
    print("done")
"""


def run(script: str) -> str:
    command = [sys.executable, "-c", script]
    environment = {
        **os.environ,
        "ENV_FILE": os.devnull,
        "OPENAI_API_KEY": "k",
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
    }
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_worker_loads_none_of_the_models() -> None:
    assert json.loads(run(COUNT.format(first="import wsgi"))) == []
    assert len(json.loads(run(COUNT.format(first="")))) > 100  # the premise: by itself, the SDK loads them


def test_models_are_there_for_whoever_wants_one_later() -> None:
    assert run(USE).strip() == "done"
