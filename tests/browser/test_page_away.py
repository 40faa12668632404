"""The page without its server: a reload shows the page and the conversations, says so, and goes on by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chatpage import ChatPage
from tests.browser.conftest import OpenChat, RunService
from tests.browser.dialogues import exchange, learned, partly, pick
from tests.browser.page_steps import LOST, assert_whole, open_gates, status
from tests.browser.test_page_access import check as check
from tests.browser.test_page_presence import notice, said
from tests.harness.chaos import Answer, BlackholeAfter, ChaosProxy, Pass, Slow
from tests.harness.reader import get
from tests.harness.server import ChatWait
from tests.harness.upstream import Script, ScriptedUpstream, answer
from tests.live.versions import another_version

pytestmark = pytest.mark.browser

LOOKS = (("light", 1280), ("light", 390), ("dark", 390), ("dark", 1280))
KEPT = """
async () => {
    const kept = {};
    for (const name of await caches.keys())
        kept[name] = (await (await caches.open(name)).keys()).map(({url}) => new URL(url).pathname);
    return kept;
}
"""
TEXTS = """
async () => {
    const texts = [];
    for (const name of await caches.keys()) {
        const cache = await caches.open(name);
        for (const request of await cache.keys()) texts.push(await (await cache.match(request)).text());
    }
    return texts.join("\\n");
}
"""
WHOLE = """
async () => {
    const whole = [];
    for (const name of await caches.keys()) if (await caches.match("/", { cacheName: name })) whole.push(name);
    return whole;
}
"""
WORKERS = """
async () => (await navigator.serviceWorker.getRegistrations()).map(one =>
    [one.active, one.waiting, one.installing].filter(Boolean).map(({state}) => state))
"""


class Kept:
    """A page whose worker has been there before."""

    def __init__(self, chat: ChatPage) -> None:
        self.chat = chat
        chat.expect_fault(LOST)

    def open(self) -> ChatPage:
        """Load the page, and wait until it is kept."""
        learned(self.chat.open())
        self.chat.wait(lambda: self.workers() == [["activated"]] and self.files(), 20, "the worker")
        return self.chat

    def workers(self) -> Any:
        return self.chat.page.evaluate(WORKERS)

    def files(self) -> list[str]:
        """List what the worker keeps."""
        found = self.chat.page.evaluate(KEPT)
        return [path for name, paths in found.items() if name.startswith("chatwait") for path in paths]

    def whole(self) -> list[str]:
        """List the versions that are kept whole, oldest first."""
        found: list[str] = self.chat.page.evaluate(WHOLE)
        return found


@pytest.fixture
def door(service: ChatWait, behind_pages: ExitStack) -> ChaosProxy:
    """Stand before the service, so that something else may answer at its address."""
    return behind_pages.enter_context(ChaosProxy("127.0.0.1", service.port))


@pytest.fixture
def kept(open_chat: OpenChat, door: ChaosProxy, upstream: ScriptedUpstream) -> Kept:
    """Give a page behind the door, whose worker is allowed."""
    upstream.always(answer(["One ", "two."]))
    return Kept(open_chat(door.base_url, worker=True))


def shut(door: ChaosProxy) -> None:
    door.refuse()
    door.cut_all()


def wait_away(chat: ChatPage, seconds: float = 10) -> None:
    chat.wait(lambda: notice(chat), seconds, "the notice")


def wait_back(chat: ChatPage, seconds: float = 15) -> None:
    chat.wait(lambda: not notice(chat), seconds, "the notice leaves")


def reply(head: str, body: str = "Of another program.") -> Answer:
    """Write an HTTP answer: its status line, and headers behind it."""
    lines = [f"HTTP/1.1 {head}", "Content-Type: text/html", f"Content-Length: {len(body)}", "Connection: close"]
    return Answer(("\r\n".join(lines) + f"\r\n\r\n{body}").encode())


def test_page_reloaded_while_the_server_is_away_is_readable_and_goes_on_by_itself(
    run_service: RunService,
    open_chat: OpenChat,
    upstream: ScriptedUpstream,
    check: Callable[[ChatPage, str], None],
) -> None:
    service = run_service()
    upstream.always(answer(["One ", "two."]))
    chat = Kept(open_chat(service.base_url, worker=True)).open()
    exchange(chat, upstream, "What is secret?")
    assert notice(chat) == ""
    service.kill()

    chat.reload()
    assert (chat.states(), chat.text()) == (["complete"], "One two.")
    assert chat.page.locator("#list .title").all_text_contents() == ["What is secret?"]
    wait_away(chat)
    assert [line for line in notice(chat).split("\n") if line] == [
        "The server cannot be reached.",
        "You can read, copy and export the conversations in this browser.",
        "The page goes on by itself as soon as the server is back.",
        "Dismiss",
    ]
    with chat.page.expect_download() as told:
        chat.press("Export")
    assert "What is secret?" in Path(told.value.path()).read_text(encoding="utf-8")

    for scheme, width in LOOKS:
        chat.page.emulate_media(color_scheme=scheme)
        chat.page.set_viewport_size({"width": width, "height": 800})
        check(chat, f"away, {scheme}")

    service.start()
    wait_back(chat)
    chat.wait(lambda: said(chat) == "The server is back.", 5, "it is said")
    exchange(learned(chat), upstream, "And now?")
    assert chat.states() == ["complete"] * 2
    assert "secret" not in chat.page.evaluate(TEXTS)


def test_answer_in_mid_stream_is_readable_after_a_reload_without_the_server_and_goes_on_to_its_end(
    kept: Kept, door: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    chat = kept.open()
    tokens = ["One ", "two ", "three ", "four."]
    partly(chat, upstream, tokens, 2)
    shut(door)

    chat.reload()
    assert chat.text() == "One two "
    chat.wait_state("reconnecting")
    assert "2 words are safe." in chat.shown()
    assert notice(chat) == ""  # the answer says it
    open_gates(upstream, 2, 5)
    door.accept()
    assert_whole(chat, upstream, "".join(tokens), 4)


def test_answer_that_waited_for_its_server_in_vain_goes_on_when_it_is_back(
    kept: Kept, door: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    chat = kept.open()
    tokens = ["One ", "two ", "three ", "four."]
    partly(chat, upstream, tokens, 2)
    address = chat.page.url
    chat.page.goto(f"{chat.base_url}/health")  # nothing of the page is at work there
    given_up = """(id) => {  // as after two minutes
      const key = "chatwait.conversation." + id;
      const whole = JSON.parse(localStorage[key]);
      const error = { code: "connection_lost" };
      Object.assign(whole.messages.at(-1), { state: "interrupted", error, endedAt: Date.now() });
      localStorage[key] = JSON.stringify(whole);
    }"""
    chat.page.evaluate(given_up, address.partition("#")[2])
    shut(door)
    chat.page.goto(address)
    wait_away(chat)
    assert (chat.state(), chat.text()) == ("interrupted", "One two ")
    open_gates(upstream, 2, 5)
    door.accept()
    chat.wait(lambda: not notice(chat), 15, "the notice leaves")
    assert_whole(chat, upstream, "".join(tokens), 4)


@pytest.mark.long
def test_page_on_a_silent_network_is_shown_after_three_seconds_and_says_so(
    kept: Kept, door: ChaosProxy, origin: str
) -> None:
    chat = kept.open()
    door.default = BlackholeAfter(0)
    door.cut_all()
    chat.reload()
    wait_away(chat)
    door.default = Pass()
    door.cut_all()
    wait_back(chat)

    door.lead_to(int(origin.rpartition(":")[2]))
    # Its head takes over ten seconds. When it is there, what is kept is thrown away, so the page must be whole by then.
    door.default = Slow(12)
    door.cut_all()
    chat.expect_fault(status(404))
    chat.reload()
    chat.wait(lambda: kept.workers() == [], 40, "another program's page is noticed though it comes late")


def test_worker_answers_for_nothing_but_the_page_and_its_files(kept: Kept, upstream: ScriptedUpstream) -> None:
    chat = kept.open()
    exchange(chat, upstream, "Hello?")
    answered: dict[str, bool] = {}
    chat.page.on(
        "response", lambda one: answered.update({one.url.removeprefix(chat.base_url): one.from_service_worker})
    )
    chat.reload()
    exchange(learned(chat), upstream, "And now?")
    files = [path for path in answered if path.startswith("/assets/") and path != "/assets/boot.js"]
    assert len(files) > 10
    assert sorted(path for path, is_workers in answered.items() if is_workers) == sorted(
        ["/", *files, "/assets/boot.js"]
    )
    assert {"/assets/boot.js", "/v1/models", "/v1/chat/streaming"} <= answered.keys()
    for path in ("/docs", "/health", "/?x=1", "/v1/models", files[0]):
        assert chat.page.goto(f"{chat.base_url}{path}").from_service_worker is False
    named = {"/", "/assets/boot.js", *(path for path in kept.files() if path.startswith(files[0].rpartition("/")[0]))}
    assert set(kept.files()) == named > {*files}


def test_what_stands_in_front_of_the_server_is_heard_and_what_is_no_answer_is_not(
    kept: Kept, door: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    """A proxy that refuses, or leads to a sign-in, is shown; one that finds no server behind it is not."""
    chat = kept.open()
    exchange(chat, upstream, "Hello?")
    address = chat.page.url
    chat.page.goto("about:blank")
    chat.expect_fault(status(500).replace("500", "(401|403|404|502|503)"))
    for head in ("502 Bad Gateway", "503 Service Unavailable"):
        door.default = reply(head)
        door.cut_all()
        assert chat.page.goto(address).status == 200
        assert chat.text() == "One two."
        chat.page.goto("about:blank")
    for head in ("401 Unauthorized", "403 Forbidden", "404 Not Found"):
        door.default = reply(head)
        assert chat.page.goto(address).status == int(head[:3])
        assert chat.page.locator("body").inner_text() == "Of another program."
        chat.page.goto("about:blank")
    door.default = Pass()
    door.plan(reply("302 Found\r\nLocation: /docs"))
    assert chat.page.goto(address).status == 200
    assert chat.page.url.partition("#")[0] == f"{chat.base_url}/docs"
    chat.page.goto("about:blank")
    chat.page.goto(address)
    assert learned(chat).text() == "One two."
    assert kept.workers() == [["activated"]]


def test_password_is_asked_for_though_there_is_a_worker(
    open_chat: OpenChat, service: ChatWait, door: ChaosProxy
) -> None:
    """A browser asks its user for one only when the network itself wants it, and not a worker's answer."""
    secret = {"username": "alice", "password": "open sesame"}
    kept = Kept(open_chat(door.base_url, worker=True, http_credentials=secret))
    chat = kept.open()
    chat.page.goto("about:blank")
    challenge = reply('401 Unauthorized\r\nWWW-Authenticate: Basic realm="ChatWait"')
    door.cut_all()
    door.plan(challenge, challenge)
    assert chat.page.goto(chat.base_url).status == 200
    learned(chat)
    assert chat.page.url == f"{chat.base_url}/"
    assert kept.workers() == [["activated"]]


def test_another_programs_page_at_the_address_gets_rid_of_the_worker_and_nothing_else(
    kept: Kept, door: ChaosProxy, service: ChatWait, origin: str
) -> None:
    chat = kept.open()
    chat.page.evaluate("caches.open('of another program')")
    chat.page.evaluate("localStorage.setItem('of another program', 'x')")
    chat.expect_fault(status(404))
    door.lead_to(int(origin.rpartition(":")[2]))
    door.cut_all()
    chat.page.goto(chat.base_url)
    assert chat.page.title() == "A page of another origin"
    chat.wait(lambda: kept.workers() == [], 10, "the worker leaves")
    chat.wait(lambda: list(chat.page.evaluate(KEPT)) == ["of another program"], 10, "and what it kept")
    assert chat.page.evaluate("localStorage.length") > 0
    door.lead_to(service.port)
    door.cut_all()
    kept.open()


def test_worker_whose_files_are_damaged_or_thrown_away_harms_nobody(kept: Kept, upstream: ScriptedUpstream) -> None:
    chat = kept.open()
    exchange(chat, upstream, "Hello?")
    chat.page.evaluate("async () => { for (const name of await caches.keys()) await caches.delete(name); }")
    learned(chat.reload())
    assert chat.text() == "One two."
    chat.wait(lambda: "/" in kept.files(), 10, "all is kept anew")

    chat.expect_fault(status(404))
    chat.page.evaluate("""
async () => {
    const [name] = await caches.keys(), cache = await caches.open(name);
    for (const request of await cache.keys())
        if (request.url.endsWith("/words.js")) await cache.put(request, new Response("", {status: 404}));
}
""")
    assert (
        chat.page.evaluate("fetch(document.querySelector('link[href$=\"/words.js\"]').href).then(r => r.status)") == 404
    )
    loads: list[Any] = []
    chat.page.on("load", lambda page: loads.append(page))
    chat.page.reload()
    chat.wait(lambda: len(loads) == 2, 20, "it is loaded again")
    chat.wait(lambda: chat.text() == "One two.", 10, "it is whole")
    chat.wait(lambda: kept.workers() == [["activated"]], 20, "the new worker")
    learned(chat.reload())
    assert chat.page.locator("#broken").count() == 0


def test_worker_stays_when_only_the_network_lost_a_part_and_goes_when_that_happens_again(kept: Kept) -> None:
    """It may be all that is left to read; whatever breaks the page is not the worker for long."""
    chat = kept.open()
    chat.expect_fault(status(404))
    chat.expect_fault("Refused to apply style")
    chat.page.evaluate("async () => (await caches.open((await caches.keys())[0])).put('/mark', new Response(''))")
    chat.page.add_init_script("""
addEventListener("DOMContentLoaded", () => {
    if (Number(sessionStorage.getItem("lost")) <= 0) return;
    sessionStorage.setItem("lost", Number(sessionStorage.getItem("lost")) - 1);
    const part = document.createElement("link");
    document.head.append(Object.assign(part, {rel: "stylesheet", href: "/assets/lost.css"}));
});
""")
    loads: list[Any] = []
    chat.page.on("load", lambda page: loads.append(page))
    for times, is_kept in ((1, True), (2, False)):
        loads.clear()
        chat.page.evaluate("times => { sessionStorage.clear(); sessionStorage.setItem('lost', times); }", times)
        chat.page.evaluate("() => void setTimeout(() => location.reload())")
        chat.wait(lambda: len(loads) == 2, 15, "it is loaded again")
        chat.wait(lambda is_kept=is_kept: ("/mark" in kept.files()) is is_kept, 10, "the worker's end")
        assert chat.page.locator("#broken").count() == (not is_kept)
    chat.press("Load again")
    chat.wait(lambda: "/" in kept.files() and kept.workers() == [["activated"]], 20, "the new worker")


@pytest.mark.long
def test_worker_is_that_of_the_version_and_goes_with_a_version_that_has_none(
    run_service: RunService, open_chat: OpenChat, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    service = run_service()
    kept = Kept(open_chat(service.base_url, worker=True))
    chat = kept.open()
    [first] = kept.whole()
    learned(chat.reload())  # from now on the worker is asked for its files
    later = chat.page.get_attribute("link[href$='/words.js']", "href").replace("words.js", "transfer.js")

    service.stop()
    service._root = another_version(tmp_path)
    service.start()
    next_tab = chat.tab()
    next_tab.expect_fault(LOST)
    learned(next_tab.open())
    chat.wait(lambda: len(kept.whole()) == 2 and kept.workers() == [["activated"]], 20, "the next one")
    [_, second] = kept.whole()
    next_tab.page.close()
    assert get(f"{service.base_url}{later}").status == 404
    fetched = "async (path) => (await (await fetch(path, { cache: 'no-store' })).text()).includes('importAll')"
    assert chat.page.evaluate(fetched, later)

    chat.page.evaluate("caches.open('chatwait/assets/of a version whose worker never came')")
    service.stop()
    with (service._root / "app" / "static" / "assets" / "words.js").open("a", encoding="utf-8") as words:
        words.write("// And of a third.\n")
    service.start()
    learned(chat.reload())
    chat.wait(lambda: first not in kept.whole() and len(kept.whole()) == 2, 20, "the third")
    assert kept.whole()[0] == second
    chat.wait(lambda: kept.workers() == [["activated"]], 20, "its worker")
    assert chat.page.evaluate("caches.keys()") == kept.whole()
    service.kill()
    wait_away(chat.reload())
    parts = chat.page.evaluate("[...document.querySelectorAll('[href]')].map((one) => one.getAttribute('href'))")
    assert any(part.startswith(kept.whole()[1].removeprefix("chatwait")) for part in parts)

    pages = service._root / "app" / "routes" / "pages.py"
    text = pages.read_text(encoding="utf-8")
    assert '"X-ChatWait"' in text
    pages.write_text(text.replace('"X-ChatWait"', '"X-Other"'), encoding="utf-8")
    service.start()
    chat.page.goto("about:blank")
    learned(chat.open())
    chat.wait(lambda: kept.files() == [], 20, "the worker leaves, and no other one comes")


def test_answer_of_a_file_or_of_long_ago_is_not_asked_for_when_the_server_is_back(
    kept: Kept, door: ChaosProxy, upstream: ScriptedUpstream
) -> None:
    chat = kept.open()
    old = {"code": "connection_lost"}
    for number, more in enumerate(
        (
            {"state": "sending", "key": "k0-Z" * 6},
            {"state": "interrupted", "key": "k1-Z" * 6, "error": old, "endedAt": 1_600_000_000_000, "streamId": "cw_1"},
        )
    ):
        said = {"id": "a", "role": "assistant", "content": "One ", "at": 1, "asks": "q", **more}
        messages = [{"id": "q", "role": "user", "content": f"Dear {number}", "at": 1}, said]
        file = json.dumps({"v": 2, "id": f"file{number}", "title": f"File {number}", "messages": messages})
        with chat.page.expect_file_chooser() as chooser:
            chat.press("Import")
        chooser.value.set_files([{"name": "a.json", "mimeType": "application/json", "buffer": file.encode()}])
        pick(chat, f"File {number}")
        assert chat.state() == "interrupted"
        shut(door)
        chat.page.evaluate("dispatchEvent(new Event('offline'))")  # what makes it ask at once
        wait_away(chat)
        door.accept()
        wait_back(chat)
        assert chat.state() == "interrupted"
    assert upstream.completions == []


def test_page_of_which_nothing_else_comes_says_so(kept: Kept, door: ChaosProxy, service: ChatWait) -> None:
    """It is the page of another version, and nothing that it loads: as where a server dies just behind it."""
    page = get(f"{service.base_url}/")
    headers = {name: page.headers[name] for name in ("X-ChatWait", "Content-Security-Policy", "Content-Type")}
    body = re.sub(rb"/assets/[0-9a-f]{16}/", b"/assets/0123456789abcdef/", page.body)
    chat = kept.open()
    chat.page.goto("about:blank")
    chat.expect_fault(status(502))
    with ScriptedUpstream() as server:
        server.by(lambda record: Script(502, body=b"Gone") if record.path != "/" else Script(200, headers, body=body))
        door.lead_to(server.port)
        door.cut_all()
        chat.page.goto(chat.base_url)
        chat.page.get_by_text("A part of this page could not be loaded.").wait_for(timeout=10_000)
        chat.page.goto("about:blank")
