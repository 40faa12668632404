"""What the specification of the chat page asks of the server: every session whole, whatever the link and the model."""

from __future__ import annotations

import random
import secrets
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness.chaos import ChaosProxy, CutAfter
from tests.harness.reader import Answer, get, open_stream, post, read_answer, read_resuming
from tests.harness.server import ChatWait
from tests.harness.upstream import Done, Finish, Gate, Pause, Script, ScriptedUpstream, Token, answer, error
from tests.live.steps import about, asked, read_on, settings, together, wait_asked


@pytest.mark.requirement("page FR-010", "page constraint 3")
def test_every_model_that_is_listed_streams(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    models = [entry["id"] for entry in get(f"{chatwait.base_url}/models").json["data"]]
    assert len(models) >= 2  # premise
    for model in models:
        body = about(upstream, answer([f"I am {model}", "."])) | {"model": model}
        whole = read_answer(f"{chatwait.base_url}/chat/streaming", body)
        assert (whole.text, whole.tokens) == (f"I am {model}.", 2)
        assert asked(upstream, body)[0].json["model"] == model


@pytest.mark.requirement("page SC-005", "page US3.1", "page FR-004", "chatwait FR-003")
def test_sessions_over_bad_links_and_a_failing_model_come_whole(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """The page wants 95 of 100: here every link is cut twice, and the model refuses one question in four at first."""
    texts = [f"word{at} " for at in range(100)]
    choose = random.Random(20260113)
    # The shortest answer, all tokens in one frame, has some 2000 bytes.
    cuts = [[CutAfter(choose.randrange(200, 1500)) for _ in range(2)] for _ in range(40)]

    def one_session(session: int) -> Answer:
        body = about(upstream, answer(texts, gap=0.005))
        with ChaosProxy("127.0.0.1", chatwait.port) as link:
            link.plan(*cuts[session])
            whole = read_resuming(chatwait.base_url, json=body, via=link.base_url)
            assert link.connections >= 2  # premise: it was cut
        return whole

    upstream.then(*[error(503, headers={"retry-after": "0"})] * 10)
    with ThreadPoolExecutor(10) as pool:
        sessions = list(pool.map(one_session, range(40)))
    ends = [session.terminal.event for session in sessions if session.terminal]
    assert ends.count("done") >= 38
    assert ends == ["done"] * 40  # and nothing is left to chance
    assert {session.text for session in sessions} == {"".join(texts)}
    assert len(upstream.completions) == 50


@pytest.mark.requirement("page edge 7", "page edge 1", "page FR-003", "page entity Conversation Session")
@pytest.mark.requirement("core edge 4", "page SC-004")
def test_sessions_at_once_never_mix(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    """Thirty conversations side by side, two of them of one client and in one tab: each gets its own."""
    names = [secrets.token_hex(4) for _ in range(30)]
    steps = {name: [Token(f"{name}:{at} ") for at in range(50)] for name in names}
    bodies = {
        name: about(upstream, Script(steps=[*said[:25], Gate("all"), *said[25:], Finish(), Done()]), f"I am {name}")
        | {"context": [{"role": "user", "content": f"before {name}"}]}
        for name, said in steps.items()
    }
    with ThreadPoolExecutor(30) as pool:
        url = f"{chatwait.base_url}/chat/streaming"
        reading = {name: pool.submit(read_answer, url, body, timeout=30) for name, body in bodies.items()}
        upstream.wait_reached("all", count=30, timeout=30)  # premise: all are in the middle
        upstream.open("all")
        got = {name: reader.result(60) for name, reader in reading.items()}
    for name, whole in got.items():
        assert whole.text == "".join(token.text for token in steps[name])
        (question,) = asked(upstream, bodies[name])
        assert [turn["content"] for turn in question.json["messages"]] == [f"before {name}", f"I am {name}"]


@pytest.mark.requirement("page edge 2", "page edge 6", "chatwait edge 2")
def test_token_in_five_seconds_is_slow_and_no_failure(
    shared_upstream: ScriptedUpstream, upstream: ScriptedUpstream
) -> None:
    """At the default TIMEOUT_SECONDS; the reader sees meanwhile that the line lives."""
    with ChatWait(**settings(shared_upstream)) as chatwait:
        body = about(upstream, Script(steps=[Token("slow"), Pause(5.0), Token(" words"), Finish(), Done()]))
        whole = read_answer(f"{chatwait.base_url}/chat/streaming", body, timeout=4.0)  # no silence as long as that
    first, *pings, last = [event.event for event in whole.events if event.event in ("token", "ping")]
    assert (first, last, whole.text) == ("token", "token", "slow words")
    assert set(pings) == {"ping"}
    assert len(pings) >= 2


@pytest.mark.requirement("page FR-011", "page edge 5", "page US3.3", "chatwait resilience 3", "chatwait scenario 3")
def test_dialogue_goes_on_after_a_page_was_reloaded_in_mid_answer(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Reloaded twice: once the rest is read, once the whole; the next turn takes up what was said."""
    context = [{"role": "user", "content": "I am Ada."}, {"role": "assistant", "content": "Hello Ada."}]
    script = Script(steps=[Token("You "), Token("are "), Gate("reloaded"), Token("Ada."), Finish(), Done()])
    body = about(upstream, script) | {"context": context}
    got = Answer()
    with open_stream(f"{chatwait.base_url}/chat/streaming", json=body) as connection:
        got.begin_connection(connection.headers)
        for event in connection.events():
            got.add(event)
            if got.tokens == 2:
                break
    assert got.text == "You are "  # what the page has kept
    upstream.open("reloaded")
    assert read_on(got, chatwait.base_url).verify().text == "You are Ada."
    assert read_answer(f"{chatwait.base_url}/chat/streaming/{got.stream_id}").text == "You are Ada."
    assert [turn["content"] for turn in wait_asked(upstream, body).json["messages"][:2]] == ["I am Ada.", "Hello Ada."]
    assert len(asked(upstream, body)) == 1  # the conversation was not asked again

    said = [*context, {"role": "user", "content": body["message"]}, {"role": "assistant", "content": got.text}]
    following = about(upstream, answer(["Yes."]))
    assert post(f"{chatwait.base_url}/chat/wait", {**following, "context": said}).json["content"] == "Yes."
    assert asked(upstream, following)[0].json["messages"] == [*said, {"role": "user", "content": following["message"]}]


@pytest.mark.requirement("page US3.2", "page US1.3", "page US2.3")
def test_message_can_be_sent_again_after_a_failure_and_the_next_after_an_end(
    chatwait: ChatWait, upstream: ScriptedUpstream
) -> None:
    """Also at once and by several: a failure leaves nothing behind that would stand in the way."""
    url = f"{chatwait.base_url}/chat/streaming"
    body = about(upstream, answer(["Hello."]))
    upstream.then(Script(steps=[Token("Hel")]))  # ends in the middle
    failed = read_answer(url, body)
    assert failed.terminal is not None
    assert (failed.terminal.event, failed.text) == ("failed", "Hel")
    assert failed.terminal.json["error"]["retryable"] is True
    again, other = together(lambda: read_answer(url, body), lambda: read_answer(url, body))
    assert again.text == other.text == read_answer(url, body).text == "Hello."
