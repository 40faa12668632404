"""What is older than the newest million characters moves to IndexedDB, and nobody notices but by the room there is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.dialogues import exchange, learned, partly, pick
from tests.browser.modules import Modules
from tests.browser.page_steps import open_gates
from tests.browser.storages import in_page
from tests.browser.test_page_storage import FILL, NO_ARCHIVE, notices, wait_notice
from tests.harness.script import answer
from tests.harness.upstream import ScriptedUpstream

pytestmark = [pytest.mark.browser, pytest.mark.requirement("page SC-006", "page constraint 1")]

LENGTH = 400_000
ARCHIVE = """
const { createArchive, createTexts } = await load("archive");
await new Promise((done, failed) => {
  const asked = indexedDB.deleteDatabase("chatwait");
  Object.assign(asked, { onsuccess: done, onerror: failed });
});
const texts = createTexts();
const over = (storage, changes = [], second = texts) => {
  const asked = (name) => (id) => archive[name](id);
  const store = createStore({ storage, now, random, onChange: () => changes.push(1),
    archive: { bring: asked("bring"), makeRoom: asked("makeRoom"), remove: asked("remove") } });
  const archive = createArchive({ store, texts: second });
  return withFiles({ ...store, tidy: archive.tidy, regain: archive.regain }, archive);
};
const long = (id, at) => talk(id, [question(`q-${id}`, { at }),
  answer(`a-${id}`, { content: `${id} `.repeat(100_000), state: "complete", at, asks: `q-${id}` })], { updated: at });
const raw = (storage, id) => storage.getItem(`chatwait.conversation.${id}`);
const three = (storage) => [["old", 1000], ["mid", 2000], ["new", 3000]].map(([id, at]) => {
  open(storage).save(long(id, at));
  return open(storage).load(id);
});
"""


def in_archive(modules: Modules, body: str, arg: Any = None) -> Any:
    """Run JavaScript with a store over an empty archive, which is the browser's own."""
    return in_page(modules, ARCHIVE + body, arg)


def test_store_moves_the_oldest_out_and_gives_all_of_it_back(modules: Modules) -> None:
    told = in_archive(
        modules,
        """
        const storage = fake();
        const before = three(storage);
        const listed = open(storage).list();
        const store = over(storage);
        await store.tidy();
        const how = (id) => [store.isAway(id), store.load(id) !== null, raw(storage, id).length];
        const away = ["old", "mid", "new"].map(how);
        const same = JSON.stringify(store.list()) === JSON.stringify(listed);
        const fresh = over(storage);
        await fresh.bring("old");
        const whole = JSON.stringify(fresh.load("old")) === JSON.stringify(before[0]);
        const renamed = [fresh.rename("old", "Renamed"), fresh.load("old").title];
        const other = over(storage);
        const exported = JSON.parse(await other.exportAll());
        const [reopened] = exported.conversations.filter(({ id }) => id === "old");
        return { away, same, whole, renamed, stillAway: other.isAway("mid"),
          exported: exported.conversations.map(({ id, messages }) => [id, messages[1].content.length]),
          title: reopened.title, problems: other.problems(), archived: await texts.ids() };
        """,
    )
    assert [one[:2] for one in told["away"]] == [[True, False], [False, True], [False, True]]
    assert told["away"][0][2] < 200 < told["away"][1][2]
    assert (told["same"], told["whole"], told["renamed"], told["title"]) == (True, True, [True, "Renamed"], "Renamed")
    assert sorted(told["exported"]) == [["mid", 400_000], ["new", 400_000], ["old", 400_000]]
    assert told["problems"] == []
    assert told["archived"] == ["old"]


def test_store_renames_and_deletes_what_is_away_as_anything_else(modules: Modules) -> None:
    told = in_archive(
        modules,
        """
        const storage = fake();
        three(storage);
        const store = over(storage);
        await store.tidy(1);
        const renamed = [store.rename("old", "Other"), store.isAway("old")];
        const titles = over(storage).list().map(({ title }) => title);
        store.remove("mid");
        await texts.ids(); // after what remove() asked
        await store.bring("old");
        const { title, messages } = store.load("old");
        return { renamed, titles, title, length: messages[1].content.length, archived: (await texts.ids()).sort(),
          keys: Object.keys(storage.all()).filter((key) => key.includes("conversation")).length };
        """,
    )
    assert told["renamed"] == [True, True]
    assert told["titles"] == ["About new", "About mid", "Other"]
    assert (told["title"], told["length"]) == ("Other", 400_000)
    assert (told["archived"], told["keys"]) == (["new", "old"], 2)


def test_store_whose_conversation_another_tab_moved_writes_on_and_loses_nothing(modules: Modules) -> None:
    told = in_archive(
        modules,
        """
        const storage = fake();
        three(storage);
        const mine = over(storage);
        const shown = mine.load("old"); // this tab shows it; the other one moves it, after one more message
        const other = over(storage);
        const theirs = other.load("old");
        theirs.messages.push(question("q-other", { at: 1500 }));
        other.save(theirs);
        await other.tidy(1);
        shown.messages.push(question("q-mine", { at: 1600 }));
        const kept = mine.save(shown);
        const early = raw(storage, "old").length < 200;
        for (let round = 0; round < 200 && raw(storage, "old").length < 200; round += 1) await new Promise(setTimeout);
        const later = mine.save(shown);
        return { kept, early, later, held: mine.isHeld(), ids: ids(stored(storage, "old")),
          length: stored(storage, "old").messages[1].content.length };
        """,
    )
    assert (told["kept"], told["early"], told["later"], told["held"]) == ("memory", True, "stored", False)
    assert told["ids"] == "q-old a-old q-other q-mine"
    assert told["length"] == 400_000


def test_store_that_knows_what_was_moved_writes_on_without_the_archive(modules: Modules) -> None:
    told = in_archive(
        modules,
        """
        const storage = fake();
        three(storage);
        const mine = over(storage, [], { ...texts, get: () => Promise.reject(new Error("silent")) });
        const shown = mine.load("old");
        await over(storage).tidy(1);
        shown.messages.push(question("q-mine", { at: 1600 }));
        const kept = mine.save(shown);
        return { kept, ids: ids(stored(storage, "old")), length: stored(storage, "old").messages[1].content.length,
          held: mine.isHeld(), problems: mine.problems() };
        """,
    )
    assert (told["kept"], told["ids"], told["length"]) == ("stored", "q-old a-old q-mine", 400_000)
    assert (told["held"], told["problems"]) == (False, [])


def test_store_writes_over_a_stub_whose_text_is_lost_what_this_page_has_of_it(modules: Modules) -> None:
    told = in_archive(
        modules,
        """
        const storage = fake();
        three(storage);
        const mine = over(storage);
        const shown = mine.load("old");
        const other = over(storage);
        const theirs = other.load("old");
        theirs.messages.push(question("q-other", { at: 1500 }));
        other.save(theirs);
        await other.tidy(1);
        await texts.remove("old"); // the browser threw it away
        shown.messages.push(question("q-mine", { at: 1600 }));
        const early = mine.save(shown);
        for (let round = 0; round < 200 && mine.isHeld(); round += 1) {
          await new Promise((resolve) => setTimeout(resolve, 5));
          mine.save(shown);
        }
        return { early, held: mine.isHeld(), ids: ids(stored(storage, "old")), problems: mine.problems() };
        """,
    )
    assert told == {"early": "memory", "held": False, "ids": "q-old a-old q-mine", "problems": []}


def test_store_makes_room_behind_a_row_of_moves_that_runs_and_past_a_text_that_cannot_move(modules: Modules) -> None:
    told = in_archive(
        modules,
        """
        const storage = fake();
        three(storage);
        let hold;
        const held = new Promise((resolve) => (hold = resolve));
        const second = { ...texts, put: async (id, text) => {
          await held;
          if (id === "old") throw new Error("it cannot");
          return texts.put(id, text);
        } };
        const store = over(storage, [], second);
        const running = store.tidy(); // moves the oldest, or would
        await new Promise((resolve) => setTimeout(resolve));
        storage.limit = 3_200_000; // bytes: the three have 2.4 million, and it has 1.2
        const kept = store.save(long("fresh", 4000));
        hold();
        await running;
        await store.tidy(9_000_000); // behind what was asked meanwhile
        return { kept, held: store.isHeld(), moved: (await texts.ids()).sort(), problems: store.problems() };
        """,
    )
    assert told == {"kept": "memory", "held": False, "moved": ["mid"], "problems": []}


def test_archive_forgets_a_text_whose_deletion_it_did_not_hear_of(modules: Modules) -> None:
    told = in_archive(
        modules,
        """
        const storage = fake();
        three(storage);
        await over(storage).tidy(1);
        const deaf = over(storage, [], { ...texts, remove: () => Promise.reject(new Error("silent")) });
        deaf.remove("old");
        // Deleted in another tab while it moves:
        const other = open(storage);
        const back = over(storage);
        await back.bring("new");
        back.save({ ...back.load("new"), updated: 9000 });
        const moving = over(storage, [], { ...texts, put: async (id, text) => {
          await texts.put(id, text);
          if (id === "new") other.remove("new");
        } });
        await moving.tidy(1);
        const between = (await texts.ids()).sort();
        await over(storage).regain();
        return { between, after: await texts.ids(), listed: over(storage).list().map(({ id }) => id) };
        """,
    )
    assert told == {"between": ["mid", "old"], "after": ["mid"], "listed": ["mid"]}


def test_page_shows_that_a_conversation_is_being_opened_and_sends_nothing_elsewhere(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    chat.page.goto(f"{chat.base_url}/health")
    talks = {f"chatwait.conversation.t{number}": json.dumps(_long(f"t{number}", 1000 + number)) for number in range(4)}
    chat.page.evaluate("(values) => Object.assign(localStorage, values)", talks)
    learned(chat.open())
    stub = "() => localStorage['chatwait.conversation.t0'].startsWith('{\"v\":3')"
    chat.wait(lambda: chat.page.evaluate(stub), 15, "the oldest to move")
    chat.page.evaluate("localStorage['chatwait.draft.t0'] = 'A draft'")

    chat.page.add_init_script("""(() => {
      const open = indexedDB.open.bind(indexedDB);
      const asked = [];
      window.answerAll = () => asked.splice(0).forEach((go) => go());
      indexedDB.open = (...given) => {
        const made = { set onsuccess(call) { asked.push(() => Object.assign(open(...given), { onsuccess() {
          made.result = this.result; call(); } })); } };
        return made;
      };
    })()""")
    chat.page.goto(f"{chat.base_url}/#t0")
    chat.reload()
    chat.page.locator("#title").get_by_text("About t0", exact=True).wait_for()
    assert chat.page.locator("#list a[aria-current]").all_inner_texts() == ["About t0"]
    assert chat.box.input_value() == "A draft"
    assert chat.states() == []
    chat.send("For t0")
    assert "is opening" in chat.page.locator("#hint").inner_text()
    assert (chat.box.input_value(), upstream.completions) == ("For t0", [])
    chat.page.evaluate("answerAll()")
    chat.wait(lambda: chat.states() == ["complete"], 15, "its text")
    upstream.always(answer(["Here."]))
    exchange(chat, upstream, "For t0")
    assert (chat.conversation()["id"], len(chat.stored_answers())) == ("t0", 2)


def test_store_leaves_what_goes_on_or_is_deleted_while_it_moves(modules: Modules) -> None:
    told = in_archive(
        modules,
        """
        const storage = fake();
        three(storage);
        const other = open(storage);
        const store = over(storage);
        const { put } = texts;
        texts.put = async (id, text) => {
          await put(id, text);
          if (id === "old") store.remove("old");
          if (id !== "mid") return;
          const theirs = other.load("mid");
          theirs.messages.push(question("later", { at: 2500 }));
          other.save(theirs);
        };
        await store.tidy(1);
        return { keys: ["old", "mid", "new"].map((id) => (raw(storage, id) ?? "").length > 200),
          mid: ids(store.load("mid")), listed: store.list().map(({ id }) => id), archived: await texts.ids(),
          isStub: raw(storage, "new").length };
        """,
    )
    assert told["keys"] == [False, True, False]
    assert told["mid"] == "q-mid a-mid later"
    assert told["listed"] == ["new", "mid"]
    assert (told["archived"], told["isStub"] < 200) == (["mid", "new"], True)


def test_store_that_is_full_makes_room_and_says_nothing_of_it(modules: Modules) -> None:
    told = in_archive(
        modules,
        """
        const storage = fake();
        three(storage);
        const changes = [];
        const store = over(storage, changes);
        storage.limit = 2_500_000; // bytes: the three have 2.4 million
        const fresh = long("fresh", 4000);
        const kept = store.save(fresh);
        const meanwhile = store.problems();
        await store.tidy();
        const after = [store.problems(), store.isHeld(), raw(storage, "fresh").length > 400_000, changes.length];
        // More than all the room there is: it stays in memory, is said, and nothing runs in circles.
        storage.limit = 100_000;
        storage.done();
        const huge = talk("huge", [question("q1"), answer("a1", { content: "x".repeat(200_000) })]);
        const full = store.save(huge);
        await store.tidy();
        const count = changes.length;
        await new Promise((resolve) => setTimeout(resolve, 100));
        const said = store.problems().map(({ code }) => code);
        return { kept, meanwhile, after, full, said, isQuiet: changes.length === count,
          whole: store.load("huge").messages[1].content.length };
        """,
    )
    assert (told["kept"], told["meanwhile"]) == ("memory", [])
    assert told["after"] == [[], False, True, 1]
    assert (told["full"], told["said"], told["isQuiet"], told["whole"]) == ("memory", ["storage_full"], True, 200_000)


def test_store_without_an_archive_goes_on_as_it_is_and_says_that_it_is_full(modules: Modules) -> None:
    told = in_archive(
        modules,
        """
        const storage = fake();
        const before = JSON.stringify(three(storage));
        indexedDB.open = () => { throw new DOMException("denied", "SecurityError"); };
        const none = over(storage, [], createTexts());
        await none.tidy(1);
        storage.limit = 2_500_000;
        none.save(long("fresh", 4000));
        await none.tidy();
        return { same: before === JSON.stringify(["old", "mid", "new"].map((id) => none.load(id))),
          said: none.problems().map(({ code }) => code), held: none.isHeld(), whole: none.load("fresh") !== null };
        """,
    )
    assert told == {"same": True, "said": ["storage_full"], "held": True, "whole": True}


def test_store_whose_archive_lost_a_text_says_so_and_leaves_the_rest_alone(modules: Modules) -> None:
    told = in_archive(
        modules,
        """
        const storage = fake();
        three(storage);
        const store = over(storage);
        await store.tidy(1);
        await texts.remove("old");
        await texts.put("mid", "no conversation");
        await store.bring("old");
        await store.bring("mid");
        await store.bring("new");
        const said = store.problems().map(({ code, id, message, detail, action }) =>
          [code, id, Boolean(message && detail && action)]);
        const kept = store.save(talk("old", [question("mine")]));
        return { said, away: ["old", "mid"].map(store.isAway), loaded: store.load("new") !== null, kept,
          left: ["old", "mid"].map((id) => raw(storage, id).length < 200) };
        """,
    )
    assert sorted(told["said"]) == [["conversation_lost", "mid", True], ["conversation_lost", "old", True]]
    assert (told["away"], told["loaded"]) == ([False, False], True)
    assert told["kept"] == "memory"  # what cannot be read is not written over
    assert told["left"] == [True, True]


def test_store_whose_storage_was_cleared_finds_again_what_the_archive_has(modules: Modules) -> None:
    told = in_archive(
        modules,
        """
        const storage = fake();
        three(storage);
        await over(storage).tidy(1);
        const cleared = fake();
        const store = over(cleared);
        await store.regain();
        const listed = store.list().map(({ id, title }) => [id, title]);
        await store.bring("old");
        return [listed, store.load("old").messages[1].content.length, store.problems()];
        """,
    )
    assert told[0] == [["new", "About new"], ["mid", "About mid"], ["old", "About old"]]
    assert told[1:] == [400_000, []]


def test_stub_is_a_conversation_of_a_newer_page_to_an_older_one(modules: Modules) -> None:
    stub = in_archive(
        modules,
        """
        const storage = fake();
        three(storage);
        await over(storage).tidy(1);
        return raw(storage, "old");
        """,
    )
    assert json.loads(stub)["v"] > 2
    assert set(json.loads(stub)) == {"v", "mark", "title", "updated"}


def _long(name: str, at: int) -> dict[str, Any]:
    question = {"id": f"q-{name}", "role": "user", "content": f"About {name}?", "at": at}
    text = "".join(f"{name} has paragraph {number}. {'word ' * 1000}\n\n" for number in range(LENGTH // 5000))
    said = {"id": f"a-{name}", "role": "assistant", "content": text, "at": at, "state": "complete", "asks": f"q-{name}"}
    return {"v": 2, "id": name, "title": f"About {name}", "created": at, "updated": at, "messages": [question, said]}


def test_page_moves_old_conversations_out_and_opens_them_as_ever(chat: ChatPage, upstream: ScriptedUpstream) -> None:
    chat.page.add_init_script("navigator.storage.persist = async () => (window.asked = (window.asked ?? 0) + 1) > 0;")
    chat.page.goto(f"{chat.base_url}/health")
    talks = {f"chatwait.conversation.t{number}": json.dumps(_long(f"t{number}", 1000 + number)) for number in range(5)}
    chat.page.evaluate("(values) => Object.assign(localStorage, values)", talks)
    learned(chat.open())
    assert chat.page.evaluate("window.asked") is None  # nothing of this visit's is kept yet
    stub = "() => Object.keys(localStorage).filter((key) => localStorage[key].startsWith('{\"v\":3')).sort()"
    expected = ["chatwait.conversation.t0", "chatwait.conversation.t1", "chatwait.conversation.t2"]
    chat.wait(lambda: chat.page.evaluate(stub) == expected, 15, "the oldest to move")

    chat.reload()
    pick(chat, "About t1")
    chat.wait(lambda: "t1 has paragraph 79." in chat.text(0), 15, "its text")
    upstream.always(answer(["And on."]))
    exchange(chat, upstream, "Go on?")
    assert chat.page.evaluate("window.asked") == 1
    assert [one["state"] for one in chat.stored_answers()] == ["complete", "complete"]
    chat.reload()
    assert (chat.states(), chat.text(1)) == (["complete"] * 2, "And on.")
    chat.page.goto(f"{chat.base_url}/#t0")  # a link to one that is away
    chat.wait(lambda: chat.states() == ["complete"] and chat.text(0).startswith("t0 has paragraph 0."), 15, "t0")


def test_page_whose_storage_becomes_full_in_mid_answer_makes_room_by_itself(
    chat: ChatPage, upstream: ScriptedUpstream
) -> None:
    upstream.always(answer(["Short."]))
    for name in ("First", "Second"):
        exchange(learned(chat.open()), upstream, name)
    partly(chat, upstream, ["One ", "two ", "three " * 1000, "four."], 2)
    chat.page.evaluate(FILL)
    open_gates(upstream, 2, 5)
    chat.wait_state("complete")
    kept = """() => Object.values(localStorage).filter((text) => /"state":"complete"|^{"v":3/.test(text)).length"""
    chat.wait(lambda: chat.page.evaluate(kept) == 3, 10, "the answer to be stored")
    assert notices(chat) == []
    chat.reload()
    assert chat.states() == ["complete"]
    assert chat.text().endswith("four.")
    for name in ("First", "Second"):
        pick(chat, name)
        chat.wait(lambda: (chat.states(), chat.text()) == (["complete"], "Short."), 10, f"{name} to be shown")


@pytest.mark.parametrize("what", ["an answer", "a draft", "nothing"])
def test_page_asks_before_it_is_left_while_something_is_in_memory_only(
    chat: ChatPage, upstream: ScriptedUpstream, what: str
) -> None:
    chat.page.add_init_script(NO_ARCHIVE)
    learned(chat.open())
    upstream.always(answer(["Kept."]))
    exchange(chat, upstream, "Before")
    if what != "nothing":
        chat.page.evaluate(FILL)
    if what == "an answer":
        exchange(chat, upstream, "In memory only")
        wait_notice(chat, "This browser's storage for the page is full.")
    elif what == "a draft":
        chat.page.get_by_label("Message", exact=True).press_sequentially("A draft that nobody keeps" * 3)
        chat.page.wait_for_timeout(600)  # until it is handed over
    else:
        assert notices(chat) == []
    asked: list[str] = []

    def answer_it(dialog: Any) -> None:
        asked.append(dialog.type)
        dialog.accept()

    chat.page.on("dialog", answer_it)
    chat.page.goto(f"{chat.base_url}/health")
    assert asked == ([] if what == "nothing" else ["beforeunload"])
