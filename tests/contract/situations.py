"""What a request of contracts/examples meets: a real service in the state that the example names.

An example's file names its situation in words; `World.scene` brings it about.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from load.events import Event
from tests.harness.reader import Connection, delete, get, open_stream, post
from tests.harness.script import (
    CREATED,
    Close,
    Delta,
    Done,
    Finish,
    Gate,
    Script,
    Stall,
    Step,
    Token,
    Usage,
    encode_json,
    error,
)
from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream
from tests.harness.valkey import Valkey
from tests.live.steps import copy_of_service, poll, settings

QUESTION = {"message": "What is the capital of Italy?"}
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "What is the capital of Italy?"}]}
"""The same question as OpenAI's clients ask it."""
KEY = "9b2f6a0e-5a8d-4c5e-9d0a-6f1f2f7f3c11"
USED_KEY = "c3d5e7f9-2b4d-4f6a-8c1e-3a5b7d9f1c2e"
CANCELLED_KEY = "5e1a8c47-93d2-4b60-a7f5-2c9e0d4b6a18"
USAGE = Usage({"prompt_tokens": 31, "completion_tokens": 2, "total_tokens": 33})
ROME = [Delta({"role": "assistant", "content": ""}), Token("Rome")]
REST = [Token("."), Finish(), USAGE, Done()]
DARK = '\r\n\u2028\u0085\0</script>data: x\n\nid: cw_x.9 "\\ é日🙂\x1b[31m'
"""What breaks line splitters, decoders, cursors, pages and terminals."""

HURRY = """
import dataclasses
from flask import request

class Soon(float):
    def __format__(self, spec):
        return "30"

    def __add__(self, more):
        return Soon(float(self) + more)

runtime = app.extensions["chatwait"]
runtime.bodies._seconds = Soon(1)
runtime.generations._bounds = dataclasses.replace(runtime.generations._bounds, silence_seconds=Soon(1.5))
app.before_request(lambda: 1 // (request.headers.get("X-Request-ID") != "a-fault-of-ours") and None)
"""
"""A service whose 30 seconds are one or one and a half, and which meets a fault when a request says so."""


def nothing(*_: object) -> None:
    """Do nothing."""


@dataclass
class Scene:
    """A service, the stream that stands for the example's, and what happens while the answer is awaited and read."""

    service: ChatWait
    stream_id: str = ""
    sent: Callable[[], None] = nothing
    saw: Callable[[Event], None] = nothing


FAILURES: dict[str, Script] = {
    "accepts no more requests": error(429, headers={"Retry-After": "60"}),
    "refuses this server's key": error(401),
    "refuses for its policy": error(400, code="content_policy_violation"),
    "finds the prompt too long": error(400, code="context_length_exceeded"),
    "is down": error(503, headers={"Retry-After": "60"}),
    "stops half-way": Script(steps=[*ROME, Close()]),
    "falls silent": Script(steps=[*ROME, Stall()]),
    "says nothing": Script(before=[Stall()]),
    "refuses a field": error(400, "Unsupported value: 'temperature' does not support 3.", code="unsupported_value"),
    "does not have that model": error(404, "The model `gpt-4o-mini` does not exist.", code="model_not_found"),
    "finds the request too large": error(413, "Request too large."),
    "cannot process a field": error(422, "Input should be a valid string."),
    "answers in another form": Script(headers={"content-type": "text/html"}, body=b"<html>Welcome</html>"),
}
WHOLE = {
    "id": "chatcmpl-B8x2",
    "object": "chat.completion",
    "created": CREATED,
    "model": "gpt-4o-mini",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Rome.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE.usage,
}
LIMITS = {"x-ratelimit-limit-requests": "500", "x-ratelimit-remaining-requests": "499"}
IN_ONE_PIECE: dict[str, Script] = {
    "answers in one piece": Script(headers={"content-type": "application/json", **LIMITS}, body=encode_json(WHOLE)),
}
CALLED = {"name": "weather", "arguments": ""}
# A gate opens when an event, or a comment, of its name has been read: which chunks share a frame must not depend on the
# machine. Each chunk of a completion counts as a token.
ANSWERS: dict[str, list[Step]] = {
    "answers word by word": [*ROME, Gate("token"), *REST],
    "has not begun to answer": [Gate("never"), *ROME, *REST],
    "hesitates": [Gate("ping"), *ROME, Gate("token"), *REST],
    "answers with half a character at the end": [*ROME, Gate("token"), Token("\ud83c"), Finish(), Done()],
    "counts to twenty": [*(Token(f"{number} ") for number in range(1, 21)), Finish(), Done()],
    "answers with everything that breaks clients": [Token(DARK), Finish(), Done()],
    "answers nothing": [Finish(), Done()],
    "thinks and calls a function": [
        Delta({"role": "assistant", "content": None}),
        Delta({"reasoning_content": "They want to know the weather."}),
        Delta({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": CALLED}]}),
        Delta({"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "Rome"}'}}]}),
        Finish("tool_calls"),
        USAGE,
        Done(),
    ],
}


class World:
    """Start services as they are needed, in front of one scripted upstream."""

    def __init__(self, directory: Path) -> None:
        self.upstream = ScriptedUpstream()
        self._directory = directory
        self._stack = ExitStack()
        self._services: dict[str, ChatWait] = {}
        self._expired = ""
        self._orphan = ""
        self._expired_completion = ""
        self._orphan_completion = ""
        self._valkey: Valkey | None = None

    def __enter__(self) -> Self:
        self._stack.enter_context(self.upstream)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def service(self, **more: Any) -> ChatWait:
        """Give the service with these settings, the first time by starting it."""
        name = repr(more)
        if name not in self._services:
            self._services[name] = self._stack.enter_context(self.new_service(**more))
        return self._services[name]

    def new_service(self, **more: Any) -> ChatWait:
        """Make a service with these settings and the defaults otherwise."""
        return ChatWait(**settings(self.upstream, **{"HEARTBEAT_SECONDS": None, **more}))

    def go_on(self, event: Event) -> None:
        """Open the gate at which the model waits for an event of this name to be read."""
        self.upstream.open("token" if event.event == "message" else event.event)

    @property
    def hurried(self) -> ChatWait:
        """Give the service that loses patience soon."""
        if "hurried" not in self._services:
            root = copy_of_service(self._directory, HURRY)
            own = settings(self.upstream, HEARTBEAT_SECONDS=None)
            self._services["hurried"] = self._stack.enter_context(ChatWait(root=root, **own))
        return self._services["hurried"]

    @property
    def small(self) -> ChatWait:
        """Give the service that takes one generation and two readers at a time, and keeps an answer for a second.

        Its heartbeat is long enough that a busy machine brings no second ping.
        """
        return self.service(MAX_ACTIVE_STREAMS=1, MAX_READERS=2, RETENTION_SECONDS=1, HEARTBEAT_SECONDS=3)

    def scene(self, situation: str) -> AbstractContextManager[Scene]:
        """Bring a situation about. Raises: KeyError for one that is not known."""
        self.upstream.reset()
        self.upstream.always(Script(steps=[*ROME, *REST]))
        if situation.startswith("the model "):
            return asked(self, situation.removeprefix("the model "))
        if situation.startswith("a stream whose model "):
            return ended(self, situation.removeprefix("a stream whose model "))
        if situation.startswith("a completion whose model "):
            return completed(self, situation.removeprefix("a completion whose model "))
        return (SITUATIONS | SHARED)[situation](self)

    @property
    def stopping(self) -> ChatWait:
        """Give a service that waits for its last generation to end, whose model nobody disturbs."""
        if "stopping" not in self._services:
            upstream = self._stack.enter_context(ScriptedUpstream())
            upstream.always(Script(steps=ANSWERS["has not begun to answer"]))
            service = self._stack.enter_context(ChatWait(**settings(upstream, DRAIN_SECONDS=600, TIMEOUT_SECONDS=600)))
            self._stack.enter_context(ask(service))
            service.signal(signal.SIGTERM)
            service.wait_for_log("drain_started", timeout=20)
            self._services["stopping"] = service
        return self._services["stopping"]

    @property
    def valkey(self) -> Valkey:
        """Give the storage that several processes share."""
        if self._valkey is None:
            self._valkey = self._stack.enter_context(Valkey())
        return self._valkey

    @property
    def sharing(self) -> ChatWait:
        """Give a service that keeps its streams there."""
        return self.service(REDIS_URL=self.valkey.url())

    @contextmanager
    def another(self) -> Iterator[ChatWait]:
        """Run another one of them, to be killed."""
        service = self.new_service(REDIS_URL=self.valkey.url())
        try:
            yield service.start()
        finally:
            service.end()

    def orphan(self) -> str:
        """Give the id of a stream, asked for with the key, whose process was killed after one token."""
        if not self._orphan:
            self.upstream.always(Script(steps=[*ROME, Stall()]))
            with self.another() as service, ask(service, {"Idempotency-Key": KEY}) as connection:
                stream_id = connection.headers["x-stream-id"]
                with open_stream(f"{self.sharing.base_url}/chat/streaming/{stream_id}", timeout=20) as reading:
                    for event in reading.events():
                        if event.event == "token":
                            service.kill()
            self._orphan = stream_id
        return self._orphan

    def expired(self) -> str:
        """Give the id of a stream that the small service has dropped."""
        if not self._expired:
            base = self.small.base_url
            stream_id = post(f"{base}/chat/wait", QUESTION, headers={"Idempotency-Key": KEY}).headers["x-stream-id"]
            until = time.monotonic() + 20
            while get(f"{base}/chat/wait/{stream_id}").status != 410:
                assert time.monotonic() < until, "the stream does not expire"
                time.sleep(1.2)  # longer than it is kept after each look
            self._expired = stream_id
        return self._expired

    def orphan_completion(self) -> str:
        """Give the id of a completion whose process was killed before the answer."""
        if not self._orphan_completion:
            self.upstream.always(FAILURES["says nothing"])
            with self.another() as service:
                stream_id = begin_completion(service)
                service.kill()
            until = time.monotonic() + 60
            while get(f"{self.sharing.base_url}/chat/completions/{stream_id}", headers=NO_WAIT).status != 503:
                assert time.monotonic() < until, "nobody ends the completion"
                time.sleep(0.2)
            self._orphan_completion = stream_id
        return self._orphan_completion

    def expired_completion(self) -> str:
        """Give the id of a completion that the small service has dropped."""
        if not self._expired_completion:
            base = self.small.base_url
            with ask_completion(self.small) as connection:
                stream_id = connection.headers["x-stream-id"]
                connection.body()
            until = time.monotonic() + 20
            while get(f"{base}/chat/completions/{stream_id}").status != 410:
                assert time.monotonic() < until, "the completion does not expire"
                time.sleep(1.2)  # longer than it is kept after each look
            self._expired_completion = stream_id
        return self._expired_completion


@contextmanager
def asked(world: World, manner: str) -> Iterator[Scene]:
    """The model is asked by the request itself."""
    services = {
        "falls silent": lambda: world.hurried,
        "says nothing": lambda: world.hurried,
        "hesitates": lambda: world.small,
    }
    service = services.get(manner, world.service)()
    scripts = FAILURES | IN_ONE_PIECE
    world.upstream.always(scripts[manner] if manner in scripts else Script(steps=ANSWERS[manner]))
    yield Scene(service, saw=world.go_on)


@contextmanager
def ended(world: World, manner: str) -> Iterator[Scene]:
    """The model has answered so before."""
    with asked(world, manner) as scene, ask(scene.service) as connection:
        for event in connection.events():
            scene.saw(event)
        yield Scene(scene.service, connection.headers["x-stream-id"])


@contextmanager
def completed(world: World, manner: str) -> Iterator[Scene]:
    """The model has answered so before, on OpenAI's route."""
    is_streamed = manner not in IN_ONE_PIECE
    with asked(world, manner) as scene, ask_completion(scene.service, stream=is_streamed) as connection:
        for event in connection.events():
            scene.saw(event)
        yield Scene(scene.service, connection.headers["x-stream-id"])


NO_WAIT = {"Prefer": "wait=0"}


def ask_completion(service: ChatWait, headers: dict[str, str] | None = None, *, stream: bool = True) -> Connection:
    """Ask as OpenAI's clients do."""
    body = {**CHAT, "stream": stream}
    return open_stream(f"{service.base_url}/chat/completions", json=body, headers=headers, timeout=20)


def begin_completion(service: ChatWait, headers: dict[str, str] | None = None) -> str:
    """Ask for an answer in one piece, wait for none of it, and give the id of its stream. A key may have begun it."""
    answer = post(f"{service.base_url}/chat/completions", CHAT, headers={**NO_WAIT, **(headers or {})})
    assert answer.status in (202, 409), answer.body
    return answer.headers["x-stream-id"]


def ask(service: ChatWait, headers: dict[str, str] | None = None) -> Connection:
    return open_stream(f"{service.base_url}/chat/streaming", json=QUESTION, headers=headers, timeout=20)


@contextmanager
def running(world: World, service: ChatWait) -> Iterator[Scene]:
    """Keep a stream that has one token, and a reader of it."""
    world.upstream.always(Script(steps=[*ROME, Gate("ping"), *REST]))
    with ask(service) as connection:
        events = connection.events()
        assert [next(events).event, next(events).event] == ["start", "token"]
        stream_id = connection.headers["x-stream-id"]
        yield Scene(service, stream_id, saw=world.go_on)
        if service.is_running:
            delete(f"{service.base_url}/chat/wait/{stream_id}")
    poll(lambda: all_left(service), seconds=20, what="the readers have left")


@contextmanager
def running_completion(world: World, service: ChatWait) -> Iterator[Scene]:
    """Keep a completion that has two records, the role and one token, and a reader of it."""
    world.upstream.always(Script(steps=[*ROME, Gate("keepalive"), *REST]))
    with ask_completion(service) as connection:
        events = connection.events()
        assert [next(events).id, next(events).id]
        stream_id = connection.headers["x-stream-id"]
        yield Scene(service, stream_id, saw=world.go_on)
        if service.is_running:
            delete(f"{service.base_url}/chat/wait/{stream_id}")
    poll(lambda: all_left(service), seconds=20, what="the readers have left")


def all_left(service: ChatWait) -> bool:
    return not service.is_running or len(service.log_of("reader_left")) == len(service.log_of("reader_attached"))


@contextmanager
def at_rest(world: World) -> Iterator[Scene]:
    yield Scene(world.service())


@contextmanager
def stream_ended(world: World) -> Iterator[Scene]:
    service = world.service()
    yield Scene(service, post(f"{service.base_url}/chat/wait", QUESTION).headers["x-stream-id"])


@contextmanager
def stream_cancelled(world: World) -> Iterator[Scene]:
    with running(world, world.service()) as scene:
        assert delete(f"{scene.service.base_url}/chat/wait/{scene.stream_id}").status == 200
        yield scene


@contextmanager
def stream_stopped_while_read(world: World) -> Iterator[Scene]:
    def stop(event: Event) -> None:
        if event.event == "token":
            assert delete(f"{scene.service.base_url}/chat/wait/{scene.stream_id}").status == 200

    with running(world, world.service()) as scene:
        scene.saw = stop
        yield scene


def stream_running(world: World) -> AbstractContextManager[Scene]:
    return running(world, world.service())


@contextmanager
def stream_expired(world: World) -> Iterator[Scene]:
    yield Scene(world.small, world.expired())


@contextmanager
def key_used(world: World) -> Iterator[Scene]:
    service = world.service()
    post(f"{service.base_url}/chat/wait", QUESTION, headers={"Idempotency-Key": USED_KEY})
    yield Scene(service)


@contextmanager
def completion_cancelled(world: World) -> Iterator[Scene]:
    """Stopped by ChatWait's own route, which erases nothing."""
    with running_completion(world, world.service()) as scene:
        assert delete(f"{scene.service.base_url}/chat/wait/{scene.stream_id}").status == 200
        yield scene


@contextmanager
def completion_stopped_while_read(world: World) -> Iterator[Scene]:
    def stop(event: Event) -> None:
        if event.event == "keepalive":
            assert delete(f"{scene.service.base_url}/chat/wait/{scene.stream_id}").status == 200

    with running_completion(world, world.service()) as scene:
        scene.saw = stop
        yield scene


@contextmanager
def completion_of_key_cancelled(world: World) -> Iterator[Scene]:
    world.upstream.always(FAILURES["says nothing"])
    service = world.service()
    stream_id = begin_completion(service, {"Idempotency-Key": CANCELLED_KEY})
    assert delete(f"{service.base_url}/chat/wait/{stream_id}").status == 200
    yield Scene(service, stream_id)


def completion_running(world: World) -> AbstractContextManager[Scene]:
    return running_completion(world, world.service())


@contextmanager
def completion_expired(world: World) -> Iterator[Scene]:
    yield Scene(world.small, world.expired_completion())


@contextmanager
def key_of_completion_used(world: World) -> Iterator[Scene]:
    service = world.service()
    with ask_completion(service, {"Idempotency-Key": USED_KEY}) as connection:
        connection.body()
    yield Scene(service)


@contextmanager
def few_tokens(world: World) -> Iterator[Scene]:
    yield Scene(world.service(MAX_INPUT_TOKENS=20))


@contextmanager
def impatient(world: World) -> Iterator[Scene]:
    yield Scene(world.hurried)


@contextmanager
def full_of_generations(world: World) -> Iterator[Scene]:
    with running(world, world.small) as scene:
        yield scene


@contextmanager
def full_of_readers(world: World) -> Iterator[Scene]:
    with (
        running(world, world.small) as scene,
        open_stream(f"{scene.service.base_url}/chat/streaming/{scene.stream_id}") as second,
    ):
        assert next(second.events()).event == "start"
        yield scene


@contextmanager
def full_of_readers_of_a_completion(world: World) -> Iterator[Scene]:
    with (
        running_completion(world, world.small) as scene,
        open_stream(f"{scene.service.base_url}/chat/completions/{scene.stream_id}?stream=true") as second,
    ):
        assert next(second.events()).id
        yield scene


@contextmanager
def foreign_pages(world: World) -> Iterator[Scene]:
    yield Scene(world.service(CORS_ORIGINS="https://chat.example"))


@contextmanager
def stopping(world: World) -> Iterator[Scene]:
    yield Scene(world.stopping)


@contextmanager
def cut_off(world: World) -> Iterator[Scene]:
    with world.new_service() as service, running(world, service) as scene:

        def end() -> None:
            service.wait_for_log("reader_attached", timeout=20, mode="wait")
            service.signal(signal.SIGINT)

        yield Scene(service, scene.stream_id, sent=end)


@contextmanager
def completion_cut_off(world: World) -> Iterator[Scene]:
    with world.new_service() as service, running_completion(world, service) as scene:

        def end() -> None:
            service.wait_for_log("reader_attached", timeout=20, mode="wait")
            service.signal(signal.SIGINT)

        yield Scene(service, scene.stream_id, sent=end)


@contextmanager
def storage_unreachable(world: World) -> Iterator[Scene]:
    yield Scene(world.service(REDIS_URL="redis://127.0.0.1:1/0"))


@contextmanager
def storage_away_for_a_while(world: World) -> Iterator[Scene]:
    """From the first token to the second; the model waits until the reader has been told."""
    world.upstream.always(Script(steps=[*ROME, Gate("unresumable"), Token("."), Gate("resumable"), *REST[1:]]))
    service = world.sharing
    turns = iter([world.valkey.freeze, world.valkey.thaw])

    def turn(event: Event) -> None:
        if event.event == "token":
            next(turns)()
        world.go_on(event)

    try:
        yield Scene(service, saw=turn)
    finally:
        world.valkey.thaw()


@contextmanager
def storage_away_from_a_completion(world: World) -> Iterator[Scene]:
    """The same for OpenAI's clients: the role is the first record, the second one is the first token."""
    world.upstream.always(Script(steps=[*ROME, Gate("unresumable"), Token("."), Gate("resumable"), *REST[1:]]))
    service = world.sharing
    turns = iter([nothing, world.valkey.freeze, world.valkey.thaw])

    def turn(event: Event) -> None:
        if event.event == "message":
            next(turns, nothing)()
        world.go_on(event)

    try:
        yield Scene(service, saw=turn)
    finally:
        world.valkey.thaw()


@contextmanager
def process_of_completion_died(world: World) -> Iterator[Scene]:
    yield Scene(world.sharing, world.orphan_completion())


@contextmanager
def process_of_completion_dies(world: World) -> Iterator[Scene]:
    """Another request waits for it then: a completion that fails without a record frees its key."""
    world.upstream.always(FAILURES["says nothing"])
    with world.another() as service:
        stream_id = begin_completion(service, {"Idempotency-Key": KEY})
        yield Scene(world.sharing, stream_id, sent=service.kill)


@contextmanager
def process_died(world: World) -> Iterator[Scene]:
    yield Scene(world.sharing, world.orphan())


@contextmanager
def process_dies(world: World) -> Iterator[Scene]:
    def kill(event: Event) -> None:
        if event.event == "token":
            service.kill()

    with world.another() as service, running(world, service) as scene:
        yield Scene(world.sharing, scene.stream_id, saw=kill)


SITUATIONS: dict[str, Callable[[World], AbstractContextManager[Scene]]] = {
    "": at_rest,
    "a stream that has ended": stream_ended,
    "a stream that was stopped after one token": stream_cancelled,
    "a stream that is stopped while it is read": stream_stopped_while_read,
    "a stream that is running, with one token so far": stream_running,
    "a stream that is no longer kept": stream_expired,
    "the key was sent with another message before": key_used,
    "the body does not arrive within 30 seconds": impatient,
    "an unexpected fault in the server": impatient,
    "a completion that has ended": lambda world: completed(world, "answers word by word"),
    "a completion that was stopped after one token": completion_cancelled,
    "a completion that is stopped while it is read": completion_stopped_while_read,
    "a completion that is running, with one token so far": completion_running,
    "a completion that is no longer kept": completion_expired,
    "the completion of this key was stopped": completion_of_key_cancelled,
    "the key was sent with another completion before": key_of_completion_used,
    "a server with MAX_INPUT_TOKENS=20": few_tokens,
    "a server with as many readers of a completion as it allows": full_of_readers_of_a_completion,
    "a server that is stopped while one waits for a completion": completion_cut_off,
    "a server with as many generations as it allows": full_of_generations,
    "a server with as many readers as it allows": full_of_readers,
    "a server that lists https://chat.example in CORS_ORIGINS": foreign_pages,
    "a server that is stopping": stopping,
    "a server that is stopped while one waits": cut_off,
    "a server whose storage does not answer": storage_unreachable,
}
SHARED: dict[str, Callable[[World], AbstractContextManager[Scene]]] = {
    "the storage does not answer from the first token to the second": storage_away_for_a_while,
    "the storage does not answer from the first token of a completion to the second": storage_away_from_a_completion,
    "a completion whose process died before the answer": process_of_completion_died,
    "the process that had begun to answer this key dies while another one waits": process_of_completion_dies,
    "a stream whose process died after one token": process_died,
    "the process that had begun to answer this key died after one token": process_died,
    "a stream whose process dies while another one reads it": process_dies,
}
"""Those that need a storage which several processes share."""
