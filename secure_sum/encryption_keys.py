"""What a key authority releases: the public key, and for each device the tag secret, sealed. Signed; a blob of the plan.

    46 4b 52    "FKR"
    01          version
    signature   64 bytes, Ed25519 by the key authority's identity over a domain and the body
    body        MessagePack, in its one form

The coordinator hands it on. It cannot put its own public key in the place of the authority's: devices check the signature
with the identity key that the key directory has, and refuse a release of another population or authority.
"""

import hashlib
import struct
from collections.abc import Callable, Mapping
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_sum.errors import BoxNotOpened, MalformedSealed, OversizedSealed
from secure_sum.sealed_box import BoxRoute, RandomBytes, make_box_key, open_box, seal_box
from secure_sum.sum_tags import TAG_SECRET_BYTES

__all__ = ["MAX_RELEASE_BYTES", "EncryptionKeys", "decode_encryption_keys", "release_encryption_keys"]

MAX_RELEASE_BYTES: Final = 4 * 1024 * 1024

_MAGIC: Final = b"FKR\x01"
_SIGNATURE_BYTES: Final = 64
_DOMAIN: Final = b"flockwise encryption keys 1\x00"
_ROUTE_DOMAIN: Final = b"flockwise tag secret 1\x00"
_MAX_BOXES: Final = 10_000

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Box = Annotated[bytes, msgspec.Meta(max_length=256)]


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    population: _Name
    authority_id: _Name
    public_key: Annotated[bytes, msgspec.Meta(max_length=1024 * 1024)]
    ephemeral_key: _Key
    boxes: Annotated[dict[_Name, _Box], msgspec.Meta(max_length=_MAX_BOXES)]


class EncryptionKeys:
    """A release; decoded, and believed only after ``check``.

    Args:
        body: What was signed.
        signature: By whom, ``check`` says.
    """

    __slots__ = ("_body", "_signature")

    def __init__(self, body: _Body, signature: bytes) -> None:
        self._body = body
        self._signature = signature

    @property
    def public_key(self) -> bytes:
        """The BFV public key (`bfv.BfvKeyPair.public`)."""
        return self._body.public_key

    @property
    def device_ids(self) -> tuple[str, ...]:
        """The devices that can take part: those with a box, by name."""
        return tuple(self._body.boxes)

    def check(self, *, population: str, authority_id: str, identity_key: bytes) -> None:
        """Checks whose release it is.

        Args:
            population: Whose it must be.
            authority_id: The key authority, as the plan names it.
            identity_key: Its Ed25519 key, from the key directory.

        Raises:
            MalformedSealed: Another's, or not signed by this key.
        """
        if (self._body.population, self._body.authority_id) != (population, authority_id):
            raise MalformedSealed(f"encryption keys of {self._body.authority_id} for {self._body.population}")
        try:
            key = Ed25519PublicKey.from_public_bytes(identity_key)
            key.verify(self._signature, _DOMAIN + msgspec.msgpack.encode(self._body))
        except (InvalidSignature, ValueError):
            raise MalformedSealed(f"these encryption keys are not signed by {authority_id}") from None

    def tag_secret(self, device_id: str, sealing: X25519PrivateKey) -> bytes:
        """The secret of the tags, as sealed for one device.

        Raises:
            BoxNotOpened: There is no box for this device, or it is for another key.
        """
        box = self._body.boxes.get(device_id)
        if box is None:
            raise BoxNotOpened(f"the key authority released no keys for {device_id}: it has to issue them anew")
        route = _route(self._body.population, self._body.authority_id, self._body.public_key, device_id)
        secret = open_box(box, opener=sealing, ephemeral_key=self._body.ephemeral_key, route=route)
        if len(secret) != TAG_SECRET_BYTES:
            raise BoxNotOpened("a box with something else than a tag secret")
        return secret

    def encode(self) -> bytes:
        """The release's bytes."""
        return _MAGIC + self._signature + msgspec.msgpack.encode(self._body)


def release_encryption_keys(
    *,
    population: str,
    authority_id: str,
    public_key: bytes,
    tag_secret: bytes,
    sealing_keys: Mapping[str, bytes],
    sign: Callable[[bytes], bytes],
    random_bytes: RandomBytes,
) -> EncryptionKeys:
    """Makes a release.

    Args:
        population: Whose.
        authority_id: The key authority's name in it.
        public_key: BFV.
        tag_secret: 32 bytes that every device is to know, and the coordinator is not.
        sealing_keys: Device id -> X25519 key, from the key directory.
        sign: With the key authority's identity.
        random_bytes: For the boxes' ephemeral key.

    Raises:
        BoxNotOpened: A sealing key is none.
    """
    ephemeral = make_box_key(random_bytes)
    boxes = {
        device_id: seal_box(
            tag_secret,
            ephemeral=ephemeral,
            opener_key=key,
            route=_route(population, authority_id, public_key, device_id),
        )
        for device_id, key in sorted(sealing_keys.items())
    }
    body = _Body(
        population=population,
        authority_id=authority_id,
        public_key=public_key,
        ephemeral_key=ephemeral.public_key().public_bytes_raw(),
        boxes=boxes,
    )
    return EncryptionKeys(body, sign(_DOMAIN + msgspec.msgpack.encode(body)))


def decode_encryption_keys(data: bytes) -> EncryptionKeys:
    """Reads a release; believes nothing of it.

    Raises:
        OversizedSealed: Longer than a release may be; nothing was parsed.
        MalformedSealed: No release in its one form.
    """
    if len(data) > MAX_RELEASE_BYTES:
        raise OversizedSealed(f"encryption keys of {len(data)} bytes")
    start = len(_MAGIC) + _SIGNATURE_BYTES
    if not data.startswith(_MAGIC) or len(data) < start:
        raise MalformedSealed("these are no encryption keys of a version that this side knows")
    try:
        body = _BODIES.decode(data[start:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedSealed(f"no encryption keys: {error}") from error
    if msgspec.msgpack.encode(body) != data[start:] or list(body.boxes) != sorted(body.boxes):
        raise MalformedSealed("encryption keys in another form than their one")
    return EncryptionKeys(body, data[len(_MAGIC) : start])


_BODIES: Final = msgspec.msgpack.Decoder(_Body)


def _route(population: str, authority_id: str, public_key: bytes, device_id: str) -> BoxRoute:
    names = b"".join(struct.pack(">H", len(name)) + name for name in (population.encode(), authority_id.encode()))
    context = hashlib.sha256(_ROUTE_DOMAIN + names + hashlib.sha256(public_key).digest()).digest()
    return BoxRoute(context=context, sender_id=authority_id, opener_id=device_id)
