"""The grammar of the event stream is what the service writes."""

from __future__ import annotations

import hashlib
import re

import pytest

from load.events import EventParser
from tests.contract import abnf
from tests.contract.document import CONTRACT, GRAMMAR, ROOT, named, statuses, validator
from tests.contract.golden import goldens
from tests.harness.answer import Answer
from tests.harness.contract import Contract
from tests.harness.contract_chunks import ChunkCheck
from tests.harness.http1 import Headers


def test_grammar_shows_the_same_stream_and_every_event_and_cursor_error() -> None:
    stream = CONTRACT["components"]["examples"]["EventStream"]["value"]
    table = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", GRAMMAR, re.MULTILINE)
    listed = re.findall(r"(\d{3}) `(\w+)`", GRAMMAR)
    known = CONTRACT["components"]["schemas"]["EventStream"]["x-event-data"]

    assert stream.rstrip("\n") in GRAMMAR
    assert [name for name, _ in table] == list(known)
    done = dict(table)["done"]
    assert re.findall(r"(?<!\()`(\w+)`", done) == list(EventParser().feed(stream.encode())[-1].json)
    assert {code: int(status) for status, code in listed}.items() <= statuses().items()


# Streams are held to it

STREAM = re.compile(abnf.pattern(GRAMMAR, "stream"))
EVERY = [one for one in goldens() if one.headers.get("content-type", "").startswith("text/event-stream")]
STREAMS = {one.name: one for one in EVERY if "/chat/completions" not in one.path}
COMPLETIONS = {one.name: one for one in EVERY if "/chat/completions" in one.path}
WHOLE = STREAMS["streams/ping_before_the_first_token"].body
RESUMED = STREAMS["streams/resumed_while_it_runs"].body
LAPSED = STREAMS["streams/unresumable_for_a_while"].body
WITHOUT_ID = ("event: ping", "event: unresumable", "event: resumable")


@pytest.mark.parametrize("name", STREAMS)
def test_stream_of_the_examples_follows_the_grammar_and_every_rule(name: str) -> None:
    """Rules 2, 3, 4, 5 and 6 of events.md."""
    exchange = STREAMS[name]
    cursor = re.search(r"(?:Last-Event-ID: |last_event_id=)([^\s]+)", exchange.request)
    answer = Answer(after=int(cursor[1].rpartition(".")[2])) if cursor else Answer()
    answer.begin_connection(Headers(list(exchange.headers.items())))
    for event in EventParser().feed(exchange.body.encode("ascii")):
        answer.add(event)
        schema = CONTRACT["components"]["schemas"]["EventStream"]["x-event-data"][event.event]
        validator(schema, closed=True).validate(event.json)

    assert STREAM.fullmatch(exchange.body)
    assert answer.verify().terminal is not None
    assert (answer.events[0].event == "ping") == (cursor is not None)
    assert not cursor or answer.events[0].id == cursor[1]
    for block in exchange.body.removesuffix("\n\n").split("\n\n"):
        lines = block.split("\n")
        assert lines[-1].startswith("id: ") or lines[0] in WITHOUT_ID
        assert max(len(line) for line in lines if line.startswith("data: ")) <= 8192 + len("data: ")


def frames_of(stream: str) -> list[str]:
    return [f"{block}\n\n" for block in stream.removesuffix("\n\n").split("\n\n")]


START, PING, TOKEN, *_, DONE = frames_of(WHOLE)
BACK = frames_of(RESUMED)[0]
_, _, AWAY, _, STORED, _ = frames_of(LAPSED)


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(text, id=name)
        for name, text in {
            "at once": START + AWAY + STORED + DONE,
            "after coming back": BACK + AWAY + TOKEN + STORED + DONE,
            "with tokens and pings": START + TOKEN + AWAY + TOKEN + PING + TOKEN + STORED + PING + TOKEN + DONE,
            "again and again": START + (AWAY + TOKEN + STORED) * 3 + TOKEN + DONE,
            "to the end": START + AWAY + STORED + TOKEN + AWAY + TOKEN + DONE,
        }.items()
    ],
)
def test_grammar_takes_the_storage_away_in_turns(stream: str) -> None:
    assert STREAM.fullmatch(stream)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(text, id=name)
        for name, text in {
            "nothing": "",
            "no start": TOKEN + DONE,
            "a heartbeat first": PING + TOKEN + DONE,
            "start twice": START + START + DONE,
            "start after coming back": BACK + START + DONE,
            "a later ping with an id": START + TOKEN + BACK + DONE,
            "unresumable first": AWAY + START + DONE,
            "unresumable twice": START + AWAY + TOKEN + AWAY + STORED + DONE,
            "resumable alone": START + STORED + DONE,
            "resumable twice": START + AWAY + STORED + TOKEN + STORED + DONE,
            "unresumable with an id": START + AWAY[:-1] + "id: cw_a.1\n\n" + STORED + DONE,
            "resumable with an id": START + AWAY + STORED[:-1] + "id: cw_a.1\n\n" + DONE,
            "unresumable after the end": START + DONE + AWAY,
            "unresumable and no end": START + TOKEN + AWAY,
            "no end": START + TOKEN,
            "an end that is cut": WHOLE[:-1],
            "two ends": START + DONE + DONE,
            "a token after the end": START + DONE + TOKEN,
            "CRLF": WHOLE.replace("\n", "\r\n"),
            "no space after the colon": WHOLE.replace("data: ", "data:"),
            "the id before the data": START + re.sub(r"(data: .*\n)(id: .*\n)", r"\2\1", TOKEN) + DONE,
            "no id": START + re.sub(r"id: .*\n", "", TOKEN) + DONE,
            "no retry": WHOLE.removeprefix("retry: 1000\n"),
            "data of two lines": WHOLE.replace('"count"', '\ndata: "count"', 1),
            "no ASCII": WHOLE.replace("Rome", "Röm"),
            "a sequence that begins with 0": WHOLE.replace(".1\n", ".01\n"),
            "a comment": ": hello\n\n" + WHOLE,
            "a stream id with a dot": WHOLE.replace("id: cw_", "id: cw.x_"),
        }.items()
    ],
)
def test_grammar_refuses_what_is_no_stream(broken: str) -> None:
    assert STREAM.fullmatch(WHOLE) and STREAM.fullmatch(START + DONE) and STREAM.fullmatch(BACK + DONE)
    assert not STREAM.fullmatch(broken)


# Those of OpenAI's clients, too

COMPLETION = re.compile(abnf.pattern(GRAMMAR, "completion"))
OF_CHUNKS = COMPLETIONS["streams/chunks"].body
CANCELLED = COMPLETIONS["streams/chunks_cancelled"].body
OF_TEXT = COMPLETIONS["streams/chunks_of_a_native_stream"].body
ALIVE, GONE, AGAIN = ": keepalive\n", ": unresumable\n", ": resumable\n"


@pytest.mark.parametrize("name", COMPLETIONS)
def test_completion_of_the_examples_follows_the_grammar_and_every_rule(name: str) -> None:
    exchange = COMPLETIONS[name]
    cursor = re.search(r"Last-Event-ID: \S+\.(\d+)|starting_after=(\d+)", exchange.request)
    check = ChunkCheck(
        Contract.read(), {}, exchange.headers["x-stream-id"], int(cursor[cursor.lastindex or 1]) if cursor else 0
    )
    check.feed(exchange.body.encode("ascii"))
    check.end(whole=True)

    assert COMPLETION.fullmatch(exchange.body)
    assert exchange.headers["location"].endswith("?stream=true")


def test_completion_is_what_events_md_says_of_its_end() -> None:
    """The proof is computed here by the page's words alone."""
    frames = frames_of(OF_CHUNKS.removeprefix(ALIVE))
    records = [frame.split("\n")[0].removeprefix("data: ") for frame in frames if "[DONE]" not in frame]
    digest = hashlib.sha256("".join(f"{record}\n" for record in records).encode()).hexdigest()
    shown = re.findall(r"^: records=(\d+) sha256=(\w+)$", OF_CHUNKS, re.MULTILINE)

    assert shown == [(str(len(records)), digest)]
    assert re.findall(r"\.(\d+)$", OF_CHUNKS, re.MULTILINE) == [str(number + 1) for number in range(len(records) + 1)]
    assert shown == re.findall(
        r"^: records=(\d+) sha256=(\w+)$", COMPLETIONS["streams/chunks_resumed_after_their_end"].body, re.MULTILINE
    )


CHUNK, SECOND, *_, PROOF = frames_of(OF_CHUNKS.removeprefix(ALIVE))
ERROR = next(frame for frame in frames_of(CANCELLED) if '"error"' in frame)


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(text, id=name)
        for name, text in {
            "no record": ALIVE + PROOF,
            "an error at once": ALIVE + ERROR + PROOF,
            "heartbeats": ALIVE + CHUNK + ALIVE + ALIVE + SECOND + ALIVE + PROOF,
            "the storage away in turns": ALIVE + GONE + CHUNK + AGAIN + GONE + ALIVE + AGAIN + PROOF,
            "the storage away to the end": ALIVE + CHUNK + GONE + SECOND + ERROR + PROOF,
            "a last chunk without a number": OF_TEXT,
        }.items()
    ],
)
def test_grammar_takes_a_completion(stream: str) -> None:
    assert COMPLETION.fullmatch(stream)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(text, id=name)
        for name, text in {
            "nothing": "",
            "no heartbeat first": CHUNK + PROOF,
            "a blank line after a heartbeat": ALIVE + "\n" + CHUNK + PROOF,
            "another comment": ": ping\n" + CHUNK + PROOF,
            "no end": ALIVE + CHUNK,
            "an end that is cut": OF_CHUNKS[:-1],
            "two ends": ALIVE + CHUNK + PROOF + PROOF,
            "a chunk after the end": ALIVE + PROOF + CHUNK,
            "a heartbeat after the end": OF_CHUNKS + ALIVE,
            "a chunk after an error": ALIVE + ERROR + CHUNK + PROOF,
            "two errors": ALIVE + ERROR + ERROR + PROOF,
            "no proof": OF_CHUNKS.replace(": records", ": reports"),
            "an end without an id": ALIVE + re.sub(r"id: .*\n", "", PROOF),
            "unresumable first": GONE + CHUNK + PROOF,
            "unresumable twice": ALIVE + GONE + GONE + PROOF,
            "resumable alone": ALIVE + AGAIN + PROOF,
            "an event": ALIVE + "event: token\n" + CHUNK + PROOF,
            "retry": ALIVE + "retry: 1000\n" + CHUNK + PROOF,
            "a record with the number 0": OF_CHUNKS.replace(".1\n", ".0\n"),
            "the id before the data": ALIVE + re.sub(r"(data: .*\n)(id: .*\n)", r"\2\1", CHUNK) + PROOF,
            "data of two lines": OF_CHUNKS.replace('"object"', '\ndata: "object"', 1),
            "CRLF": OF_CHUNKS.replace("\n", "\r\n"),
            "no ASCII": OF_CHUNKS.replace("Rome", "Röm"),
        }.items()
    ],
)
def test_grammar_refuses_what_is_no_completion(broken: str) -> None:
    assert COMPLETION.fullmatch(OF_CHUNKS) and COMPLETION.fullmatch(ALIVE + CHUNK + PROOF)
    assert not COMPLETION.fullmatch(broken)


def test_grammar_has_the_cursor_of_the_contract() -> None:
    cursor = re.compile(abnf.pattern(GRAMMAR, "cursor"))
    schema = named("Cursor")

    for text in ("cw_a.0", "cw_a.1", "cw_a.90", "cw_a.01", "cw_a.", ".1", "a.b.1", "a b.1", "abc", "-1", "", "é.1"):
        assert bool(cursor.fullmatch(text)) == schema.is_valid(text), text


def test_grammar_defines_every_name_that_it_uses() -> None:
    rules = abnf.rules(GRAMMAR)

    assert {"stream", "cursor", "completion"} <= rules.keys()
    for rule in rules:
        re.compile(abnf.pattern(GRAMMAR, rule))


GRAMMAR_TEST = "contract/test_grammar.py: test_stream_of_the_examples_follows_the_grammar_and_every_rule"
PROOFS = {
    1: "live/test_endings.py: test_resume_at_the_head_of_a_quiet_log_gets_headers_and_a_ping_at_once "
    "test_first_frame_comes_before_the_model_has_answered test_silent_upstream_ends_at_its_deadline_with_pings_before",
    2: "live/test_endings.py: test_ending_writes_one_terminal_event_and_nothing_after_it "
    "test_terminal_lost_on_the_wire_is_given_to_the_reconnect_and_then_204",
    3: "live/test_seam.py: test_live_stream_cut_after_every_byte_resumes_to_the_same_text "
    "test_hundred_chunks_in_one_millisecond_have_ids_that_rise",
    4: GRAMMAR_TEST,
    5: "unit/test_native_frames.py: test_frame_is_lines_of_lf_with_its_id_last_and_a_blank_one",
    6: "unit/test_native_frames.py: test_frame_of_any_text_is_one_line_of_ascii_data "
    "test_frames_of_many_chunks_hold_at_most_8_kib_however_they_are_escaped",
    7: "live/test_cursors.py: test_post_with_a_cursor_and_a_new_key_never_starts_and_never_binds "
    "test_post_with_a_cursor_ignores_body_type_and_key",
    8: "live/test_leaving.py: test_only_reader_that_leaves_and_comes_back_misses_nothing "
    "test_abandoned_generation_is_cancelled_a_reader_resets_the_clock_and_a_read_one_lives",
}
"""Where each rule of events.md is tested."""


def test_rules_of_the_grammar_are_each_tested() -> None:
    rules = re.findall(
        r"^(\d)\. \*\*", GRAMMAR.partition("## What a client can rely on")[2].partition("## ")[0], re.MULTILINE
    )

    assert [int(number) for number in rules] == list(PROOFS)
    for path, _, names in (proof.partition(": ") for proof in PROOFS.values()):
        text = (ROOT / "tests" / path).read_text(encoding="utf-8")
        assert all(f"def {name}(" in text for name in names.split()), path
