"""How many devices to ask, learnt from how many of those asked before have answered.

Each resolved assignment is a success (its report was counted) or a failure (withdrawn, rejected, or silent at the
deadline); one still at work when the goal was reached is neither. With ``p`` the share of successes among the latest
assignments, the cohort is the smallest ``n`` for which a Binomial(n, p) count reaches the goal with the wanted
probability. A prior stands for the operator's ``over_selection`` until the fleet has spoken.

The time allowed for reports follows the fleet in the same way: twice the 95th percentile of the latest report times,
where an assignment that was silent at its deadline counts as endless, and never more than the operator allows.
"""

import bisect
import collections
import math
from typing import Final

from coordinator.round_policy import RoundPolicy
from coordinator.round_table import MemberState, Round, RoundState

__all__ = ["CompletionHistory", "binomial_tail"]

_WINDOW: Final = 1000
_PRIOR_ASSIGNMENTS: Final = 20.0
_WANTED_PROBABILITY: Final = 0.9
_MAX_OVER_SELECTION: Final = 4.0
_REPORT_TIME_QUANTILE: Final = 0.95
_REPORT_TIME_MARGIN: Final = 2.0
_SHORTEST_TIMEOUT_S: Final = 60.0
"""A device repeats an unanswered report after up to 20 s, and needs a moment more after a broker's restart."""


class CompletionHistory:
    """Remembers how the latest assignments ended.

    Args:
        policy: Its ``over_selection`` is the prior; 1 switches over-selection off for good.
    """

    def __init__(self, policy: RoundPolicy) -> None:
        self._policy = policy
        self._outcomes: collections.deque[bool] = collections.deque(maxlen=_WINDOW)
        self._report_times: collections.deque[float] = collections.deque(maxlen=_WINDOW)

    @property
    def completion_rate(self) -> float:
        """Estimated probability that an assignment ends in a counted report."""
        prior = _PRIOR_ASSIGNMENTS / self._policy.over_selection
        return (prior + sum(self._outcomes)) / (_PRIOR_ASSIGNMENTS + len(self._outcomes))

    def note_report(self, seconds: float) -> None:
        """Takes the time from an assignment to its counted report."""
        self._report_times.append(seconds)

    def report_timeout_s(self) -> float:
        """How long the next round is to wait for reports: at most as long as the operator allows.

        Who was still at work when the goal was reached is not known to be slow and counts for nothing. Who was silent
        at a deadline counts as endless: if too many were, the operator's own time holds again, and a time-out that was
        learnt too short cannot keep itself short.
        """
        allowed_s = self._policy.report_timeout_s
        if len(self._report_times) < _PRIOR_ASSIGNMENTS:
            return allowed_s
        ordered = sorted(self._report_times)
        quantile_s = ordered[math.ceil(_REPORT_TIME_QUANTILE * len(ordered)) - 1]
        return min(allowed_s, max(_SHORTEST_TIMEOUT_S, _REPORT_TIME_MARGIN * quantile_s))

    def note(self, round_: Round) -> None:
        """Takes the outcomes of a round that is over."""
        goal_was_reached = round_.state is RoundState.COMMITTED and round_.num_folded >= round_.policy.report_goal
        for member in round_.cohort.values():
            if member.state is MemberState.FOLDED:
                self._outcomes.append(True)
            elif member.state is not MemberState.ASSIGNED or not goal_was_reached:
                self._outcomes.append(False)
                if member.state is MemberState.ASSIGNED:
                    self._report_times.append(math.inf)

    def cohort_size(self) -> int:
        """Devices to ask for the next round: at least the goal, at most four times as many."""
        goal = self._policy.report_goal
        if self._policy.over_selection == 1:
            return goal
        if len(self._outcomes) < _PRIOR_ASSIGNMENTS:
            return self._policy.cohort_size
        largest = math.ceil(goal * _MAX_OVER_SELECTION)
        rate = self.completion_rate
        # The tail grows with the size, so that a dozen of them are computed and not thousands.
        return goal + bisect.bisect_left(
            range(goal, largest), _WANTED_PROBABILITY, key=lambda size: binomial_tail(size, rate, goal)
        )


def binomial_tail(num_trials: int, probability: float, at_least: int) -> float:
    """P(X >= at_least) for X ~ Binomial(num_trials, probability), summed in log space."""
    if at_least <= 0:
        return 1.0
    if probability >= 1:
        return 1.0 if num_trials >= at_least else 0.0
    if probability <= 0:
        return 0.0
    log_p, log_q = math.log(probability), math.log1p(-probability)
    log_factorial = math.lgamma(num_trials + 1)
    return math.fsum(
        math.exp(
            log_factorial
            - math.lgamma(count + 1)
            - math.lgamma(num_trials - count + 1)
            + count * log_p
            + (num_trials - count) * log_q
        )
        for count in range(at_least, num_trials + 1)
    )
