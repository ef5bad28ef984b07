"""A round moves as its table says and in no other way."""

import itertools

import pytest

from coordinator.errors import IllegalTransition
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import ROUND_TRANSITIONS, MemberState, Round, RoundEvent, RoundState
from wire_protocol.messages import RoundKind


def _round(**policy) -> Round:
    settings = {"report_goal": 2, "min_reports": 1, "report_timeout_s": 10.0} | policy
    return Round(round_id=1, kind=RoundKind.TRAIN, policy=RoundPolicy(**settings), now=0.0)


@pytest.mark.parametrize(("state", "event"), itertools.product(RoundState, RoundEvent))
def test_every_move_outside_the_table_raises(state, event):
    round_ = _round()
    round_.state = state
    if (state, event) in ROUND_TRANSITIONS:
        round_.move(event)
        assert round_.state is ROUND_TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalTransition):
            round_.move(event)
        assert round_.state is state


def test_every_state_is_reachable_and_the_two_final_ones_have_no_way_out():
    reached = {RoundState.SELECTING}
    while True:
        more = {target for (source, _), target in ROUND_TRANSITIONS.items() if source in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(RoundState)
    assert {source for source, _ in ROUND_TRANSITIONS}.isdisjoint({RoundState.COMMITTED, RoundState.ABANDONED})


def test_the_goal_ends_a_round_before_its_deadline():
    round_ = _round()
    round_.assign({"a": b"1", "b": b"2", "c": b"3"}, now=0.0)
    round_.mark("a", MemberState.FOLDED)
    round_.settle(now=1.0)
    assert round_.state is RoundState.REPORTING
    round_.mark("b", MemberState.FOLDED)
    round_.settle(now=1.0)
    assert round_.state is RoundState.AGGREGATING


@pytest.mark.parametrize(("num_folded", "state"), [(0, RoundState.ABANDONED), (1, RoundState.AGGREGATING)])
def test_the_deadline_aggregates_enough_reports_and_abandons_too_few(num_folded, state):
    round_ = _round()
    round_.assign({"a": b"1", "b": b"2", "c": b"3"}, now=0.0)
    for device in "ab"[:num_folded]:
        round_.mark(device, MemberState.FOLDED)
    round_.settle(now=9.9)
    assert round_.state is RoundState.REPORTING
    round_.settle(now=10.0)
    assert round_.state is state


def test_a_round_does_not_wait_for_its_deadline_when_nobody_is_left():
    round_ = _round()
    round_.assign({"a": b"1", "b": b"2"}, now=0.0)
    round_.mark("a", MemberState.FOLDED)
    round_.mark("b", MemberState.WITHDRAWN)
    round_.settle(now=1.0)
    assert round_.state is RoundState.AGGREGATING


@pytest.mark.parametrize(
    "settings",
    [
        {"report_goal": 0, "min_reports": 0},
        {"report_goal": 2, "min_reports": 3},
        {"report_goal": 2, "min_reports": 1, "over_selection": 0.9},
        {"report_goal": 2, "min_reports": 1, "over_selection": float("nan")},
        {"report_goal": 2, "min_reports": 1, "report_timeout_s": 0.0},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(settings):
    with pytest.raises(ValueError, match=r"must|need"):
        RoundPolicy(**settings)
