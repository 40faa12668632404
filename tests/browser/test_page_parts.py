"""Parts of the page by themselves, quickly: one proof each of what their own long tests hold in full."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.browser.follow_steps import WHEEL_UP, is_detached, open_log
from tests.browser.modules import Modules
from tests.browser.parts import open_parts
from tests.browser.storages import in_page
from tests.browser.test_page_announce import Announcer

pytestmark = pytest.mark.browser

# A stream whose server gives what a test says: `asked` notes each call, and `send` gives bytes to the last one.
STREAM = """
  const { openStream } = await load("stream");
  const asked = [];
  const told = [];
  let send = null;
  const reply = () => {
    const encoder = new TextEncoder();
    const body = new ReadableStream({ start: (from) => (send = (text) => from.enqueue(encoder.encode(text))) });
    const headers = { "Content-Type": "text/event-stream", "X-Stream-Id": "cw_1" };
    return Promise.resolve(new Response(body, { headers }));
  };
  const note = (name) => (...given) => (asked.push([name, ...given.slice(0, 2)]), reply());
  const api = { start: note("start"), attach: note("attach"), stop: note("stop") };
  const answer = { state: "sending", content: "", sequence: 0, streamId: null, key: "k", reconnects: 0 };
  let at = 1_000;
  const stream = openStream({
    api, answer, request: () => ({}), now: () => at,
    onText: (_, text) => told.push(text), onChange: () => told.push(answer.state), onReset: () => told.push("reset"),
  });
  const token = (sequence, content) => `event: token\\ndata: ${JSON.stringify({ sequence, count: 1, content })}\\n\\n`;
  const until = async (fact) => { while (!fact()) await new Promise((resolve) => setTimeout(resolve, 5)); };
  await until(() => send);
"""


def test_stream_that_misses_a_token_comes_back_once_for_all_that_came_with_it(modules: Modules) -> None:
    """The connection is given up at the first gap, and nothing more of it is heard."""
    asked, state, content = modules.run(
        f"""async (load) => {{ {STREAM}
          send(token(1, "a") + token(3, "c") + token(4, "d") + token(5, "e") + token(6, "f"));
          send = null;
          await until(() => asked.length > 1 && send);
          send(token(2, "b") + token(3, "c"));
          await until(() => answer.sequence === 3);
          stream.close();
          return [asked, answer.state, answer.content];
        }}"""
    )
    assert asked == [["start", {}, "k"], ["attach", "cw_1", 1]]
    assert (state, content) == ("streaming", "abc")


def test_stream_that_was_closed_while_it_waits_to_come_back_asks_nobody_again(modules: Modules) -> None:
    asked, waited = modules.run(
        f"""async (load) => {{ {STREAM}
          api.attach = (...given) => (asked.push(["attach"]), Promise.reject(new TypeError("away")));
          send(token(1, "a"));
          await until(() => answer.sequence === 1);
          at += 60_000;  // silent for so long that it is given up
          await until(() => answer.state === "reconnecting" && answer.retryAt);
          stream.close();
          const before = asked.length;
          await new Promise((resolve) => setTimeout(resolve, 700));
          return [asked.length - before, answer.retryAt - at];
        }}"""
    )
    assert 0 < waited < 700, "the premise: it would have been asked meanwhile"
    assert asked == 0


def test_tab_that_missed_a_piece_of_another_tabs_answer_asks_for_the_whole(modules: Modules) -> None:
    said, text, content = modules.run(
        """async (load) => {
          const { createAnswers } = await load("answers");
          const answer = { id: "a1", role: "assistant", asks: "q1", content: "One ", sequence: 1, state: "streaming" };
          const question = { id: "q1", role: "user", content: "?" };
          const talk = { v: 2, id: "t1", title: "", messages: [question, answer] };
          const said = [];
          const shown = [];
          const other = new BroadcastChannel("chatwait");
          other.onmessage = ({ data }) => data.kind === "ask" && said.push(data.id);
          const never = new Promise(() => {});
          const answers = createAnswers({
            api: {}, locks: { request: () => never }, now: Date.now, random: () => "r", limits: () => null,
            store: { load: () => talk, save: () => "stored", list: () => [] },
            on: { text: (_, __, piece) => shown.push(piece), change() {}, show() {}, refused() {}, removed() {} },
          });
          answers.conversation("t1");
          const tell = (text, end, sequence) =>
            other.postMessage({ kind: "text", id: "t1", answer: "a1", text, end, sequence });
          tell("two ", 8, 2);
          tell("four ", 19, 4);  // "three " is missing
          tell("two ", 8, 2);  // late, and known
          while (said.length < 2) await new Promise((resolve) => setTimeout(resolve, 5));
          other.close();
          return [said, shown.join(""), answer.content];
        }"""
    )
    assert said == ["t1", "t1"], "once when it met the conversation, and once at the gap"
    assert (text, content) == ("two ", "One two ")


def test_view_that_its_reader_moves_up_stays_there_while_text_flows(chromium: Any, module_origin: Any) -> None:
    with open_log(chromium, module_origin) as parts:
        parts.run("begin()")
        parts.run("nextFrames(5)")
        parts.page.mouse.wheel(0, WHEEL_UP)
        parts.wait(lambda: is_detached(parts), "a detached view")
        parts.run("new Promise((resolve) => setTimeout(resolve, 400))")  # longer than it is held for a wheel
        assert is_detached(parts)
        assert parts.run("gap()") > 100


def test_progress_is_said_once_in_ten_seconds(chromium: Any, module_origin: Any) -> None:
    with open_parts(chromium, module_origin) as parts:
        announcer = Announcer(parts)
        announcer.call("announcer.started(answer('a', 'sending')); announcer.answering(1);")
        announcer.later(11)
        announcer.heard("polite")
        announcer.call("announcer.answering(2); announcer.answering(3);")
        assert announcer.heard("polite") == [
            "Your message is sent. The answer is on its way.",
            "Still answering: 2 words so far.",
        ]


def test_answer_of_a_file_that_was_on_its_way_is_interrupted_and_asked_for_by_nobody(modules: Modules) -> None:
    messages = [
        {"id": "q1", "role": "user", "content": "?"},
        {"id": "a1", "role": "assistant", "content": "One", "state": "streaming", "streamId": "cw_1", "queued": True},
    ]
    text = json.dumps({"format": "chatwait", "v": 2, "conversations": [{"id": "t1", "messages": messages}]})
    _, answer = in_page(
        modules, "const store = open(fake()); store.importAll(arg); return store.load('t1').messages;", text
    )
    assert (answer["state"], answer["queued"]) == ("interrupted", False)
    assert answer["error"]["code"] == "imported"
