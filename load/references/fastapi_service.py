"""Be the service of the plan "Core Streaming Chat API": FastAPI, StreamingResponse, AsyncOpenAI, pydantic, structlog.

What a competent author would write after it, its cheap form wherever the plan leaves a choice: an ASGI middleware
instead of FastAPI's decorator (which would pass every chunk through a queue), and a log set up for speed as structlog's
documentation says. It stands alone, without the service that it is compared with.

The environment: OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_MODEL (load), TIMEOUT_SECONDS (600, of a connection's silence)
and CHUNK_LOG. The plan wants every chunk's size and time logged: `batched` (the default, and cheapest) does so in one
line at the answer's end, `each` in one line for each chunk, as the plan's task list says. `none` breaks the plan.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from uuid import uuid4

import httpx2
import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from openai import APITimeoutError, AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MODEL: Final = os.environ.get("OPENAI_MODEL", "load")
TIMEOUT_SECONDS: Final = float(os.environ.get("TIMEOUT_SECONDS", "600"))
CHUNK_LOG: Final = os.environ.get("CHUNK_LOG", "batched")
CONNECTIONS: Final = 2000
EVENT_STREAM_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

if CHUNK_LOG not in ("each", "batched", "none"):
    raise SystemExit(f"CHUNK_LOG: {CHUNK_LOG!r} is none of each, batched and none.")


def _redact(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if "api_key" in event:
        event["api_key"] = "REDACTED"
    return event


structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _redact,
        structlog.processors.JSONRenderer(serializer=orjson.dumps),
    ],
    wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    logger_factory=structlog.BytesLoggerFactory(),
    cache_logger_on_first_use=True,
)
log: Any = structlog.get_logger()


class ContextMessage(BaseModel):
    """One turn of the dialogue so far."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(BaseModel):
    """What is asked."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    message: Annotated[str, Field(min_length=1, max_length=8000)]
    context: Annotated[list[ContextMessage], Field(max_length=100)] = []
    model: str = MODEL
    max_tokens: Annotated[int, Field(ge=1, le=16384)] = 4096

    @field_validator("model")
    @classmethod
    def _allowed(cls, model: str) -> str:
        if model != MODEL:
            raise ValueError(f"is not allowed; {MODEL} is")
        return model

    def upstream(self) -> dict[str, Any]:
        """Tell what the model is asked with."""
        messages = [turn.model_dump() for turn in self.context] + [{"role": "user", "content": self.message}]
        return {"model": self.model, "messages": messages, "max_tokens": self.max_tokens}


class StreamChunk(BaseModel):
    """One piece of a streamed answer; `sequence` counts from 1."""

    content: str
    sequence: int
    is_final: bool = False


class FinalChunk(StreamChunk):
    """The end of a complete streamed answer."""

    is_final: bool = True
    correlation_id: str
    status: str
    duration_ms: int
    total_tokens: int | None


class ChatResponse(BaseModel):
    """A whole answer."""

    content: str
    correlation_id: str
    status: str
    duration_ms: int
    total_tokens: int | None


class ErrorResponse(BaseModel):
    """What went wrong, and what to do."""

    error: str
    detail: str
    correlation_id: str


class CorrelationMiddleware:
    """Give every request an id: in its state, in each of its log lines, and in its response's head."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        correlation_id = str(uuid4())
        scope.setdefault("state", {})["correlation_id"] = correlation_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(correlation_id=correlation_id)
        header = (b"x-correlation-id", correlation_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], header]
            await send(message)

        log.info("request_received", method=scope["method"], path=scope["path"])
        await self._app(scope, receive, send_with_id)


class ChunkLog:
    """Note each chunk's sequence, size and time, never its content. Units: bytes, milliseconds from the request."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._chunks: list[tuple[int, int, int]] = []

    def add(self, sequence: int, data: bytes) -> None:
        """Note one that is being sent."""
        if CHUNK_LOG == "none":
            return
        at = _ms_since(self._started)
        if CHUNK_LOG == "each":
            log.info("chunk_sent", sequence=sequence, size=len(data), at_ms=at)
        else:
            self._chunks.append((sequence, len(data), at))

    def end(self) -> None:
        """Write what was noted and is not yet written."""
        if self._chunks:
            log.info("chunks_sent", chunks=self._chunks)


def _ms_since(started: float) -> int:
    return round((time.perf_counter() - started) * 1000)


def _failure(error: OpenAIError, correlation_id: str) -> tuple[int, ErrorResponse]:
    """Log why the model failed, and say it to the user."""
    log.error("error_occurred", error_type=type(error).__name__, message=str(error), recovery="told the client")
    if isinstance(error, APITimeoutError):
        status, what, why = 504, "The answer took too long.", "The model did not answer in time. Try again."
    else:
        status, what, why = 502, "The answer could not be had.", "The model's service failed. Try again in a moment."
    return status, ErrorResponse(error=what, detail=why, correlation_id=correlation_id)


async def _events(request: ChatRequest, client: AsyncOpenAI, correlation_id: str) -> AsyncIterator[bytes]:
    """Yield the answer as server-sent events; a failure is one too."""
    started = time.perf_counter()
    chunks = ChunkLog(started)
    sequence, total_tokens, status = 0, None, "disconnected"
    try:
        stream = await client.chat.completions.create(
            **request.upstream(), stream=True, stream_options={"include_usage": True}
        )
        async with stream:
            async for chunk in stream:
                if chunk.usage is not None:
                    total_tokens = chunk.usage.total_tokens
                if chunk.choices and (content := chunk.choices[0].delta.content):
                    sequence += 1
                    data = StreamChunk(content=content, sequence=sequence).model_dump_json().encode()
                    yield b"data: " + data + b"\n\n"
                    chunks.add(sequence, data)
        status = "complete"
        final = FinalChunk(
            content="",
            sequence=sequence + 1,
            correlation_id=correlation_id,
            status=status,
            duration_ms=_ms_since(started),
            total_tokens=total_tokens,
        )
        yield b"data: " + final.model_dump_json().encode() + b"\n\n"
    except OpenAIError as error:
        status = "failed"
        answer = _failure(error, correlation_id)[1]
        yield b"event: error\ndata: " + answer.model_dump_json().encode() + b"\n\n"
    finally:
        chunks.end()
        log.info("response_complete", duration_ms=_ms_since(started), token_count=total_tokens, status=status)


@asynccontextmanager
async def _lifespan(service: FastAPI) -> AsyncIterator[None]:
    """Hold the one client of the model, with connections for every stream."""
    timeout = httpx2.Timeout(TIMEOUT_SECONDS, connect=30)
    limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    http = DefaultAsyncHttpxClient(timeout=timeout, limits=limits)
    async with AsyncOpenAI(http_client=http, timeout=timeout) as client:
        service.state.client = client
        yield


app = FastAPI(title="Core Streaming Chat API", lifespan=_lifespan)
app.add_middleware(CorrelationMiddleware)


@app.exception_handler(RequestValidationError)
async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
    """Say what of the request is wrong."""
    problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    body = ErrorResponse(
        error="The request is not valid.",
        detail=f"{problems}. Correct it and send it again.",
        correlation_id=request.state.correlation_id,
    )
    return JSONResponse(body.model_dump(), 400)


@app.post("/chat/streaming")
async def chat_streaming(body: ChatRequest, request: Request) -> StreamingResponse:
    """Ask, and get the answer as events."""
    events = _events(body, request.app.state.client, request.state.correlation_id)
    return StreamingResponse(events, media_type="text/event-stream", headers=EVENT_STREAM_HEADERS)


@app.post("/chat/wait", response_model=ChatResponse)
async def chat_wait(body: ChatRequest, request: Request) -> ChatResponse | JSONResponse:
    """Ask, and get the answer when it is complete."""
    started = time.perf_counter()
    client: AsyncOpenAI = request.app.state.client
    try:
        completion = await client.chat.completions.create(**body.upstream())
    except OpenAIError as error:
        status, failure = _failure(error, request.state.correlation_id)
        return JSONResponse(failure.model_dump(), status)
    total_tokens = completion.usage.total_tokens if completion.usage else None
    duration_ms = _ms_since(started)
    log.info("response_complete", duration_ms=duration_ms, token_count=total_tokens, status="complete")
    return ChatResponse(
        content=completion.choices[0].message.content or "",
        correlation_id=request.state.correlation_id,
        status="complete",
        duration_ms=duration_ms,
        total_tokens=total_tokens,
    )


@app.get("/health")
async def health() -> dict[str, str]:
    """Tell that it lives."""
    return {"status": "healthy", "timestamp": datetime.now(UTC).isoformat()}
