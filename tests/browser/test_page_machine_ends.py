"""machine.js: what a status in place of a stream and a stop do to an answer, by itself in a real browser."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.machine_steps import AGAIN, BEGUN, OVER, STREAMING, case, delays, end, last, play, start, token
from tests.browser.modules import Modules

pytestmark = pytest.mark.browser

LOST = [*STREAMING, ["lost", 0], ["connecting", 250]]
TWO_MINUTES = 120_000


def _refused(status: int, error: dict[str, Any] | None = None, retry_after: int = 0, at: int = 300) -> list[Any]:
    return ["refused", status, error, retry_after, at]


def _error(code: str, retryable: bool) -> dict[str, Any]:
    return {"error_code": code, "message": "x", "retryable": retryable}


def test_machine_given_a_status_of_a_proxy_tries_again_where_it_may_pass(modules: Modules) -> None:
    passing = (200, 302, 408, 425, 429, 500, 502, 503, 504)
    lasting = (400, 401, 403, 413, 501)
    again = [[["connect"], "reconnecting"]]
    assert last(modules, *[case(["begin"], _refused(status)) for status in passing]) == again * len(passing)
    assert last(modules, *[case(*LOST, _refused(status)) for status in (*passing, 404)]) == again * (len(passing) + 1)

    for played in play(modules, *[case(["begin"], _refused(status)) for status in (*lasting, 404)]):
        assert played["seen"][-1][:2] == [OVER, "failed"]
        assert (played["answer"]["refused"], played["answer"]["error"]) == (True, {"code": "refused"})
    for played in play(modules, *[case(*LOST, _refused(status)) for status in lasting]):
        assert played["seen"][-1][:2] == [OVER, "interrupted"]
        assert (played["answer"]["refused"], played["answer"]["error"]) == (False, {"code": "refused"})
        assert played["answer"]["content"] == "<1>"


def test_machine_given_an_error_of_the_service_tries_again_only_if_it_says_so(modules: Modules) -> None:
    lasting = [(503, _error("x", False)), (400, _error("x", True)), (404, _error("x", False))]
    assert last(modules, case(["begin"], _refused(503, _error("x", True)))) == [[["connect"], "reconnecting"]]
    for (_, error), new, old in zip(
        lasting,
        play(modules, *[case(["begin"], _refused(*one)) for one in lasting]),
        play(modules, *[case(*LOST, _refused(*one)) for one in lasting]),
        strict=True,
    ):
        assert (new["answer"]["state"], new["answer"]["error"], new["answer"]["refused"]) == ("failed", error, True)
        assert (old["answer"]["state"], old["answer"]["error"]) == ("interrupted", error)


def test_machine_told_that_the_storage_is_away_tries_again_and_a_lost_producer_ends_it_as_any_failure(
    modules: Modules,
) -> None:
    away, lost = _error("store_unavailable", True), _error("producer_lost", True)
    totals = {"tokens": 1, "model": "m", "first_token_ms": None, "duration_ms": 5, "finish_reason": None}
    failure = ["terminal", "failed", {**totals, "error": lost}, True, 300]
    new, back, failed = play(
        modules,
        case(["begin"], _refused(503, away, 2_000)),
        case(*LOST, _refused(503, away, 2_000)),
        case(*STREAMING, failure),
    )
    for one in (new, back):
        assert (one["answer"]["state"], one["answer"]["busy"], delays(one["seen"])[-1]) == (
            "reconnecting",
            False,
            2_000,
        )
    assert (failed["answer"]["state"], failed["answer"]["error"]) == ("failed", lost)
    assert failed["answer"]["content"] == "<1>"


def test_machine_told_that_the_answer_is_gone_is_interrupted(modules: Modules) -> None:
    gone = [(404, "stream_unknown"), (410, "stream_expired"), (409, "cursor_ahead"), (503, "stream_expired")]
    played = play(modules, *[case(*LOST, _refused(status, _error(code, True))) for status, code in gone])

    assert [one["seen"][-1][:2] for one in played] == [[OVER, "interrupted"]] * 4
    assert [one["answer"]["error"] for one in played] == [{"code": "answer_gone", "cause": code} for _, code in gone]


def test_machine_told_when_to_come_back_waits_so_long_but_not_over_two_minutes(modules: Modules) -> None:
    played = play(
        modules,
        *[case(["begin"], _refused(503, None, ms)) for ms in (7_000, 100, TWO_MINUTES)],
        case(["begin"], _refused(503, None, TWO_MINUTES + 1)),
    )
    assert [delays(one["seen"])[1:] for one in played] == [[7_000], [250], [TWO_MINUTES], []]
    assert played[0]["answer"]["retryAt"] == 7_300
    assert played[-1]["seen"][-1][:2] == [OVER, "interrupted"]
    assert played[-1]["answer"]["error"]["code"] == "connection_lost"


def test_machine_told_that_the_service_is_full_is_busy_until_something_else_happens(modules: Modules) -> None:
    full, status, lost, heard, long = play(
        modules,
        case(["begin"], _refused(503, _error("overloaded", True))),
        case(["begin"], _refused(429)),
        case(["begin"], _refused(429), ["lost", 400]),
        case(["begin"], _refused(429), ["opened", "cw_1", 400], start(400)),
        case(["begin"], _refused(429), ["tick", 60_000], ["tick", 300 + TWO_MINUTES]),
    )
    assert [one["answer"]["busy"] for one in (full, status, lost, heard)] == [True, True, False, False]
    assert long["answer"]["error"] == {"code": "overloaded_long", "retryable": True}


def test_machine_stopped_before_it_has_a_stream_asks_when_it_has_one(modules: Modules) -> None:
    (played,) = play(modules, case(["begin"], ["stop", 10], ["stop", 20], ["tick", 3_000], ["opened", "cw_1", 3_100]))

    assert [one[0] for one in played["seen"]] == [["connect"], [], [], [], ["stop"]]
    assert played["answer"]["stopping"]
    assert played["answer"]["state"] == "sending"


def test_machine_stopped_asks_at_once_and_again_until_it_is_confirmed(modules: Modules) -> None:
    steps = [["stop", 10], ["stop", 20], ["tick", 2_009], ["tick", 2_010], ["tick", 2_500], ["tick", 4_010]]
    (played,) = play(modules, case(*STREAMING, *steps, token(2, 4_020)))

    assert [one[0] for one in played["seen"][4:]] == [["stop"], [], [], ["stop"], [], ["stop"], ["text"]]


@pytest.mark.parametrize(
    ("steps", "gave"),
    [
        ([["byte", 9], ["stopAnswered", 200, 2_008]], []),
        ([["byte", 9], ["stopAnswered", 200, 2_009]], AGAIN),
        ([["lost", 20], ["stopAnswered", 200, 30]], ["connect"]),
        ([["byte", 9], ["stopAnswered", 0, 5_000]], []),
        ([["byte", 9], ["stopAnswered", 503, 5_000]], []),
    ],
    ids=["heard", "silent", "lost", "not reached", "refused"],
)
def test_machine_whose_stop_is_answered_comes_back_for_the_end_where_it_must(
    modules: Modules, steps: list[Any], gave: list[str]
) -> None:
    (played,) = play(modules, case(*STREAMING, ["stop", 10], *steps))

    assert played["seen"][-1][0] == gave
    assert played["answer"]["stopping"]
    if gave:
        assert played["seen"][-1][2] == 0


def test_machine_whose_stop_is_not_confirmed_is_stopped_all_the_same(modules: Modules) -> None:
    stopped = [*STREAMING, ["stop", 10]]
    gone = [(404, _error("stream_unknown", False)), (410, _error("stream_expired", False))]
    others = [(404, None), (410, None), (404, _error("not_found", False)), (401, None), (503, None)]
    early, late, unsent, *rest = play(
        modules,
        case(*stopped, ["tick", 10_009]),
        case(*stopped, ["tick", 10_010]),
        case(["begin"], ["stop", 10], ["tick", 10_010]),
        *[case(*stopped, ["stopAnswered", status, 20, error]) for status, error in gone],
        *[case(*stopped, ["stopAnswered", status, 20, error], ["tick", 2_010]) for status, error in others],
    )
    unknown, unsure = rest[: len(gone)], rest[len(gone) :]
    assert not early["answer"].get("endedAt")
    for one in (late, unsent):
        assert one["seen"][-1][:2] == [OVER, "stopped"]
        assert one["answer"]["note"] == "stop_unconfirmed"
    for one in unknown:
        assert one["seen"][-1][:2] == [OVER, "stopped"]
        assert "note" not in one["answer"]
        assert not one["answer"]["stopping"]
    for one in unsure:  # whoever said it does not know of the answer; it is asked again
        assert one["seen"][-2][:2] == [[], "streaming"]
        assert one["seen"][-1][:2] == [["stop"], "streaming"]
        assert one["answer"]["stopping"]


def test_machine_that_is_to_sign_in_tries_on_and_never_gives_up(modules: Modules) -> None:
    asked = [["signedOut", 1_000 * at] for at in range(1, 8)]
    played, lost, heard, unsent = play(
        modules,
        case(*STREAMING, *asked, ["tick", 126_000], ["signedOut", 127_000], ["tick", 246_999]),
        case(*STREAMING, *asked, ["lost", 8_000]),
        case(*STREAMING, *asked, start(8_000)),
        case(["begin"], ["signedOut", 10], ["stop", 20], ["tick", 10_020]),
    )
    assert delays(played["seen"])[1:] == [250, 500, 1_000, 2_000, 4_000, 8_000, 30_000, 30_000]
    answers = [one["answer"] for one in (played, lost, heard)]
    assert [one["state"] for one in answers] == ["reconnecting", "reconnecting", "slow"]
    assert [one["signedOut"] for one in answers] == [True, False, False]
    assert [one["content"] for one in answers] == ["<1>"] * 3
    assert (unsent["answer"]["state"], unsent["answer"]["note"]) == ("stopped", "stop_unconfirmed")


def test_machine_after_a_missed_heartbeat_tells_since_when_until_something_comes(modules: Modules) -> None:
    silent = [*STREAMING, ["byte", 1_000]]
    before, after, heard, byte, gone, unheard = play(
        modules,
        case(*silent, ["tick", 12_999]),
        case(*silent, ["tick", 13_000]),
        case(*silent, ["tick", 13_000], token(2, 13_001)),
        case(*silent, ["tick", 13_000], ["byte", 13_100], ["tick", 13_200]),
        case(*silent, ["tick", 13_000], ["tick", 26_001]),
        case(*BEGUN, ["tick", 13_000]),
    )
    told = [one["answer"]["silentSince"] for one in (before, after, heard, byte, gone, unheard)]
    assert told == [None, 1_000, None, None, None, None]
    assert gone["answer"]["state"] == "reconnecting"


def test_machine_that_failed_itself_keeps_what_there_is_and_offers_to_reconnect(modules: Modules) -> None:
    (played,) = play(modules, case(*STREAMING, ["broken", 10], ["broken", 20]))
    assert [one[:2] for one in played["seen"][-2:]] == [[OVER, "interrupted"], [[], "interrupted"]]
    assert played["answer"]["error"] == {"code": "page_fault", "retryable": True}
    assert played["answer"]["content"] == "<1>"


def test_machine_stopped_before_a_failure_without_a_word_is_stopped(modules: Modules) -> None:
    failed = end("failed", 30, error=_error("context_too_long", False))
    waiting, writing = play(
        modules, case(*BEGUN, start(0), ["stop", 10], failed), case(*STREAMING, ["stop", 10], failed)
    )
    assert [one["answer"]["state"] for one in (waiting, writing)] == ["stopped", "failed"]


def test_machine_stopped_while_it_comes_back_asks_when_it_is_there(modules: Modules) -> None:
    (played,) = play(modules, case(*BEGUN, ["lost", 0], ["stop", 10], ["connecting", 250], ["opened", "cw_1", 300]))

    assert [one[0] for one in played["seen"][-3:]] == [["stop"], None, ["stop"]]
