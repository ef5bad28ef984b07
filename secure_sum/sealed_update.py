"""What a device sends in a confidential round, as bytes: a payload that says nothing alone, and sealed boxes.

    46 58          "FX"
    01             version
    mode           1 helpers, 2 masks, 3 he
    context        32 bytes, `round_context`
    num_values     u32: d
    n_min          u32: the fewest contributors that the device wants to be summed with
    ephemeral key  32 bytes, X25519
    num_boxes      u16, then for each a length (u32) and the box
    signature      64 bytes, Ed25519 by the device's identity over `Statement.bytes_to_sign`
    payload        the masked vector (4 d bytes, little endian), or ciphertext, to the end

There is one way to write a sealed update: whatever decodes encodes to the same bytes. Integers are big endian.
"""

import dataclasses
import enum
import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from secure_sum.context import CONTEXT_BYTES
from secure_sum.errors import MalformedSealed, OversizedSealed
from secure_sum.keystream import Words
from secure_sum.sealed_box import BOX_KEY_BYTES

__all__ = [
    "DIGEST_BYTES",
    "MAX_BOXES",
    "MAX_BOX_BYTES",
    "SIGNATURE_BYTES",
    "SealedHeader",
    "SealedMode",
    "SealedUpdate",
    "Sign",
    "Statement",
    "decode_sealed_update",
    "encode_sealed_update",
    "is_signed_by",
    "seal_update",
    "sealed_update_bytes",
    "vector_of",
    "vector_payload",
]

DIGEST_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
MAX_BOXES: Final = 256
MAX_BOX_BYTES: Final = 65_536
Sign = Callable[[bytes], bytes]
"""``sign(data)``: an Ed25519 signature of 64 bytes, by the device's identity."""

_MAGIC: Final = b"FX"
_VERSION: Final = 1
_HEADER: Final = struct.Struct(f">2sBB{CONTEXT_BYTES}sII{BOX_KEY_BYTES}sH")
_LENGTH: Final = struct.Struct(">I")
_NUMBERS: Final = struct.Struct(">BII")
_DOMAIN: Final = b"flockwise sealed update 1\x00"
_WORD_BYTES: Final = 4


class SealedMode(enum.Enum):
    """How an update is sealed."""

    HELPERS = 1
    MASKS = 2
    HE = 3


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """What a device signs: for which round, with how many others, and what exactly it has sent."""

    context: bytes
    mode: SealedMode
    device_id: str
    num_values: int
    min_contributors: int
    payload_sha256: bytes
    ephemeral_key: bytes
    box_digests: bytes
    """SHA-256 of each box, one after another."""

    @property
    def bytes_to_sign(self) -> bytes:
        """Every part has a fixed or a stated length: no two statements collide."""
        name = self.device_id.encode()
        return b"".join(
            (
                *(_DOMAIN, self.context, _NUMBERS.pack(self.mode.value, self.num_values, self.min_contributors)),
                *(self.payload_sha256, self.ephemeral_key, struct.pack(">H", len(name)), name, self.box_digests),
            )
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SealedHeader:
    """A sealed update without its payload: what openers must see of it."""

    statement: Statement
    boxes: tuple[bytes, ...]
    signature: bytes


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SealedUpdate:
    """A sealed update; decoded, not believed."""

    mode: SealedMode
    context: bytes
    num_values: int
    min_contributors: int
    ephemeral_key: bytes
    boxes: tuple[bytes, ...]
    """One for each opener, in the plan's order."""
    signature: bytes
    payload: bytes
    payload_sha256: bytes
    """Of the payload itself: computed here, once, and never taken on trust."""

    def statement(self, device_id: str) -> Statement:
        """What a device of this name must have signed."""
        return Statement(
            context=self.context,
            mode=self.mode,
            device_id=device_id,
            num_values=self.num_values,
            min_contributors=self.min_contributors,
            payload_sha256=self.payload_sha256,
            ephemeral_key=self.ephemeral_key,
            box_digests=b"".join(hashlib.sha256(box).digest() for box in self.boxes),
        )

    def header(self, device_id: str) -> SealedHeader:
        """The same without the payload, as one that this device sent."""
        return SealedHeader(statement=self.statement(device_id), boxes=self.boxes, signature=self.signature)


def seal_update(payload: bytes, boxes: Sequence[bytes], statement: Statement, sign: Sign) -> SealedUpdate:
    """Signs a statement about a payload and its boxes, whose digests are filled in here."""
    filled = dataclasses.replace(
        statement,
        payload_sha256=hashlib.sha256(payload).digest(),
        box_digests=b"".join(hashlib.sha256(box).digest() for box in boxes),
    )
    return SealedUpdate(
        mode=filled.mode,
        context=filled.context,
        num_values=filled.num_values,
        min_contributors=filled.min_contributors,
        ephemeral_key=filled.ephemeral_key,
        boxes=tuple(boxes),
        signature=sign(filled.bytes_to_sign),
        payload=payload,
        payload_sha256=filled.payload_sha256,
    )


def is_signed_by(public_key: bytes, statement: Statement, signature: bytes) -> bool:
    """Whether an Ed25519 key (32 bytes) has signed a statement."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, statement.bytes_to_sign)
    except (InvalidSignature, ValueError):
        return False
    return True


def encode_sealed_update(update: SealedUpdate) -> bytes:
    """The update's bytes.

    Raises:
        MalformedSealed: A part is too long or too short to be written.
    """
    if len(update.boxes) > MAX_BOXES or any(len(box) > MAX_BOX_BYTES for box in update.boxes):
        raise MalformedSealed(f"a sealed update has at most {MAX_BOXES} boxes of {MAX_BOX_BYTES} bytes")
    if (len(update.context), len(update.ephemeral_key), len(update.signature)) != (
        *(CONTEXT_BYTES, BOX_KEY_BYTES, SIGNATURE_BYTES),
    ):
        raise MalformedSealed("a context, key or signature of another length")
    header = _HEADER.pack(
        *(_MAGIC, _VERSION, update.mode.value, update.context, update.num_values, update.min_contributors),
        *(update.ephemeral_key, len(update.boxes)),
    )
    boxes = b"".join(_LENGTH.pack(len(box)) + box for box in update.boxes)
    return b"".join((header, boxes, update.signature, update.payload))


def decode_sealed_update(data: bytes, *, max_bytes: int) -> SealedUpdate:
    """Takes a sealed update apart; believes nothing. Whether its context, size and signature are right is not asked here.

    Args:
        data: Bytes from the network.
        max_bytes: What is longer is refused unparsed.

    Raises:
        OversizedSealed: Longer than ``max_bytes``.
        MalformedSealed: Not a sealed update.
    """
    if len(data) > max_bytes:
        raise OversizedSealed(f"a sealed update of {len(data)} bytes; the limit is {max_bytes}")
    if len(data) < _HEADER.size or data[:3] != _MAGIC + bytes([_VERSION]):
        raise MalformedSealed("no sealed update of a version that this side knows")
    _, _, mode, context, num_values, min_contributors, ephemeral_key, num_boxes = _HEADER.unpack_from(data)
    if mode not in {known.value for known in SealedMode} or num_boxes > MAX_BOXES:
        raise MalformedSealed("a sealed update of an unknown mode, or with too many boxes")
    boxes: list[bytes] = []
    at = _HEADER.size
    for _ in range(num_boxes):
        box, at = _box_at(data, at)
        boxes.append(box)
    if len(data) < at + SIGNATURE_BYTES:
        raise MalformedSealed("a sealed update that ends before its signature does")
    payload = data[at + SIGNATURE_BYTES :]
    return SealedUpdate(
        mode=SealedMode(mode),
        context=context,
        num_values=num_values,
        min_contributors=min_contributors,
        ephemeral_key=ephemeral_key,
        boxes=tuple(boxes),
        signature=data[at : at + SIGNATURE_BYTES],
        payload=payload,
        payload_sha256=hashlib.sha256(payload).digest(),
    )


def _box_at(data: bytes, at: int) -> tuple[bytes, int]:
    if len(data) < at + _LENGTH.size:
        raise MalformedSealed("a sealed update that ends within its boxes")
    (length,) = _LENGTH.unpack_from(data, at)
    end = at + _LENGTH.size + length
    if length > MAX_BOX_BYTES or len(data) < end:
        raise MalformedSealed("a box that is too long, or longer than what is there")
    return data[at + _LENGTH.size : end], end


def sealed_update_bytes(*, payload_bytes: int, num_boxes: int, box_bytes: int) -> int:
    """Length of a sealed update with this payload and boxes of this length."""
    return _HEADER.size + num_boxes * (_LENGTH.size + box_bytes) + SIGNATURE_BYTES + payload_bytes


def vector_payload(vector: Words) -> bytes:
    """A masked vector as bytes: 4 per number, little endian."""
    return vector.astype("<u4", copy=False).tobytes()


def vector_of(payload: bytes, num_values: int) -> Words:
    """[num_values] the inverse; a read-only view.

    Raises:
        MalformedSealed: Not that many numbers.
    """
    if len(payload) != _WORD_BYTES * num_values:
        raise MalformedSealed(f"{len(payload)} bytes for {num_values} numbers of {_WORD_BYTES} bytes")
    return np.frombuffer(payload, dtype="<u4")
