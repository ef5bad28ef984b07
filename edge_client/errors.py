"""Errors of the device.

    EdgeClientError
    ├── IllegalTransition      a move the session table does not have: a bug of ours
    ├── ConfigError            the configuration says something that is not allowed; the owner must change it
    ├── DataError              the local examples cannot be used; the owner must act
    │   ├── DataNotFound       nothing is at the configured path
    │   ├── DataFormatError    the files are there but are not in the documented layout
    │   ├── TooFewExamples     fewer examples than the plan asks for
    │   └── ExampleMismatch    shapes or labels that the plan's model cannot take
    ├── TrainingError          a job failed; the assignment is given back
    │   ├── ContractViolation  the model file is not what its plan says (the coordinator's fault, permanent)
    │   └── NonFiniteUpdate    training produced NaN or infinity: nothing leaves the device
    ├── IdentityError          the device's key cannot be used as it is; the owner must act
    │   └── EnrolmentRefused   the coordinator said no, and why
    ├── FrameError             bytes between daemon and trainer that are no frame (the trainer is restarted)
    ├── BudgetExceeded         a release would cost more than the owner allows: nothing leaves the device, for good
    ├── PrivacyRefused         the owner's rules do not allow what the plan asks: the assignment is given back
    ├── ReleaseRefused         a release is forged, out of date, or not for this device: it keeps what it has
    └── StorageError           the state directory cannot be read or written (disk full, permissions)
        ├── CorruptState       a file in it is not what was written (quarantined, never fatal)
        └── LedgerDamaged      the privacy ledger is not what was written: nothing private may leave the device

`DataError` and `ConfigError` are the owner's to mend and say how; the rest are transient unless said otherwise.
"""

__all__ = [
    "BudgetExceeded",
    "ConfigError",
    "ContractViolation",
    "CorruptState",
    "DataError",
    "DataFormatError",
    "DataNotFound",
    "EdgeClientError",
    "EnrolmentRefused",
    "ExampleMismatch",
    "FrameError",
    "IdentityError",
    "IllegalTransition",
    "LedgerDamaged",
    "NonFiniteUpdate",
    "PrivacyRefused",
    "ReleaseRefused",
    "StorageError",
    "TooFewExamples",
    "TrainingError",
]


class EdgeClientError(Exception):
    """Base of the errors of this package."""


class IllegalTransition(EdgeClientError):
    """The session was asked for a move its table does not have."""


class ConfigError(EdgeClientError):
    """The configuration says something that is not allowed."""


class DataError(EdgeClientError):
    """The local examples cannot be used."""


class DataNotFound(DataError):
    """Nothing is at the configured path."""


class DataFormatError(DataError):
    """The files are not in the documented layout."""


class TooFewExamples(DataError):
    """Fewer examples than the plan asks for."""


class ExampleMismatch(DataError):
    """The examples' shape or labels are not what the plan's model takes."""


class TrainingError(EdgeClientError):
    """A job failed."""


class ContractViolation(TrainingError):
    """The model file is not what its plan says."""


class NonFiniteUpdate(TrainingError):
    """Training produced NaN or infinity."""


class IdentityError(EdgeClientError):
    """The device's key cannot be used as it is."""


class EnrolmentRefused(IdentityError):
    """The coordinator did not enrol this device."""


class FrameError(EdgeClientError):
    """Bytes on the pipe between daemon and trainer that are no frame."""


class StorageError(EdgeClientError):
    """The state directory cannot be read or written."""


class CorruptState(StorageError):
    """A file of the state directory is not what was written."""


class LedgerDamaged(StorageError):
    """The privacy ledger is not what this device wrote."""


class BudgetExceeded(EdgeClientError):
    """A release would cost more than the owner allows."""


class PrivacyRefused(EdgeClientError):
    """The owner's rules do not allow what the plan asks."""


class ReleaseRefused(EdgeClientError):
    """A release, or the channel that brings it, was refused; the device keeps the model it has."""

    def __init__(self, message: str, *, is_expired: bool = False) -> None:
        super().__init__(message)
        self.is_expired = is_expired
        """Whether it is merely out of date: nobody may have signed for a while, or somebody holds new files back."""
