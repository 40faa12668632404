"""Leaving is not stopping; stopping is quick and final; and nobody is harmed by others' bad connections."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from typing import Any

import psutil
import pytest

from tests.harness.http1 import Target, Wire
from tests.harness.reader import Answer, KeptAlive, Reply, delete, get, open_stream, post, read_answer, request
from tests.harness.server import ChatWait
from tests.harness.upstream import (
    Delta,
    Done,
    Finish,
    Gate,
    Pause,
    Script,
    ScriptedUpstream,
    Stall,
    Token,
    answer,
    error,
)
from tests.live.steps import (
    about,
    asked,
    begin,
    cursor,
    live,
    log_name,
    poll,
    read_on,
    settings,
    together,
    wait_asked,
)

CLOSED_WITHIN = 1.0  # seconds
TRIES = 3  # a busy machine may be late now and then, not each time


def url_of(chatwait: ChatWait, stream_id: str) -> str:
    return f"{chatwait.base_url}/chat/streaming/{stream_id}"


def wait_head(chatwait: ChatWait, stream_id: str, sequence: int) -> None:
    """Wait until a live log has so many tokens: a cursor ahead of it is refused."""
    url, headers = url_of(chatwait, stream_id), cursor(stream_id, sequence)
    poll(lambda: request("HEAD", url, headers=headers).status == 200, seconds=5, what=f"{sequence} tokens in the log")


def cancelled(reply: Reply) -> dict[str, Any]:
    assert (reply.status, sorted(reply.json)) == (200, ["status", "stream_id", "tokens"])
    assert reply.json["status"] == "cancelled"
    return dict(reply.json)


# Leaving


@pytest.mark.requirement("core edge 1", "page US3.3")
def test_only_reader_that_leaves_and_comes_back_misses_nothing(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """The generation goes on, over several looks at its deadlines and to its end, while nobody is there."""
    script = Script(steps=[Token("a"), Token("b"), Gate("left"), Token("c", 0.5), Token("d", 0.5), Finish(), Done()])
    body, got = about(upstream, script), Answer()
    with open_stream(f"{chatwait.base_url}/chat/streaming", json=body) as connection:
        got.begin_connection(connection.headers)
        events = connection.events()
        while got.tokens < 2:
            got.add(next(events))
    assert got.stream_id is not None
    chatwait.wait_for_log("reader_left", stream=log_name(got.stream_id))
    assert asked(upstream, body)[0].peer_closed_at is None
    upstream.open("left")
    chatwait.wait_for_log("response_complete", stream=log_name(got.stream_id), status="complete", tokens=4)
    assert (read_on(got, chatwait.base_url).verify().text, got.tokens) == ("abcd", 4)
    assert len(asked(upstream, body)) == 1


@pytest.mark.parametrize("wanted", ["FIN", "RST"])
@pytest.mark.requirement("core risk 3")
def test_reader_that_leaves_a_quiet_stream_is_noticed_within_a_heartbeat(
    chatwait: ChatWait, upstream: ScriptedUpstream, wanted: str
) -> None:
    with live(chatwait.base_url, about(upstream, Script(steps=[Token("a"), Stall()]))) as stream_id:
        chatwait.wait_for_log("reader_left", stream=log_name(stream_id))
        connection = open_stream(url_of(chatwait, stream_id), headers=cursor(stream_id, 0))
        assert next(connection.events()).event == "start"
        connection.reset() if wanted == "RST" else connection.close()
        poll(lambda: len(chatwait.log_of("reader_left", stream=log_name(stream_id))) == 2, seconds=5, what="it left")


def test_wait_client_that_left_is_noticed_within_a_heartbeat(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """It is written nothing, so only the socket tells; the generation goes on."""
    with live(
        chatwait.base_url, about(upstream, Script(steps=[Token("a"), Gate("on"), Finish(), Done()]))
    ) as stream_id:
        name = log_name(stream_id)
        for leave in (Wire.close, Wire.reset):
            wire = Wire("127.0.0.1", chatwait.port)
            before = len(chatwait.log_of("reader_attached", stream=name, mode="wait"))
            wire.send_request("GET", f"/chat/wait/{stream_id}", {"Host": "localhost"}, None)
            poll(
                lambda before=before: len(chatwait.log_of("reader_attached", stream=name, mode="wait")) > before,
                seconds=5,
                what="it waits",
            )
            assert len(chatwait.log_of("reader_left", stream=name, mode="wait")) == before
            leave(wire)
            poll(
                lambda before=before: len(chatwait.log_of("reader_left", stream=name, mode="wait")) > before,
                seconds=5,
                what="the service to notice",
            )
        upstream.open("on")
        assert get(f"{chatwait.base_url}/chat/wait/{stream_id}").json["content"] == "a"


@pytest.fixture(scope="module")
def hasty(shared_upstream: ScriptedUpstream) -> Iterator[ChatWait]:
    """A service that gives a generation up when nobody has read it for two seconds."""
    with ChatWait(**settings(shared_upstream, ABANDONED_SECONDS=2, MAX_READERS=10)) as chatwait:
        yield chatwait


@pytest.mark.parametrize("path", ["/chat/wait/{}", "/chat/streaming/{}"])
def test_client_that_has_sent_its_last_byte_is_answered_as_it_asked(
    chatwait: ChatWait, upstream: ScriptedUpstream, path: str
) -> None:
    """Half-closed is not gone: 202 is for who asked for it, and comes no sooner."""
    body = about(upstream, Script(steps=[Token("a"), Gate("after the look"), Finish(), Done()]))
    with live(chatwait.base_url, body) as stream_id, closing(Wire("127.0.0.1", chatwait.port)) as wire:
        wire.send_request("GET", path.format(stream_id), {"Host": "localhost"}, None)
        chatwait.wait_for_log("reader_attached", stream=log_name(stream_id), mode=path.split("/")[2])
        wire.socket.shutdown(socket.SHUT_WR)
        poll(lambda: len(chatwait.log_of("reader_left", stream=log_name(stream_id))) == 2, seconds=10, what="a look")
        upstream.open("after the look")
        reply = wire.read_reply("GET")
        assert reply.status == 200
        assert b'"content":"a"' in reply.body.replace(b": ", b":")
        assert b'"status":"complete"' in reply.body.replace(b": ", b":")
        get(f"{chatwait.base_url}/health")  # answered after all that the worker does at the end of that answer
        assert len(chatwait.log_of("reader_left", stream=log_name(stream_id))) == 2, "it leaves once"


@pytest.mark.parametrize("path", ["/chat/wait/{}", "/chat/streaming/{}"])
def test_client_that_has_sent_its_last_byte_keeps_nothing_from_being_abandoned(
    hasty: ChatWait, upstream: ScriptedUpstream, path: str
) -> None:
    body = about(upstream, Script(steps=[Token("a"), Stall()]))
    stream_id = begin(hasty.base_url, body)
    with closing(Wire("127.0.0.1", hasty.port, timeout=20)) as wire:
        wire.send_request("GET", path.format(stream_id), {"Host": "localhost"}, None)
        wire.socket.shutdown(socket.SHUT_WR)
        reply = wire.read_reply("GET")
        assert reply.status == 200
        assert b'"reason":"abandoned"' in reply.body.replace(b": ", b":")


def test_clients_that_have_sent_their_last_byte_take_nobodys_place(hasty: ChatWait, upstream: ScriptedUpstream) -> None:
    """Nor are they more than a tenth beside those who read: the oldest of them goes."""
    body = about(upstream, Script(steps=[Token("a"), Gate("places"), Token("b"), Finish(), Done()]))
    stream_id = begin(hasty.base_url, body)
    name = log_name(stream_id)
    with ExitStack() as stack:
        stack.enter_context(open_stream(url_of(hasty, stream_id)))  # so that it is not abandoned
        wires = []
        for turn in range(1, 4):
            for _ in range(4):
                wire = stack.enter_context(closing(Wire("127.0.0.1", hasty.port, timeout=20)))
                wire.send_request("GET", f"/chat/wait/{stream_id}", {"Host": "localhost"}, None)
                wire.socket.shutdown(socket.SHUT_WR)
                wires.append(wire)
            poll(
                lambda turn=turn: len(hasty.log_of("reader_left", stream=name, mode="wait")) == 4 * turn,
                seconds=10,
                what="all of them to be seen",
            )
        oldest = wires[0].read_reply("GET")
        assert (oldest.status, oldest.json["error_code"]) == (503, "overloaded")
        upstream.open("places")
        assert wires[-1].read_reply("GET").json["content"] == "ab"
        assert read_answer(url_of(hasty, stream_id)).text == "ab"


# Stopping


STAGES = {
    "in mid-answer": Script(steps=[Token("a"), Token("b"), Stall()]),
    "after the role": Script(steps=[Delta({"role": "assistant", "content": ""}), Stall()]),
    "after the head": Script(steps=[Stall()]),
    "before the head": Script(before=[Stall()]),
    "while it reasons": Script(
        steps=[step for _ in range(60) for step in (Delta({"reasoning_content": "hm"}), Pause(0.3))],
    ),
}


@pytest.mark.parametrize("path", ["/chat/streaming/{}", "/v1/chat/wait/{}"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.requirement("page SC-007", "page scope 2")
def test_stop_closes_the_upstreams_socket_at_once(
    chatwait: ChatWait, upstream: ScriptedUpstream, stage: str, path: str
) -> None:
    """Where the upstream goes on reasoning, nothing but the stop itself could end it."""
    for _ in range(TRIES):
        seconds = stop_and_time(chatwait, upstream, STAGES[stage], path)
        if seconds < CLOSED_WITHIN:
            break
    assert seconds < CLOSED_WITHIN


def stop_and_time(chatwait: ChatWait, upstream: ScriptedUpstream, script: Script, path: str) -> float:
    """Stop a generation, check how it ended, and tell how long the upstream's socket stayed. Units: seconds."""
    body = about(upstream, script)
    stream_id = begin(chatwait.base_url, body)
    record = wait_asked(upstream, body)
    tokens = sum(isinstance(step, Token) for step in script.steps)
    if tokens:
        wait_head(chatwait, stream_id, tokens)
    assert record.peer_closed_at is None
    began = time.monotonic()
    stopped = cancelled(delete(f"{chatwait.base_url}{path.format(stream_id)}"))
    assert stopped == {"stream_id": stream_id, "status": "cancelled", "tokens": tokens}
    seconds = record.wait_closed() - began
    end = read_answer(url_of(chatwait, stream_id))
    assert end.terminal is not None
    assert (end.terminal.event, end.terminal.json["reason"]) == ("cancelled", "client")
    assert len(asked(upstream, body)) == 1
    return seconds


@contextmanager
def full_backlog() -> Iterator[int]:
    """Listen on a port whose queue is full: who connects now gets no answer at all, and waits in SYN_SENT."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


def connecting(chatwait: ChatWait, port: int) -> int:
    """Count the workers' sockets that are on their way to this port."""
    return sum(
        bool(connection.raddr) and connection.raddr.port == port
        for pid in chatwait.worker_pids()
        for connection in psutil.Process(pid).net_connections("inet")
    )


def test_stop_during_connect_gives_the_socket_up_at_once() -> None:
    """The kernel would try for minutes."""
    with (
        full_backlog() as port,
        ChatWait(
            OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1", OPENAI_API_KEY="sk-none-0123456789", HEARTBEAT_SECONDS=1
        ) as chatwait,
    ):
        stream_id = begin(chatwait.base_url, {"message": "Anybody there?"})
        poll(lambda: connecting(chatwait, port) == 1, seconds=5, what="the connect")
        with open_stream(url_of(chatwait, stream_id)) as reader:
            events = reader.events()
            assert [next(events).event, next(events).event] == ["start", "ping"]
            assert connecting(chatwait, port) == 1, "nothing hangs in connect, so the premise is gone"
            cancelled(delete(url_of(chatwait, stream_id)))
            assert [event.event for event in events if event.event != "ping"] == ["cancelled"]
        poll(lambda: connecting(chatwait, port) == 0, seconds=5 * CLOSED_WITHIN, what="the socket to be closed")
        assert get(f"{chatwait.base_url}/health").status == 200


def test_stop_while_retrying_asks_the_upstream_no_more(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    body = about(upstream, error(429, headers={"retry-after": "1"}))
    stream_id = begin(chatwait.base_url, body)
    chatwait.wait_for_log("upstream_retry", stream=log_name(stream_id))
    cancelled(delete(url_of(chatwait, stream_id)))
    with pytest.raises(TimeoutError):
        wait_asked(upstream, body, count=2, timeout=1.5)
    assert read_answer(url_of(chatwait, stream_id)).tokens == 0

    untouched = about(upstream, error(429, headers={"retry-after": "1"}))
    with live(chatwait.base_url, untouched):
        wait_asked(upstream, untouched, count=2)  # the premise: it would have been asked again


def test_stop_twice_is_the_same_answer(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Also a third time, by the other path, and two at once."""
    body = about(upstream, Script(steps=[Token("a"), Stall()]))
    stream_id = begin(chatwait.base_url, body)
    wait_head(chatwait, stream_id, 1)
    both = together(*[lambda: delete(url_of(chatwait, stream_id))] * 2)
    third = delete(f"{chatwait.base_url}/v1/chat/wait/{stream_id}")
    assert [cancelled(reply) for reply in (*both, third)] == [
        {"stream_id": stream_id, "status": "cancelled", "tokens": 1}
    ] * 3
    assert len(chatwait.log_of("response_complete", stream=log_name(stream_id))) == 1


def test_stop_after_the_end_says_how_it_ended(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    for script, status, tokens in ((answer(["a", "b"]), "complete", 2), (error(401), "failed", 0)):
        stream_id = post(f"{chatwait.base_url}/chat/wait", about(upstream, script)).headers["x-stream-id"]
        before = read_answer(url_of(chatwait, stream_id)).terminal
        reply = delete(url_of(chatwait, stream_id))
        assert (reply.status, reply.json) == (200, {"stream_id": stream_id, "status": status, "tokens": tokens})
        after = read_answer(url_of(chatwait, stream_id)).terminal
        assert before is not None
        assert after is not None
        assert before.data == after.data


def test_stop_of_an_unknown_id_is_404(chatwait: ChatWait) -> None:
    for path in ("/chat/streaming/", "/chat/wait/", "/v1/chat/streaming/"):
        reply = delete(f"{chatwait.base_url}{path}cw_AAAAAAAAAAAAAAAAAAAAAA")
        assert (reply.status, reply.json["error_code"]) == (404, "stream_unknown")


def test_stop_racing_the_end_has_one_terminal_and_says_which_won(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """The stop comes earlier after an answer that was whole, and later after one that was stopped: it stays near."""
    statuses = []
    late = 0.0  # seconds from the last token to the stop; below zero the token is later
    for number in range(30):
        gate = f"end {number}"
        body = about(upstream, Script(steps=[Token("a"), Gate(gate), Token("b"), Finish(), Done()]))
        stream_id = begin(chatwait.base_url, body)
        upstream.wait_reached(gate)

        def end(gate: str = gate, late: float = late) -> None:
            time.sleep(max(0.0, -late))  # the moment is the case
            upstream.open(gate)

        def stop(stream_id: str = stream_id, late: float = late) -> Reply:
            time.sleep(max(0.0, late))  # the moment is the case
            return delete(url_of(chatwait, stream_id))

        reading, _, reply = together(lambda stream_id=stream_id: read_answer(url_of(chatwait, stream_id)), end, stop)
        assert reading.terminal is not None
        assert (reply.status, reply.json["status"]) == (200, reading.terminal.json["status"])
        assert reply.json["tokens"] == reading.tokens
        again = read_answer(url_of(chatwait, stream_id))
        assert again.terminal is not None
        assert (again.terminal.data, again.text) == (reading.terminal.data, reading.text)
        assert len(chatwait.log_of("response_complete", stream=log_name(stream_id))) == 1
        statuses.append(reply.json["status"])
        late += 0.001 if statuses[-1] == "cancelled" else -0.001
    assert set(statuses) == {"cancelled", "complete"}, "there was no race"


def test_all_readers_see_the_stop_with_the_partial_and_so_does_a_later_one(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    body = about(upstream, Script(steps=[Token("Par"), Token("is"), Gate("two"), Stall()]))
    stream_id = begin(chatwait.base_url, body)
    upstream.wait_reached("two")
    name, wait_url = log_name(stream_id), f"{chatwait.base_url}/chat/wait/{stream_id}"
    wait_head(chatwait, stream_id, 2)

    def stop() -> Reply:
        poll(lambda: len(chatwait.log_of("reader_attached", stream=name)) == 6, seconds=5, what="all readers")
        return delete(url_of(chatwait, stream_id))

    *tabs, resumed, waited, stopped = together(
        *[lambda: read_answer(url_of(chatwait, stream_id))] * 3,
        lambda: read_answer(url_of(chatwait, stream_id), headers=cursor(stream_id, 1), after=1, prefix="Par"),
        lambda: get(wait_url),
        stop,
    )
    assert cancelled(stopped)["tokens"] == 2
    later = read_answer(url_of(chatwait, stream_id))
    for got in (*tabs, resumed, later):
        assert got.terminal is not None
        assert (got.terminal.event, got.text, got.terminal.json["reason"]) == ("cancelled", "Paris", "client")
        assert got.terminal.json["usage"]["source"] == "estimated"
    for reply in (waited, get(wait_url)):
        assert (reply.status, reply.json["status"], reply.json["content"]) == (200, "cancelled", "Paris")


# Abandoned


def logged_at(record: dict[str, Any]) -> float:
    return datetime.fromisoformat(record["timestamp"]).timestamp()


@pytest.mark.requirement("chatwait resilience 4")
def test_abandoned_generation_is_cancelled_a_reader_resets_the_clock_and_a_read_one_lives(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream
) -> None:
    """Asking with HEAD is no reading; waiting is."""
    with ChatWait(**settings(shared_upstream, ABANDONED_SECONDS=4)) as chatwait, ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        stall = Script(steps=[Token("a"), Token("b"), Gate("read on"), Token("c"), Finish(), Done()])
        # Two that somebody reads, all the while.
        read, waited_for = about(upstream, stall), about(upstream, stall)
        reader = stack.enter_context(open_stream(f"{chatwait.base_url}/chat/streaming", json=read))
        answered = Answer()
        answered.begin_connection(reader.headers)
        waiting = pool.submit(post, f"{chatwait.base_url}/chat/wait", waited_for, timeout=60)
        # One that is left alone, and one that is visited 1.3 s later.
        alone, visited = (about(upstream, Script(steps=[Token("a"), Token("b"), Stall()])) for _ in range(2))
        alone_id, visited_id = begin(chatwait.base_url, alone), begin(chatwait.base_url, visited)
        left_alone = chatwait.wait_for_log("reader_left", stream=log_name(alone_id))
        time.sleep(1.3)  # a busy machine may be late with the visit: there are 2.7 s left for it
        begin_again = read_some(chatwait, visited_id)
        assert begin_again.tokens == 2, "it was gone already, so nothing could be reset"
        poll(lambda: len(chatwait.log_of("reader_left", stream=log_name(visited_id))) == 2, seconds=5, what="leaving")
        left_visited = chatwait.log_of("reader_left", stream=log_name(visited_id))[-1]

        for stream_id, left, body in ((alone_id, left_alone, alone), (visited_id, left_visited, visited)):
            url = url_of(chatwait, stream_id)
            ended = []
            until = time.monotonic() + 20
            while not ended:
                assert time.monotonic() < until, "not abandoned"
                assert request("HEAD", url).status == 200
                time.sleep(0.1)
                ended = chatwait.log_of("response_complete", stream=log_name(stream_id))
            assert (ended[0]["status"], ended[0]["reason"]) == ("cancelled", "abandoned")
            assert logged_at(ended[0]) - logged_at(left) >= 3.9
            wait_asked(upstream, body).wait_closed()
            got = read_answer(url)
            assert got.terminal is not None
            assert (got.terminal.json["reason"], got.text) == ("abandoned", "ab")
            reply = get(f"{chatwait.base_url}/chat/wait/{stream_id}")
            assert (reply.status, reply.json["status"], reply.json["content"]) == (200, "cancelled", "ab")

        upstream.open("read on")
        for event in reader.events():
            answered.add(event)
        assert answered.verify().text == waiting.result(30).json["content"] == "abc"


def read_some(chatwait: ChatWait, stream_id: str) -> Answer:
    """Read two tokens of a stream and leave."""
    got = Answer(stream_id=stream_id)
    with open_stream(url_of(chatwait, stream_id)) as connection:
        for event in connection.events():
            got.add(event)
            if got.tokens == 2:
                break
    return got


def test_wait_with_a_preference_leaves_the_generation_running(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """202 is a way of leaving; on the same connection the answer can be had later."""
    script = Script(steps=[Token("a"), Gate("on"), Token("b"), Finish(), Done()])
    body = about(upstream, script)
    with KeptAlive("127.0.0.1", chatwait.port) as connection:
        running = connection.request("POST", "/chat/wait", json=body, headers={"Prefer": "wait=1"})
        assert (running.status, running.json["status"], running.json["tokens"]) == (202, "running", 1)
        assert running.headers["preference-applied"] == "wait=1"
        assert running.headers["location"] == f"/v1/chat/wait/{running.json['stream_id']}"
        upstream.open("on")
        done = connection.request("GET", running.headers["location"])
        assert (done.status, json.loads(done.body)["content"]) == (200, "ab")
    assert len(asked(upstream, body)) == 1


def test_peer_of_a_stopped_stream_is_told_by_the_path_of_its_location(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Whoever holds the id can stop it, with nothing but what the answer's headers said."""
    body = about(upstream, Script(steps=[Token("a"), Stall()]))
    with open_stream(f"{chatwait.base_url}/chat/streaming", json=body) as connection:
        target = Target.of(f"{chatwait.base_url}{connection.headers['location']}")
        cancelled(delete(f"http://{target.host}:{target.port}{target.path}"))
        assert [event.event for event in connection.events()][-1] == "cancelled"
