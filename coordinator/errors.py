"""Errors of the coordinator.

CoordinatorError
├── IllegalTransition      a round was asked to make a move its table does not have (ours, a bug)
├── InvalidBundle          the exported task cannot be read (theirs: the operator's files)
├── InvalidConfig          a setting is unknown or out of range (theirs: the operator's settings)
├── BrokerFailed           the embedded broker did not start or died (transient)
├── UpdateRejected         a report failed admission (theirs: the device's), with its reason
├── JournalDamaged         the journal of rounds cannot be read (theirs: the disk's)
├── RosterUnusable         the roster of devices cannot be read or written (theirs: the disk's, or the file's)
├── BrokerFilesUnusable    a broker's files are not there, damaged, or there already (theirs: the operator's)
├── DirectoryFilesUnusable an authority's key or log is not there, damaged, or there already (theirs: the operator's)
├── KeyFileUnusable        a private key's file is no key, or cannot be read (theirs: the operator's, or the disk's)
├── StateInUse             another coordinator runs with this state directory (transient: stop it)
├── JournalUnwritable      the journal cannot be written: a full disk, a lock (transient; nothing was said of it)
├── RegistryDamaged        the registry of checkpoints is not what was written (theirs: the disk's, or somebody's)
├── ReleaseError           a release cannot be signed, read or published (theirs: the operator's keys and files)
├── AggregationError       an aggregator refused: the round is lost, the state it began with is not
│   ├── AccumulatorClosed       a fold or a finish after the round was finished (ours, a bug)
│   ├── EmptyRound              a round was finished with nothing folded (ours, a bug)
│   ├── OpeningLost             the openers of a sealed sum refuse, or what they say gives no sum (theirs)
│   ├── OpeningTimedOut         they have not answered in time (transient)
│   ├── QuorumMissed            too few reports came before the deadline (transient)
│   ├── StateMismatch           a state or snapshot that is not this aggregator's (theirs: stored files)
│   ├── UnsupportedAggregation  this aggregator cannot do what the specification asks (theirs: settings)
│   └── UpdateMismatch          tensors that are not the model's (ours: admission lets none through)
└── CheckpointError        stored states
    ├── CheckpointDamaged       a file is truncated, altered, or no state (theirs: the disk's)
    └── CheckpointExists        a version is stored already (ours, a bug)
"""

from wire_protocol.messages import RejectionReason

__all__ = [
    "AccumulatorClosed",
    "AggregationError",
    "BrokerFailed",
    "BrokerFilesUnusable",
    "CheckpointDamaged",
    "CheckpointError",
    "CheckpointExists",
    "CoordinatorError",
    "DirectoryFilesUnusable",
    "EmptyRound",
    "IllegalTransition",
    "InvalidBundle",
    "InvalidConfig",
    "JournalDamaged",
    "JournalUnwritable",
    "KeyFileUnusable",
    "OpeningLost",
    "OpeningTimedOut",
    "QuorumMissed",
    "RegistryDamaged",
    "ReleaseError",
    "RosterUnusable",
    "StateInUse",
    "StateMismatch",
    "UnsupportedAggregation",
    "UpdateMismatch",
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


class BrokerFilesUnusable(CoordinatorError):
    """The files of a broker are not there, are damaged, or would be overwritten."""


class KeyFileUnusable(CoordinatorError):
    """A private key's file is no key, or cannot be read."""


class RegistryDamaged(CoordinatorError):
    """The registry of committed checkpoints is not what was written there."""


class ReleaseError(CoordinatorError):
    """A release cannot be signed, read or published; the channel is as it was."""


class DirectoryFilesUnusable(CoordinatorError):
    """The files of a key directory's authority are not there, are damaged, or would be overwritten."""


class UpdateRejected(CoordinatorError):
    """A report failed admission."""

    def __init__(self, reason: RejectionReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason


class JournalDamaged(CoordinatorError):
    """The journal of rounds cannot be read."""


class StateInUse(CoordinatorError):
    """Another coordinator of this population runs with this state directory."""


class JournalUnwritable(CoordinatorError):
    """The journal cannot be written: nothing that was not durable has been acknowledged."""


class RosterUnusable(CoordinatorError):
    """The roster of devices cannot be read or written."""


class AggregationError(CoordinatorError):
    """An aggregator refused: this round is lost, the state it began with is not."""


class AccumulatorClosed(AggregationError):
    """A fold or a finish after the round was finished."""


class EmptyRound(AggregationError):
    """A round was finished with nothing folded."""


class OpeningLost(AggregationError):
    """A sealed sum cannot be opened by those who are left, or what they say gives no sum."""


class OpeningTimedOut(AggregationError):
    """A sealed sum was not opened in time."""


class QuorumMissed(AggregationError):
    """Too few reports came before the deadline."""


class StateMismatch(AggregationError):
    """A state or a snapshot is not one of this aggregator's."""


class UnsupportedAggregation(AggregationError):
    """This aggregator cannot do what the specification asks."""


class UpdateMismatch(AggregationError):
    """Tensors do not have the model's shapes and dtype."""


class CheckpointError(CoordinatorError):
    """Base of what goes wrong with stored states."""


class CheckpointDamaged(CheckpointError):
    """A stored file is truncated or altered."""


class CheckpointExists(CheckpointError):
    """A version that is saved already."""
