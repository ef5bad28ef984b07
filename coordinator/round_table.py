"""The life of one round as a transition table. Pure: no clock, no I/O; time is a number passed in.

`ROUND_TRANSITIONS` is the whole truth; `docs/explanation/state-machines.md` is drawn from it. A move that is not in the table
raises `IllegalTransition`, which is always a fault of ours and never a device's.
"""

import dataclasses
import enum
import types
from collections.abc import Mapping
from typing import Final

from coordinator.errors import IllegalTransition
from coordinator.round_policy import RoundPolicy
from wire_protocol.messages import RejectionReason, RoundKind

__all__ = ["ROUND_TRANSITIONS", "AbandonReason", "Member", "MemberState", "Round", "RoundEvent", "RoundState"]


class RoundState(enum.Enum):
    """Where a round stands."""

    SELECTING = "selecting"
    REPORTING = "reporting"
    AGGREGATING = "aggregating"
    COMMITTED = "committed"
    ABANDONED = "abandoned"


class RoundEvent(enum.Enum):
    """What moves a round."""

    COHORT_ASSIGNED = "cohort assigned"
    SELECTION_FAILED = "too few devices"
    REPORT_FOLDED = "report folded"
    REPORTS_SUFFICE = "goal reached, or deadline with enough reports"
    DEADLINE_MISSED = "deadline with too few reports"
    RESULT_STORED = "result stored"
    AGGREGATION_FAILED = "aggregation failed"
    OPENING_LOST = "sum cannot be opened"
    OPENING_TIMED_OUT = "sum not opened in time"
    CANCELLED = "cancelled"


ROUND_TRANSITIONS: Final[Mapping[tuple[RoundState, RoundEvent], RoundState]] = types.MappingProxyType(
    {
        (RoundState.SELECTING, RoundEvent.COHORT_ASSIGNED): RoundState.REPORTING,
        (RoundState.SELECTING, RoundEvent.SELECTION_FAILED): RoundState.ABANDONED,
        (RoundState.SELECTING, RoundEvent.CANCELLED): RoundState.ABANDONED,
        (RoundState.REPORTING, RoundEvent.REPORT_FOLDED): RoundState.REPORTING,
        (RoundState.REPORTING, RoundEvent.REPORTS_SUFFICE): RoundState.AGGREGATING,
        (RoundState.REPORTING, RoundEvent.DEADLINE_MISSED): RoundState.ABANDONED,
        (RoundState.REPORTING, RoundEvent.AGGREGATION_FAILED): RoundState.ABANDONED,
        (RoundState.REPORTING, RoundEvent.CANCELLED): RoundState.ABANDONED,
        (RoundState.AGGREGATING, RoundEvent.RESULT_STORED): RoundState.COMMITTED,
        (RoundState.AGGREGATING, RoundEvent.AGGREGATION_FAILED): RoundState.ABANDONED,
        (RoundState.AGGREGATING, RoundEvent.OPENING_LOST): RoundState.ABANDONED,
        (RoundState.AGGREGATING, RoundEvent.OPENING_TIMED_OUT): RoundState.ABANDONED,
        (RoundState.AGGREGATING, RoundEvent.CANCELLED): RoundState.ABANDONED,
    }
)


class AbandonReason(enum.Enum):
    """Why a round came to nothing."""

    TOO_FEW_DEVICES = "too_few_devices"
    TOO_FEW_REPORTS = "too_few_reports"
    AGGREGATION_FAILED = "aggregation_failed"
    OPENING_LOST = "opening_lost"
    OPENING_TIMED_OUT = "opening_timed_out"
    CANCELLED = "cancelled"


_ABANDON_REASONS: Final = {
    RoundEvent.SELECTION_FAILED: AbandonReason.TOO_FEW_DEVICES,
    RoundEvent.DEADLINE_MISSED: AbandonReason.TOO_FEW_REPORTS,
    RoundEvent.AGGREGATION_FAILED: AbandonReason.AGGREGATION_FAILED,
    RoundEvent.OPENING_LOST: AbandonReason.OPENING_LOST,
    RoundEvent.OPENING_TIMED_OUT: AbandonReason.OPENING_TIMED_OUT,
    RoundEvent.CANCELLED: AbandonReason.CANCELLED,
}


class MemberState(enum.Enum):
    """What a cohort member has done so far."""

    ASSIGNED = "assigned"
    ADMITTED = "admitted"
    """Its report is handed out to be folded; the round does not end before it is."""
    FOLDED = "folded"
    """Its report is in the journal for good, and in the sum: at once, or as soon as there is an aggregator."""
    REJECTED = "rejected"
    WITHDRAWN = "withdrawn"


@dataclasses.dataclass(kw_only=True, slots=True)
class Member:
    """One device of the cohort."""

    nonce: bytes
    state: MemberState = MemberState.ASSIGNED
    rejection: RejectionReason | None = None
    """Why its report was rejected, to be told again if the device asks again."""


class Round:
    """One round: its state, its cohort, its deadlines.

    Args:
        round_id: From 1, never reused.
        kind: Train or evaluate.
        policy: Goals and time limits.
        now: Monotonic time in seconds.
    """

    def __init__(self, *, round_id: int, kind: RoundKind, policy: RoundPolicy, now: float) -> None:
        self.round_id = round_id
        self.kind = kind
        self.policy = policy
        self.state = RoundState.SELECTING
        self.opened_at = now
        self.deadline = now + policy.selection_timeout_s
        self.cohort: dict[str, Member] = {}
        self.assigned_at: float | None = None
        """When the cohort was asked; None before, and in a round of an earlier life."""
        self.abandon_reason: AbandonReason | None = None

    def move(self, event: RoundEvent) -> None:
        """Moves the round as the table says.

        Raises:
            IllegalTransition: The table has no such move.
        """
        target = ROUND_TRANSITIONS.get((self.state, event))
        if target is None:
            raise IllegalTransition(f"round {self.round_id} is {self.state.value}; it cannot take {event.name}")
        self.state = target
        if target is RoundState.ABANDONED:
            self.abandon_reason = _ABANDON_REASONS[event]

    @property
    def is_over(self) -> bool:
        """Whether the round is committed or abandoned."""
        return self.state in {RoundState.COMMITTED, RoundState.ABANDONED}

    def count(self, state: MemberState) -> int:
        """How many members are in a state."""
        return sum(member.state is state for member in self.cohort.values())

    @property
    def num_folded(self) -> int:
        """Reports counted so far."""
        return self.count(MemberState.FOLDED)

    def assign(self, nonces: Mapping[str, bytes], *, now: float, report_timeout_s: float | None = None) -> None:
        """Fixes the cohort: device id -> nonce of its assignment; reports may take so long, or as the policy says."""
        self.move(RoundEvent.COHORT_ASSIGNED)
        self.cohort = {device_id: Member(nonce=nonce) for device_id, nonce in nonces.items()}
        self.assigned_at = now
        self.deadline = now + (self.policy.report_timeout_s if report_timeout_s is None else report_timeout_s)

    def mark(self, device_id: str, state: MemberState) -> None:
        """Notes what a member did; a fold is a move of the round."""
        if state is MemberState.FOLDED:
            self.move(RoundEvent.REPORT_FOLDED)
        self.cohort[device_id].state = state

    def settle(self, *, now: float) -> None:
        """Moves on if the goal is reached, nobody is left to wait for, or the deadline has passed.

        Not while an admitted report is being folded: it would come to a round that is over.
        """
        if self.state is not RoundState.REPORTING or self.count(MemberState.ADMITTED):
            return
        folded = self.num_folded
        is_final = now >= self.deadline or self.count(MemberState.ASSIGNED) == 0
        if folded >= self.policy.report_goal or (is_final and folded >= self.policy.min_reports):
            self.move(RoundEvent.REPORTS_SUFFICE)
        elif is_final:
            self.move(RoundEvent.DEADLINE_MISSED)
