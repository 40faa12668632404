"""machine.js: the states of one answer, its losses and its returns, by itself in a real browser."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.machine_steps import AGAIN, BEGUN, OVER, STREAMING, case, delays, end, last, play, start, token
from tests.browser.modules import Modules

pytestmark = pytest.mark.browser


def test_machine_given_each_event_of_a_life_goes_through_the_states(modules: Modules) -> None:
    steps = [
        (["begin"], ["connect"], "sending"),
        (["connecting", 0], None, "sending"),
        (["opened", "cw_1", 10], [], "sending"),
        (start(20), [], "waiting"),
        (["ping", 6_000], [], "waiting"),
        (token(1, 6_100), ["text"], "streaming"),
        (["byte", 11_000], [], "streaming"),
        (["tick", 11_099], [], "streaming"),
        (["tick", 11_100], [], "slow"),
        (["ping", 11_200], [], "slow"),
        (token(3, 11_300, 2), ["text"], "streaming"),
        (["lost", 11_400], ["connect"], "reconnecting"),
        (["connecting", 11_650], None, "reconnecting"),
        (["opened", "cw_1", 11_700], [], "reconnecting"),
        (start(11_700), [], "streaming"),
        (["lost", 11_800], ["connect"], "reconnecting"),
        (start(16_300), [], "slow"),
        (token(4, 16_400), ["text"], "streaming"),
        (end("done", 16_500), OVER, "complete"),
        *[([name, 17_000], [], "complete") for name in ("tick", "wake", "stop", "lost")],
        (["stopAnswered", 404, 17_000], [], "complete"),
    ]
    (played,) = play(modules, case(*[step for step, _, _ in steps]))

    assert [one[:2] for one in played["seen"]] == [[orders, state] for _, orders, state in steps]
    answer = played["answer"]
    assert (answer["content"], answer["sequence"], answer["reconnects"]) == ("<1><3><4>", 4, 2)
    assert (answer["firstAt"], answer["lastTokenAt"], answer["endedAt"]) == (6_100, 16_400, 16_500)
    assert answer["error"] is None


def test_machine_given_each_terminal_event_ends_in_its_state(modules: Modules) -> None:
    error = {"code": "upstream_error", "message": "x"}
    terminals = [end("done", 9), end("failed", 9, error=error)]
    terminals += [end("cancelled", 9, reason=reason) for reason in ("client", "abandoned", "shutdown")]
    played = play(modules, *[case(*STREAMING, one) for one in terminals])

    assert [one["seen"][-1][0] for one in played] == [OVER] * 5
    assert [one["answer"]["state"] for one in played] == ["complete", "failed", "stopped", *["interrupted"] * 2]
    assert [one["answer"]["content"] for one in played] == ["<1>"] * 5
    assert played[1]["answer"]["error"] == error
    assert [one["answer"]["error"]["code"] for one in played[3:]] == ["ended_by_server"] * 2


def test_machine_losing_the_connection_again_and_again_backs_off(modules: Modules) -> None:
    lost = [["lost", 1_000]] * 8
    first = [start(2_000), ["lost", 3_000]]
    played = play(modules, *[case(*STREAMING, *lost, *first, chance=chance) for chance in (0, 0.5, 1)])
    steps = [250, 500, 1_000, 2_000, 4_000, 8_000, 8_000, 8_000, 250]

    for one, factor in zip(played, (0.7, 1, 1.3), strict=True):
        assert delays(one["seen"])[1:] == [round(step * factor) for step in steps]
        assert one["answer"]["reconnects"] == 2  # losses of what had been heard


def test_machine_woken_connects_at_once_unless_bytes_are_fresh(modules: Modules) -> None:
    lost = [*STREAMING, *[["lost", 1_000]] * 4]
    (woken,) = play(modules, case(*lost, ["wake", 2_000], ["lost", 2_100]))
    assert delays(woken["seen"])[-3:] == [2_000, 0, 250]

    cases = [
        (["wake", 11_999], []),
        (["wake", 12_000], AGAIN),
        (["wake", 999, True], []),
        (["wake", 1_000, True], AGAIN),
    ]
    assert last(modules, *[case(*STREAMING, step) for step, _ in cases]) == [[gave, "streaming"] for _, gave in cases]


def test_machine_without_a_connection_for_two_minutes_is_interrupted(modules: Modules) -> None:
    lost = [*STREAMING, ["lost", 1_000]]
    ticks = [["tick", 61_000], ["tick", 120_999]]
    kept, late, failing, heard = play(
        modules,
        case(*lost, *ticks),
        case(*lost, *ticks, ["tick", 121_000]),
        case(*lost, *ticks, ["lost", 121_000]),
        case(*lost, ["tick", 61_000], start(100_000), ["tick", 121_000]),
    )
    assert kept["seen"][-1][:2] == [[], "reconnecting"]
    assert heard["seen"][-1][1] == "slow"
    for one in (late, failing):
        assert one["seen"][-1][:2] == [OVER, "interrupted"]
        assert one["answer"]["error"] == {"code": "connection_lost", "retryable": True}
        assert one["answer"]["content"] == "<1>"


def test_machine_of_a_computer_that_slept_counts_the_two_minutes_anew(modules: Modules) -> None:
    lost = [*STREAMING, ["lost", 1_000], ["tick", 31_000]]
    assert last(
        modules,
        case(*lost, ["tick", 121_000]),  # a gap of 90 s: a throttled timer
        case(*lost, ["tick", 121_001]),
        case(*lost, ["tick", 900_000], ["tick", 960_000], ["tick", 1_019_999]),
        case(*lost, ["tick", 900_000], ["tick", 960_000], ["tick", 1_020_000]),
    ) == [[OVER, "interrupted"], [[], "reconnecting"], [[], "reconnecting"], [OVER, "interrupted"]]


@pytest.mark.parametrize(
    ("steps", "options", "limit"),
    [
        ([*BEGUN, start(0)], {}, 25_000),
        ([*BEGUN, start(0, 2)], {}, 5_000),
        ([["begin"]], {"heartbeat": 4}, 10_000),
        ([*STREAMING, ["lost", 0]], {}, 5_000),
        ([*BEGUN, start(0, 1), ["lost", 0]], {}, 2_500),
        ([*STREAMING, ["wake", 20_000]], {}, 5_000),
        ([*STREAMING, *[["lost", 0]] * 6], {}, 5_000),
        ([*STREAMING, *[["lost", 0]] * 7], {}, 25_000),
        ([*STREAMING, ["lost", 0], ["connecting", 0], start(0)], {}, 25_000),
    ],
    ids=["told", "told 2 s", "before", "return", "short return", "wake", "6 returns", "7 returns", "heard"],
)
def test_machine_with_a_silent_connection_leaves_it(
    modules: Modules, steps: list[Any], options: dict[str, Any], limit: int
) -> None:
    """Measure from 20 s on: then the connection is opened, or its last byte comes."""
    at = 20_000
    steps = [*steps, ["connecting", at]]
    within, after = play(modules, *[case(*steps, ["tick", at + limit + more], **options) for more in (0, 1)])

    assert within["seen"][-1][0] == []
    assert after["seen"][-1][:2] == [AGAIN, "reconnecting"]


def test_machine_given_a_token_that_does_not_follow_comes_back_and_not_for_ever(modules: Modules) -> None:
    holes = [token(3, 10), ["hole", 10], start(20)]
    three, four, five = play(modules, *[case(*STREAMING, *holes * times) for times in (3, 4, 5)])

    assert [one[0] for one in three["seen"][4:]] == [None, AGAIN, []] * 3
    assert delays(three["seen"])[1:] == [250] * 3
    assert (three["answer"]["content"], three["wasReset"]) == ("<1>", False)
    assert (four["seen"][-2][0], four["seen"][-2][2]) == (AGAIN, 0)
    assert (four["answer"]["content"], four["answer"]["sequence"], four["wasReset"]) == ("", 0, True)
    assert five["seen"][-2][:2] == [OVER, "failed"]
    assert five["answer"]["error"]["code"] == "text_damaged"


def test_machine_given_a_token_twice_takes_it_once(modules: Modules) -> None:
    (played,) = play(modules, case(*STREAMING, token(1, 5), token(2, 6), token(2, 7, 2), token(3, 8)))

    assert [one[0] for one in played["seen"][4:]] == [None, ["text"], None, ["text"]]
    assert (played["answer"]["content"], played["answer"]["sequence"]) == ("<1><2><3>", 3)


def test_machine_given_an_end_that_does_not_prove_the_text_reads_it_once_more(modules: Modules) -> None:
    unsound = end("done", 10, is_sound=False)
    reread, sound, twice, behind = play(
        modules,
        case(*STREAMING, unsound),
        case(*STREAMING, unsound, start(20), token(1, 20), end("done", 30)),
        case(*STREAMING, unsound, start(20), token(1, 20), unsound),
        case(*STREAMING, ["refused", 204, None, 0, 10], ["refused", 204, None, 0, 20]),
    )
    assert (reread["seen"][-1][0], reread["seen"][-1][2]) == (AGAIN, 0)
    assert (reread["answer"]["content"], reread["answer"]["sequence"], reread["wasReset"]) == ("", 0, True)
    assert (sound["answer"]["state"], sound["answer"]["content"]) == ("complete", "<1>")
    assert behind["seen"][-2][0] == AGAIN  # our cursor is the end's, which was not seen
    for one in (twice, behind):
        assert one["seen"][-1][:2] == [OVER, "failed"]
        assert one["answer"]["error"]["code"] == "text_damaged"


def test_machine_given_another_stream_begins_its_text_anew(modules: Modules) -> None:
    (played,) = play(modules, case(*STREAMING, ["lost", 5], ["opened", "cw_2", 9], token(1, 10)))

    assert played["wasReset"]
    assert (played["answer"]["streamId"], played["answer"]["content"]) == ("cw_2", "<1>")


def test_machine_of_a_page_opened_again_says_nothing_of_a_loss_for_a_second(modules: Modules) -> None:
    at = 100_000
    fields = {"state": "streaming", "streamId": "cw_1", "sequence": 1, "content": "<1>", "lastTokenAt": at - 1_000}
    begun = [["begin"], ["connecting", at], ["tick", at + 500]]
    said, unsaid, mended, lost = play(
        modules,
        case(*begun, ["tick", at + 1_001], fields=fields, now=at),
        case(*begun, ["tick", at + 1_000], fields=fields, now=at),
        case(*begun, ["opened", "cw_1", at + 900], start(at + 900), ["tick", at + 1_001], fields=fields, now=at),
        case(*begun, ["lost", at + 600], fields=fields, now=at),
    )
    assert [one["seen"][2][:2] for one in (said, unsaid, mended, lost)] == [[[], "streaming"]] * 4
    states = [one["answer"]["state"] for one in (said, unsaid, mended, lost)]
    assert states == ["reconnecting", "streaming", "streaming", "reconnecting"]
    assert [one["answer"]["reconnects"] for one in (said, unsaid, mended, lost)] == [0] * 4  # it had heard nothing
