"""What a release is, and which devices are to run it: two small signed files, and the rule that reads them.

A **manifest** describes one release of a model: its bytes, what it takes and gives, what a device must have, and how a
device checks that it works. It never changes. An **order** says which release of a model a fleet runs, and which share
of it already tries the next one; every step of a rollout is a new order. Both are TUF targets: a device believes them
only after `tuf` has verified them, and believes a model's bytes only by the hashes in its manifest.

Which devices are in a stage needs no message to any of them: each computes it from the order and its own id
(`is_in_stage`), and stays in for every larger share.
"""

import hashlib
import math
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from wire_protocol.blobs import BlobRef
from wire_protocol.errors import MalformedMessage, OversizedMessage
from wire_protocol.identifiers import IDENTIFIER_PATTERN
from wire_protocol.limits import MAX_CONTROL_BYTES

__all__ = [
    "SIGNED_AT_FIELD",
    "WHOLE_FLEET_PERMILLE",
    "EvaluationFigures",
    "GoldenBatch",
    "ModelTensor",
    "PackedModel",
    "ReleaseLineage",
    "ReleaseManifest",
    "ReleaseNeeds",
    "RolloutOrder",
    "decode_manifest",
    "decode_order",
    "encode_release_file",
    "is_in_share",
    "is_in_stage",
    "manifest_target",
    "order_target",
    "wanted_release",
]

SIGNED_AT_FIELD: Final = "x-flockwise-signed-at"
"""Field of TUF's timestamp role: when it was signed (RFC 3339). A verified one proves that it is later now."""

WHOLE_FLEET_PERMILLE: Final = 1000

_Name = Annotated[str, msgspec.Meta(pattern=IDENTIFIER_PATTERN)]
_Number = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
_Dim = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
_Tags = Annotated[tuple[_Name, ...], msgspec.Meta(max_length=32)]
_Text = Annotated[str, msgspec.Meta(max_length=500)]
_Version = Annotated[str, msgspec.Meta(pattern=r"^\d{1,4}(\.\d{1,4}){1,2}$")]
_BUCKETS: Final = 2**64


class ModelTensor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input or output of a model's ``infer``: [batch, ...], the first dimension left out."""

    shape: Annotated[tuple[_Dim, ...], msgspec.Meta(min_length=1, max_length=8)]
    dtype: Literal["float32", "int8", "uint8", "int32"]


class GoldenBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Examples with the outputs that the exporting machine got, by which a device checks that a model works on it."""

    blob: BlobRef
    """A safetensors file of ``inputs`` [num_examples, ...] and ``outputs`` [num_examples, ...]."""
    num_examples: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    max_abs_error: Annotated[float, msgspec.Meta(gt=0)]
    """Largest deviation of any output that is still right."""
    min_agreement: Annotated[float, msgspec.Meta(ge=0, le=1)]
    """Share of the examples whose largest output must be the expected one: the accuracy floor."""
    max_latency_ms: Annotated[float, msgspec.Meta(gt=0)]
    """The median time of one example on a device may not be more."""


class PackedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model's bytes as one zstd frame, shorter to fetch."""

    blob: BlobRef
    base_sha256: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""
    """The model that it is a difference to, as a raw dictionary; empty for none."""


class ReleaseNeeds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device must have. It is checked before a byte of the model is fetched."""

    min_runtime: _Version
    """Lowest LiteRT version that has been proved to run the model."""
    min_memory_mb: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    """Memory that running it takes, interpreter included."""
    operators: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=256)] = ()
    """The builtin operators used, sorted by name."""
    device_classes: _Tags = ()
    """Hardware classes it is meant for, such as ``aarch64``; empty for all."""


class EvaluationFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the fleet's devices measured of a checkpoint on their own examples (an evaluation round)."""

    accuracy: Annotated[float, msgspec.Meta(ge=0, le=1)]
    loss: float
    num_examples: Annotated[float, msgspec.Meta(ge=0)]


class ReleaseLineage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a model comes from."""

    task_id: Annotated[str, msgspec.Meta(max_length=100)] = ""
    round_id: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] = 0
    """The round that committed the checkpoint; 0 if it came from outside."""
    plan_sha256: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""
    checkpoint_sha256: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""
    epsilon: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """What the training had cost each device by then; None if that is not stated."""
    evaluation: EvaluationFigures | None = None
    """None if no evaluation round was run on it."""
    parent: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    """The release before; 0 for none."""


class ReleaseManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One release of one model. The number is never used again, whatever became of the release."""

    name: _Name
    number: _Number
    model: BlobRef
    packed: Annotated[tuple[PackedModel, ...], msgspec.Meta(max_length=8)] = ()
    """Other ways to fetch the same bytes."""
    input: ModelTensor
    output: ModelTensor
    golden: GoldenBatch
    needs: ReleaseNeeds
    lineage: ReleaseLineage = ReleaseLineage()
    note: _Text = ""

    def __post_init__(self) -> None:
        golden = self.golden
        # msgspec checks ranges only when it decodes.
        if not all(math.isfinite(bound) and bound > 0 for bound in (golden.max_abs_error, golden.max_latency_ms)):
            raise ValueError("max_abs_error and max_latency_ms must be positive and finite")
        if self.number < 1:
            raise ValueError("releases are numbered from 1")


class RolloutOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which release of one model the fleet is to run now."""

    name: _Name
    serial: _Number
    """Rises with every order of this model; a device follows none that is older than its last."""
    baseline: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    """What everyone outside the stage runs; 0 for nothing (or for what they have)."""
    candidate: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    """What the stage runs; 0 if no rollout is under way."""
    permille: Annotated[int, msgspec.Meta(ge=0, le=WHOLE_FLEET_PERMILLE)] = 0
    """The share of the fleet in the stage, in thousandths."""
    salt: Annotated[str, msgspec.Meta(min_length=8, max_length=64)]
    """Draws the devices. The same through all stages of a rollout, another one for the next: nobody is always first."""
    tags: _Tags = ()
    """Only devices with one of these tags, or of one of these hardware classes, may be in the stage; empty for all."""
    is_paused: bool = False
    """Devices in the stage keep what they have; none begins a download."""

    def __post_init__(self) -> None:
        if self.permille and not self.candidate:
            raise ValueError("a stage needs a candidate")
        if self.candidate and self.candidate == self.baseline:
            raise ValueError(f"release {self.candidate} cannot be candidate and baseline")


def is_in_stage(order: RolloutOrder, device_id: str, tags: frozenset[str]) -> bool:
    """Whether a device is one of those that try the candidate.

    Args:
        order: The rollout's order.
        device_id: The device's id.
        tags: Its own tags and hardware class.
    """
    if order.tags and not tags.intersection(order.tags):
        return False
    return is_in_share(order.salt, device_id, order.permille)


def is_in_share(salt: str, device_id: str, permille: int) -> bool:
    """Whether a device is in the share of a fleet that a salt draws, tags aside."""
    digest = hashlib.sha256(f"flockwise rollout 1\0{salt}\0{device_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") * WHOLE_FLEET_PERMILLE < permille * _BUCKETS


def wanted_release(order: RolloutOrder, device_id: str, tags: frozenset[str]) -> int:
    """The number of the release that a device should run; 0 if the order wants none."""
    if order.candidate and is_in_stage(order, device_id, tags):
        return order.candidate
    return order.baseline


def manifest_target(name: str, number: int) -> str:
    """The TUF target path of a release's manifest."""
    return f"manifest-{name}-{number}.json"


def order_target(name: str) -> str:
    """The TUF target path of a model's rollout order."""
    return f"order-{name}.json"


def encode_release_file(value: ReleaseManifest | RolloutOrder) -> bytes:
    """The bytes of a manifest or an order; the same value always gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1)


_FileT = TypeVar("_FileT", ReleaseManifest, RolloutOrder)


def decode_manifest(data: bytes) -> ReleaseManifest:
    """Decodes a manifest.

    Raises:
        OversizedMessage: Longer than a control message; nothing is decoded.
        MalformedMessage: Not a manifest.
    """
    return _decode(data, ReleaseManifest)


def decode_order(data: bytes) -> RolloutOrder:
    """Decodes an order.

    Raises:
        OversizedMessage: Longer than a control message; nothing is decoded.
        MalformedMessage: Not an order.
    """
    return _decode(data, RolloutOrder)


def _decode(data: bytes, kind: type[_FileT]) -> _FileT:
    if len(data) > MAX_CONTROL_BYTES:
        raise OversizedMessage(f"{len(data)} bytes; a release file has at most {MAX_CONTROL_BYTES}")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"not a {kind.__name__}: {error}") from error
