"""What an operator decides about rounds: a value."""

import dataclasses
import math

__all__ = ["RoundPolicy"]

_LONGEST_TIMEOUT_S = 30 * 86_400.0
"""Well within what an assignment can carry."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RoundPolicy:
    """Goals, time limits and pacing of rounds.

    Over-selection (Bonawitz et al. 2019, "Towards federated learning at scale", section 3.1, uses 130 %) asks more
    devices than are needed, so that drop-outs and stragglers do not hold the round up.
    """

    report_goal: int
    """Reports that are enough: the round is aggregated as soon as it has them."""
    min_reports: int
    """Fewer at the deadline, and the round is abandoned."""
    over_selection: float = 1.3
    """Cohort size / report_goal, until the fleet's own completion rate is known (``completion``); 1 asks the goal alone."""
    selection_timeout_s: float = 60.0
    """A round that could not fill its cohort starts after this with whom it has, if they can reach min_reports."""
    report_timeout_s: float = 600.0
    """Time from assignment until a report is late."""
    max_waiting_per_cohort: float = 4.0
    """Devices kept waiting for the next round, per cohort size; the rest are refused with a retry window."""
    retry_spread: float = 2.0
    """A retry window is this many times as wide as the time until devices are wanted again."""

    def __post_init__(self) -> None:
        """Checks every setting.

        Raises:
            ValueError: One is out of its range; the message names it.
        """
        if not 1 <= self.min_reports <= self.report_goal:
            raise ValueError(
                f"need 1 <= min_reports <= report_goal, not min_reports={self.min_reports}, "
                f"report_goal={self.report_goal}"
            )
        if not (math.isfinite(self.over_selection) and self.over_selection >= 1):
            raise ValueError(f"over_selection must be at least 1, not {self.over_selection}")
        # Written so that NaN fails.
        for name in ("selection_timeout_s", "report_timeout_s"):
            if not 0 < getattr(self, name) <= _LONGEST_TIMEOUT_S:
                raise ValueError(f"{name} must be positive and at most 30 days, not {getattr(self, name)}")
        for name in ("max_waiting_per_cohort", "retry_spread"):
            if not 1 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 1 and finite, not {getattr(self, name)}")

    @property
    def cohort_size(self) -> int:
        """How many devices a round asks."""
        return math.ceil(self.report_goal * self.over_selection)

    @property
    def max_waiting(self) -> int:
        """How many devices may wait for the next round."""
        return math.ceil(self.cohort_size * self.max_waiting_per_cohort)
