"""Every message between a device and the coordinator, and its bytes.

An encoded message is ``b"FW"``, one version byte, then a MessagePack map whose ``type`` is the message's kind.
Unknown fields, unknown kinds, values out of range and trailing bytes are refused; the length is checked before
anything is parsed. The sender's identity is the topic's, never the payload's.
"""

import enum
import math
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from wire_protocol.blobs import DIGEST_BYTES, BlobRef
from wire_protocol.enrolment import EnrolmentOutcome
from wire_protocol.errors import MalformedMessage, OversizedMessage, UnsupportedVersion
from wire_protocol.limits import (
    MAX_CONTROL_BYTES,
    MAX_HEALTH_REASON_CHARS,
    MAX_PIECE_BYTES,
    MAX_PIECES,
    PIECE_OVERHEAD_BYTES,
)
from wire_protocol.message_base import Digest, Identifier, Message, MessagePart, Nonce, RoundId
from wire_protocol.opening_messages import OpeningAnswer, OpeningRefusal, OpeningRequest
from wire_protocol.release_report import ReleaseReport

__all__ = [
    "WIRE_VERSION",
    "Assignment",
    "CheckIn",
    "CoordinatorMessage",
    "DeviceHealth",
    "DeviceMessage",
    "DeviceMode",
    "DeviceStatus",
    "Enrol",
    "Enrolled",
    "Message",
    "Metrics",
    "OpeningAnswer",
    "OpeningRefusal",
    "OpeningRequest",
    "Piece",
    "PieceList",
    "PieceListRequest",
    "PieceRequest",
    "Receipt",
    "ReceiptStatus",
    "Refusal",
    "RefusalReason",
    "RejectionReason",
    "ReleaseReport",
    "Report",
    "RoundClosed",
    "RoundKind",
    "TaskAnnouncement",
    "Withdrawal",
    "WithdrawalReason",
    "decode_message",
    "encode_message",
    "message_kind",
]

WIRE_VERSION: Final = 1
_MAGIC: Final = b"FW"
_HEADER_BYTES: Final = 3

_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e8)]
_PieceIndex = Annotated[int, msgspec.Meta(ge=0, lt=MAX_PIECES)]
_Version = Annotated[str, msgspec.Meta(max_length=64)]


class RoundKind(enum.Enum):
    """What the cohort is asked to do with the checkpoint."""

    TRAIN = "train"
    EVALUATE = "evaluate"


class RefusalReason(enum.Enum):
    """Why a check-in did not become an assignment. Each comes with a retry window."""

    ROUND_FULL = "round_full"
    NO_ROUND = "no_round"
    UNKNOWN_TASK = "unknown_task"
    INCOMPATIBLE_CLIENT = "incompatible_client"
    POPULATION_FULL = "population_full"


class RejectionReason(enum.Enum):
    """Why a report was not counted. Decided before any arithmetic, and counted by the coordinator."""

    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    UNSUPPORTED_VERSION = "unsupported_version"
    NOT_ASSIGNED = "not_assigned"
    WRONG_ROUND = "wrong_round"
    LATE = "late"
    DUPLICATE = "duplicate"
    BAD_HASH = "bad_hash"
    WRONG_SHAPE = "wrong_shape"
    NON_FINITE = "non_finite"
    NORM_TOO_LARGE = "norm_too_large"
    BAD_WEIGHT = "bad_weight"
    BAD_METRICS = "bad_metrics"


class WithdrawalReason(enum.Enum):
    """Why a device gives an assignment back."""

    TOO_FEW_EXAMPLES = "too_few_examples"
    DATA_MISMATCH = "data_mismatch"
    TRAINING_FAILED = "training_failed"
    NON_FINITE_UPDATE = "non_finite_update"
    DEADLINE = "deadline"
    NOT_ELIGIBLE = "not_eligible"
    SHUTTING_DOWN = "shutting_down"


class DeviceMode(enum.Enum):
    """How a device does, as it says itself."""

    OK = "ok"
    INELIGIBLE = "ineligible"
    """Its owner's rules do not let it train now."""
    SAFE_MODE = "safe_mode"
    """It failed too often in a row and takes no part in rounds for a while."""


class ReceiptStatus(enum.Enum):
    """The coordinator's application-level answer to a report. An MQTT PUBACK is no such answer."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    INCOMPLETE = "incomplete"
    BUSY = "busy"


class Metrics(MessagePart, frozen=True, kw_only=True):
    """Sums over the examples visited; ratios are formed after aggregation, never averaged on devices."""

    loss_sum: float
    num_correct: Annotated[float, msgspec.Meta(ge=0)]
    weight_sum: Annotated[float, msgspec.Meta(ge=0)]
    """Examples visited (in training: once per epoch)."""

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.loss_sum, self.num_correct, self.weight_sum))):
            raise ValueError("metrics must be finite")


class CheckIn(Message, frozen=True, kw_only=True, tag_field="type", tag="check-in"):
    """Device: ready to take part. Sent again, with the same nonce, until answered."""

    nonce: Nonce
    task_id: Identifier
    client_version: _Version
    contract_version: int


class PieceListRequest(Message, frozen=True, kw_only=True, tag_field="type", tag="piece-list-request"):
    """Device: send the piece digests of this blob."""

    sha256: Digest


class PieceRequest(Message, frozen=True, kw_only=True, tag_field="type", tag="piece-request"):
    """Device: send these pieces of this blob."""

    sha256: Digest
    indices: Annotated[tuple[_PieceIndex, ...], msgspec.Meta(min_length=1, max_length=64)]


class Piece(Message, frozen=True, kw_only=True, tag_field="type", tag="piece"):
    """Either side: one piece of a blob."""

    sha256: Digest
    index: _PieceIndex
    data: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_PIECE_BYTES)]


class Report(Message, frozen=True, kw_only=True, tag_field="type", tag="report"):
    """Device: the result of an assignment. Its pieces follow; sent again until a final receipt comes."""

    round_id: RoundId
    nonce: Nonce
    """The assignment's nonce."""
    update: BlobRef | None
    """The encoded ``model_delta``; None in an evaluation round."""
    piece_digests: Annotated[bytes, msgspec.Meta(max_length=MAX_PIECES * DIGEST_BYTES)]
    """Digests of the update's pieces; empty if it has one piece or there is no update."""
    num_examples: _Count
    aggregation_weight: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    """The update's weight in the average: example visits, or 1 when differential privacy is on."""
    metrics: Metrics


class Withdrawal(Message, frozen=True, kw_only=True, tag_field="type", tag="withdrawal"):
    """Device: this assignment will bring no report."""

    round_id: RoundId
    nonce: Nonce
    reason: WithdrawalReason


class DeviceStatus(Message, frozen=True, kw_only=True, tag_field="type", tag="status"):
    """Device, retained on its status topic, and its last will."""

    presence: Literal["online", "offline"]
    client_version: _Version = ""


class DeviceHealth(Message, frozen=True, kw_only=True, tag_field="type", tag="health"):
    """Device: how it does. Sent when ``mode`` or ``reason`` changes, at most once a minute; otherwise about hourly."""

    mode: DeviceMode
    reason: Annotated[str, msgspec.Meta(max_length=MAX_HEALTH_REASON_CHARS)] = ""
    """Why, in a few words for people; empty when the mode is OK."""
    bytes_written_last_hour: _Count
    """Bytes of content that the device wrote into its state directory; an SD card wears with each."""
    uptime_s: _Seconds
    """Since the daemon started."""
    num_rounds_accepted: _Count
    """Reports accepted since the daemon started."""


class Enrol(Message, frozen=True, kw_only=True, tag_field="type", tag="enrol"):
    """Device: this is my public key, and here is the proof that I was invited. Signed with that key."""

    nonce: Nonce
    token_id: Identifier
    public_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    """Ed25519."""
    proof: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
    """The token's Ed25519 signature over `enrolment.enrolment_statement`."""


class Enrolled(Message, frozen=True, kw_only=True, tag_field="type", tag="enrolled"):
    """Coordinator: what became of an enrolment."""

    nonce: Nonce
    outcome: EnrolmentOutcome


class TaskAnnouncement(Message, frozen=True, kw_only=True, tag_field="type", tag="task"):
    """Coordinator, retained: what this population works on."""

    task_id: Identifier
    plan: BlobRef
    model: BlobRef
    check_in_after_s: Annotated[tuple[_Seconds, _Seconds], msgspec.Meta()] = (0.0, 0.0)
    """A device that sees this task for the first time checks in after a random wait in this window."""


class Assignment(Message, frozen=True, kw_only=True, tag_field="type", tag="assignment"):
    """Coordinator: take part in this round."""

    round_id: RoundId
    nonce: Nonce
    """Names this assignment in the report, receipt or withdrawal."""
    check_in: Nonce
    """The check-in that this answers."""
    kind: RoundKind
    task_id: Identifier
    plan: BlobRef
    model: BlobRef
    checkpoint: BlobRef
    deadline_s: _Seconds
    """Seconds, from receipt, until a report is too late."""
    clipping_norm: Annotated[float, msgspec.Meta(gt=0)] | msgspec.UnsetType = msgspec.UNSET
    """The round's clip, of a task whose clip adapts; left out of any other."""
    roster: BlobRef | msgspec.UnsetType = msgspec.UNSET
    """Who takes part, of a task with pairwise masks (`secure_sum.round_roster`); left out of any other."""


class Refusal(Message, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """Coordinator: not now. The device waits a uniformly random time within the window."""

    check_in: Nonce
    reason: RefusalReason
    retry_min_s: _Seconds
    retry_max_s: _Seconds


class PieceList(Message, frozen=True, kw_only=True, tag_field="type", tag="piece-list"):
    """Coordinator: the piece digests of a blob."""

    sha256: Digest
    digests: Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=MAX_PIECES * DIGEST_BYTES)]


class Receipt(Message, frozen=True, kw_only=True, tag_field="type", tag="receipt"):
    """Coordinator: what became of a report."""

    round_id: RoundId
    nonce: Nonce
    status: ReceiptStatus
    reason: RejectionReason | None = None
    """Set exactly when the status is REJECTED."""
    missing: Annotated[tuple[_PieceIndex, ...], msgspec.Meta(max_length=MAX_PIECES)] = ()
    """Pieces still to send, when the status is INCOMPLETE."""
    retry_after_s: _Seconds = 0.0
    """When to send the report again, when the status is BUSY; when to check in again, when it is final."""


class RoundClosed(Message, frozen=True, kw_only=True, tag_field="type", tag="round-closed"):
    """Coordinator, to everyone: this round takes no more reports; training for it is wasted."""

    round_id: RoundId


DeviceMessage = (
    CheckIn
    | PieceListRequest
    | PieceRequest
    | Piece
    | Report
    | Withdrawal
    | DeviceStatus
    | DeviceHealth
    | Enrol
    | OpeningAnswer
    | ReleaseReport
)
CoordinatorMessage = TaskAnnouncement | Assignment | Refusal | PieceList | Piece | Receipt | RoundClosed
"""What a device hears in its session; `Enrolled` comes before there is one, and an `OpeningRequest` is for openers."""

_AnyMessage = DeviceMessage | CoordinatorMessage | Enrolled | OpeningRequest
_DECODER: Final = msgspec.msgpack.Decoder(_AnyMessage)
_ENCODER: Final = msgspec.msgpack.Encoder()
_M = TypeVar("_M", bound=Message)


def message_kind(message: Message | type[Message]) -> str:
    """The message's tag, which is also the last part of its topic."""
    tag: object = message.__struct_config__.tag
    if not isinstance(tag, str):
        raise TypeError(f"{message!r} is not a concrete message")
    return tag


def encode_message(message: Message) -> bytes:
    """Encodes a message: magic, version, MessagePack.

    Raises:
        OversizedMessage: It would be longer than its kind's limit.
    """
    data = _MAGIC + bytes([WIRE_VERSION]) + _ENCODER.encode(message)
    if len(data) > _limit(type(message)):
        raise OversizedMessage(f"{message_kind(message)} of {len(data)} bytes; the limit is {_limit(type(message))}")
    return data


def decode_message(data: bytes, expected: type[_M]) -> _M:
    """Decodes a message that must be of one kind, the one its topic names.

    Args:
        data: Bytes from the network.
        expected: The message's class.

    Raises:
        OversizedMessage: Longer than the kind's limit; nothing was parsed.
        UnsupportedVersion: The envelope's version is not ``WIRE_VERSION``.
        MalformedMessage: Anything else that is not exactly one valid message of that kind.
    """
    if len(data) > _limit(expected):
        raise OversizedMessage(f"{message_kind(expected)} of {len(data)} bytes; the limit is {_limit(expected)}")
    if data[:2] != _MAGIC or len(data) < _HEADER_BYTES:
        raise MalformedMessage("no Flockwise envelope")
    if data[2] != WIRE_VERSION:
        raise UnsupportedVersion(f"wire version {data[2]}; this side speaks {WIRE_VERSION}")
    try:
        message = _DECODER.decode(memoryview(data)[_HEADER_BYTES:])
    except (msgspec.DecodeError, ValueError, RecursionError, OverflowError) as error:
        raise MalformedMessage(f"not a {message_kind(expected)}: {error}") from error
    if not isinstance(message, expected):
        raise MalformedMessage(f"a {message_kind(message)} where a {message_kind(expected)} was expected")
    return message


def _limit(kind: type[Message]) -> int:
    return MAX_PIECE_BYTES + PIECE_OVERHEAD_BYTES if kind is Piece else MAX_CONTROL_BYTES
