"""store.js: export, and import of what was exported, of old formats and of hostile files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.browser.modules import Modules
from tests.browser.storages import in_page

pytestmark = [pytest.mark.browser, pytest.mark.long]

STATES = ["complete", "stopped", "interrupted", "failed", "sending", "waiting", "streaming", "slow", "reconnecting"]
IMPORT = """
const storage = fake();
storage.limit = 10 * 1024 * 1024;
const store = open(storage);
store.save(talk("mine", [question("q1"), answer("a1", { state: "complete" })]));
const before = JSON.stringify(storage.all());
const take = (text) => {
  let told;
  try {
    told = store.importAll(text);
  } catch (error) {
    const { message, detail, action } = error;
    told = { isError: error instanceof Error, message, detail, action };
  }
  const added = store.list().filter(({ id }) => id !== "mine").map(({ id }) => store.load(id));
  return { told, added, isSame: before === JSON.stringify(storage.all()), problems: store.problems() };
};
"""
KNOWN = {"v", "id", "title", "created", "updated", "messages"}
HOSTILE_MESSAGE = {
    "id": "<img src=x onerror=alert(1)>",
    "role": "assistant",
    "content": "text \ud800 half",
    "at": 1e300,
    "state": "__proto__",
    "asks": "nobody",
    "key": "short",
    "sent": {"model": {"toString": 1}, "skip": -5, "more": 1},
    "streamId": "../../v1/models",
    "sequence": 9e99,
    "model": ["x"],
    "created": 7,
    "sentAt": "never",
    "endedAt": -1,
    "tokens": "many",
    "firstTokenMs": {},
    "reconnects": 1.5,
    "finishReason": 0,
    "error": {"message": {"x": 1}, "code": "boom", "retryable": "yes", "status": 1e999, "extra": "x"},
    "note": 7,
    "queued": "yes",
    "stopping": True,
    "retryAt": 5,
    "innerHTML": "<script>",
}
GUESSED = {**HOSTILE_MESSAGE, "key": "a" * 22}
"""With a key that the service refuses, since anybody may have the same."""


def _import(modules: Modules, text: str) -> dict[str, Any]:
    return in_page(modules, IMPORT + "return take(arg);", text)


def _whole(**more: Any) -> str:
    return json.dumps({"format": "chatwait", "v": 2, "exported": 1, "conversations": [], **more})


def test_store_exported_and_imported_in_another_browser_is_the_same(modules: Modules) -> None:
    told, before, after, exported = in_page(
        modules,
        """
        const answers = arg.flatMap((state, n) => [
          question(`q${n}`), answer(`a${n}`, { asks: `q${n}`, state, content: `🙂\\u2028 ${state}`, tokens: n }),
        ]);
        const from = fake();
        open(from).save(talk("a", answers));
        open(from).save(talk("b", [question("q1")], { title: "Täg", updated: 500, created: 100 }));
        const text = await open(from).exportAll();
        const to = fake();
        const told = open(to).importAll(text);
        const everything = (storage) => ["a", "b"].map((id) => open(storage).load(id));
        return [told, everything(from), everything(to), text];
        """,
        STATES,
    )
    assert told == {"added": 2, "skipped": 0}
    assert {name: json.loads(exported)[name] for name in ("format", "v")} == {"format": "chatwait", "v": 2}
    for one, other in zip(before, after, strict=True):
        assert [one[name] for name in KNOWN - {"messages"}] == [other[name] for name in KNOWN - {"messages"}]
        for name in ("id", "role", "content", "at", "asks", "sent", "sequence", "tokens"):
            assert [message.get(name) for message in one["messages"]] == [
                message.get(name) for message in other["messages"]
            ]
    states = [message["state"] for message in after[0]["messages"] if message["role"] == "assistant"]
    assert states == ["complete", "stopped", "interrupted", "failed"] + ["interrupted"] * 5  # nothing is on its way
    ways_back = ["streamId" in json.dumps(one) for one in json.loads(exported)["conversations"][0]["messages"][1::2]]
    assert ways_back == [False, False] + [True] * 7


def test_store_given_conversations_that_it_knows_adds_them_under_new_ids(modules: Modules) -> None:
    told = in_page(
        modules,
        """
        const storage = fake();
        const store = open(storage);
        for (const id of ["a", "b"]) store.save(talk(id, [question("q1")]));
        const text = await store.exportAll();
        const before = storage.getItem("chatwait.conversation.a");
        store.remove("b");
        storage.done();
        const told = [store.importAll(text), storage.done(), store.importAll(text)];
        const listed = store.list().map(({ id, title }) => `${id} ${title}`).sort();
        return [told, listed, before === storage.getItem("chatwait.conversation.a")];
        """,
    )
    added = {"added": 2, "skipped": 0}
    written = ["chatwait.conversation.new-1", "chatwait.conversation.new-2", "chatwait.index"]
    titles = ["a About a", "new-1 About a", "new-2 About b", "new-3 About a", "new-4 About b"]
    assert told == [[added, written, added], titles, True]


OLD = '{"role":"user","content":"Why?"},{"role":"assistant","content":"Because."}'


@pytest.mark.parametrize(
    "text", [f"[{OLD}]", f'{{"messages":[{OLD}]}}', f'\ufeff{{"title":"Why?","messages":[{OLD}]}}']
)
def test_store_given_an_old_file_adds_its_conversation(modules: Modules, text: str) -> None:
    result = _import(modules, text)

    assert result["told"] == {"added": 1, "skipped": 0}
    (added,) = result["added"]
    assert [(one["role"], one["content"], one.get("state")) for one in added["messages"]] == [
        ("user", "Why?", None),
        ("assistant", "Because.", "complete"),
    ]
    assert (added["title"], added["updated"]) == ("Why?", 1_700_000_000_000)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "7", '"text"', "{}", "[]", "[1,2]", "<html>", '{"messages":{}}', "[" * 1_000_000),
        *('{"format":"chatwait","v":2}', _whole(conversations={}), _whole(conversations=[None, 7, "x", []])),
        *(_whole(v=3), _whole(v=1e308), _whole(conversations=[{"messages": [{"role": "user"}]}])),
        _whole(conversations=[{"v": 99, "messages": []}, {"messages": [{"role": ["user"], "content": "x"}]}]),
        _whole(conversations=[{"messages": [{"role": "user", "content": {"length": 5}}]}] * 3),
        _whole(conversations=[[]] * 5_001),
        '{"__proto__":{"format":"chatwait","conversations":[]}}',
    ],
    ids=lambda text: text[:40],
)
def test_store_given_a_file_that_holds_nothing_refuses_it_in_three_parts(modules: Modules, text: str) -> None:
    result = _import(modules, text)

    assert result["told"]["isError"] is True
    assert all(len(result["told"][part]) > 10 for part in ("message", "detail", "action"))
    assert (result["added"], result["isSame"], result["problems"]) == ([], True, [])


def test_store_given_a_file_that_is_too_large_refuses_it(modules: Modules) -> None:
    told = in_page(modules, IMPORT + 'return take(`["${"x".repeat(33 << 20)}"]`).told;')
    assert told["message"] == "This file is too large."


def test_store_given_a_hostile_conversation_adds_it_clean(modules: Modules) -> None:
    text = json.dumps(
        {
            "format": "chatwait",
            "v": 2,
            "conversations": [
                {
                    "id": "../index",
                    "title": {"x": 1},
                    "created": "soon",
                    "updated": -1,
                    "evil": "x",
                    "messages": [HOSTILE_MESSAGE, {"role": "user", "content": "Hello"}, GUESSED],
                },
                {"messages": [{"role": "user", "content": 7}]},
            ],
        }
    ).replace("Infinity", "1e999")
    text = text.replace('"innerHTML"', '"__proto__": {"polluted": true}, "constructor": {"prototype": 1}, "innerHTML"')
    result = in_page(modules, IMPORT + "return { ...take(arg), polluted: {}.polluted ?? null };", text)

    assert result["told"] == {"added": 1, "skipped": 1}
    (added,) = result["added"]
    assert set(added) == KNOWN
    assert (added["id"], added["title"], added["updated"]) == ("new-1", "Hello", 1_700_000_000_000)
    first, asked, second = added["messages"]
    assert (first["id"], asked["id"], second["id"]) == ("old-0", "old-1", "old-2")
    assert second["asks"] == "old-1"
    assert {**second, "id": 0, "asks": 0} == {**first, "id": 0, "asks": 0}
    assert second == {
        "id": "old-2",
        "role": "assistant",
        "content": "text \ufffd half",
        "at": 0,
        "state": "interrupted",
        "asks": "old-1",
        "sequence": 0,
        "streamId": None,
        "reconnects": 0,
        "sent": {"model": None, "skip": 0},
        "error": {"code": "answer_gone", "retryable": False},
        "queued": False,
        "stopping": False,
        "retryAt": None,
    }
    assert (result["polluted"], result["problems"]) == (None, [])


@pytest.mark.long
def test_store_given_ten_megabytes_keeps_what_fits_and_the_rest_in_memory(modules: Modules) -> None:
    talks = [{"messages": [{"role": "user", "content": "x" * 1_000_000}]} for _ in range(10)]
    result = _import(modules, _whole(conversations=talks))

    assert result["told"] == {"added": 10, "skipped": 0}
    assert [len(one["messages"][0]["content"]) for one in result["added"]] == [1_000_000] * 10
    assert [one["code"] for one in result["problems"]] == ["storage_full"]


def test_store_given_thousands_of_conversations_writes_the_index_once(modules: Modules) -> None:
    text = _whole(conversations=[{"messages": [{"role": "user", "content": f"{n}"}]} for n in range(3_000)])
    told, writes = in_page(
        modules,
        """
        const kept = new Map();
        let indexed = 0;
        const storage = {
          get length() { return kept.size; },
          key: (place) => [...kept.keys()][place],
          getItem: (key) => kept.get(key) ?? null,
          setItem: (key, value) => { indexed += key === "chatwait.index"; kept.set(key, value); },
        };
        return [open(storage).importAll(arg), indexed];
        """,
        text,
    )
    assert told == {"added": 3_000, "skipped": 0}
    assert writes == 1
