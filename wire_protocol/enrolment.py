"""Enrolment tokens: their text, and what is signed with them. Pure; nothing here signs or verifies.

A token is ``fwt1.<id>.<secret>``: the secret is the seed of an Ed25519 key. The coordinator keeps the public half
alone, and the secret never crosses the wire: the device signs its own public key with it. So neither the broker, nor
an eavesdropper, nor a reader of the roster can enrol in the device's place.
"""

import base64
import binascii
import dataclasses
import enum
import re
import struct
from typing import Final, Self

from wire_protocol.errors import MalformedMessage
from wire_protocol.identifiers import checked_identifier

__all__ = ["EnrolmentOutcome", "EnrolmentToken", "enrolment_statement"]

_PREFIX: Final = "fwt1"
_SECRET_BYTES: Final = 32
_ID: Final = re.compile(r"[0-9a-f]{16}")
_DOMAIN: Final = b"flockwise enrolment 1\x00"


class EnrolmentOutcome(enum.Enum):
    """What became of an enrolment."""

    ACCEPTED = "accepted"
    UNKNOWN_TOKEN = "unknown_token"  # noqa: S105 - a reason, no secret
    """No such token, or it was not this token that signed."""
    TOKEN_USED = "token_used"  # noqa: S105
    TOKEN_EXPIRED = "token_expired"  # noqa: S105
    OTHER_DEVICE = "other_device"
    """The token is for another device id, or no device may have this id."""
    ALREADY_ENROLLED = "already_enrolled"
    """The id has a key; it takes an operator's revocation to give it another."""
    REVOKED = "revoked"
    """The id is revoked, and the token was not made for it since."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EnrolmentToken:
    """A token as its holder has it."""

    token_id: str
    """Names it; no secret."""
    secret: bytes = dataclasses.field(repr=False)
    """Seed of the token's key; 32 bytes."""

    def __post_init__(self) -> None:
        """Checks both parts.

        Raises:
            MalformedMessage: One has not the right form; the text does not repeat it.
        """
        if _ID.fullmatch(self.token_id) is None or len(self.secret) != _SECRET_BYTES:
            raise MalformedMessage("this is no enrolment token; copy it whole, it begins with fwt1.")

    @property
    def text(self) -> str:
        """What an operator hands over."""
        return f"{_PREFIX}.{self.token_id}.{base64.urlsafe_b64encode(self.secret).decode().rstrip('=')}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a token; the error does not repeat it.

        Raises:
            MalformedMessage: It is none.
        """
        prefix, _, rest = text.strip().partition(".")
        token_id, _, secret = rest.partition(".")
        try:
            data = base64.b64decode(secret.encode("ascii") + b"=", altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            data = b""
        return cls(token_id=token_id if prefix == _PREFIX else "", secret=data)


def enrolment_statement(*, population: str, device_id: str, token_id: str, public_key: bytes, nonce: bytes) -> bytes:
    """What a device signs with the token's key: this key is this device's.

    Raises:
        InvalidIdentifier: An id that is not allowed.
    """
    names = (
        checked_identifier(population, kind="population"),
        checked_identifier(device_id, kind="device"),
        checked_identifier(token_id, kind="token"),
    )
    parts = [name.encode() for name in names] + [public_key, nonce]
    return _DOMAIN + b"".join(struct.pack(">H", len(part)) + part for part in parts)
