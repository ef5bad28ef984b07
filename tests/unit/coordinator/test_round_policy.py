"""A policy that could only lead to rounds nobody can take part in is refused where it is made."""

import math

import pytest

from coordinator.round_policy import RoundPolicy


@pytest.mark.parametrize(
    "settings",
    [
        {"report_timeout_s": math.inf},
        {"report_timeout_s": math.nan},
        {"report_timeout_s": 1e9},
        {"report_timeout_s": 0.0},
        {"selection_timeout_s": math.inf},
        {"selection_timeout_s": math.nan},
        {"selection_timeout_s": -1.0},
        {"max_waiting_per_cohort": math.nan},
        {"max_waiting_per_cohort": math.inf},
        {"retry_spread": math.nan},
        {"retry_spread": math.inf},
        {"over_selection": math.nan},
        {"over_selection": 0.9},
    ],
)
def test_a_setting_that_no_message_can_carry_or_no_clock_can_reach_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RoundPolicy(report_goal=2, min_reports=1, **settings)
