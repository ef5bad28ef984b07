"""Which rounds to run, and what became of one: values."""

import dataclasses
from collections.abc import Mapping

from coordinator.round_table import RoundState
from wire_protocol.messages import RoundKind

__all__ = ["RoundSchedule", "RoundSummary"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RoundSchedule:
    """Which rounds to run."""

    num_commits: int
    """Stop when the state has this many committed training rounds, those before a restart included."""
    evaluate_every: int = 0
    """A federated evaluation round after every this many commits; 0 for none."""
    max_abandoned_in_a_row: int = 10
    """Give up after this many abandoned rounds without a commit between them."""

    def __post_init__(self) -> None:
        if self.num_commits < 1 or self.evaluate_every < 0 or self.max_abandoned_in_a_row < 1:
            raise ValueError("num_commits and max_abandoned_in_a_row must be positive, evaluate_every not negative")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RoundSummary:
    """What became of one round."""

    round_id: int
    kind: RoundKind
    state: RoundState
    abandon_reason: str | None
    num_assigned: int
    num_reports: int
    metrics: Mapping[str, float]
    duration_s: float
    num_commits: int
    """Committed training rounds so far, this one included."""
    epsilon: float | None = None
    """What a device that took part in every round has been charged by now; None if the task is not private."""
    refusals: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Messages that the guard before this loop has refused since the start, by reason; its owner fills it in."""
