"""Errors of the coordinator.

    CoordinatorError
    ├── IllegalTransition      a round was asked to make a move its table does not have (ours, a bug)
    ├── InvalidBundle          the exported task cannot be read (theirs: the operator's files)
    ├── InvalidConfig          a setting is unknown or out of range (theirs: the operator's settings)
    ├── BrokerFailed           the embedded broker did not start or died (transient)
    └── UpdateRejected         a report failed admission (theirs: the device's), with its reason
"""

from wire_protocol.messages import RejectionReason

__all__ = [
    "BrokerFailed",
    "CoordinatorError",
    "IllegalTransition",
    "InvalidBundle",
    "InvalidConfig",
    "UpdateRejected",
]


class CoordinatorError(Exception):
    """Base of the coordinator's errors."""


class IllegalTransition(CoordinatorError):
    """A round was asked to make a move its table does not have."""


class InvalidBundle(CoordinatorError):
    """The exported task cannot be read."""


class InvalidConfig(CoordinatorError):
    """A setting is unknown or out of range."""


class BrokerFailed(CoordinatorError):
    """The embedded broker did not start, or died."""


class UpdateRejected(CoordinatorError):
    """A report failed admission."""

    def __init__(self, reason: RejectionReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
