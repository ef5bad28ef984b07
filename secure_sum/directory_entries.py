"""Entries of the key directory: what each says, its bytes, and what a member and the authority sign.

A member proves with its identity key that the sealing key is its own; the authority signs every entry. Entries are
chained: each names the SHA-256 of the one before it, the first the name of the log (population and authority's key).
Pure: keys are handed in, nothing here reads a file or a clock.
"""

import base64
import binascii
import dataclasses
import enum
import hashlib
import struct
from collections.abc import Callable
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from secure_sum.errors import MalformedDirectory, OversizedDirectory

__all__ = [
    "MAX_ENTRY_BYTES",
    "Change",
    "DirectoryEntry",
    "MemberAdded",
    "MemberKeys",
    "MemberRemoved",
    "MemberRole",
    "MemberRotated",
    "binding_statement",
    "bound_keys",
    "check_signature",
    "decode_change",
    "decode_request",
    "encode_change",
    "encode_request",
    "entry_statement",
    "fingerprint",
    "genesis",
]

MAX_ENTRY_BYTES: Final = 1024
"""Longest entry; a real one takes about 330."""

_ENTRY_DOMAIN: Final = b"flockwise key directory entry 1\x00"
_BINDING_DOMAIN: Final = b"flockwise member keys 1\x00"
_GENESIS_DOMAIN: Final = b"flockwise key directory 1\x00"
_FINGERPRINT_DOMAIN: Final = b"flockwise fingerprint 1\x00"
_REQUEST_PREFIX: Final = "fwk1."
_FINGERPRINT_DIGITS: Final = 32
_GROUP: Final = 4
_PROBE_KEY: Final = X25519PrivateKey.from_private_bytes(bytes([64]) + bytes(31))
"""Any key does: an exchange with a point of small order is zero whatever the other side's key is."""

_Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
_Id = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")]


class MemberRole(enum.Enum):
    """What a member may be asked for."""

    DEVICE = "device"
    HELPER = "helper"
    KEY_AUTHORITY = "key-authority"


class MemberKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One member's public keys, bound together by its own signature."""

    member_id: _Id
    role: MemberRole
    identity_key: _Key
    """Ed25519."""
    sealing_key: _Key
    """X25519: what others seal to."""
    proof: _Signature
    """The identity key's signature over ``binding_statement``."""

    def check(self, population: str) -> None:
        """Checks that the keys belong together and can be used.

        Raises:
            MalformedDirectory: The proof is not the identity key's for this population, or the sealing key is a point of
                small order, to which sealing hides nothing.
        """
        check_signature(self.identity_key, self.proof, binding_statement(population, self))
        try:
            _PROBE_KEY.exchange(X25519PublicKey.from_public_bytes(self.sealing_key))
        except ValueError:
            raise MalformedDirectory(
                f"the sealing key of {self.member_id} is no key: nothing sealed to it is hidden"
            ) from None


class MemberAdded(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="added", tag_field="change"
):
    """A member that was never there before."""

    index: Annotated[int, msgspec.Meta(ge=0)]
    previous: _Hash
    made_at: Annotated[int, msgspec.Meta(ge=0)]
    """Seconds since 1970, by the authority's clock; for people."""
    member: MemberKeys


class MemberRotated(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rotated", tag_field="change"
):
    """A known member, present or removed, has other keys from here on."""

    index: Annotated[int, msgspec.Meta(ge=0)]
    previous: _Hash
    made_at: Annotated[int, msgspec.Meta(ge=0)]
    member: MemberKeys
    replaces: _Hash
    """Hash of the last entry about this member, so that nobody rotates by accident."""


class MemberRemoved(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="removed", tag_field="change"
):
    """A member is one no longer."""

    index: Annotated[int, msgspec.Meta(ge=0)]
    previous: _Hash
    made_at: Annotated[int, msgspec.Meta(ge=0)]
    member_id: _Id
    replaces: _Hash


Change: TypeAlias = MemberAdded | MemberRotated | MemberRemoved
"""What an entry says."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DirectoryEntry:
    """A change, the bytes that were signed, and the authority's signature."""

    change: Change
    body: bytes = dataclasses.field(repr=False)
    signature: bytes = dataclasses.field(repr=False)

    @property
    def digest(self) -> bytes:
        """SHA-256 that the next entry names."""
        return hashlib.sha256(entry_statement(self.body)).digest()

    @property
    def member_id(self) -> str:
        """Whom it is about."""
        return self.change.member_id if isinstance(self.change, MemberRemoved) else self.change.member.member_id


def genesis(population: str, authority_key: bytes) -> bytes:
    """What the first entry names in place of an entry before it: the log of this authority for this population."""
    return hashlib.sha256(_GENESIS_DOMAIN + _parts(population.encode(), authority_key)).digest()


def entry_statement(body: bytes) -> bytes:
    """What the authority signs, and what is hashed."""
    return _ENTRY_DOMAIN + body


def binding_statement(population: str, member: MemberKeys) -> bytes:
    """What a member signs with its identity key: these are my keys, in this population and role. Ignores ``proof``."""
    role = member.role.value.encode()
    return _BINDING_DOMAIN + _parts(
        population.encode(), member.member_id.encode(), role, member.identity_key, member.sealing_key
    )


def bound_keys(
    population: str,
    member_id: str,
    role: MemberRole,
    *,
    identity_key: bytes,
    sealing_key: bytes,
    sign: Callable[[bytes], bytes],
) -> MemberKeys:
    """A member's two public keys with its signature over them.

    Args:
        population: Where it is a member.
        member_id: Its id.
        role: What it is there for.
        identity_key: Ed25519, 32 bytes.
        sealing_key: X25519, 32 bytes.
        sign: Signs with the identity key.
    """
    unsigned = MemberKeys(
        member_id=member_id, role=role, identity_key=identity_key, sealing_key=sealing_key, proof=bytes(64)
    )
    return msgspec.structs.replace(unsigned, proof=sign(binding_statement(population, unsigned)))


def check_signature(key: bytes, signature: bytes, statement: bytes) -> None:
    """Checks an Ed25519 signature.

    Raises:
        MalformedDirectory: It is not this key's over this statement.
    """
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, statement)
    except (InvalidSignature, ValueError):
        raise MalformedDirectory("a signature is not the named key's") from None


def fingerprint(key: bytes) -> str:
    """A public key for people to compare: 32 hexadecimal digits (128 bits) in groups of four."""
    digits = hashlib.sha256(_FINGERPRINT_DOMAIN + key).hexdigest()[:_FINGERPRINT_DIGITS]
    return "-".join(digits[start : start + _GROUP] for start in range(0, _FINGERPRINT_DIGITS, _GROUP))


def encode_change(change: Change) -> bytes:
    """The bytes of an entry's body: MessagePack, always the same for the same change."""
    return msgspec.msgpack.encode(change)


def decode_change(body: bytes) -> Change:
    """Reads an entry's body.

    Raises:
        OversizedDirectory: Longer than an entry can be; nothing was decoded.
        MalformedDirectory: Not exactly one valid change in its one encoding.
    """
    return _decoded(body, _CHANGES)


def encode_request(member: MemberKeys) -> str:
    """A member's keys as one line that it hands to the authority: ``fwk1.`` and base64url. Holds no secret."""
    data = msgspec.msgpack.encode(member)
    return _REQUEST_PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")


def decode_request(text: str) -> MemberKeys:
    """Reads a member's request; whether its proof is right, ``MemberKeys.check`` says.

    Raises:
        OversizedDirectory: As ``decode_change``.
        MalformedDirectory: As ``decode_change``.
    """
    text = text.strip()
    if not text.startswith(_REQUEST_PREFIX):
        raise MalformedDirectory("this is no request to be put into a key directory; it begins with fwk1.")
    if len(text) > 2 * MAX_ENTRY_BYTES:
        raise OversizedDirectory(f"a request of {len(text)} characters")
    body = text[len(_REQUEST_PREFIX) :]
    try:
        data = base64.b64decode(body.encode("ascii") + b"=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise MalformedDirectory("a request that was not copied whole") from None
    return _decoded(data, _REQUESTS)


_CHANGES: "Final[msgspec.msgpack.Decoder[Change]]" = msgspec.msgpack.Decoder(Change)
_REQUESTS: Final = msgspec.msgpack.Decoder(MemberKeys)
_T = TypeVar("_T")


def _decoded(body: bytes, decoder: "msgspec.msgpack.Decoder[_T]") -> _T:
    if len(body) > MAX_ENTRY_BYTES:
        raise OversizedDirectory(f"an entry of {len(body)} bytes; one takes at most {MAX_ENTRY_BYTES}")
    try:
        value = decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedDirectory(f"not an entry of a key directory: {error}") from error
    if msgspec.msgpack.encode(value) != body:
        raise MalformedDirectory("an entry of a key directory in another encoding than its own")
    return value


def _parts(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">H", len(part)) + part for part in parts)
