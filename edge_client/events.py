"""What happens to a device agent, and what it asks its surroundings to do."""

import dataclasses
from typing import TypeAlias

from broker_link.link import LinkEvent
from edge_client.training import TrainingJob, TrainingResult
from wire_protocol.blobs import BlobRef
from wire_protocol.messages import WithdrawalReason

__all__ = [
    "Action",
    "DeviceEvent",
    "Publish",
    "SaveBlob",
    "StartJob",
    "StopJob",
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


DeviceEvent: TypeAlias = LinkEvent | Tick | TrainingFinished | TrainingFailed


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


Action: TypeAlias = Publish | StartJob | StopJob | SaveBlob
