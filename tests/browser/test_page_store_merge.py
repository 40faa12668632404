"""store.js: two tabs with one storage, as fakes and as real pages."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.modules import Modules
from tests.browser.storages import in_page
from tests.live.steps import poll

pytestmark = pytest.mark.browser

TWO_TABS = """
const storage = fake();
const [here, there] = [open(storage), open(storage)];
here.save(talk("a", [question("q1"), answer("a1", { content: "One", sequence: 1 })]));
const [mine, theirs] = [here.load("a"), there.load("a")];
"""


def test_store_with_messages_added_in_two_tabs_keeps_both_turns_in_order(modules: Modules) -> None:
    told = in_page(
        modules,
        TWO_TABS
        + """
        theirs.messages.push(question("q3", { at: 3000 }), answer("a3", { at: 3000, asks: "q3" }));
        mine.messages.push(question("q2", { at: 2000 }), answer("a2", { at: 2000, asks: "q2" }));
        const kept = [there.save(theirs), here.save(mine)];
        const first = ids(stored(storage, "a"));
        mine.messages.at(-1).content = "More"; // a stale copy is saved again and again
        kept.push(here.save(mine), here.save({ ...mine }), here.save(structuredClone(mine)), there.save(theirs));
        return [kept, first, ids(stored(storage, "a")), stored(storage, "a").messages[3].content];
        """,
    )
    order = "q1 a1 q2 a2 q3 a3"
    assert told == [["stored"] * 6, order, order, "More"]


def test_store_given_the_same_messages_in_two_orders_keeps_each_once(modules: Modules) -> None:
    assert in_page(
        modules,
        """
        const storage = fake();
        const store = open(storage);
        const messages = ["q1", "q2", "q3"].map((id) => question(id));
        store.save(talk("a", messages));
        store.save(talk("a", [...messages.toReversed(), question("q4")]));
        return ids(stored(storage, "a")).split(" ").sort();
        """,
    ) == ["q1", "q2", "q3", "q4"]


def test_store_given_any_two_versions_loses_no_message_and_keeps_both_orders(modules: Modules) -> None:
    told = in_page(
        modules,
        """
        let seed = 7;
        const chance = (n) => {
          seed = (seed * 1103515245 + 12345) % 2147483648;
          return Math.floor((seed / 2147483648) * n);
        };
        const isPart = (part, whole) => {
          let at = -1;
          return part.every((id) => (at = whole.indexOf(id, at + 1)) >= 0);
        };
        const wrong = [];
        let merged = 0;
        for (let round = 0; round < 500; round += 1) {
          const all = Array.from({ length: 1 + chance(12) }, (_, n) =>
            chance(2) ? question(`q${n}`, { at: n }) : answer(`a${n}`, { at: n }));
          const some = () => all.filter(() => chance(3));
          const [one, two] = [some(), some()];
          const storage = fake();
          open(storage).save(talk("a", one));
          open(storage).save(talk("a", two));
          const names = [one, two].map((list) => list.map(({ id }) => id));
          const whole = stored(storage, "a").messages.map(({ id }) => id);
          merged += names[0].join() !== names[1].join();
          const isRight = new Set(whole).size === whole.length && whole.length === new Set(names.flat()).size;
          if (!isRight || !names.every((part) => isPart(part, whole))) wrong.push([...names, whole]);
        }
        return [merged, wrong.slice(0, 3)];
        """,
    )
    assert told[0] > 300
    assert told[1] == []


def test_store_given_a_stale_copy_keeps_the_streaming_answer(modules: Modules) -> None:
    told = in_page(
        modules,
        TWO_TABS
        + """
        const seen = [];
        for (let sequence = 2; sequence <= 4; sequence += 1) {
          Object.assign(mine.messages[1], { content: "One two three four", sequence });
          here.save(mine);
          theirs.messages.push(question(`t${sequence}`, { at: 2000 + sequence }));
          there.save(theirs);
          const { content, sequence: kept } = stored(storage, "a").messages[1];
          seen.push([content, kept, stored(storage, "a").messages.length]);
        }
        Object.assign(mine.messages[1], { state: "complete", sequence: 5, endedAt: 9000 });
        here.save(mine);
        there.save(theirs);
        const whole = stored(storage, "a");
        return [seen, whole.messages[1].state, ids(whole), open(storage).list()[0].active];
        """,
    )
    text = "One two three four"
    assert told == [[[text, 2, 3], [text, 3, 4], [text, 4, 5]], "complete", "q1 a1 t2 t3 t4", False]


@pytest.mark.parametrize(
    ("one", "two", "wins"),
    [
        pytest.param(("complete", 5), ("streaming", 4), "one", id="complete over streaming"),
        pytest.param(("stopped", 3), ("slow", 4), "one", id="stopped over a longer one on its way"),
        pytest.param(("failed", 1), ("reconnecting", 1), "one", id="failed over reconnecting"),
        pytest.param(("complete", 9), ("failed", 4), "one", id="of two settled ones the longer"),
        pytest.param(("streaming", 9), ("waiting", 4), "one", id="of two on their way the longer"),
        pytest.param(("interrupted", 4), ("reconnecting", 4), "one", id="interrupted over the same on its way"),
        pytest.param(("streaming", 9), ("interrupted", 4), "one", id="an interrupted one that went on elsewhere"),
        pytest.param(("interrupted", 9), ("streaming", 4), "one", id="interrupted over a shorter one"),
        pytest.param(("slow", 4), ("streaming", 4), "last", id="else the one that is saved"),
    ],
)
def test_store_given_two_versions_of_an_answer_keeps_the_one_that_knows_more(
    modules: Modules, one: tuple[str, int], two: tuple[str, int], wins: str
) -> None:
    told = in_page(
        modules,
        """
        const version = ([state, sequence]) => talk("a", [question("q1"), answer("a1", { state, sequence })]);
        return arg.map((order) => {
          const storage = fake();
          for (const one of order) open(storage).save(version(one));
          const { state, sequence } = stored(storage, "a").messages[1];
          return [state, sequence];
        });
        """,
        [[one, two], [two, one]],
    )
    assert told == ([list(one), list(one)] if wins == "one" else [list(two), list(one)])


def test_store_given_a_title_of_another_tab_keeps_the_one_that_was_changed(modules: Modules) -> None:
    assert in_page(
        modules,
        TWO_TABS
        + """
        there.rename("a", "Theirs");
        mine.messages[1].sequence = 9;
        here.save(mine);
        const first = [stored(storage, "a").title, open(storage).list()[0].title];
        mine.title = "Mine";
        here.save(mine);
        return [...first, stored(storage, "a").title, stored(storage, "a").messages[1].sequence];
        """,
    ) == ["Theirs", "Theirs", "Mine", 9]


def test_store_given_a_stale_copy_does_not_bring_a_refused_pair_back(modules: Modules) -> None:
    assert in_page(
        modules,
        """
        const storage = fake();
        const [here, there] = [open(storage), open(storage)];
        const refused = [question("q2"), answer("a2", { asks: "q2", state: "failed", refused: true, at: 1500 })];
        here.save(talk("a", [question("q1"), answer("a1", { state: "complete" }), ...refused]));
        const [mine, theirs] = [here.load("a"), there.load("a")];
        mine.messages = [...mine.messages.slice(0, 2), question("q3", { at: 3000 })];
        here.save(mine);
        const first = ids(stored(storage, "a"));
        there.save(theirs);
        const second = ids(stored(storage, "a"));
        const again = answer("a4", { asks: "q4", state: "failed", refused: true });
        theirs.messages.push(question("q4", { at: 4000 }), again);
        there.save(theirs);
        return [first, second, ids(stored(storage, "a"))];
        """,
    ) == ["q1 a1 q3", "q1 a1 q3", "q1 a1 q3 q4 a4"]


@pytest.mark.parametrize("copy", ["mine", "{ ...mine }", "structuredClone(mine)"])
def test_store_given_a_conversation_that_another_tab_removed_writes_nothing(modules: Modules, copy: str) -> None:
    told = in_page(
        modules,
        TWO_TABS
        + f"""
        there.remove("a");
        here.changed("chatwait.conversation.a");
        const before = JSON.stringify(storage.all());
        storage.done();
        const kept = [here.save({copy}), there.save(theirs), here.save(mine), here.rename("a", "Back")];
        const isSame = before === JSON.stringify(storage.all());
        return [kept, isSame, storage.done(), here.list(), here.load("a"), here.problems()];
        """,
    )
    assert told == [["removed", "removed", "removed", False], True, [], [], None, []]


def test_store_whose_keys_are_missing_writes_them_again_and_says_so(modules: Modules) -> None:
    """What no person has deleted was cleared; a page that was not there when one did learns it from the storage."""
    told = in_page(
        modules,
        TWO_TABS
        + """
        there.save(talk("b", [question("q1")]));
        const other = here.load("b");
        there.remove("a");
        const deleted = [open(storage).save(mine), here.save(mine)];
        for (const key of Object.keys(storage.all())) storage.removeItem(key);
        const before = here.problems().map(({ code }) => code);
        const event = here.changed(null);
        const kept = [here.save(other), there.save(other), here.save(mine)];
        const codes = here.problems().map(({ code }) => code);
        const parts = here.problems().every(({ message, detail, action }) => message && detail && action);
        const listed = here.list().map(({ id }) => id);
        here.changed(null);
        const [again] = here.problems();
        return { deleted, before, event, kept, codes, parts, listed, ids: ids(stored(storage, "b")), again: again.id };
        """,
    )
    assert told["deleted"] == ["removed", "removed"]
    assert (told["before"], told["event"]) == ([], "index")
    assert told["kept"] == ["stored", "stored", "stored"]  # with everything else the word of the deletion is gone too
    assert (told["codes"], told["parts"]) == (["storage_cleared"], True)
    assert (sorted(told["listed"]), told["ids"]) == (["a", "b"], "q1")
    assert told["again"] == 2  # a second time is told anew, also where the first was put away


def test_store_given_a_file_with_a_deleted_conversation_takes_it_as_a_new_one(modules: Modules) -> None:
    told = in_page(
        modules,
        """
        const storage = fake();
        open(storage).save(talk("a", [question("q1"), answer("a1", { state: "complete" })]));
        const file = await open(storage).exportAll();
        open(storage).remove("a");
        const added = open(storage).importAll(file);
        return [added, open(storage).list().map(({ id, title }) => [id === "a", title])];
        """,
    )
    assert told == [{"added": 1, "skipped": 0}, [[False, "About a"]]]


LOAD = """
const store = (window.store ??= createStore({ storage: localStorage }));
window.heard ??= (addEventListener("storage", ({ key }) => window.heard.push(store.changed(key))), []);
"""


def test_store_of_two_pages_agrees_on_what_both_write(modules: Modules) -> None:
    there = modules.tab()

    def here_(body: str) -> Any:
        return in_page(modules, LOAD + body)

    def there_(body: str) -> Any:
        return in_page(there, LOAD + body)

    there_("")
    here_('store.save(window.talk = talk("a", [question("q1"), answer("a1")]));')
    poll(lambda: there_("return heard") == ["a", "index"], seconds=10, what="the event of the other page")
    there_('window.talk = store.load("a"); window.talk.messages.push(question("q2", { at: 2000 }));')
    there_("store.save(window.talk);")
    poll(lambda: "a" in here_("return heard"), seconds=10, what="the event of the other page")
    here_('window.talk.messages[1].sequence = 7; window.talk.messages[1].state = "complete"; store.save(window.talk);')
    poll(lambda: there_('return store.load("a").messages[1].sequence') == 7, seconds=10, what="the longer answer")

    assert there_('return ids(store.load("a"))') == here_('return ids(store.load("a"))') == "q1 a1 q2"
    assert [one["active"] for one in there_("return store.list()")] == [False]

    there_('store.remove("a")')
    poll(lambda: here_('return localStorage.getItem("chatwait.conversation.a")') is None, seconds=10, what="removal")
    assert here_("return [store.save(window.talk), store.list(), Object.keys(localStorage).sort()]") == [
        "removed",
        [],
        ["chatwait.index", "chatwait.removed"],
    ]


def test_store_of_a_page_whose_storage_is_full_keeps_all_and_stores_it_later(modules: Modules) -> None:
    told = in_page(
        modules,
        LOAD
        + """
        store.save(talk("a", [question("q1")]));
        for (let size = 1 << 22; size; size >>= 1) {
          try {
            localStorage.setItem(`filler${size}`, "x".repeat(size));
          } catch {
            // this much more does not fit
          }
        }
        const conversation = talk("a", [question("q1"), answer("a1", { content: "y".repeat(5000) })]);
        const kept = [store.save(conversation)];
        const full = [store.load("a").messages[1].content.length, stored(localStorage, "a").messages.length];
        const codes = store.problems().map(({ code }) => code);
        for (const key of Object.keys(localStorage)) if (key.startsWith("filler")) localStorage.removeItem(key);
        kept.push(store.save(conversation));
        return [kept, full, codes, stored(localStorage, "a").messages.length, store.problems()];
        """,
    )
    assert told == [["memory", "stored"], [5000, 1], ["storage_full"], 2, []]
