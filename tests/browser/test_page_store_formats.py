"""store.js: what it does with old, newer and damaged records: it reads, or leaves them as they are."""

from __future__ import annotations

import pytest

from tests.browser.modules import Modules
from tests.browser.storages import in_page

pytestmark = pytest.mark.browser

CONVERSATION = "chatwait.conversation."
DAMAGED = [
    "",
    "{not json",
    "null",
    "7",
    '"text"',
    '{"v":2}',
    '{"v":2,"messages":{}}',
    '{"v":"2","messages":[]}',
    '{"v":2,"messages":[null]}',
    '{"v":2,"messages":[{"role":"user"}]}',
    '{"v":2,"messages":[{"role":"user","content":7}]}',
    '{"v":2,"messages":[{"role":"nobody","content":"x"}]}',
    '{"v":2,"title":"T","messages":[{"id":"q1","role":"user","content":"cut in the mid',
]
TRY_ALL = """
  const store = open(storage);
  const told = [];
  const listed = store.list().find(({ id }) => id === "b");
  told.push(listed.problem, store.load("b"), store.rename("b", "Other"));
  told.push(store.save(talk("b", [question("q1")])), store.save(talk("a", [question("q9")], { title: "Fine" })));
  told.push(store.problems().filter(({ id }) => id === "b").map(({ code }) => code));
  store.draft("b");
  store.changed("chatwait.conversation.b");
  store.list();
  told.push(JSON.parse(await store.exportAll()).unreadable);
"""


@pytest.mark.parametrize("raw", DAMAGED)
def test_store_leaves_a_damaged_conversation_as_it_is_and_says_so(modules: Modules, raw: str) -> None:
    told, after, removed = in_page(
        modules,
        f"""
        const storage = fake({{ "{CONVERSATION}b": arg }});
        {TRY_ALL}
        const after = storage.getItem("{CONVERSATION}b");
        store.remove("b");
        return [told, after, storage.getItem("{CONVERSATION}b")];
        """,
        raw,
    )
    assert told[:5] == ["damaged", None, False, "memory", "stored"]
    assert told[5:] == [["conversation_damaged"], [{"id": "b", "text": raw}]]
    assert (after, removed) == (raw, None)


def test_store_leaves_a_conversation_of_a_newer_version_as_it_is_and_says_so(modules: Modules) -> None:
    raw = '{"v": 3,  "title": "Ahead", "messages": [{"role": "user", "content": "x"}], "tree": {}}'
    told, after, title = in_page(
        modules,
        f"""
        const storage = fake({{ "{CONVERSATION}b": arg }});
        const {{ title }} = open(storage).list()[0];
        {TRY_ALL}
        return [told, storage.getItem("{CONVERSATION}b"), title];
        """,
        raw,
    )
    assert told[:5] == ["newer", None, False, "memory", "stored"]
    assert told[5:] == [["conversation_newer"], [{"id": "b", "text": raw}]]
    assert (after, title) == (raw, "Ahead")


OLD = '{"role":"user","content":"Why  is\\nthe sky blue?"},{"role":"assistant","content":"Because."}'


@pytest.mark.parametrize("raw", [f"[{OLD}]", f'{{"messages":[{OLD}]}}', f'{{"v":1,"title":"","messages":[{OLD}]}}'])
def test_store_given_an_old_format_loads_it_alike_in_every_tab_and_keeps_it(modules: Modules, raw: str) -> None:
    first, second, kept, again, listed = in_page(
        modules,
        f"""
        const storage = fake({{ "{CONVERSATION}b": arg }});
        const [one, two] = [open(storage), open(storage)];
        const [first, second] = [one.load("b"), two.load("b")];
        const copy = structuredClone(first);
        first.messages.push(question("q2", {{ at: 3000 }}));
        second.messages.push(question("q3", {{ at: 4000 }}));
        const kept = [one.save(first), two.save(second)];
        return [copy, two.load("b"), kept, ids(open(storage).load("b")), one.list()];
        """,
        raw,
    )
    assert [(one["role"], one["content"]) for one in first["messages"]] == [
        ("user", "Why  is\nthe sky blue?"),
        ("assistant", "Because."),
    ]
    assert first["messages"][1]["state"] == "complete"
    assert first["messages"][1]["asks"] == first["messages"][0]["id"]
    assert (first["v"], first["title"]) == (2, "Why is the sky blue?")
    assert [one["id"] for one in second["messages"][:2]] == [one["id"] for one in first["messages"]]
    assert kept == ["stored", "stored"]
    assert again == " ".join([*(one["id"] for one in first["messages"]), "q2", "q3"])
    assert [(one["id"], one["title"]) for one in listed] == [("b", "Why is the sky blue?")]


def test_store_cuts_a_title_that_is_too_long_wherever_it_comes_from(modules: Modules) -> None:
    titles = in_page(
        modules,
        f"""
        const long = (first) => first + "😀".repeat(1_300_000);
        const stub = {{ v: 3, mark: "m", title: long("cd"), updated: 1000 }};
        const whole = talk("b", [question("q1")], {{ title: long("a") }});
        const storage = fake({{ "{CONVERSATION}b": JSON.stringify(whole), "{CONVERSATION}c": JSON.stringify(stub) }});
        const store = open(storage);
        const titles = store.list().map(({{ title }}) => title);
        store.importAll(JSON.stringify({{ ...whole, id: "d", title: long("e") }}));
        store.rename("b", long("fg"));
        store.rename("c", long("h"));
        const later = open(storage);
        titles.push(later.load("d").title, stored(storage, "d").title, later.load("b").title);
        return [...titles, stored(storage, "c").title];
        """,
    )
    assert sorted(titles) == sorted(
        first + "😀" * ((200 - len(first)) // 2) for first in ("a", "cd", "e", "e", "fg", "h")
    )
