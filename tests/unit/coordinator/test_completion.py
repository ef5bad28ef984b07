"""Over-selection follows the fleet: more devices are asked where fewer answer, and never fewer than the goal."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.completion import CompletionHistory, binomial_tail
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import Member, MemberState, Round, RoundState
from wire_protocol.messages import RoundKind

POLICY = RoundPolicy(report_goal=20, min_reports=5, over_selection=1.3)


def _over(*, folded: int, silent: int = 0, withdrawn: int = 0, state=RoundState.ABANDONED) -> Round:
    round_ = Round(round_id=1, kind=RoundKind.TRAIN, policy=POLICY, now=0.0)
    states = [MemberState.FOLDED] * folded + [MemberState.ASSIGNED] * silent + [MemberState.WITHDRAWN] * withdrawn
    round_.cohort = {f"d{index}": Member(nonce=bytes(16), state=state_) for index, state_ in enumerate(states)}
    round_.state = state
    return round_


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.data())
def test_the_binomial_tail_is_the_sum_of_its_terms(num_trials, probability, data):
    at_least = data.draw(st.integers(0, num_trials + 1))
    terms = (
        math.comb(num_trials, count) * probability**count * (1 - probability) ** (num_trials - count)
        for count in range(at_least, num_trials + 1)
    )
    assert binomial_tail(num_trials, probability, at_least) == pytest.approx(math.fsum(terms), abs=1e-9)


def test_the_operators_setting_holds_until_the_fleet_has_spoken():
    history = CompletionHistory(POLICY)
    assert history.cohort_size() == POLICY.cohort_size
    history.note(_over(folded=10))
    assert history.cohort_size() == POLICY.cohort_size


@pytest.mark.parametrize(("rate", "low", "high"), [(0.95, 20, 24), (0.7, 29, 35), (0.5, 43, 52)])
def test_the_cohort_grows_as_fewer_devices_answer_and_then_the_goal_is_reached_nine_times_in_ten(rate, low, high):
    history = CompletionHistory(POLICY)
    for _ in range(50):
        history.note(_over(folded=round(20 * rate), silent=20 - round(20 * rate)))
    size = history.cohort_size()
    assert low <= size <= high
    rng = random.Random(0)
    reached = sum(sum(rng.random() < rate for _ in range(size)) >= 20 for _ in range(2000)) / 2000
    assert reached >= 0.87


def test_a_dead_fleet_is_asked_four_times_over_and_no_more():
    history = CompletionHistory(POLICY)
    for _ in range(100):
        history.note(_over(folded=0, silent=20))
    assert history.cohort_size() == 80


def test_who_was_still_training_when_the_goal_was_reached_is_no_failure():
    history = CompletionHistory(POLICY)
    for _ in range(50):
        history.note(_over(folded=20, silent=6, state=RoundState.COMMITTED))
    assert history.completion_rate > 0.95
    assert history.cohort_size() <= 23


def test_withdrawals_count_against_the_fleet_even_when_the_goal_was_reached():
    history = CompletionHistory(POLICY)
    for _ in range(50):
        history.note(_over(folded=20, withdrawn=20, state=RoundState.COMMITTED))
    assert history.completion_rate == pytest.approx(0.5, abs=0.02)


def test_an_over_selection_of_one_asks_the_goal_whatever_happens():
    history = CompletionHistory(RoundPolicy(report_goal=20, min_reports=5, over_selection=1.0))
    for _ in range(50):
        history.note(_over(folded=1, silent=19))
    assert history.cohort_size() == 20


@given(st.integers(1, 40), st.integers(0, 1000))
def test_the_cohort_is_the_smallest_that_reaches_the_goal_often_enough(goal, num_successes):
    history = CompletionHistory(RoundPolicy(report_goal=goal, min_reports=1))
    history._outcomes.extend([True] * num_successes + [False] * (1000 - num_successes))
    sizes = (size for size in range(goal, 4 * goal) if binomial_tail(size, history.completion_rate, goal) >= 0.9)
    assert history.cohort_size() == next(sizes, 4 * goal)


SLOW = RoundPolicy(report_goal=20, min_reports=5, over_selection=1.3, report_timeout_s=3600.0)


def _reported(history: CompletionHistory, *seconds: float) -> CompletionHistory:
    for value in seconds:
        history.note_report(value)
    return history


def test_the_operators_report_time_holds_until_twenty_reports_have_come():
    assert _reported(CompletionHistory(SLOW), *[100.0] * 19).report_timeout_s() == 3600.0
    assert _reported(CompletionHistory(SLOW), *[100.0] * 20).report_timeout_s() == 200.0


def test_the_time_allowed_is_twice_what_nineteen_in_twenty_need():
    history = _reported(CompletionHistory(SLOW), *range(1, 1001))
    assert history.report_timeout_s() == 2 * 950


def test_no_fleet_gets_more_time_than_the_operator_allows_and_none_less_than_a_minute():
    assert _reported(CompletionHistory(SLOW), *[3000.0] * 50).report_timeout_s() == 3600.0
    assert _reported(CompletionHistory(SLOW), *[0.1] * 50).report_timeout_s() == 60.0
    assert _reported(CompletionHistory(POLICY), *[1e9] * 50).report_timeout_s() == POLICY.report_timeout_s


def test_silence_at_a_deadline_gives_the_operators_time_back_and_silence_at_the_goal_does_not():
    history = _reported(CompletionHistory(SLOW), *[100.0] * 100)
    history.note(_over(folded=20, silent=20, state=RoundState.COMMITTED))
    assert history.report_timeout_s() == 200.0
    history.note(_over(folded=4, silent=6))
    assert history.report_timeout_s() == 3600.0
