"""Be the usual Flask service: a generator over the SDK's chunks, under gunicorn's gevent worker.

The environment: OPENAI_API_KEY, OPENAI_BASE_URL and OPENAI_MODEL (load).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import httpx2
from flask import Flask, Response, request
from openai import DefaultHttpxClient, OpenAI, OpenAIError

MODEL = os.environ.get("OPENAI_MODEL", "load")
CONNECTIONS = 2000
TIMEOUT = httpx2.Timeout(600, connect=30)

app = Flask(__name__)
client = OpenAI(
    timeout=TIMEOUT,
    http_client=DefaultHttpxClient(
        timeout=TIMEOUT,
        limits=httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
    ),
)


def _asked() -> dict[str, Any]:
    body = request.get_json()
    messages = [*body.get("context", ()), {"role": "user", "content": body["message"]}]
    return {"model": MODEL, "messages": messages, "max_tokens": body.get("max_tokens", 4096)}


@app.post("/chat/streaming")
def chat_streaming() -> Response:
    """Ask, and get the answer as events."""
    asked = _asked()

    def events() -> Iterator[str]:
        try:
            for chunk in client.chat.completions.create(**asked, stream=True):
                if chunk.choices and chunk.choices[0].delta.content:
                    yield f"data: {json.dumps({'content': chunk.choices[0].delta.content})}\n\n"
            yield "data: [DONE]\n\n"
        except OpenAIError as error:
            yield f"event: error\ndata: {json.dumps({'error': str(error)})}\n\n"

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return Response(events(), mimetype="text/event-stream", headers=headers)


@app.post("/chat/wait")
def chat_wait() -> dict[str, Any] | tuple[dict[str, str], int]:
    """Ask, and get the answer when it is complete."""
    try:
        completion = client.chat.completions.create(**_asked())
    except OpenAIError as error:
        return {"error": str(error)}, 502
    return {"content": completion.choices[0].message.content}


@app.get("/health")
def health() -> dict[str, str]:
    """Tell that it lives."""
    return {"status": "healthy"}
