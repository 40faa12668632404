"""store.js: what is kept, what it costs, and what happens where nothing can be kept."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.modules import Modules
from tests.browser.storages import in_page

pytestmark = pytest.mark.browser

CONVERSATION = "chatwait.conversation."
INDEX = "chatwait.index"
REMOVED = "chatwait.removed"


def test_store_given_a_conversation_keeps_text_and_cursor_in_one_record(modules: Modules) -> None:
    conversation, again, kept = in_page(
        modules,
        """
        const storage = fake();
        const conversation = talk("a", [question("q1"), answer("a1")]);
        const kept = open(storage).save(conversation);
        return [conversation, open(storage).load("a"), [kept, storage.all()]];
        """,
    )
    assert again == conversation
    assert kept[0] == "stored"
    assert set(kept[1]) == {CONVERSATION + "a", INDEX}
    assert '"content":"One two"' in kept[1][CONVERSATION + "a"]
    assert '"sequence":2' in kept[1][CONVERSATION + "a"]
    assert kept[1][INDEX] == '{"v":2,"conversations":[{"id":"a","title":"About a","updated":1000,"active":true}]}'


def test_store_saving_again_writes_the_index_only_when_its_line_changes(modules: Modules) -> None:
    writes = in_page(
        modules,
        """
        const storage = fake();
        const store = open(storage);
        const reply = answer("a1", { content: "", sequence: 0, state: "sending" });
        const conversation = talk("a", [question("q1"), reply]);
        const after = (change) => {
          change();
          return [store.save(conversation), ...storage.done().map((key) => key.split(".")[1])];
        };
        return {
          fresh: after(() => {}),
          token: after(() => Object.assign(reply, { content: "One", sequence: 1, state: "streaming" })),
          tokens: after(() => Object.assign(reply, { content: "One two three", sequence: 3 })),
          slow: after(() => Object.assign(reply, { state: "slow" })),
          nothing: after(() => {}),
          title: after(() => Object.assign(conversation, { title: "Other" })),
          end: after(() => Object.assign(reply, { state: "complete", endedAt: 5000 })),
          refused: after(() => conversation.messages.push(question("q9", { at: 5500 }))),
          question: after(() => conversation.messages.push(question("q2", { at: 6000 }), answer("a2", { at: 6000 }))),
          listed: store.list(),
        };
        """,
    )
    one, both = ["stored", "conversation"], ["stored", "conversation", "index"]
    assert [writes[name] for name in ("token", "tokens", "slow")] == [one] * 3
    assert [writes[name] for name in ("fresh", "title", "end", "refused", "question")] == [both] * 5
    assert writes["nothing"] == ["stored"]
    assert writes["listed"] == [{"id": "a", "title": "Other", "updated": 6000, "active": True}]


def test_store_lists_newest_first_and_what_is_on_its_way(modules: Modules) -> None:
    listed = in_page(
        modules,
        """
        const storage = fake({ "chatwait.draft.z": "d", other: "x", "chatwait.answer.a": "lease" });
        for (const [id, at, state] of [["a", 5, "complete"], ["b", 9, "failed"], ["c", 7, "reconnecting"]]) {
          open(storage).save(talk(id, [question("q1"), answer("a1", { state })], { updated: at * 1000 }));
        }
        return [open(storage).list(), open(storage).problems()];
        """,
    )
    assert [(one["id"], one["updated"], one["active"]) for one in listed[0]] == [
        ("b", 9000, False),
        ("c", 7000, True),
        ("a", 5000, False),
    ]
    assert listed[1] == []


@pytest.mark.parametrize(
    "index",
    [
        *(
            None,
            "{",
            "[]",
            "null",
            '{"v":2}',
            '{"v":2,"conversations":{}}',
            '{"v":2,"conversations":[null]}',
            '{"v":1}',
        ),
        *('{"v":2,"conversations":[{"id":"a","title":7,"updated":1}]}', '{"v":2,"conversations":[]}'),
    ],
)
def test_store_without_a_sound_index_lists_all_and_writes_a_whole_one_with_the_next_save(
    modules: Modules, index: str | None
) -> None:
    told = in_page(
        modules,
        """
        const storage = fake();
        for (const id of ["a", "b"]) open(storage).save(talk(id, [question("q1")]));
        const whole = storage.getItem("chatwait.index");
        storage.removeItem("chatwait.index");
        if (arg !== null) storage.put("chatwait.index", arg);
        storage.done();
        const store = open(storage);
        const codes = store.problems().map(({ code }) => code);
        const [listed, untouched, writes] = [store.list(), storage.getItem("chatwait.index"), storage.done()];
        store.save(talk("c", [question("q1")]));
        const index = JSON.parse(storage.getItem("chatwait.index")).conversations.map(({ id }) => id).sort();
        return { whole, codes, ids: listed.map(({ id }) => id), untouched, writes, index, after: store.problems() };
        """,
        index,
    )
    assert '"a"' in told["whole"] and '"b"' in told["whole"]
    assert told["ids"] == ["a", "b"]
    assert (told["untouched"], told["writes"]) == (index, [])
    is_sound = index is None or index == '{"v":2,"conversations":[]}'  # a line may be missing: two tabs wrote at once
    assert told["codes"] == ([] if is_sound else ["index_damaged"])
    assert told["index"] == ["a", "b", "c"]
    assert told["after"] == []


def test_store_leaves_the_index_of_a_newer_version_as_it_is(modules: Modules) -> None:
    index, listed, problems = in_page(
        modules,
        """
        const storage = fake({ "chatwait.index": '{"v":3, "folders":[]}' });
        const store = open(storage);
        store.save(talk("a", [question("q1")]));
        store.save(talk("b", [question("q1")]));
        store.rename("a", "Other");
        store.remove("b");
        return [storage.getItem("chatwait.index"), open(storage).list(), store.problems()];
        """,
    )
    assert index == '{"v":3, "folders":[]}'
    assert [(one["id"], one["title"]) for one in listed] == [("a", "Other")]
    assert problems == []


def test_store_that_is_full_keeps_all_in_memory_and_stores_it_when_there_is_room(modules: Modules) -> None:
    told = in_page(
        modules,
        """
        const storage = fake();
        const store = open(storage);
        const reply = answer("a1");
        const growing = talk("a", [question("q1"), reply]);
        store.save(growing);
        store.save(talk("big", [question("q1", { content: "x".repeat(3000) })]));
        const before = storage.getItem("chatwait.conversation.a");
        storage.limit = 9000;
        Object.assign(reply, { content: "y".repeat(2000), sequence: 900 });
        const fresh = talk("c", [question("q1", { content: "z".repeat(3000) })]);
        const kept = [store.save(growing), store.save(fresh)];
        store.saveDraft("a", "d".repeat(3000));
        const full = {
          kept, same: before === storage.getItem("chatwait.conversation.a"),
          given: [store.load("a").messages[1].sequence, store.load("c").messages[0].content.length],
          ids: store.list().map(({ id }) => id).sort(), draft: store.draft("a").length,
          problems: store.problems(), exported: JSON.parse(await store.exportAll()).conversations.length,
        };
        store.remove("big");
        const roomy = [stored(storage, "a").messages[1].sequence, storage.getItem("chatwait.conversation.c")];
        storage.limit = Infinity;
        const later = store.save(fresh);
        store.saveDraft("a", "short");
        return [full, roomy, later, store.problems(), open(storage).list().map(({ id }) => id).sort()];
        """,
    )
    full, (sequence, missing), later, problems, listed = told
    assert full["kept"] == ["memory", "memory"]
    assert full["same"] is True
    assert full["given"] == [900, 3000]
    assert (full["ids"], full["draft"], full["exported"]) == (["a", "big", "c"], 3000, 3)
    assert [one["code"] for one in full["problems"]] == ["storage_full"]
    assert all(full["problems"][0][part] for part in ("message", "detail", "action"))
    assert (sequence, missing) == (900, None)
    assert (later, problems, listed) == ("stored", [], ["a", "c"])


def test_store_without_room_for_the_index_still_stores_and_lists(modules: Modules) -> None:
    kept, listed, writes = in_page(
        modules,
        """
        const storage = fake();
        const store = open(storage);
        const conversation = talk("a", [question("q1")]);
        storage.limit = 2 * ("chatwait.conversation.a".length + JSON.stringify(conversation).length) + 20;
        return [store.save(conversation), open(storage).list(), storage.done()];
        """,
    )
    assert (kept, writes) == ("stored", [CONVERSATION + "a"])
    assert [one["id"] for one in listed] == ["a"]


@pytest.mark.parametrize("storage", ["null", "Object.assign(fake(), { isBlocked: true })"])
def test_store_that_is_blocked_goes_on_in_memory_and_says_so(modules: Modules, storage: str) -> None:
    told = in_page(
        modules,
        f"""
        const store = open({storage});
        const before = [store.list(), store.load("a"), store.draft("")];
        const conversation = talk("a", [question("q1"), answer("a1")]);
        const kept = store.save(conversation);
        conversation.messages[1].content = "More";
        store.save(conversation);
        store.saveDraft("", "typed");
        const renamed = store.rename("a", "Other");
        const added = store.importAll('[{{"role":"user","content":"old"}}]');
        const during = [store.load("a").messages[1].content, store.list().map(({{ title }}) => title), store.draft("")];
        const problems = store.problems();
        const exported = JSON.parse(await store.exportAll()).conversations.length;
        store.remove("a");
        const after = [store.load("a"), store.list().length];
        return {{ before, kept, renamed, added, during, problems, exported, after }};
        """,
    )
    assert told["before"] == [[], None, ""]
    assert (told["kept"], told["renamed"], told["added"]) == ("memory", True, {"added": 1, "skipped": 0})
    assert told["during"] == ["More", ["old", "Other"], "typed"]
    assert [one["code"] for one in told["problems"]] == ["storage_blocked"]
    assert all(told["problems"][0][part] for part in ("message", "detail", "action"))
    assert (told["exported"], told["after"]) == (2, [None, 1])


@pytest.mark.parametrize("names", [["getItem", "setItem", "removeItem", "key"], ["getItem"]], ids=["all", "reading"])
def test_store_that_is_blocked_for_a_while_takes_nothing_for_removed_and_writes_nothing(
    modules: Modules, names: list[str]
) -> None:
    told = in_page(
        modules,
        """
        const storage = fake();
        const store = open(storage);
        const conversation = talk("a", [question("q1"), answer("a1")]);
        const kept = [store.save(conversation)];
        storage.done();
        const sound = Object.getOwnPropertyDescriptors(storage);
        for (const name of arg) storage[name] = () => { throw new DOMException("denied", "SecurityError"); };
        conversation.messages[1].sequence = 9;
        kept.push(store.save(conversation));
        const during = [store.load("a").messages[1].sequence, store.problems().map(({ code }) => code)];
        const writes = storage.done();
        for (const name of arg) storage[name] = sound[name].value;
        const held = [store.load("a").messages[1].sequence, store.problems().map(({ code }) => code)];
        kept.push(store.save(conversation));
        return [kept, during, held, stored(storage, "a").messages[1].sequence, store.problems(), writes];
        """,
        names,
    )
    blocked: list[Any] = [9, ["storage_blocked"]]
    assert told == [["stored", "memory", "stored"], blocked, blocked, 9, [], []]


def test_store_keeps_a_draft_for_each_conversation_and_forgets_an_empty_one(modules: Modules) -> None:
    assert in_page(
        modules,
        """
        const storage = fake();
        const store = open(storage);
        store.saveDraft("", "new");
        store.saveDraft("a", "one");
        store.saveDraft("a", "two 🙂");
        const drafts = ["", "a", "b"].map((id) => open(storage).draft(id));
        store.saveDraft("", "");
        store.save(talk("a", [question("q1")]));
        const listed = store.list().length;
        const before = Object.keys(storage.all()).sort();
        store.remove("a");
        return [drafts, listed, before, Object.keys(storage.all()).sort()];
        """,
    ) == [["new", "two 🙂", ""], 1, [CONVERSATION + "a", "chatwait.draft.a", INDEX], [INDEX, REMOVED]]


def test_store_told_of_a_key_names_what_it_concerns_and_reads_it_anew(modules: Modules) -> None:
    assert in_page(
        modules,
        """
        const storage = fake();
        const [mine, other] = [open(storage), open(storage)];
        other.save(talk("a", [question("q1")]));
        const first = mine.list()[0].title;
        other.rename("a", "Other");
        const keys = ["chatwait.conversation.a", "chatwait.index", "chatwait.draft.a", "chatwait.answer.a", "x", null];
        return [first, keys.map((key) => mine.changed(key)), mine.list()[0].title];
        """,
    ) == ["About a", ["a", "index", None, None, None, "index"], "Other"]
