"""What happens to a device agent, and what it asks its surroundings to do."""

import dataclasses
from typing import TypeAlias

from broker_link.link import LinkEvent
from edge_client.eligibility.verdict import Verdict
from edge_client.pending_report import PendingReport
from edge_client.training import TrainingJob, TrainingResult
from wire_protocol.blobs import BlobRef
from wire_protocol.messages import DeviceMode, WithdrawalReason

__all__ = [
    "Action",
    "DeviceEvent",
    "DropReport",
    "EligibilityChanged",
    "HealthChanged",
    "Publish",
    "ReportNotStored",
    "SaveBlob",
    "StartJob",
    "StopJob",
    "StoreReport",
    "Tick",
    "TrainingFailed",
    "TrainingFinished",
]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """Time has passed; ``next_wakeup`` was reached."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFinished:
    """A job ended with a result."""

    round_id: int
    """The job's; the result of a job that was stopped meanwhile is ignored."""
    result: TrainingResult


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFailed:
    """A job ended without one."""

    round_id: int
    reason: WithdrawalReason
    detail: str = ""
    """For the device's log; never sent."""
    trainer_died: bool = False
    """Whether it took the trainer with it: a crash, a kill, a time-out. Otherwise it ended in an orderly way."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReportNotStored:
    """A ``StoreReport`` could not be performed, and nothing that was to follow it was."""

    round_id: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HealthChanged:
    """Something that keeps the device out of rounds has begun, goes on for another reason, or has ended.

    Ineligible and safe mode are kept apart: the end of one does not end the other.
    """

    mode: DeviceMode
    """INELIGIBLE or SAFE_MODE."""
    reason: str
    """In a few words for people (the coordinator sees them); empty if it has ended."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EligibilityChanged:
    """The device may train now, or may no longer, or for another reason. Until the first of these it may."""

    verdict: Verdict


DeviceEvent: TypeAlias = (
    LinkEvent | Tick | TrainingFinished | TrainingFailed | ReportNotStored | EligibilityChanged | HealthChanged
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Publish:
    """Send this message."""

    topic: str
    payload: bytes
    retain: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StartJob:
    """Run this job; answer with ``TrainingFinished`` or ``TrainingFailed``."""

    job: TrainingJob


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StopJob:
    """Stop the running job; no answer is expected."""

    round_id: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SaveBlob:
    """Keep this blob, whose hash has been checked, so that it need not be fetched again."""

    ref: BlobRef
    data: bytes

    @property
    def sha256(self) -> bytes:
        """The blob's name."""
        return self.ref.sha256


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StoreReport:
    """Make this report durable before anything that follows in the same list is done.

    If that fails, do nothing of what follows, and answer with ``ReportNotStored``: what is not stored is not sent.
    """

    pending: PendingReport


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DropReport:
    """The round is over for this device: the stored report may go."""

    round_id: int


Action: TypeAlias = Publish | StartJob | StopJob | SaveBlob | StoreReport | DropReport
