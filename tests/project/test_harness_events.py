"""Test the event parser with the specification's own examples, and cut anywhere."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.reader import Event, EventParser


def parse(data: bytes) -> list[Event]:
    return EventParser().feed(data)


def test_parser_given_the_stock_example_joins_its_data_lines() -> None:
    assert parse(b"data: YHOO\ndata: +2\ndata: 10\n\n") == [Event("message", "YHOO\n+2\n10")]


def test_parser_given_the_example_with_comment_and_ids_sets_and_resets_the_id() -> None:
    stream = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"

    first, second, third = parse(stream)

    assert (first.data, first.id, first.last_event_id) == ("first event", "1", "1")
    assert (second.data, second.id, second.last_event_id) == ("second event", "", "")
    assert (third.data, third.id, third.last_event_id) == (" third event", None, "")


def test_parser_given_the_example_without_a_last_blank_line_drops_the_last_block() -> None:
    assert [event.data for event in parse(b"data\n\ndata\ndata\n\ndata:")] == ["", "\n"]


def test_parser_given_the_example_of_spaces_takes_one_away() -> None:
    assert [event.data for event in parse(b"data:test\n\ndata: test\n\n")] == ["test", "test"]


def test_parser_keeps_the_id_of_a_frame_that_was_cut_out_of_the_cursor() -> None:
    parser = EventParser()
    parser.feed(b"id: 1\ndata: a\n\nid: 2\ndata: b\n")

    assert parser.last_event_id == "1"
    assert parser.feed(b"\n")[0].last_event_id == parser.last_event_id == "2"


def test_parser_moves_the_cursor_for_an_id_without_data_but_dispatches_nothing() -> None:
    parser = EventParser()

    assert parser.feed(b"id: 7\n\n") == []
    assert parser.last_event_id == "7"


def test_parser_ignores_an_id_with_nul_and_a_retry_that_is_no_number() -> None:
    parser = EventParser("5")
    (event,) = parser.feed(b"id: 6\0\nretry: 10x\nretry: \xd9\xa1\ndata: a\n\n")

    assert (event.id, event.last_event_id, event.retry) == (None, "5", None)
    assert parser.feed(b"retry: 1000\n") == []
    assert parser.retry_ms == 1000


def test_parser_ignores_one_bom_at_the_start_only() -> None:
    assert parse(b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n") == [Event("message", "a")]


def test_parser_dispatches_at_a_bare_cr_without_waiting_for_more() -> None:
    parser = EventParser()

    assert [event.data for event in parser.feed(b"data: a\r\r")] == ["a"]
    assert [event.data for event in parser.feed(b"\ndata: b\r\n\r\n")] == ["b"]


def test_parser_splits_at_no_other_line_ends() -> None:
    text = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"
    assert [event.data for event in parse(f"data: {text}\n\n".encode())] == [text]


def test_parser_resets_the_event_name_after_each_event_and_ignores_unknown_fields() -> None:
    named, plain = parse(b"event: token\ndata: a\nfoo: bar\n\ndata: b\n\n")
    assert (named.event, plain.event) == ("token", "message")


LINES = st.sampled_from(
    b"data: a|data|data:|data: \xc3\xa9\xf0\x9f\x98\x80|data: \xff\xc3|id: 1|id|id: \0|event: e|retry: 5|: c"
    b"|||\xef\xbb\xbf|x\xe2\x80\xa8y: z".split(b"|")
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(LINES, ENDS), max_size=12), st.data())
def test_parser_gives_the_same_events_wherever_the_bytes_are_cut(
    lines: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(line + end for line, end in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    whole, parser, in_parts = EventParser(), EventParser(), []
    expected = whole.feed(stream)

    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        in_parts += parser.feed(stream[begin:end])

    assert in_parts == expected
    assert (parser.last_event_id, parser.retry_ms) == (whole.last_event_id, whole.retry_ms)
    slow = EventParser()
    assert [event for byte in stream for event in slow.feed(bytes([byte]))] == expected
