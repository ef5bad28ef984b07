"""What a device counts instead of raising or logging: the odd things a network brings, and how rounds end."""

import dataclasses
import enum

from wire_protocol.messages import RejectionReason, WithdrawalReason

__all__ = ["DeviceCount", "RoundEnding", "RoundOutcome"]


class DeviceCount(enum.StrEnum):
    """Names of the counters of a ``DeviceAgent``."""

    UNDECODABLE = "undecodable"
    """Bytes that are no message of the protocol, or came on a topic that is not ours."""
    STALE_ASSIGNMENT = "stale_assignment"
    """Answers no outstanding check-in of this device (a duplicate, or too late)."""
    STALE_REFUSAL = "stale_refusal"
    STALE_RECEIPT = "stale_receipt"
    STALE_RESULT = "stale_result"
    """A job's result that nobody waits for any more."""
    STRAY_PIECE = "stray_piece"
    """A piece or piece list of no use."""
    BAD_PIECE = "bad_piece"
    """A piece or piece list that does not match its hash."""
    REPORT_NOT_STORED = "report_not_stored"
    """A finished job whose report the disk did not take; the round was given back."""
    REPORTS_RESUMED = "reports_resumed"
    """Reports found in the outbox at the start."""
    CHECK_INS = "check_ins"
    CHECK_INS_REPEATED = "check_ins_repeated"
    REFUSALS = "refusals"
    ASSIGNMENTS = "assignments"


class RoundEnding(enum.StrEnum):
    """How a round ended for this device."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    WITHDRAWN = "withdrawn"
    ROUND_CLOSED = "round_closed"
    DEADLINE_PASSED = "deadline_passed"
    """No receipt came before the deadline; whether the report was counted is not known."""
    TASK_CHANGED = "task_changed"
    UNANSWERED = "unanswered"
    """A report from before a restart was repeated as often as the settings allow, and nobody answered."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RoundOutcome:
    """The end of one assignment."""

    round_id: int
    ending: RoundEnding
    reason: RejectionReason | WithdrawalReason | None = None
    """Why, if it was rejected or withdrawn."""
    retry_after_s: float = 0.0
    """What an accepting receipt asked."""
