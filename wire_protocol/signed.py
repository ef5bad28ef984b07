"""The signed envelope around a device's message: who sent it, on which topic, and in which order. Framing alone.

    46 53      "FS"
    01         version
    epoch      u32, big endian: raised once per start of the device's daemon
    counter    u32: raised per message
    signature  64 bytes, Ed25519 (RFC 8032) over `bytes_to_sign`
    message    the message as `wire_protocol.messages` encodes it, to the end

The envelope names no device: the topic does, and the signature covers the topic. Keys are the two sides' affair;
nothing here signs or verifies.
"""

import dataclasses
import struct
from typing import Final

from wire_protocol.errors import MalformedMessage, OversizedMessage, UnsupportedVersion
from wire_protocol.limits import MAX_PIECE_BYTES, PIECE_OVERHEAD_BYTES

__all__ = [
    "COORDINATOR_DOMAIN",
    "MAX_SEQUENCE_NUMBER",
    "MESSAGE_DOMAIN",
    "PUBLIC_KEY_BYTES",
    "SIGNATURE_BYTES",
    "SIGNED_OVERHEAD_BYTES",
    "SIGNED_VERSION",
    "SignedMessage",
    "bytes_to_sign",
    "frame_signed",
    "is_signed",
    "parse_signed",
]

SIGNED_VERSION: Final = 1
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
MAX_SEQUENCE_NUMBER: Final = 2**32 - 1
"""Largest epoch and counter."""

_MAGIC: Final = b"FS"
_HEADER: Final = struct.Struct(">2sBII")
MESSAGE_DOMAIN: Final = b"flockwise device message 1\x00"
COORDINATOR_DOMAIN: Final = b"flockwise coordinator message 1\x00"
"""So that no device's signature can pass for the coordinator's, nor the other way."""
"""What every signed message begins with; other statements of the same key begin otherwise."""

SIGNED_OVERHEAD_BYTES: Final = 75
"""What the envelope adds to a message."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SignedMessage:
    """A parsed envelope. Nothing in it may be believed before the signature has been verified."""

    epoch: int
    counter: int
    signature: bytes
    message: bytes

    def __post_init__(self) -> None:
        """Checks ranges and the signature's length.

        Raises:
            ValueError: A number outside 0 to 2^32 - 1, or a signature that is not 64 bytes.
        """
        if not (0 <= self.epoch <= MAX_SEQUENCE_NUMBER and 0 <= self.counter <= MAX_SEQUENCE_NUMBER):
            raise ValueError(f"epoch and counter must be 0 to {MAX_SEQUENCE_NUMBER}")
        if len(self.signature) != SIGNATURE_BYTES:
            raise ValueError(f"a signature has {SIGNATURE_BYTES} bytes, not {len(self.signature)}")

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, counter): must rise from message to message of a device."""
        return self.epoch, self.counter


def bytes_to_sign(topic: str, *, epoch: int, counter: int, message: bytes, domain: bytes = MESSAGE_DOMAIN) -> bytes:
    """What the signature covers. Every part but the last has a fixed or a stated length: no two inputs collide.

    Args:
        topic: The message's topic.
        epoch: Of the sender's start.
        counter: Of the message.
        message: The message.
        domain: Who signs: a device, or the coordinator.

    Raises:
        struct.error: A number out of range, or a topic over 65,535 bytes (MQTT knows none).
    """
    name = topic.encode()
    return b"".join((domain, struct.pack(">H", len(name)), name, struct.pack(">II", epoch, counter), message))


def frame_signed(signed: SignedMessage) -> bytes:
    """The envelope's bytes."""
    header = _HEADER.pack(_MAGIC, SIGNED_VERSION, signed.epoch, signed.counter)
    return header + signed.signature + signed.message


def is_signed(data: bytes) -> bool:
    """Whether bytes claim to be a signed envelope."""
    return data[:2] == _MAGIC


def parse_signed(data: bytes) -> SignedMessage:
    """Takes an envelope apart; believes nothing.

    Raises:
        OversizedMessage: Longer than any message may be.
        UnsupportedVersion: Another version of the envelope.
        MalformedMessage: No envelope, or too short for one.
    """
    if len(data) > MAX_PIECE_BYTES + PIECE_OVERHEAD_BYTES + SIGNED_OVERHEAD_BYTES:
        raise OversizedMessage(f"signed message of {len(data)} bytes")
    if not is_signed(data) or len(data) < SIGNED_OVERHEAD_BYTES:
        raise MalformedMessage("no signed envelope")
    _, version, epoch, counter = _HEADER.unpack_from(data)
    if version != SIGNED_VERSION:
        raise UnsupportedVersion(f"signed envelope of version {version}; this side speaks {SIGNED_VERSION}")
    return SignedMessage(
        epoch=epoch,
        counter=counter,
        signature=data[_HEADER.size : SIGNED_OVERHEAD_BYTES],
        message=data[SIGNED_OVERHEAD_BYTES:],
    )
